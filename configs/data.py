"""The section `data`: which images, and how they are read."""

from typing import Literal

from configs.augment import Augmentation, GreyAugmentation
from configs.fields import AboveZero, Fraction, Positive, Processes, Section, Text, Width


class Data(Section):
    # A name, or an object with a kind and the keys that go with it, which stand for the keys below (configs/earlier.py).
    source: Literal["glyphs", "digits", "fashion_mnist", "folder", "zip", "synthetic"]
    root: Text | None = None  # directory of the images or fonts; null: the source's own default
    image_size: Width = 32  # evaluation size; grey views have it too
    limit: Positive | None = None  # use the first so many instances only (fashion_mnist, synthetic)
    held_out: tuple[Text, ...] = ()  # glyphs: font families kept out of training, used as queries
    # folder, zip: null, or "folders" (the first directory is the label); folder: or a CSV of path,label.
    labels: Text | None = None
    exclude: tuple[Text, ...] = ()  # folder: patterns of files and directories that are left out
    # folder, zip: a directory that job index makes; null: listed at each start, kept in the output.
    index: Text | None = None
    rescan: bool = False  # with an index: list the images all the same, and add what is new
    hash: bool = False  # job index: hash contents as well, and count exact copies
    on_unreadable: Literal["skip", "stop"] = "skip"
    max_unreadable: Fraction = 0.1  # share of a window's images that cannot be decoded, above which the run stops
    augment: Augmentation = GreyAugmentation(kind="grey")
    # Images kept in memory from the start on: of a rank those of its lanes ("part"), or all ("full").
    cache: Literal["none", "part", "full"] = "none"
    cache_of: Literal["decoded", "encoded"] = "decoded"  # what is kept: pixels, or the bytes of the files
    # Most memory of a rank for them; what does not fit is read as without; null: any.
    cache_gib: AboveZero | None = None
    workers: Processes = 0  # processes that decode and augment; 0: the step does it itself, best for small images
    patience_seconds: AboveZero = 600.0  # how long a step waits for its batch before the run stops

    @property
    def sides(self) -> tuple[int, ...]:
        """Of the V views of an image, in their order, in pixels."""
        return (self.image_size,) * self.augment.views if self.augment.kind == "grey" else self.augment.sides

    @property
    def rows_grad_V(self) -> tuple[bool, ...]:
        """Of each view, whether its gradient may reach the rows."""
        augment = self.augment
        return (True,) * augment.views if augment.kind == "grey" else augment.rows_grad_V
