"""From a step number to a batch: decode and augment, in this process or in workers ahead of it.

    positions = schedule(step) -> instances -> images = source -> views = augment(images, seed, step, instances)

A step's batch is a pure function of the step. Steps are dealt to the workers in turn and come back in order, so how
many workers there are changes the time, not a bit. Nothing here draws from a global generator.

Workers are forked. The index of a source (gigabytes for 10^8 paths) is then shared, not copied, and a worker starts in
milliseconds, where `spawn` and `forkserver` import torch again and want the index pickled. Two things make a fork
unsafe. Threads of the parent do not exist in the child: one that opens a parallel region waits for them for ever, so a
worker runs torch with one thread. And a lock that another thread holds at that moment stays locked: call `batches`
before opening stores and starting threads. It forks at once, not at the first batch. (With several ranks the process group has
threads by then, and so has the watch over lost ranks; a worker calls neither, and no lock of theirs.)

Ctrl-C in a terminal and the end of a batch job send their signal to every process, yet the parent still wants batches
while it ends its step and writes a checkpoint. So workers are deaf to SIGINT, and to SIGTERM from anyone but the
parent. They end when the iterator is closed or the parent exits, and within seconds of the parent's being killed.

Left out: sharing one step among workers. The first batch takes one worker as long as a whole batch takes, and up to
workers x batches_ahead batches lie in shared memory (/dev/shm, which containers keep small unless told otherwise).
"""

import os
import signal
import threading
import traceback
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datasets.batch import Batch, UnreadableImage

_HELD_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Source(Protocol):
    """Images by instance number."""

    def image(self, instance: int) -> np.ndarray:
        """uint8 [H, W] or [H, W, 3]; raises UnreadableImage."""


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

    def views(self, images: list[np.ndarray], seed: int, step: int, ids_B: np.ndarray) -> list[torch.Tensor]:
        """V tensors, float32 [B, channels, height, width] in [0, 1]; also for B = 0."""


@dataclass(frozen=True)
class StepDataset(Dataset):
    """`dataset[step]` is the batch of a step, or the part of it that rank `rank` of `ranks` works for.

    rank, ranks     of the L lanes of a batch, a rank has those numbered l with l mod ranks = rank, in their order
    on_unreadable   "skip": the place of an image that cannot be decoded stays empty, and the batch names it;
                    "stop": ValueError
    """

    source: Source
    schedule: Schedule
    augment: Augmentation
    seed: int
    on_unreadable: Literal["skip", "stop"] = "stop"
    rank: int = 0
    ranks: int = 1

    def __getitem__(self, step: int) -> Batch:
        by_lane = self.schedule.positions(step).reshape(self.schedule.lanes, -1)
        positions_G = by_lane[self.rank :: self.ranks].reshape(-1)
        ids_G = np.full_like(positions_G, -1)
        visited_G = positions_G >= 0
        ids_G[visited_G] = self.schedule.instances(positions_G[visited_G])
        images: list[np.ndarray] = []
        unreadable: list[str] = []
        for place in np.flatnonzero(visited_G):
            try:
                images.append(self.source.image(int(ids_G[place])))
            except UnreadableImage as error:
                if self.on_unreadable == "stop":
                    raise ValueError(
                        f'cannot read {error}; on_unreadable "skip" goes on without such images'
                    ) from error
                unreadable.append(error.name)
                positions_G[place] = ids_G[place] = -1
        filled_G = ids_G >= 0
        views = self.augment.views(images, self.seed, step, ids_G[filled_G])
        return Batch(step, [_at_places(view, filled_G) for view in views], positions_G, ids_G, filled_G, unreadable)


def batches(
    dataset: Dataset, first_step: int, last_step: int, workers: int, pin: bool, batches_ahead: int = 2
) -> Generator[Batch, None, None]:
    """The batches of steps first_step, ..., last_step - 1, in order; close the iterator to end the workers.

    workers         processes, forked before this function returns; 0 = decode in this process when a batch is asked for
    pin             put the views into page-locked memory, for copies to the device that do not wait
    batches_ahead   batches that each worker prepares before the first of them is taken
    Raises what `dataset[step]` raises: a ValueError with its own short message (the worker's traceback is attached as a
    note), anything else as torch's loader wraps it.
    """
    loader: DataLoader = DataLoader(
        _Parcels(dataset),
        batch_size=None,
        sampler=range(first_step, last_step),
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin,
        worker_init_fn=_start_worker,
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=batches_ahead if workers else None,
        # For the seed that the loader draws for its workers: from the global generator it would move that one.
        generator=torch.Generator(),
    )
    # A worker inherits the block and keeps it; so there is no moment at which it would still listen.
    held_before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_SIGNALS)
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of every fork beside threads; why this one is safe is said at the top.
            warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
            parcels = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held_before)
    return _unpacked(parcels, workers)


def _unpacked(parcels: Any, workers: int) -> Generator[Batch, None, None]:
    try:
        for parcel in parcels:
            if parcel.error is not None:
                raise parcel.error
            yield parcel.batch
    finally:
        if workers:
            # Not left to the garbage collector: while an exception travels, its traceback keeps the loader alive.
            parcels._shutdown_workers()


@dataclass
class _Parcel:
    """What a worker sends: a batch, or the ValueError in its place (torch would bury its message in a traceback)."""

    batch: Batch | None = None
    error: ValueError | None = None

    def pin_memory(self) -> "_Parcel":
        if self.batch is not None:
            self.batch.views = [view.pin_memory() for view in self.batch.views]
        return self


class _Parcels(Dataset):
    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, step: int) -> _Parcel:
        try:
            return _Parcel(batch=self.dataset[step])
        except ValueError as error:
            error.add_note(traceback.format_exc())
            return _Parcel(error=error)


def _unchanged(parcel: Any) -> Any:
    return parcel


def _start_worker(number: int) -> None:
    # More than one OpenMP thread in a forked process can hang (see the top).
    torch.set_num_threads(1)
    threading.Thread(target=_obey_parent, name="obey-parent", daemon=True).start()


def _obey_parent() -> None:
    # Only a waiting thread is told who sent a signal; a handler is not.
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _at_places(view_BCHW: torch.Tensor, filled_G: np.ndarray) -> torch.Tensor:
    """Spread the images over the filled places, zeros elsewhere: [B, C, H, W] -> [G, C, H, W]."""
    if filled_G.all():
        return view_BCHW
    view_GCHW = torch.zeros(len(filled_G), *view_BCHW.shape[1:])
    view_GCHW[torch.from_numpy(filled_G)] = view_BCHW
    return view_GCHW
