"""How views are made: a class of settings for each `data.augment.kind`.

Kinds of photographs have the same keys and differ in their defaults: each is one published recipe, as its program has it
(arXiv 2006.14618). A key that is given beside the kind takes the place of the recipe's value. What a recipe does not say is how many views
the method wants: the crops here are two where the method of the same name compares two views, else one.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from configs.fields import AboveZero, Few, Fraction, NonNegative, Section, Width


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"the first of {list(pair)} is above the second; swap them")
    return pair


Range = Annotated[tuple[AboveZero, AboveZero], AfterValidator(_ascending)]
Share = Annotated[float, Field(gt=0, le=1)]
Shares = Annotated[tuple[Share, Share], AfterValidator(_ascending)]
Four = tuple[NonNegative, NonNegative, NonNegative, NonNegative]


class GreyAugmentation(Section):
    """For grey images: glyphs, digits, Fashion-MNIST. A value of 0 (scale 1 to 1) switches an operation off."""

    kind: Literal["grey"]
    views: Few = 1  # augmented views of each image in a step
    degrees: NonNegative = 15.0  # rotation, uniform in [-degrees, degrees]
    shift: Fraction = 0.08  # translation, share of the image
    scale: Range = (0.75, 1.2)
    shear: NonNegative = 0.25  # slant, as a tangent (an italic has about 0.2)
    elastic: NonNegative = 0.1  # largest displacement by a smooth random field, share of the image
    thickness: Fraction = 0.6  # blend towards the eroded or dilated image
    blur: NonNegative = 0.7  # largest sigma, in pixels
    flip: Fraction = 0.0  # probability of a horizontal flip
    contrast: Fraction = 0.2


class Crop(Section):
    """One kind of view of a photo."""

    size: Width
    count: Few = 1
    scale: Shares = (0.14, 1.0)  # share of the image's area
    rows_grad: bool = True  # False: these views train the backbone, not the rows


class RandAugment(Section):
    """Operations of datasets/views/rand_augment.py."""

    layers: Few = 2  # operations that are chosen for a view
    magnitude: Annotated[float, Field(ge=0, le=10)] = 10.0  # mean strength of each
    deviation: NonNegative = 0.5  # standard deviation of the strength


class PhotoSettings(Section):
    """What all recipes for photos have in common; the values are those of the paper's."""

    crops: tuple[Crop, ...] = (Crop(size=160), Crop(size=96, count=3, scale=(0.08, 0.14), rows_grad=False))
    flip: Fraction = 0.5
    jitter: Four = (0.8, 0.8, 0.8, 0.2)
    jitter_probability: Fraction = 0.8
    grey: Fraction = 0.2
    blur_sigma: Range = (0.1, 2.0)
    blur_probability: Fraction = 0.5
    rand_augment: RandAugment | None = None  # null: none of its operations

    @property
    def sides(self) -> tuple[int, ...]:
        """Of the views, in pixels."""
        return tuple(crop.size for crop in self.crops for _ in range(crop.count))

    @property
    def rows_grad_V(self) -> tuple[bool, ...]:
        return tuple(crop.rows_grad for crop in self.crops for _ in range(crop.count))

    @field_validator("crops")
    @classmethod
    def _some_crop_trains_the_rows(cls, crops: tuple[Crop, ...]) -> tuple[Crop, ...]:
        if not any(crop.rows_grad for crop in crops):
            raise ValueError("no crop has rows_grad true, so the rows would never learn; set it for one crop")
        return crops


class Photos(PhotoSettings):
    """MultiCrop."""

    kind: Literal["photos"]


class SimClr(PhotoSettings):
    kind: Literal["simclr"]
    crops: tuple[Crop, ...] = (Crop(size=224, count=2, scale=(0.08, 1.0)),)


class MoCoV2(PhotoSettings):
    kind: Literal["mocov2"]
    crops: tuple[Crop, ...] = (Crop(size=224, count=2, scale=(0.2, 1.0)),)
    jitter: Four = (0.4, 0.4, 0.4, 0.1)


class InstDisc(PhotoSettings):
    """Of MoCo v1, too."""

    kind: Literal["instdisc"]
    crops: tuple[Crop, ...] = (Crop(size=224, scale=(0.2, 1.0)),)
    jitter: Four = (0.4, 0.4, 0.4, 0.4)
    jitter_probability: Fraction = 1.0
    blur_probability: Fraction = 0.0


class RandAug(PhotoSettings):
    kind: Literal["randaug"]
    crops: tuple[Crop, ...] = (Crop(size=224, scale=(0.2, 1.0)),)
    rand_augment: RandAugment | None = RandAugment()


class CropAndFlip(PhotoSettings):
    """NULL."""

    kind: Literal["null"]
    crops: tuple[Crop, ...] = (Crop(size=224, scale=(0.08, 1.0)),)
    jitter_probability: Fraction = 0.0
    grey: Fraction = 0.0
    blur_probability: Fraction = 0.0


KINDS = ("grey", "photos", "simclr", "mocov2", "instdisc", "randaug", "null")
Augmentation = Annotated[
    GreyAugmentation | Photos | SimClr | MoCoV2 | InstDisc | RandAug | CropAndFlip, Field(discriminator="kind")
]
