"""A module run on shapes alone, on torch's meta device: it takes neither memory nor time, however large its inputs are."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def run_by_shape(module: nn.Module, make_input: Callable[[], Any]) -> Any:
    """What the module in evaluation mode makes of an input: tensors with a shape and no numbers.

    make_input   makes it; its tensors, like those that the module makes on the way, are made without memory

    Weights, statistics and generators stay as they are, and the module is in training mode afterwards. Raises what the module raises.
    """
    module.eval()
    shapes = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
    with torch.device("meta"):
        made = torch.func.functional_call(module, shapes, (make_input(),))
    module.train()
    return made


def reason_of(error: Exception) -> str:
    """An error of torch in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
