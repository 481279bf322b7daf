"""Errors of the machine that do not come as OSErrors: a limit on threads, processes or files, no memory left.

Python says "can't start new thread" in a RuntimeError, torch and C++ have their own words for a lack of memory, and libraries wrap
what they got in errors of their own. A user's mistake is not among them, and a traceback would not help.
"""

import errno

from datasets.shown import cut_text

_NO_THREAD = ("can't start new thread", "resource temporarily unavailable", "thread creation failed")
_NO_MEMORY = (
    *("cannot allocate memory", "can't allocate memory", "not enough memory", "std::bad_alloc", "out of memory"),
    *("unable to mmap", "unable to allocate shared memory"),
)
_NO_FILE = ("too many open files",)


def machine_error(error: BaseException) -> OSError | None:
    """The OSError that an error is, wraps or stands for; None where it is none of the machine's.

    It looks at what an error was raised from, too.
    """
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        if isinstance(cause, OSError):
            return cause
        words = str(cause).lower()
        if _is_no_memory(cause):
            return OSError(
                errno.ENOMEM, f"no memory is left ({first_line(cause)}); free some, or raise the job's limit"
            )
        if isinstance(cause, RuntimeError) and _has(words, _NO_THREAD):
            return OSError(
                errno.EAGAIN,
                f"no thread or process could be started ({first_line(cause)}); raise the limit on processes (ulimit -u, "
                "or the container's pids limit), or set fewer data.workers",
            )
        if isinstance(cause, RuntimeError) and _has(words, _NO_FILE):
            return OSError(
                errno.EMFILE, f"no more files can be opened ({first_line(cause)}); raise the limit on them (ulimit -n)"
            )
        seen.append(cause)
        cause = cause.__cause__
    return None


def is_memory_error(error: BaseException) -> bool:
    """Whether an error says that no memory is left."""
    found = machine_error(error)
    return found is not None and found.errno == errno.ENOMEM


def _is_no_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _has(str(error).lower(), _NO_MEMORY))


def _has(words: str, signs: tuple[str, ...]) -> bool:
    return any(sign in words for sign in signs)


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 200 characters; its kind where it says nothing."""
    return cut_text((str(error).strip().splitlines() or [type(error).__name__])[0], 200)
