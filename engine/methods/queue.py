"""The queue of MoCo: the keys of the last K visits, each a unit vector, with the number of the instance that it was made of.

    pointer                   0 at first; a step writes its G keys from here on, and it moves by G whatever the step has of images
    place j of the queue      the key of place j - pointer of the step; an empty place of the step leaves the older key where it is

Keys are random unit vectors at first, of no instance (-1). K is a multiple of G, so that a step's places never wrap around.

A sliding window brings an instance back while its older key may still be here, and that key would be a negative of its own image. `own`
says where it is, so that it can be left out. While K <= W there is one at most, as the last K visits lie in the present window and the one
before it, and each window has an instance once; but that where empty places left keys alone that are older. Those are told apart.
"""

import numpy as np
import torch
from torch.nn.functional import normalize

NOBODY = -1


class Queue:
    """
    keys_KD   float32 on the device of the run
    ids_K     int64 on the host, the instance of each key, -1: of none
    pointer   where the next step's keys begin
    """

    def __init__(self, size: int, dim: int, seed: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.keys_KD = normalize(torch.randn(size, dim, generator=generator)).to(device)
        self.ids_K = np.full(size, NOBODY, dtype=np.int64)
        self.pointer = 0
        self._places_of: dict[int, list[int]] = {}  # instance -> where its keys are

    def own(self, ids_G: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """(where the newest key of each instance is, int64 [G], -1 for instances without any; where further keys of them are)."""
        newest_G = np.full(len(ids_G), -1, dtype=np.int64)
        further: list[int] = []
        for number, instance in enumerate(ids_G.tolist()):
            if places := self._places_of.get(instance):
                # By age, for which it does not matter how the queue came to be as it is.
                *older, newest_G[number] = sorted(places, key=lambda place: (place - self.pointer) % len(self.ids_K))
                further += older
        return newest_G, further

    def push(self, keys_GD: torch.Tensor, ids_G: np.ndarray) -> None:
        """Put a step's keys in. ids_G: -1 where a place of the step is empty, whose key may be anything."""
        places_G = np.arange(self.pointer, self.pointer + len(ids_G))
        filled_G = ids_G != NOBODY
        for place, instance in zip(places_G[filled_G].tolist(), ids_G[filled_G].tolist(), strict=True):
            self._forget(place)
            self._places_of.setdefault(instance, []).append(place)
            self.ids_K[place] = instance
        filled = torch.from_numpy(np.flatnonzero(filled_G)).to(self.keys_KD.device)
        self.keys_KD[filled + self.pointer] = keys_GD[filled].to(self.keys_KD.dtype)
        self.pointer = (self.pointer + len(ids_G)) % len(self.keys_KD)

    def state(self) -> dict[str, torch.Tensor]:
        """Copies on the host."""
        return {
            "keys": self.keys_KD.detach().to("cpu", copy=True),
            "instances": torch.from_numpy(self.ids_K.copy()),
            "pointer": torch.tensor([self.pointer]),
        }

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Take up what `state` gave."""
        self.keys_KD.copy_(state["keys"])
        self.ids_K[:] = state["instances"].numpy()
        self.pointer = int(state["pointer"])
        self._places_of = {}
        for place in np.flatnonzero(self.ids_K != NOBODY).tolist():
            self._places_of.setdefault(int(self.ids_K[place]), []).append(place)

    def _forget(self, place: int) -> None:
        before = int(self.ids_K[place])
        if before != NOBODY:
            places = self._places_of[before]
            places.remove(place)
            if not places:
                del self._places_of[before]

    @property
    def bytes(self) -> int:
        """On the device."""
        return self.keys_KD.nbytes
