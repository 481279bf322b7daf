"""One start of launch.py in a process of its own, forked from the pool of tests/on_ranks.py: environment, limits and faults are its own.

    start = pooled_start(["--config", "x.json"], env={"TMPDIR": "/nowhere"}, limits={"RLIMIT_NOFILE": 20})
    start.code, start.out, start.err

It takes a tenth of a second and what the start itself takes, where a fresh interpreter takes seconds to import torch.
"""

import os
import resource
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.on_ranks import server_context


@dataclass(frozen=True)
class Start:
    """code: the exit code, negative where a signal ended it, None where it had to be killed."""

    code: int | None
    out: str
    err: str

    @property
    def message(self) -> str:
        """What begins with "error: " on stderr."""
        return self.err[self.err.index("error: ") :].strip() if "error: " in self.err else ""


def pooled_start(
    arguments: list[str],
    directory: Path,
    *,
    env: dict[str, str] | None = None,
    limits: dict[str, int] | None = None,
    fault: Callable[[], None] | None = None,
    encoding: str = "utf-8",
    timeout_seconds: float = 100.0,
) -> Start:
    """Start launch.py with these arguments, in `directory`.

    env        variables that are set; one that is None is taken out
    limits     names of resource.setrlimit -> value
    fault      called in the process before the start, a function at the top of a module
    encoding   of the process's streams
    """
    words = [directory / name for name in ("stdout", "stderr")]
    process = server_context().Process(
        target=_run, args=(arguments, directory, env or {}, limits or {}, fault, encoding, words), daemon=False
    )
    process.start()
    process.join(timeout_seconds)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    out, err = (path.read_text(encoding="utf-8", errors="backslashreplace") if path.exists() else "" for path in words)
    return Start(code, out, err)


def _run(
    arguments: list[str],
    directory: Path,
    env: dict[str, str | None],
    limits: dict[str, int],
    fault: Callable[[], None] | None,
    encoding: str,
    words: list[Path],
) -> None:
    for number, path in enumerate(words, start=1):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout = open(1, "w", encoding=encoding, errors="strict", closefd=False)  # noqa: SIM115  the process's own
    sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(directory)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    for name, value in {"OMP_NUM_THREADS": "1", **env}.items():
        os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
    import launch

    code = 1
    try:
        if fault:
            fault()
        for name, value in limits.items():
            number = getattr(resource, name)
            resource.setrlimit(number, (value, resource.getrlimit(number)[1]))
        code = launch.main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
