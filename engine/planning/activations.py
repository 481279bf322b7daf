"""What a network makes on the way, counted on tensors that have a shape and no memory.

    training     one micro-batch forward and backward: what is saved for the gradient, and the largest temporary beside it
    evaluation   one batch forward, without gradients

The network is made anew on torch's meta device and runs as it would: a mode looks at every operator's result, adds up the storages that
are new, and takes them off when they go. So views, tensors that are written in place and what autograd keeps are counted as they are. The
gradients of weights are left out, as they have a line of their own. It takes 0.1 s for a small network and 0.3 to 0.9 s for a ResNet.
Under autocast, which the meta device does not know, the tensors are torch's fake ones; that takes three times as long.

Equal to a count over real tensors on a CPU (tests/engine/planning); ResNet-50 within 0.3 %, because oneDNN chooses other layouts. Left
out: scratch memory inside an operator (oneDNN's on a CPU, cuDNN's on a GPU), what an allocator keeps of what was freed, and with several
ranks on a GPU what torch's SyncBatchNorm makes beyond the plain layer.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from engine.planning.components import SMALL_BYTES
from engine.ranks.ranks import Ranks
from engine.trunk.batch_norm import synchronised


class StorageCount(TorchDispatchMode):
    """Counts the storages that operators make while it is on. Use it as a context manager, around real steps too.

    has_data   False: tensors have a shape and no memory, and no number can be read from one
    live   bytes that are there now      events   (storage's number, its bytes, below 0 where it went), in order
    """

    def __init__(self, has_data: bool = True) -> None:
        super().__init__()
        self._has_data = has_data
        self.live = 0
        self.events: list[tuple[int, int]] = []
        self._numbers: dict[int, tuple[int, int]] = {}  # of a storage that is there: number, bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and not self._has_data:
            return 2  # the count of a batch normalisation, which only has to be more than one
        result = func(*args, **(kwargs or {}))
        made = [
            one for one in (result if isinstance(result, tuple | list) else (result,)) if isinstance(one, torch.Tensor)
        ]
        for one in made:
            storage = one.untyped_storage()
            # Of a view, or of what was written in place, the storage was there.
            if storage._cdata not in self._numbers and storage._cdata not in _storages((args, kwargs)):
                self._see(storage)
        return result

    def number_of(self, tensor: torch.Tensor) -> int | None:
        """By which `events` know the tensor's storage; None where it was not made here."""
        known = self._numbers.get(tensor.untyped_storage()._cdata)
        return known[0] if known else None

    def peak(self, left_out: Iterable[int | None] = (), sizes: Callable[[int], bool] = lambda _: True) -> int:
        """The most bytes that were there together, without the storages of these numbers. sizes: whether one of these bytes counts."""
        without = set(left_out)
        live = most = 0
        for number, count in self.events:
            if number not in without and sizes(abs(count)):
                live += count
                most = max(most, live)
        return most

    def peaks(self, left_out: Iterable[int | None] = ()) -> "Peaks":
        """The same, and of small and large storages apart."""
        without = set(left_out)
        small = self.peak(without, lambda count: count < SMALL_BYTES)
        return Peaks(self.peak(without), small, self.peak(without, lambda count: count >= SMALL_BYTES))

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        self._numbers[key] = len(self.events), storage.nbytes()
        self.events.append(self._numbers[key])
        self.live += storage.nbytes()
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        number, count = self._numbers.pop(key)
        self.live -= count
        self.events.append((number, -count))


class Peaks(NamedTuple):
    """Bytes: the most at a time, of all storages, of those below SMALL_BYTES, and of the others."""

    all: int
    small: int
    large: int


def _storages(value: Any) -> Iterator[int]:
    """Of all tensors in nested arguments."""
    if isinstance(value, torch.Tensor):
        yield value.untyped_storage()._cdata
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _storages(one)
    elif isinstance(value, dict):
        yield from _storages(list(value.values()))


@dataclass
class Activations:
    """Counts, each made once and kept.

    make        makes the network, as parts.network_of does
    ranks       R, which share batch statistics
    on_gpu      where the run will compute
    autocast    the type that DeepSpeed's torch_autocast computes in; None without it
    """

    make: Callable[[], nn.Module]
    ranks: int = 1
    on_gpu: bool = False
    autocast: torch.dtype | None = None
    _counts: dict[tuple[int, ...], Peaks] = field(default_factory=dict)

    def training(self, places: int, channels: int, sides: Sequence[int]) -> Peaks:
        """Bytes of a micro-batch of `places` images in views of these sides, beyond gradients of weights."""
        return self._counted((places, channels, *sides), lambda count: self._train(count, places, channels, sides))

    def evaluation(self, images: int, channels: int, side: int) -> Peaks:
        """Bytes of a batch without gradients, the images included."""
        return self._counted((-1, images, channels, side), lambda count: self._look(count, images, channels, side))

    def _counted(self, key: tuple[int, ...], run: Callable[[StorageCount], Peaks]) -> Peaks:
        if key not in self._counts:
            self._counts[key] = run(StorageCount(has_data=False))
        return self._counts[key]

    def _train(self, count: StorageCount, places: int, channels: int, sides: Sequence[int]) -> Peaks:
        with without_memory(self.autocast is not None):
            network = self.make()
            if self.ranks > 1 and not self.on_gpu:
                network = synchronised(network, cast(Ranks, _Alike(self.ranks)))
            with count:
                with self._autocast():
                    z_XD = network([_pictures(places, channels, side) for side in sides])
                z_XD.backward(torch.empty_like(z_XD))
                gradients = [count.number_of(one.grad) for one in network.parameters() if one.grad is not None]
        return count.peaks(gradients)

    def _look(self, count: StorageCount, images: int, channels: int, side: int) -> Peaks:
        with without_memory(self.autocast is not None), torch.no_grad():
            network = self.make().eval()
            with count:
                network([_pictures(images, channels, side)])
        return count.peaks()

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        with torch.autocast("cpu", dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            yield


def _pictures(count: int, channels: int, side: int) -> torch.Tensor:
    return torch.zeros(count, channels, side, side, dtype=torch.uint8)


@contextmanager
def without_memory(needs_devices: bool) -> Iterator[None]:
    """Tensors that are made inside have a shape and no memory. needs_devices: they are to seem to be on the CPU."""
    with ExitStack() as stack:
        if needs_devices:
            from torch._subclasses.fake_tensor import FakeTensorMode  # which takes its time

            stack.enter_context(FakeTensorMode())
        else:
            stack.enter_context(torch.device("meta"))
        yield


class _Alike:
    """Stands for R ranks with batches like this one's, for engine/trunk/batch_norm.py."""

    def __init__(self, size: int) -> None:
        self.size, self.rank, self.device = size, 0, torch.device("cpu")

    def gather(self, part: torch.Tensor, what: str) -> torch.Tensor:
        return part.expand(self.size, *part.shape[1:])

    def sum(self, part: torch.Tensor, what: str) -> torch.Tensor:
        return part
