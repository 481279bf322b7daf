"""A network that does not change: its features, and the digest that proves it.

The network is in evaluation mode, so batch normalisation uses the statistics that training left and does not move them, and none of its
weights wants a gradient. The digest is taken over every byte of weights and statistics, before a probe and after it.
"""

import hashlib

import torch

from engine.trunk.network import Network


class FrozenTrunk:
    """images uint8 [B, C, H, W] -> features float32 [B, D] on the device.

    features   "backbone": as the backbone gives them, not brought to unit length; "head": z, of unit length
    """

    def __init__(self, network: Network, features: str, device: torch.device) -> None:
        assert features in ("backbone", "head"), features
        self.network, self.features, self.device = network.to(device).eval().requires_grad_(False), features, device
        self.digest = self.digest_now()

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        h_BD = self.network.features([images.to(self.device, non_blocking=True)])
        return (self.network.project(h_BD) if self.features == "head" else h_BD).float()

    def width(self, channels: int, side: int) -> int:
        """D, of images with so many channels, of this side in pixels."""
        return int(self(torch.zeros(1, channels, side, side, dtype=torch.uint8)).shape[1])

    def digest_now(self) -> str:
        """sha256 (hex) over names, types and bytes of what makes the features."""
        whole = hashlib.sha256(self.features.encode())
        part = self.network if self.features == "head" else self.network.backbone
        for name, tensor in sorted(part.state_dict().items()):
            whole.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            whole.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return whole.hexdigest()

    def require_unchanged(self) -> None:
        """The digest is that of the beginning."""
        now = self.digest_now()
        assert now == self.digest, f"a probe changed the network that it looks at: {self.digest} before, {now} after"
