"""The ranks of a run and what they tell each other; the only module that imports torch.distributed.

Launchers (deepspeed, torchrun, srun) tell a process its rank through environment variables. Under plain python there is one rank,
which needs no port: its group lives in a store in memory, so that runs side by side cannot clash. With one rank every
call below returns what it was given and nothing is sent.

There are two ways. Tensors travel over the backend of their device (NCCL for GPUs, gloo for CPUs), and a collective that is not
complete after `timeout_seconds` raises. Words (`share`, `from_first`, `wait`) are pickled, travel over gloo, and have `patience_seconds`,
because one rank may decode or write while the others wait; a rank that is gone is noticed earlier (engine/ranks/watch.py).

What is sent is counted, in bytes that leave one rank in the usual ring algorithms: (R - 1) times its part for an all-gather,
(R - 1)/R of the whole for a reduce-scatter, twice that for an all-reduce. gloo sends a reduce-scatter as an all-reduce; headers and
words are left out, and what libraries send by themselves: DeepSpeed for the trunk and for rows that it holds, SyncBatchNorm on GPUs.
"""

import os
from collections import Counter
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from engine.ranks.environment import check_environment, environment_number, is_set

_PATIENCE_SECONDS = 7200.0
# By the names of torch 2.14; before that there were others.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_scatter_sum = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class Channel:
    """Words between the same thread of all ranks, in the order in which it says them; Ranks.new_channel makes one for a thread.

    patience_seconds   how long a rank waits for the words of another
    calls              begun so far on this channel; on the main thread's for whoever looks at who is behind
    """

    def __init__(self, rank: int = 0, size: int = 1, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self.rank, self.size, self.patience_seconds = rank, size, patience_seconds
        self.calls = 0
        self._words: Any = None
        if size > 1:
            self._words = dist.new_group(backend="gloo", timeout=timedelta(seconds=patience_seconds))

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which speaks and commits."""
        return self.rank == 0

    def to_first(self, word: Any) -> list[Any]:
        """At rank 0 what every rank says, in the order of ranks; an empty list at the others."""
        if self.size == 1:
            return [word]
        self.calls += 1
        words: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(word, words, dst=0, group=self._words)
        return words or []

    def from_first(self, word: Any) -> Any:
        """What rank 0 says; the argument of the others is not looked at."""
        if self.size == 1:
            return word
        self.calls += 1
        words = [word]
        dist.broadcast_object_list(words, src=0, group=self._words)
        return words[0]


class Ranks(Channel):
    """This rank among the R of a run; `start` makes it.

    rank, size       r and R
    node_rank        this rank among those of its machine, as the launcher says
    node_size        how many these are
    timeout_seconds  how long a collective of tensors may take
    tensor_calls     those of the calls that were of tensors
    sent_bytes       by what was sent, since the start; whoever reports it may look at any time
    at_step          where the run is, for whoever has to say it; None: before its first step
    """

    def __init__(
        self,
        rank: int,
        size: int,
        device: torch.device,
        timeout_seconds: float,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        super().__init__(rank, size, patience_seconds)
        self.device, self.timeout_seconds = device, timeout_seconds
        self.node_rank = environment_number("LOCAL_RANK", 0)
        # deepspeed and torchrun have each a name for it
        self.node_size = environment_number("LOCAL_SIZE", environment_number("LOCAL_WORLD_SIZE", size))
        self.tensor_calls = 0
        self.at_step: int | None = None
        self.sent_bytes: Counter[str] = Counter()

    # Tensors

    def gather(self, part: torch.Tensor, what: str) -> torch.Tensor:
        """[B, ...] of every rank, one after the other: [R B, ...]. Every rank gives the same shape."""
        if self.size == 1:
            return part
        self._count(what, (self.size - 1) * part.nbytes)
        whole = part.new_empty(self.size * len(part), *part.shape[1:])
        _gather(whole, part.contiguous())
        return whole

    def scatter_sum(self, whole: torch.Tensor, what: str) -> torch.Tensor:
        """[R B, ...] -> the sum over ranks of this rank's part, [B, ...]: what `gather` is the transpose of."""
        if self.size == 1:
            return whole
        self._count(what, (self.size - 1) * whole.nbytes // self.size)
        part = whole.new_empty(len(whole) // self.size, *whole.shape[1:])
        _scatter_sum(part, whole.contiguous())
        return part

    def sum(self, values: torch.Tensor, what: str) -> torch.Tensor:
        """The sum over ranks, in place; the same bits on every rank."""
        return self._reduce(values, dist.ReduceOp.SUM, what)

    def max(self, values: torch.Tensor, what: str) -> torch.Tensor:
        """The largest over ranks, in place."""
        return self._reduce(values, dist.ReduceOp.MAX, what)

    # Words

    def share(self, word: Any) -> list[Any]:
        """What every rank says, in the order of ranks."""
        if self.size == 1:
            return [word]
        self.calls += 1
        words: list[Any] = [None] * self.size
        dist.all_gather_object(words, word, group=self._words)
        return words

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.size > 1:
            self.calls += 1
            dist.barrier(group=self._words)

    def new_channel(self) -> Channel:
        """A channel of words for another thread: every rank asks for one at the same moment of its main thread."""
        return Channel(self.rank, self.size, self.patience_seconds)

    def _reduce(self, values: torch.Tensor, operation: Any, what: str) -> torch.Tensor:
        if self.size > 1:
            self._count(what, 2 * (self.size - 1) * values.nbytes // self.size)
            dist.all_reduce(values, op=operation)
        return values

    def _count(self, what: str, sent_bytes: int) -> None:
        self.sent_bytes[what] += sent_bytes
        self.calls += 1
        self.tensor_calls += 1


def start(device: torch.device, timeout_seconds: float = 120.0, patience_seconds: float = _PATIENCE_SECONDS) -> Ranks:
    """Join the run's ranks, as the launcher's environment describes them.

    Raises ValueError where that is not complete or no number, or where the others do not come within the time.
    """
    check_environment()
    size = environment_number("WORLD_SIZE", 1)
    if size == 1:
        # DeepSpeed asks for these whatever the backend.
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        os.environ.update({name: value for name, value in alone.items() if not is_set(name)})
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not is_set(name)]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set; start with deepspeed or torchrun, "
            "or set what they set (engine/RANKS.md)"
        )
    backend = "nccl" if device.type == "cuda" else "gloo"
    # NCCL ends a process without a word when its time is over; engine/ranks/watch.py comes before that.
    timeout = timedelta(seconds=timeout_seconds + 60 * (device.type == "cuda"))
    if size == 1:
        if not dist.is_initialized():
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        return Ranks(0, 1, device, timeout_seconds, patience_seconds)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if device.index >= count:
            raise ValueError(
                f"local rank {device.index} has no GPU: torch sees {count}, numbered from 0; "
                "launch as many ranks as there are GPUs, and let each of them see all"
            )
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(backend, timeout=timeout)
        return Ranks(dist.get_rank(), dist.get_world_size(), device, timeout_seconds, patience_seconds)
    except RuntimeError as error:
        raise ValueError(
            f"the ranks cannot reach each other ({str(error).splitlines()[0]});\n"
            "see that MASTER_ADDR is the first node's, and set GLOO_SOCKET_IFNAME (and NCCL_SOCKET_IFNAME for GPUs) to the network "
            "interface that the nodes share"
        ) from None


def connect_table() -> Any:
    """A connection of its own to the table of short texts that the launcher or rank 0 keeps, for engine/ranks/watch.py.

    It has set(key, text), get(key) -> bytes and check([key]) -> bool, and raises where the table is gone.
    """
    address, port = os.environ["MASTER_ADDR"], environment_number("MASTER_PORT", 0)
    store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10))
    # torchrun's table outlives an attempt of its own restarts.
    return dist.PrefixStore(f"watch/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def of_the_wire(error: BaseException) -> bool:
    """Whether an error is that of a collective: another rank is gone, or did not come in time. Backends say so in words alone."""
    words = ("gloo", "nccl", "tcpstore", "timed out", "connection closed", "connection reset", "connection refused")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def stop() -> None:
    """Leave the run's ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()
