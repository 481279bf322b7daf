"""Networks of timm (PyTorch Image Models); the only module that imports it. timm is an extra of this project: `pip install timm`.

A network is made as `timm.create_model(name, num_classes=0)` makes it, so that its weights load there, strictly. No weights are fetched.
Some networks, transformers above all, are made for images of one side; they get `img_size`, and take no other side.
"""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from torch import nn

from engine.trunk.by_shape import reason_of, run_by_shape


def make(name: str, side: int) -> tuple[nn.Module, int]:
    """The network without its classifier, and the width of its features. side: of images, in pixels.

    Raises ValueError where timm has no network of this name, or cannot make it for this side.
    """
    known = timm.list_models()
    if name not in known:
        nearest = ", ".join(f"timm/{one}" for one in difflib.get_close_matches(name, known, n=3, cutoff=0.0))
        raise ValueError(f"backbone.name timm/{name} is not a network of timm; the nearest ones are {nearest}")
    is_fixed = has_one_side(name)
    options: dict[str, Any] = {"img_size": side} if is_fixed else {}
    looked_at = side if is_fixed else 224
    try:
        with _not_fake() as fake:
            model = timm.create_model(name, pretrained=False, num_classes=0, **options)
            features = run_by_shape(model, lambda: torch.zeros(1, 3, looked_at, looked_at))
        if fake:
            model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"timm cannot make {name} for images of side {side} ({reason_of(error)}); change backbone.name or data.image_size"
        ) from None
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))[0]
    if is_fixed and side % patch:  # timm would leave the last pixels out
        raise ValueError(
            f"{name} cuts images into patches of {patch} pixels, which do not divide their side {side}; "
            f"set data.image_size to {side // patch * patch + patch}, or change backbone.name"
        )
    return model, features.flatten(1).shape[1]


@contextmanager
def _not_fake() -> Iterator[bool]:
    """Whether torch makes fake tensors; inside, they are those of the meta device, since timm reads numbers while it makes a network."""
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is None:
        yield False
        return
    from torch._subclasses.fake_tensor import unset_fake_temporarily  # imported by whoever makes them

    with unset_fake_temporarily(), torch.device("meta"):
        yield True


def has_one_side(name: str) -> bool:
    """Whether a network of this name is made for images of one side."""
    settings = timm.get_pretrained_cfg(name)
    return settings is not None and settings.fixed_input_size


def classifiers(name: str) -> tuple[str, ...]:
    """What the network calls its classifiers, in the weights published under this name."""
    settings = timm.get_pretrained_cfg(name)
    called = getattr(settings, "classifier", None) or ()
    return (called,) if isinstance(called, str) else tuple(called)


def statistics(name: str) -> tuple[list[float], list[float]] | None:
    """Mean and deviation of the images that the weights published under this name were trained on; None: timm does not say."""
    settings = timm.get_pretrained_cfg(name)
    return None if settings is None else (list(settings.mean), list(settings.std))
