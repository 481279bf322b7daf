"""The network: a backbone (engine/trunk/backbones.py), the head, and L2 normalisation.

    views -> backbone -> h (the features people keep) -> head (engine/trunk/heads.py) -> z / |z|

Residual networks start with a gamma of 0 in each block's last batch normalisation. Grey images are repeated to three channels, so a
backbone trained here loads into the model of the same name, of torchvision or timm, once its classifier is replaced by Identity.
"""

from collections.abc import Sequence

import torch
from torch import nn

from engine.trunk.backbones import make_backbone
from engine.trunk.by_shape import reason_of, run_by_shape
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

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Mean and deviation by which images are normalised, of each of the three channels; for weights that were made with others."""
        for tensor, numbers in ((self.mean, mean), (self.std, std)):
            tensor.copy_(torch.tensor(numbers).view(1, 3, 1, 1))

    @property
    def own_statistics(self) -> dict[str, str]:
        """What the file of the backbone has to say of them: nothing where they are those that every network here starts with."""
        mean, std = (tensor.flatten().tolist() for tensor in (self.mean, self.std))
        as_ever = torch.equal(self.mean.flatten().cpu(), torch.tensor(_MEAN)) and torch.equal(
            self.std.flatten().cpu(), torch.tensor(_STD)
        )
        return {} if as_ever else {"mean": str(mean), "std": str(std)}

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


def embed(network: Network, images: torch.Tensor, features: str) -> torch.Tensor:
    """images uint8 [B, C, H, W] -> "backbone" features h or "head" features z, of unit length, float32 [B, .] on the host."""
    return embeddings(network, images, [features])[0]


@torch.no_grad()
def embeddings(network: Network, images: torch.Tensor, kinds: Sequence[str]) -> list[torch.Tensor]:
    """The same for several kinds of features at once: the images go through the backbone once."""
    device = network.mean.device
    network.eval()
    h = network.features([images.to(device)])
    found = [network.project(h) if kind == "head" else nn.functional.normalize(h.float()) for kind in kinds]
    network.train()
    return [one.cpu() for one in found]


def make_network(
    name: str,
    layers: tuple[int | str, ...] | None,
    grid: int,
    hidden: int,
    dim: int,
    seed: int,
    *,
    stem: str = "imagenet",
    side: int = 224,
    head: str = "mlp",
) -> Network:
    """A network with weights keyed by seed; engine.trunk.backbones.make_backbone tells the arguments, and what it refuses."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone, width = make_backbone(name, layers, grid, stem=stem, side=side)
        network = Network(backbone, width, hidden, dim, head)
    return network


def check_sides(network: Network, sides: set[int]) -> None:
    """Raises ValueError where the backbone cannot take square images of these sides. By shapes alone, however large the images are."""
    for side in sorted(sides):
        try:
            run_by_shape(network, lambda: [torch.zeros(1, 3, side, side)])  # noqa: B023 (called at once)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"the backbone cannot take images of side {side} ({reason_of(error)}); change backbone or sizes"
            ) from None
