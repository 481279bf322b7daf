"""What is printed of an error, and the exit code that goes with it. Nothing heavy is imported here: torch may not be there yet."""

import errno
import sys

from datasets.shown import shown_lines
from engine.ranks.environment import number_or_zero
from engine.ranks.machine import machine_error
from engine.rows.damaged import Damaged


def explanation(error: BaseException, job: str) -> tuple[int, str] | None:
    """(exit code, what to print) for an error that is not our own bug; None for one that is."""
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):  # which nobody but us can make
        return 2, f"error: {error}"
    if isinstance(error, Damaged):
        way = "; job=store store.verb=verify tells what else is, store.verb=repair goes back"
        return 1, f"error: {error}" + ("" if "is a link" in str(error) else way)
    if (limit := machine_error(error)) is not None:
        whole = "; checkpoints that were written before are whole" if job == "pretrain" else ""
        if job == "pretrain" and limit.errno in (errno.ENOSPC, errno.EDQUOT):
            whole += ". Make room; job=store store.verb=scrub removes what a killed run left"
        return 1, f"error: {limit}{whole}"
    if isinstance(error, KeyboardInterrupt):
        if job in ("index", "linear"):
            return 130, "interrupted; the same command goes on where it was"
        return 130, "interrupted; nothing was lost but the steps since the last checkpoint"
    return None


def print_error(text: str) -> None:
    """On stderr, with the rank where it is not the one that speaks for all."""
    rank = number_or_zero("RANK")
    print(shown_lines(text if rank == 0 else f"rank {rank}: {text}"), file=sys.stderr, flush=True)
