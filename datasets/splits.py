"""The parts of a data set: which directory, or which zip, is trained on, and which is asked by the evaluation.

A root with `train` and `val` below it, as ImageNet has, is one set in two parts, and the two are never trained together. Other names are
known as well, in any case of letters. Where there are several to ask, the first of OTHERS is taken. A root with one part alone is no
such set.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from datasets.excluded import Patterns
from datasets.shown import shown

TRAINING = ("train", "training", "trainval")
OTHERS = ("val", "valid", "validation", "test", "testing", "dev", "eval", "holdout")


@dataclass(frozen=True)
class Splits:
    """Names below a root: what is trained on, what is asked, what is left out. trained is "" where there are no splits."""

    trained: str = ""
    asked: str = ""
    others: tuple[str, ...] = ()

    @property
    def beside(self) -> tuple[str, ...]:
        """All but what is trained on."""
        return (self.asked, *self.others) if self.asked else ()

    def notes(self, split: str) -> tuple[str, ...]:
        """A line about what is trained on, where that is `split`."""
        if not self.trained or split != self.trained:
            return ()
        rest = f"; {', '.join(map(shown, self.others))}: not used" if self.others else ""
        return (f"trained on {shown(self.trained)}, never on {shown(self.asked)}, whose images are the queries{rest}",)


def find_splits(root: Path, exclude: Iterable[str] = (), suffix: str = "") -> Splits:
    """suffix: of the files that are the parts, ".zip"; "" where they are directories. Nothing is listed: a root may be large."""
    patterns = Patterns(exclude)
    there: dict[tuple[int, int], str] = {}
    for name in TRAINING + OTHERS:
        for form in (name, name.capitalize(), name.upper()):
            place = root / (form + suffix)
            is_there = place.is_file() if suffix else place.is_dir()
            if is_there and not patterns.matching(b"", form.encode()):
                status = os.stat(place)
                # On some disks the case of letters means nothing.
                there.setdefault((status.st_dev, status.st_ino), form)
    names = sorted(there.values(), key=lambda form: (TRAINING + OTHERS).index(form.lower()))
    training = [form for form in names if form.lower() in TRAINING]
    asked = [form for form in names if form.lower() in OTHERS]
    if not training or not asked:
        return Splits()
    return Splits(training[0], asked[0], tuple(training[1:] + asked[1:]))
