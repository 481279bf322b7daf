"""How weights and rows are stepped: the section `optimizer`, and what it asks of the other sections.

The rows are stepped by SGD whatever steps the trunk, because what missed steps do to a row (engine/rows/transitions.py) is that of SGD.
"""

import json
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from configs.fields import AboveZero, Fraction, NonNegative, Positive, Section

if TYPE_CHECKING:
    from configs.schema import Config

BelowOne = Annotated[float, Field(ge=0, lt=1)]
# Keys that one choice alone reads, beside the key that chooses and its value.
_READ_BY = {
    "betas": ("trunk", "adamw"),
    "eps": ("trunk", "adamw"),
    "trust": ("trunk", "lars"),
    "min_lr": ("schedule", "cosine"),
    "milestones": ("schedule", "steps"),
    "gamma": ("schedule", "steps"),
}


class Optimizer(Section):
    """Of the trunk, and of the rows, which are stepped by SGD."""

    trunk: Literal["sgd", "lars", "adamw"] = "sgd"
    lr: AboveZero = 0.03  # the trunk's highest learning rate
    lr_batch: Positive | None = (
        None  # the batch that lr is for: the rate is lr times batch over this; null: lr as it is
    )
    schedule: Literal["cosine", "steps"] = "cosine"  # what follows the warm-up
    min_lr: NonNegative = 1e-6  # cosine: where it ends
    milestones: tuple[AboveZero, ...] = ()  # steps: epochs, from the first step on, at which the rate drops
    gamma: Fraction = 0.1  # steps: what the rate is multiplied by at each of them
    warmup_epochs: NonNegative = 0.0
    warmup_factor: Fraction = 0.01  # the warm-up starts at the highest rate times this
    momentum: BelowOne = 0.9  # sgd, lars, rows
    nesterov: bool = False  # sgd, rows
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)  # adamw
    eps: AboveZero = 1e-8  # adamw
    trust: AboveZero = 1e-3  # lars: a tensor's step over its own length, at a rate of 1
    weight_decay: NonNegative = 1e-4
    clip: NonNegative = 0.0  # largest norm of the trunk's gradient; 0: no clipping
    rows_lr_scale: AboveZero = 1.0  # learning rate of the rows over the trunk's
    rows_weight_decay: NonNegative | None = None  # null: weight_decay
    rows_clip: NonNegative = 0.0  # largest norm of the gradient of all active rows together; 0: no clipping

    @property
    def decay_of_rows(self) -> float:
        """lambda of the rows."""
        return self.weight_decay if self.rows_weight_decay is None else self.rows_weight_decay

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "Optimizer":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0; set optimizer.momentum or optimizer.nesterov to false")
        if self.nesterov and self.trunk == "lars":
            raise ValueError("optimizer.nesterov is true, and LARS has no such form; set it to false")
        return self

    @model_validator(mode="after")
    def _every_key_is_read(self) -> "Optimizer":
        for name, (chooser, choice) in _READ_BY.items():
            value, chosen = getattr(self, name), getattr(self, chooser)
            if chosen != choice and value != type(self).model_fields[name].default:
                raise ValueError(
                    f"optimizer.{name} is {json.dumps(value)}, which is for optimizer.{chooser} {choice} alone, and that is "
                    f"{chosen}; leave optimizer.{name} out"
                )
        return self

    @model_validator(mode="after")
    def _milestones_are_in_order(self) -> "Optimizer":
        if self.schedule != "steps":
            return self
        if not self.milestones:
            raise ValueError(
                "optimizer.schedule steps has no milestones; set optimizer.milestones, as [120, 160] epochs"
            )
        before = self.warmup_epochs
        for milestone in self.milestones:
            if milestone <= before:
                raise ValueError(
                    f"optimizer.milestones {json.dumps(self.milestones)} must ascend, and begin after the warm-up of "
                    f"{self.warmup_epochs} epochs; change {milestone}"
                )
            before = milestone
        return self


def check_optimizer(config: "Config") -> None:
    """ValueError where the optimizer of the trunk does not suit ZeRO's stage, or a key of SGD is left without anything that reads it."""
    wanted, zero = config.optimizer, config.deepspeed.get("zero_optimization")
    stage = zero.get("stage", 0) if isinstance(zero, dict) else 0
    if wanted.trunk == "lars" and stage:
        raise ValueError(
            f"optimizer.trunk lars needs the norms of whole tensors, and ZeRO cuts them up at stage {json.dumps(stage)}; "
            "set deepspeed.zero_optimization.stage to 0"
        )
    if wanted.trunk != "adamw" or config.method.has_rows:
        return
    for name in ("momentum", "nesterov"):
        if getattr(wanted, name) != type(wanted).model_fields[name].default:
            raise ValueError(
                f"optimizer.{name} is of SGD, optimizer.trunk is adamw, and method {config.method.kind} has no rows; "
                f"leave optimizer.{name} out"
            )
