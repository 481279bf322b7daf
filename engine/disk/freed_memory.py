"""Memory that was freed goes back to the system.

glibc keeps what is freed in pieces of less than 32 MiB, to use it again. After a table that is written whole seldom, each time larger than
before, that memory would stay resident until the next one: about 50 bytes a step for the log, 48 bytes a stored block for the map.
"""

import ctypes


def give_back_freed_memory() -> None:
    """Takes some milliseconds. Does nothing where the C library has no malloc_trim."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
