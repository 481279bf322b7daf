"""Some hundred hostile starts: files, texts and limits of the machine that people report of such tools. Data for test_hostile_starts.py.

Each file lays the traps of one kind; importing it enters them into CASES.
"""

from tests.hostile import config_texts, images, labels, machine, output, variables  # noqa: F401 (they enter their cases)
from tests.hostile.case import CASES, lay

__all__ = ["CASES", "lay"]
