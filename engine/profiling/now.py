"""What a run does at this moment, in 32 bytes of a file that another process reads: its stage, its step, and what its device holds.

The run writes them whenever a stage begins or ends, which costs less than a microsecond. The reader may look at any time, also after
the run was killed: a file that is mapped into memory keeps what was written.
"""

import mmap
import struct
from pathlib import Path
from typing import NamedTuple

START, END = "start", "end"
STAGES = (
    *(
        START,
        "between steps",
        "data",
        "slide",
        "keys",
        "trunk_forward",
        "admit",
        "softmax",
        "trunk_backward",
        "update",
        "trunk_update",
        "online_probe",
    ),
    *("checkpoint", "evaluation", "label_free", END),
)
_FORM = struct.Struct("<4q")


class Moment(NamedTuple):
    """
    stage      one of STAGES
    step       steps that were begun
    allocated, reserved   bytes of a GPU's allocator; 0 on a CPU
    """

    stage: str
    step: int
    allocated: int
    reserved: int


class Now:
    """
    path   of the file; is_new: make it, else read one that is there
    """

    def __init__(self, path: Path, is_new: bool) -> None:
        with open(path, "w+b" if is_new else "r+b") as file:
            if is_new:
                file.write(bytes(_FORM.size))
                file.flush()
            self._map = mmap.mmap(file.fileno(), _FORM.size)

    def write(self, stage: str, step: int, allocated: int = 0, reserved: int = 0) -> None:
        _FORM.pack_into(self._map, 0, STAGES.index(stage), step, allocated, reserved)

    def read(self) -> Moment:
        stage, *numbers = _FORM.unpack_from(self._map, 0)
        return Moment(STAGES[stage], *numbers)

    def close(self) -> None:
        self._map.close()
