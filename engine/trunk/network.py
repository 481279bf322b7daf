"""The network: a torchvision backbone, the head, and L2 normalisation.

    views -> backbone -> h (the features people keep) -> head (engine/trunk/heads.py) -> z / |z|

Residual networks start with a gamma of 0 in each block's last batch normalisation. Grey images are repeated to three channels, so a
backbone trained here loads into the torchvision model of the same name once its classifier is replaced by Identity.
"""

import difflib

import torch
import torchvision
from torch import nn
from torchvision.models.vgg import make_layers

from engine.trunk.heads import make_head

# The mean and deviation that torchvision's models expect.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Network(nn.Module):
    """views: list of uint8 [B, 1 or 3, H, W] -> z float32 [V*B, D] of unit length, views one after the other.

    Pictures are uint8 until they are here, on the device: a quarter of the bytes to copy. Floats in [0, 1] are taken as well.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: nn.Module, width: int, hidden: int, dim: int, head: str = "mlp") -> None:
        super().__init__()
        self.backbone = backbone
        self.head = make_head(head, width, hidden, dim)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        return self.project(self.features(views))

    def features(self, views: list[torch.Tensor]) -> torch.Tensor:
        """Backbone features h [V*B, width]; crops of one size go through the backbone together."""
        by_size: dict[torch.Size, list[int]] = {}
        for number, view in enumerate(views):
            by_size.setdefault(view.shape[2:], []).append(number)
        h: list[torch.Tensor] = [torch.empty(0)] * len(views)
        for numbers in by_size.values():
            images = _in_unit_interval(torch.cat([views[number] for number in numbers]))
            images = (images.expand(-1, 3, -1, -1) - self.mean) / self.std
            # Channels-last input makes the convolutions choose that layout, 1.1 to 4 times faster on a CPU.
            together = self.backbone(images.contiguous(memory_format=torch.channels_last)).flatten(1)
            for number, part in zip(numbers, together.chunk(len(numbers)), strict=True):
                h[number] = part
        return torch.cat(h)

    def project(self, h: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.head(h).float())


def _in_unit_interval(images: torch.Tensor) -> torch.Tensor:
    return images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images


@torch.no_grad()
def embed(network: Network, images: torch.Tensor, features: str) -> torch.Tensor:
    """images uint8 [B, C, H, W] -> "backbone" features h or "head" features z, of unit length, float32 [B, .] on the host."""
    device = network.mean.device
    network.eval()
    h = network.features([images.to(device)])
    result = network.project(h) if features == "head" else nn.functional.normalize(h.float())
    network.train()
    return result.cpu()


def make_network(
    name: str, layers: tuple[int | str, ...] | None, grid: int, hidden: int, dim: int, seed: int, *, head: str = "mlp"
) -> Network:
    """A network with weights keyed by seed. Raises ValueError for names that torchvision lacks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone, width = make_backbone(name, layers, grid)
        network = Network(backbone, width, hidden, dim, head)
    return network


def make_backbone(name: str, layers: tuple[int | str, ...] | None = None, grid: int = 1) -> tuple[nn.Module, int]:
    """The torchvision model without its classifier, and the width of its features.

    With `layers` it is the convolutional part of torchvision's VGG, with batch normalisation, of those widths ("M" halves the
    image), averaged over a grid x grid of cells: a plain small network for small images, which keeps where things are.
    """
    if layers is not None:
        if name != "vgg":
            raise ValueError(f"backbone.layers is for backbone.name vgg; {name} has its own: set it to null")
        return Plain(layers, grid), grid * grid * [width for width in layers if isinstance(width, int)][-1]
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
    model.eval()
    with torch.no_grad():
        width = model(torch.zeros(1, 3, 224, 224)).flatten(1).shape[1]
    return model.train(), width


@torch.no_grad()
def check_sides(network: Network, sides: set[int]) -> None:
    """Raises ValueError where the backbone cannot take square images of these sides. By shapes alone, on torch's meta device: it takes
    neither memory nor time, however large the images are, and leaves weights, statistics and generators as they are.
    """
    network.eval()
    shapes = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in (*network.named_parameters(), *network.named_buffers())
    }
    for side in sorted(sides):
        try:
            # Networks that make tensors on the way are to make those without memory, too.
            with torch.device("meta"):
                torch.func.functional_call(network, shapes, ([torch.zeros(1, 3, side, side)],))
        except (RuntimeError, AssertionError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"the backbone cannot take images of side {side} ({reason}); change backbone or sizes"
            ) from None
    network.train()


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
