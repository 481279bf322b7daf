"""launch.py under a real launcher, held after its seventh step until a signal has reached one of its ranks.

    deepspeed --module tests.held_start --config x.json

However late the test sends the signal, and however long the launcher takes to hand it on, the run has seven steps then. All ranks are
held where they ask each other for signals, so that none of them waits for another; the first that got one lets all of them go, because a
launcher tells one rank after the other, and waits for each. HELD_IN names a directory: the file `held` in it tells that the run is held,
`told` that a signal has come.
"""

import os
import sys
import time
from pathlib import Path

import launch
from engine.training.stop_signal import StopSignal

_agreed = StopSignal.agreed


def _held(stop, ranks):
    directory = Path(os.environ["HELD_IN"])
    while ranks.at_step == 7 and not (directory / "told").exists():
        (directory / ("told" if stop.is_asked else "held")).touch()
        time.sleep(0.01)
    return _agreed(stop, ranks)


if __name__ == "__main__":
    StopSignal.agreed = _held
    sys.exit(launch.main(sys.argv[1:]))
