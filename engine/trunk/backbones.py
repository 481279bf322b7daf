"""The backbone of a network, by its name: a model of torchvision or timm without its classifier, or a plain one for small images.

    resnet18                 torchvision's, under torchvision's names of weights
    timm/resnet50d           timm's, under timm's names; where a network of timm is made for one side of images, for that side
    vgg, with layers         the convolutions of torchvision's VGG, in any widths

A ResNet begins with a 7 x 7 convolution of stride 2 and a pooling, which leave a sixteenth of the pixels. The small stem is a 3 x 3
convolution of stride 1 in their place, as those who train on CIFAR have it: for images of 32 to 96 pixels. All layers behind it then
work on 16 times as many pixels.
"""

import difflib
from types import ModuleType

import torch
import torchvision
from torch import nn
from torchvision.models.vgg import make_layers

OF_TIMM = "timm/"  # how the name of a network of timm begins


def make_backbone(
    name: str, layers: tuple[int | str, ...] | None = None, grid: int = 1, *, stem: str = "imagenet", side: int = 224
) -> tuple[nn.Module, int]:
    """The model without its classifier, and the width of its features.

    layers, grid   of "vgg": the widths of its convolutions ("M" halves the image); features are averages over grid x grid cells, which
                   keep where things are
    stem           "imagenet", as the model has it, or "small", for ResNets
    side           of images, in pixels, for networks of timm that are made for one side; others take any

    Raises ValueError for what no library has, and for options that the network cannot have.
    """
    if layers is not None:
        if name != "vgg":
            raise ValueError(f"backbone.layers is for backbone.name vgg; {name} has its own: set it to null")
        if stem != "imagenet":
            raise ValueError(f"backbone.stem {stem} is for ResNets, and backbone.name is vgg; leave backbone.stem out")
        return Plain(layers, grid), grid * grid * [width for width in layers if isinstance(width, int)][-1]
    if name.startswith(OF_TIMM):
        timm_models = library_of(name)
        assert timm_models
        model, width = timm_models.make(name.removeprefix(OF_TIMM), side)
        return with_small_stem(model, name) if stem == "small" else model, width
    model = _of_torchvision(name)
    model.eval()
    with torch.no_grad():
        width = model(torch.zeros(1, 3, 224, 224)).flatten(1).shape[1]
    model.train()
    return with_small_stem(model, name) if stem == "small" else model, width


def described(name: str, stem: str, side: int) -> dict[str, str]:
    """What the file of a backbone's weights says of their model: its library and name, and the options that it was made with."""
    about = {"torchvision": name}
    if timm_models := library_of(name):
        own = name.removeprefix(OF_TIMM)
        about = {"timm": own} | ({"img_size": str(side)} if timm_models.has_one_side(own) else {})
    return about | ({} if stem == "imagenet" else {"stem": stem})


def published_statistics(name: str) -> tuple[list[float], list[float]] | None:
    """Mean and deviation of the images that a library's own weights of this name were trained on; None: those of ImageNet, as most are.

    timm says them of the weights that it takes for a name without a tag. torchvision's two networks from TensorFlow undo ImageNet's
    inside themselves where it loads their weights (`transform_input`).
    """
    if timm_models := library_of(name):
        statistics: tuple[list[float], list[float]] | None = timm_models.statistics(name.removeprefix(OF_TIMM))
        return statistics
    return ([0.5] * 3, [0.5] * 3) if name in ("googlenet", "inception_v3") else None


def library_of(name: str) -> ModuleType | None:
    """engine.trunk.timm_models, imported, for a network of timm; else None. Raises ValueError where timm is not installed."""
    if not name.startswith(OF_TIMM):
        return None
    try:
        from engine.trunk import timm_models
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ValueError(
            f"backbone.name {name} needs timm, which is not installed: pip install timm, or choose another backbone"
        ) from None
    return timm_models


def _of_torchvision(name: str) -> nn.Module:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"backbone.name {name!r} is not a torchvision classification model; the nearest one is {nearest}"
        )
    residual = name.startswith(("resnet", "resnext", "wide_resnet"))
    options = {"zero_init_residual": True} if residual else {}
    if name.startswith(("googlenet", "inception")):
        options = {"aux_logits": False, "init_weights": True}
    model = torchvision.models.get_model(name, weights=None, **options)
    for attribute in ("fc", "classifier", "heads", "head"):
        if hasattr(model, attribute):
            setattr(model, attribute, nn.Identity() if not name.startswith("squeezenet") else nn.AdaptiveAvgPool2d(1))
            break
    return model


def with_small_stem(model: nn.Module, name: str) -> nn.Module:
    """A ResNet that begins with a 3 x 3 convolution of stride 1 and no pooling; the names of its weights stay.

    Raises ValueError for a network that does not begin as a ResNet does.
    """
    first, pool = getattr(model, "conv1", None), getattr(model, "maxpool", None)
    if not isinstance(first, nn.Conv2d) or first.kernel_size != (7, 7) or not isinstance(pool, nn.MaxPool2d):
        raise ValueError(
            f"backbone.stem small is for networks that begin as ResNets do (resnet18, timm/resnet50), and {name} does not; "
            "set it to imagenet"
        )
    model.conv1 = nn.Conv2d(3, first.out_channels, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as ResNets do
    model.maxpool = nn.Identity()
    return model


class Plain(nn.Module):
    """The convolutions of torchvision's VGG, with batch normalisation, under VGG's names; VGG itself brings 10^8 weights of classifier."""

    def __init__(self, layers: tuple[int | str, ...], grid: int) -> None:
        super().__init__()
        self.features = make_layers(list(layers), batch_norm=True)
        self.grid = grid
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d):  # as VGG does
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(self.features(images), self.grid).flatten(1)
