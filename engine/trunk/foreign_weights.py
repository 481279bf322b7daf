"""A backbone out of a file of weights, whoever wrote it: found by the names of its tensors, mapped to those of the library's model.

    layout                                          tensors lie in    their names begin with    the rest
    published PIC repository, any of its methods    "model"           module.encoder.           momentum encoder, queue, bank, rows
    MoCo, v1 and v2                                 "state_dict"      module.encoder_q.         momentum encoder, queue
    a network with its head, of this engine         the file          backbone.                 the head
    DataParallel around a model                     any of the three  module.
    torchvision, timm, backbone.safetensors         any of the three

The first that has the names of the network is taken. What is no backbone is left out and told: what has another beginning, and the
classifier or head of the model itself (`fc`, `head`, ...). Everything else must be there, in the shapes of the backbone, finite: what is
missing, or is one too many, is refused by its name. Nothing is guessed by order or by size.

A file that torch wrote is a pickle, and a pickle may run code. It is read by torch's reader for weights alone, which makes tensors,
numbers, texts and containers, and here also argparse.Namespace, in which the published repository keeps its options. What wants anything
else is refused with the name of what it wants. Tensors that are not asked for are not read where the file is a zip.
"""

import argparse
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from datasets.shown import cut_text, few, shown
from engine.trunk.backbones import OF_TIMM, library_of


class Layout(NamedTuple):
    """
    what           in words
    prefix         of the backbone's names
    renamed        patterns of the rest of such names, and what stands in their place
    is_of_library  a library may have published such a file
    """

    what: str
    prefix: str
    renamed: tuple[tuple[str, str], ...] = ()
    is_of_library: bool = False


# The published deep stem is a sequence of sequences, timm's (resnet50d) one sequence with its activations.
_DEEP_STEM = (
    (r"^conv1\.0\.([01])\.", r"conv1.\1."),
    (r"^conv1\.1\.0\.", "conv1.3."),
    (r"^conv1\.1\.1\.", "conv1.4."),
    (r"^conv1\.2\.(weight)$", r"conv1.6.\1"),
)
LAYOUTS = (
    Layout("a checkpoint of the published PIC repository", "module.encoder.", _DEEP_STEM),
    Layout("a checkpoint of MoCo", "module.encoder_q."),
    Layout("a network with its head", "backbone."),
    Layout("a model inside DataParallel", "module.", is_of_library=True),
    Layout("a model alone", "", is_of_library=True),
)
_CONTAINERS = ("model", "state_dict")
# What libraries and the published programs call the layers behind the features.
_CLASSIFIERS = ("fc.", "fc1.", "fc2.", "classifier.", "head.", "heads.", "head_dist.", "aux1.", "aux2.", "AuxLogits.")
_COUNTER = "num_batches_tracked"  # of batch normalisation; files of old versions lack it, and nothing here reads it


class Found(NamedTuple):
    """
    what           the layout in words, and what was left out
    statistics     mean and deviation of the images that the file asks for, or None
    is_of_library  it may be a library's own weights: the layout is a model's, and this engine did not write it
    """

    what: str
    statistics: tuple[list[float], list[float]] | None
    is_of_library: bool


def load_backbone(path: Path, backbone: nn.Module, name: str) -> Found:
    """Put the weights of a file into `backbone`, which is left as it was where they do not fit.

    name   of the model, for messages

    Raises ValueError where the file is no file of weights, is of another model, or wants to run code; OSError where it cannot be read.
    """
    tensors, metadata = _read(path)
    wanted, classifiers = backbone.state_dict(), (*_CLASSIFIERS, *_classifiers_of(name))
    layouts = [layout for layout in LAYOUTS if any(key.startswith(layout.prefix) for key in tensors)]
    fits = [_fit(tensors, layout, wanted, classifiers) for layout in layouts]
    # Of a DataParallel around a model whose parts are called `encoder` the names begin as the published ones do.
    number = min(range(len(layouts)), key=lambda number: len(fits[number].missing) + len(fits[number].surplus))
    layout, (inside, classifier, missing, surplus) = layouts[number], fits[number]
    complaint = _misfit(missing, surplus, {key: inside[key] for key in inside if key in wanted}, wanted)
    if complaint:
        raise ValueError(
            f"{shown(path)} is {layout.what}, and its network is not {name}: {complaint}; "
            "set backbone.name, stem and data.image_size as they were when it was trained"
        )
    backbone.load_state_dict({key: inside[key] for key in wanted if key in inside})
    left_out = [*classifier, *(key for key in tensors if not key.startswith(layout.prefix))]
    what = layout.what + (f", of which {_some(left_out)} were left out" if left_out else "")
    is_own = not metadata.keys().isdisjoint(("torchvision", "timm"))
    return Found(what, _statistics(path, metadata), not is_own and layout.is_of_library)


class _Fit(NamedTuple):
    """inside: the tensors of a layout, under the names of the backbone. The names of those that are a classifier's, that are missing, and
    that are one too many."""

    inside: dict[str, torch.Tensor]
    classifier: list[str]
    missing: list[str]
    surplus: list[str]


def _fit(
    tensors: dict[str, torch.Tensor], layout: Layout, wanted: Mapping[str, torch.Tensor], classifiers: tuple[str, ...]
) -> _Fit:
    inside = {_renamed(key, layout): tensor for key, tensor in tensors.items() if key.startswith(layout.prefix)}
    unknown = [key for key in inside if key not in wanted]
    classifier = [key for key in unknown if key.startswith(classifiers)]
    surplus = [key for key in unknown if not key.startswith(classifiers)]
    missing = [key for key in wanted if key not in inside and not key.endswith(_COUNTER)]
    return _Fit(inside, classifier, missing, surplus)


def _classifiers_of(name: str) -> list[str]:
    """What a network of timm calls its own classifiers, with the dot behind."""
    timm_models = library_of(name)
    return [f"{called}." for called in timm_models.classifiers(name.removeprefix(OF_TIMM))] if timm_models else []


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors by name, metadata)."""
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"  # eight bytes of length, then JSON
    if is_safetensors:
        try:
            with safe_open(path, "pt") as opened:
                return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(_no_weights(path, str(error))) from None
    return _tensors_of(path, _unpickled(path)), {}


def _unpickled(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Rows and momentum of a published checkpoint may be gigabytes; a mapped file has them read where they are used.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a broken file makes torch raise almost anything
        wants = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if wants:
            raise ValueError(
                f"{shown(path)} would run code: it asks for {cut_text(wants[1])}, which no weights need. Nothing of it was run; "
                "take another file, or one that holds tensors alone"
            ) from None
        raise ValueError(_no_weights(path, str(error))) from None


def _no_weights(path: Path, reason: str) -> str:
    first = cut_text(reason.splitlines()[0] if reason else "it is cut")
    return f"{shown(path)} is no file of weights that torch or safetensors wrote: {first}"


def _tensors_of(path: Path, content: Any) -> dict[str, torch.Tensor]:
    """The tensors of a file by their names, out of the container that has them."""
    if isinstance(content, Mapping):
        for part in (*(content.get(key) for key in _CONTAINERS), content):
            if isinstance(part, Mapping):
                tensors = {key: value for key, value in part.items() if isinstance(key, str) and _is_tensor(value)}
                if tensors:
                    return tensors
    keys = _some(list(map(str, content))) if isinstance(content, Mapping) else f"a {type(content).__name__}"
    raise ValueError(
        f"{shown(path)} has no tensors by name, neither directly nor under {' or '.join(_CONTAINERS)}; it holds {keys}"
    )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def _renamed(key: str, layout: Layout) -> str:
    key = key.removeprefix(layout.prefix)
    for pattern, there in layout.renamed:
        key, changed = re.subn(pattern, there, key)
        if changed:
            break
    return key


def _misfit(
    missing: list[str], surplus: list[str], inside: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]
) -> str:
    """What does not fit, in words; "" where all does."""
    if missing or surplus:
        parts = [f"it lacks {_some(missing)}" if missing else "", f"it has {_some(surplus)}" if surplus else ""]
        return " and ".join(filter(None, parts))
    for key, tensor in inside.items():
        if tensor.shape != wanted[key].shape:
            return f"{cut_text(key)} is {list(tensor.shape)} in the file and {list(wanted[key].shape)} in the network"
        if tensor.is_quantized or tensor.is_floating_point() != wanted[key].is_floating_point():
            return f"{cut_text(key)} is of {tensor.dtype}"
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return f"{cut_text(key)} has numbers that are not finite"
    return ""


def _some(names: list[str]) -> str:
    return few([cut_text(name) for name in names[:3]], len(names))


def _statistics(path: Path, metadata: dict[str, str]) -> tuple[list[float], list[float]] | None:
    if "mean" not in metadata:
        return None
    try:
        mean, std = ([float(number) for number in json.loads(metadata[key])] for key in ("mean", "std"))
        if (
            len(mean) == len(std) == 3
            and all(abs(number) < 10 for number in mean)
            and all(0 < number < 10 for number in std)
        ):
            return mean, std
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(f"{shown(path)} has metadata whose mean and std are not three numbers each; remove them from it")
