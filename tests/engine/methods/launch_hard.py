"""launch.py with the two methods of the tests in the registry: `python tests/engine/methods/launch_hard.py --config ...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import launch
from configs.methods import REGISTRY
from tests.engine.methods import momentum_queue, whole_batch

HARD = {
    "momentum_queue": (momentum_queue.Settings, momentum_queue.__name__),
    "whole_batch": (whole_batch.Settings, whole_batch.__name__),
}

if __name__ == "__main__":
    REGISTRY |= HARD
    sys.exit(launch.main(sys.argv[1:]))
