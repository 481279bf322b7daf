"""What a linear probe may be told: the keys of the section `linear`, for job=linear."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from configs.fields import AboveZero, Fraction, NonNegative, Positive, Section, Text
from configs.texts import at_home

_Part = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class Linear(Section):
    """Which classifier is trained on features of a network that does not change, and what it is asked."""

    # Features cached once and standardised, or views of the images through the network in every step, as published codes have it.
    protocol: Literal["features", "published"] = "features"
    epochs: Positive = 100
    batch: Positive = 256  # B, images of a step over all ranks
    held_out: _Part = 0.1  # features: share of the training images by which learning rate and C are chosen
    # features: learning rates of SGD, all in one pass; []: no SGD
    rates: tuple[AboveZero, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    # features: of logistic regression, as scikit-learn counts it: the inverse of the penalty; []: none
    C: tuple[AboveZero, ...] = (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0)
    # features: the same with few labels; null: those of C; []: no few labels
    few_C: tuple[AboveZero, ...] | None = None
    # features: few labels; below 1: that share of the training images of each class, from 1 on: so many of each
    few: tuple[AboveZero, ...] = (0.01, 0.1, 10)
    lr: AboveZero = 30.0  # published: for the whole batch
    weight_decay: NonNegative = 0.0  # published
    crop: tuple[Fraction, Fraction] = (0.08, 1.0)  # published: least and largest share of the image that a view shows
    flip: Fraction = 0.5  # published: probability of a mirror image
    least_images: Positive = 2  # a label with fewer images to train on is left out
    limit: Positive | None = None  # most images to train on; of more a fair sample by label; null: all
    test_share: _Part = 0.2  # of each label, where the source has no part of its own that is tested
    # A probe that was saved (linear/heads-*.safetensors): it is tested again, and nothing is trained.
    probe: Annotated[Text, AfterValidator(at_home)] | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> "Linear":
        if not self.rates and not self.C:
            raise ValueError("linear.rates and linear.C are both empty; give one of them values")
        for asked in self.few:
            if asked >= 1 and not float(asked).is_integer():
                raise ValueError(
                    f"linear.few has {asked:g}, which is neither below 1, a share, nor a whole number of images; change it"
                )
        if not 0 < self.crop[0] <= self.crop[1]:
            raise ValueError(
                f"linear.crop is {list(self.crop)}; its two shares have to be above 0, the smaller one first"
            )
        return self
