"""Which tests `make quick` leaves out: those of slow_tests.txt, a line a test or a file.

    .venv/bin/python -m pytest -q --durations=0 -vv > durations.txt        # on a quiet machine
    .venv/bin/python -m tests.slow_tests durations.txt                     # writes slow_tests.txt anew; whole files stay

A test is slow where all its cases together, with what they set up, take more than SLOW_SECONDS. One that is not in the list is taken for
quick, so a new test belongs to `make quick` until somebody measures. tests/test_rooms.py fails where a line names what is not there.
"""

import re
import sys
from collections import Counter
from pathlib import Path

LIST = Path(__file__).with_name("slow_tests.txt")
SLOW_SECONDS = 0.5


def slow_tests() -> set[str]:
    """`tests/engine/test_a.py::test_b`, or `tests/engine/test_a.py` for all of a file."""
    return set(LIST.read_text().split())


def is_slow(test: str, slow: set[str]) -> bool:
    """test: pytest's name of a case."""
    function = test.partition("[")[0]
    return function in slow or function.partition("::")[0] in slow


def measured(durations: str) -> set[str]:
    """The tests that are slow by what pytest printed with --durations."""
    seconds: Counter[str] = Counter()
    for taken, test in re.findall(r"^([\d.]+)s (?:call|setup|teardown) +(tests/[^\[\n]+)", durations, re.MULTILINE):
        seconds[test.strip()] += float(taken)
    return {test for test, total in seconds.items() if total > SLOW_SECONDS}


if __name__ == "__main__":
    files = {line for line in slow_tests() if "::" not in line}
    tests = {test for test in measured(Path(sys.argv[1]).read_text()) if test.partition("::")[0] not in files}
    LIST.write_text("".join(f"{line}\n" for line in sorted(files | tests)))
