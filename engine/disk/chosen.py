"""The checkpoint that a job looks at while, perhaps, a run goes on in the same directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.disk import manifest
from engine.disk.files import checkpoint_files
from engine.disk.saved_checkpoint import SavedCheckpoint
from engine.rows.damaged import Damaged


def chosen_checkpoint(output: Path, step: int | None) -> tuple[SavedCheckpoint, list[str]]:
    """The newest whole checkpoint of the run in `output`, or that of a step; and what was wrong with others.

    Raises ValueError where there is none.
    """
    files = checkpoint_files(output)
    checkpoints, complaints = manifest.recover(files, step)
    if not checkpoints:
        there = ", ".join(str(number) for number in sorted(manifest.steps(files))) or "none"
        wanted = "" if step is None else f" of step {step} (there are: {there})"
        raise ValueError(
            "\n".join(
                [*complaints[:1], f"there is no whole checkpoint{wanted} in {files.root}; train one with job=pretrain"]
            )
        )
    return checkpoints[-1], complaints


@contextmanager
def while_it_is_there(checkpoint: SavedCheckpoint) -> Iterator[None]:
    """Tell a checkpoint that a running job replaced from a damaged one."""
    try:
        yield
    except Damaged:
        if checkpoint.number in manifest.numbers(checkpoint.files):
            raise
        raise ValueError(
            f"the run that goes on meanwhile has replaced checkpoint {checkpoint.name}; try again"
        ) from None
