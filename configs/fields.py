"""What the sections of a config are made of: their base, and the types of numbers and texts, each with its limits."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Whole numbers have a limit because what they end up in has one: 2^53 is the last that a float holds exactly.
Positive = Annotated[int, Field(ge=1, le=2**53)]
Processes = Annotated[int, Field(ge=0, le=4096)]  # of one machine, or threads
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
AboveZero = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
# What is made as many times, or as large, as the number says.
Few = Annotated[int, Field(ge=1, le=1024)]
Width = Annotated[int, Field(ge=1, le=2**16)]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
