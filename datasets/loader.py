"""From a step number to a batch: decode and augment, in this process or in workers ahead of it.

    positions = schedule(step) -> instances -> images = source -> views = augment(images, seed, step, instances)

A step's batch is a pure function of the step. Steps are dealt to the workers in turn and come back in order, the first ones in parts
(workers.py), so how many workers there are changes the time, not a bit. Nothing here draws from a global generator.

Images are handed to the augmentation one at a time, as it asks for them: of photographs no more than one is held decoded. (What
is made for small grey images looks at a whole batch of them at once.)

Workers are processes (workers.py), and batches come from them in memory of their own (parcel.py): no limit of /dev/shm, no length of
TMPDIR and no thread stands between. Up to `batches_held` batches lie in memory, however slow the steps are. Waiting for a batch has an
end: `patience_seconds`, the death of the worker, or being asked to stop.

Left out: a limit without workers, where the step reads the images itself.
"""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch

from datasets.batch import Batch, Unreadable, UnreadableImage
from datasets.parts import places_of_part
from datasets.workers import Steps, Workers

_JOIN_SECONDS = 5.0  # for the thread that pins; it looks every 0.2 s whether it is to end


class Source(Protocol):
    """Images by instance number."""

    def image(self, instance: int) -> np.ndarray:
        """uint8 [H, W] or [H, W, 3]; raises UnreadableImage."""

    def file_bytes(self, instance: int) -> int:
        """Size of the image's own file; 0 where images have none. Nothing is read for it."""


class Schedule(Protocol):
    """Which instances a step visits."""

    @property
    def lanes(self) -> int:
        """L; a batch has as many places for each, the first for lane 0."""

    def positions(self, step: int) -> np.ndarray:
        """int64 [G], -1 where a place is empty."""

    def instances(self, positions_B: np.ndarray) -> np.ndarray:
        """int64 [B] -> int64 [B]; no position is -1."""


class Augmentation(Protocol):
    """Random views of images; `rows_grad_V` says of which the gradient may reach the rows of the classifier."""

    @property
    def rows_grad_V(self) -> tuple[bool, ...]: ...

    def views(self, images: Iterable[np.ndarray | None], seed: int, step: int, ids_B: np.ndarray) -> list[torch.Tensor]:
        """V tensors, uint8 [B, channels, height, width], or features float32 [B, D]; also for B = 0.

        images   B of them, asked for in order, all of them; None: it cannot be had, and its views are black. The others do not change.

        The views of an image depend on it and its id alone, to the bit, not on which others are there.
        """


@dataclass(frozen=True)
class StepDataset:
    """`dataset[step]` is the batch of a step, or the part of it that rank `rank` of `ranks` works for.

    The place of an image that cannot be decoded stays empty, and the batch says which it was and why; whoever runs the loop decides
    what follows from it. ImagesUnavailable is not the image's fault, and is raised.

    rank, ranks     of the L lanes of a batch, a rank has those numbered l with l mod ranks = rank, in their order
    """

    source: Source
    schedule: Schedule
    augment: Augmentation
    seed: int
    rank: int = 0
    ranks: int = 1

    def __getitem__(self, step: int) -> Batch:
        return self.part(step, 0, 1)

    def part(self, step: int, part: int, parts: int) -> Batch:
        """Part `part` of `parts` of the batch of a step (datasets/parts.py): some of its places, one after the other, maybe none."""
        by_lane = self.schedule.positions(step).reshape(self.schedule.lanes, -1)
        positions_G = by_lane[self.rank :: self.ranks].reshape(-1)
        positions_G = positions_G[places_of_part(len(positions_G), part, parts)]
        visited_G = positions_G >= 0
        ids_G = np.full_like(positions_G, -1)
        ids_G[visited_G] = self.schedule.instances(positions_G[visited_G])
        batch = Batch(step, [], positions_G, ids_G, visited_G)
        views = self.augment.views(self._images(batch), self.seed, step, ids_G[visited_G])
        batch.views = [_at_places(view, visited_G) for view in views]
        for image in batch.unreadable:
            positions_G[image.place] = ids_G[image.place] = -1
        batch.filled_G = ids_G >= 0
        return batch

    def _images(self, batch: Batch) -> Iterator[np.ndarray | None]:
        """The image of each place that has one, None where it cannot be decoded; the batch notes those, and what was read."""
        for place in np.flatnonzero(batch.filled_G).tolist():
            instance = int(batch.ids_G[place])
            try:
                # Not kept here while the next one is decoded.
                yield self.source.image(instance)
            except UnreadableImage as error:
                batch.unreadable.append(Unreadable(place, instance, error.name, error.reason))
                yield None
            else:
                batch.read_bytes += self.source.file_bytes(instance)


def never() -> bool:
    return False


def batches_held(workers: int, pin: bool, batches_ahead: int = 2) -> int:
    """The most batches in memory at a time: the one that a step works on, those that are ready or made, and those pinned ahead."""
    # Ahead are one that is pinned and one that is being copied.
    return 1 + batches_ahead * workers + (2 if pin and workers else 0)


def batches(
    dataset: Steps,
    first_step: int,
    last_step: int,
    workers: int,
    pin: bool,
    batches_ahead: int = 2,
    patience_seconds: float = 600.0,
    asked_to_stop: Callable[[], bool] = never,
    stop_grace_seconds: float = 5.0,
) -> Generator[Batch, None, None]:
    """The batches of steps first_step, ..., last_step - 1, in order; close the iterator to end the workers.

    workers         processes, forked before this function returns; 0 = decode in this process when a batch is asked for
    pin             put the views into page-locked memory, for copies to the device that do not wait; with workers one batch ahead
    batches_ahead   batches that each worker prepares before the first of them is taken
    patience_seconds, asked_to_stop, stop_grace_seconds   with workers: for how long a batch is waited for, and for how long once the run
                    is asked to stop
    Raises what `dataset.part` raises, with the worker's traceback as a note, or RuntimeError with its text where it cannot be sent;
    and what datasets.workers.Workers raises: OSError in one line, or NoBatch.
    """
    steps = range(first_step, last_step)
    if not workers:
        return _made_here(dataset, steps, pin)
    pool = Workers(dataset, steps, workers, batches_ahead)

    def take(step: int) -> Batch:
        return pool.take(step, patience_seconds, asked_to_stop, stop_grace_seconds)

    stream = _until_closed(pool, _pinned_ahead(pool, take, steps) if pin else map(take, steps))
    next(stream)  # into its `try`, so that to close it ends the workers even if no batch was asked for
    return cast(Generator[Batch, None, None], stream)


def _made_here(dataset: Steps, steps: range, pin: bool) -> Generator[Batch, None, None]:
    for step in steps:
        started = time.thread_time()
        batch = dataset.part(step, 0, 1)
        batch.cpu_seconds = time.thread_time() - started
        yield _pinned(batch) if pin else batch
        del batch  # it would be held while the next one is made


def _until_closed(pool: Workers, stream: Iterator[Batch]) -> Generator[Batch | None, None, None]:
    """None, and then the stream."""
    try:
        yield None
        yield from stream
    finally:
        # Not left to the garbage collector: while an exception travels, its traceback keeps this alive.
        if isinstance(stream, Generator):
            stream.close()
        pool.end()


def _pinned_ahead(pool: Workers, take: Callable[[int], Batch], steps: range) -> Generator[Batch, None, None]:
    """Each batch is taken and copied into page-locked memory while the step before it runs, on one thread."""
    ready: queue.SimpleQueue[Batch | BaseException] = queue.SimpleQueue()
    wanted = threading.Semaphore(1)
    closed = threading.Event()
    # A thread begins on the first device, where it would make a context of its own.
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def work() -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)
            for step in steps:
                wanted.acquire()
                if closed.is_set():
                    return
                ready.put(_pinned(take(step)))
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=work, name="pin", daemon=True)
    try:
        try:
            thread.start()
        except RuntimeError as error:
            raise OSError(f"the thread that pins batches cannot be started ({error}); raise ulimit -u") from error
        for _ in steps:
            result = ready.get()
            if isinstance(result, BaseException):
                raise result
            wanted.release()
            yield result
            del result  # it would be held while the next one is waited for
    finally:
        closed.set()
        pool.abandon()
        wanted.release()
        if thread.ident is not None:
            thread.join(_JOIN_SECONDS)


def _pinned(batch: Batch) -> Batch:
    batch.views = [view.pin_memory() for view in batch.views]
    return batch


def _at_places(view_BCHW: torch.Tensor, filled_G: np.ndarray) -> torch.Tensor:
    """Spread the images over the filled places, zeros elsewhere: [B, ...] -> [G, ...], of the same type."""
    if filled_G.all():
        return view_BCHW
    view_GCHW = view_BCHW.new_zeros(len(filled_G), *view_BCHW.shape[1:])
    view_GCHW[torch.from_numpy(filled_G)] = view_BCHW
    return view_GCHW
