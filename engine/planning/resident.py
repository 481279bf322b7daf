"""Resident memory of this process, and how much of it is libraries: measured, since no arithmetic knows what an import takes.

Interpreter, torch, torchvision, DeepSpeed, faiss, zarr and this engine's own modules are what a process holds before anything of the
run is made. Some of them are imported late (the loader forks its workers before DeepSpeed starts threads), so the figure is a sum:
what was resident when the job began, and what each later import added.

Pages of shared libraries are counted in each process that uses them; ranks on one machine share them, and take less together.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from engine.ranks import process_table


def resident_bytes() -> int:
    """Of this process, as the kernel counts; 0 where it does not tell."""
    try:
        return process_table.resident_bytes()
    except OSError:
        return 0


class Libraries:
    """Bytes of what was imported. Made before anything of the run is."""

    def __init__(self) -> None:
        self.bytes = resident_bytes()

    @contextmanager
    def importing(self) -> Iterator[None]:
        """What becomes resident inside is a library's, too."""
        before = resident_bytes()
        yield
        self.bytes += max(0, resident_bytes() - before)
