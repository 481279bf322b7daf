"""A joined group of ranks: all come in together and leave together, and of an error one of them tells.

    with joined(device, ..., explain) as (ranks, cleanup):
        cleanup.callback(...)

What is open takes its time to close, and a launcher may not wait. So an error is told first, and what `cleanup` has is closed then.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout

import torch

from engine.ranks import ranks as group
from engine.ranks.launcher import stop_with_launcher
from engine.ranks.ranks import Ranks
from engine.ranks.watch import Watch

Explain = Callable[[BaseException], tuple[int, str] | None]


@contextmanager
def joined(
    device: torch.device,
    timeout_seconds: float,
    patience_seconds: float,
    explain: Explain,
    print_error: Callable[[str], None],
) -> Iterator[tuple[Ranks, ExitStack]]:
    """The ranks of a run, and the stack of what is to be closed before they leave.

    explain      (exit code, words) for an error that is not our own bug
    print_error  shows words, with this rank's number
    All but rank 0 print nothing meanwhile. Where there are several ranks, an error ends in SystemExit, after one of them has told it.
    """
    ranks = group.start(device, timeout_seconds, patience_seconds)
    watch = Watch(
        group.connect_table,
        ranks.rank,
        ranks.size,
        ranks.node_rank,
        timeout_seconds=ranks.timeout_seconds,
        calls=lambda: (ranks.calls, ranks.tensor_calls),
        where=lambda: "the start" if ranks.at_step is None else f"step {ranks.at_step}",
    )
    watch.start()
    stop_with_launcher()
    with ExitStack() as cleanup:
        if not ranks.is_first:
            cleanup.enter_context(redirect_stdout(cleanup.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        try:
            yield ranks, cleanup
            ranks.wait()  # rank 0 has written what people read, and all leave together
        except BaseException as error:
            if ranks.size == 1:
                raise
            raise SystemExit(_reported(error, watch, explain, print_error)) from error
    watch.ended()
    if ranks.size > 1:
        group.stop()


def _reported(error: BaseException, watch: Watch, explain: Explain, print_error: Callable[[str], None]) -> int:
    """Let one of the ranks tell the error; the exit code."""
    if group.of_the_wire(error):
        watch.diagnose(error)
    # The others leave when they hear of it, and then the launcher ends this process; it is to say its words first.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    explained = explain(error)
    code, text = explained or (1, f"{type(error).__name__}: {error}")
    if watch.failed(text):
        if explained is None:
            traceback.print_exception(error, file=sys.stderr)
        else:
            print_error(text)
    return code
