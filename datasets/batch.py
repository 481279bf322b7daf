"""The types that travel from datasets to the engine; the only module of this room that the engine imports.

A batch holds G places. A place is empty (`filled_G` False, position and id -1) where the order has run out of instances
or where an image could not be read and the config says to skip such images. Places are grouped by lane: the first G/L
belong to lane 0, the next G/L to lane 1, and so on; within a lane a later place counts as the more recent visit. One of R
ranks has the G/R places of its lanes.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

# The file by which this engine knows a directory that it made; no walk over images enters one.
MARK = ".pic-engine"


class UnreadableImage(Exception):
    """An image that could not be decoded; `name` says which (a path, or `source:instance`)."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        # Exceptions cross from worker processes by their constructor's arguments, of which there are two here.
        return (UnreadableImage, (self.name, self.reason))


class ImagesUnavailable(OSError):
    """The machine could not give an image (its disk, its network, a limit); the image itself may be good. Ends the run."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"cannot read {name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return (ImagesUnavailable, (self.name, self.reason))


class NoBatch(Exception):
    """The run was asked to stop while it waited for a batch that did not come."""


@dataclass(frozen=True)
class Unreadable:
    """An image of a batch that could not be decoded. place: where in the rank's part of the batch it would have been."""

    place: int
    instance: int
    name: str
    reason: str


@dataclass
class Batch:
    """What step `step` sees.

    views         V tensors, each uint8 [G, channels, height, width]; crops of different sizes are different tensors. Or float32 [G, D],
                  features in the place of views (datasets/given.py). An empty place is zeros
    positions_G   int64, place in the schedule's order, -1 = empty
    ids_G         int64, the instance (index in the source), -1 = empty
    filled_G      bool
    unreadable    the images of this batch that could not be decoded (their places are empty)
    read_bytes    size of the files of the images that were decoded; 0 where images have none
    cpu_seconds   of the thread that made it, with what it took to hand over the batch before
    """

    step: int
    views: list[torch.Tensor]
    positions_G: np.ndarray
    ids_G: np.ndarray
    filled_G: np.ndarray
    unreadable: list[Unreadable] = field(default_factory=list)
    read_bytes: int = 0
    cpu_seconds: float = 0.0


class Loaded(NamedTuple):
    """B images for evaluation.

    images       uint8 [B, channels, height, width]; zeros where one cannot be decoded
    readable_B   bool
    """

    images: torch.Tensor
    readable_B: np.ndarray


@dataclass(frozen=True)
class ImageSet:
    """M images for evaluation, decoded on demand.

    load(start, stop) -> images start, ..., stop - 1
    labels_M          int64, or None where nothing is known of them
    names             for people: what image i is, i in 0 .. count - 1
    jittered          the images are distorted on purpose; such a set is told beside the headline figure, not in it
    """

    name: str
    count: int
    load: Callable[[int, int], Loaded]
    labels_M: np.ndarray | None = None
    names: Callable[[int], str] = str
    jittered: bool = False


@dataclass(frozen=True)
class Probe:
    """A retrieval test: each query takes the label of its nearest neighbours in the gallery.

    gallery   the labelled images that are searched
    queries   one set a face (or split), each with labels out of the gallery's
    protocol  one line that names gallery, queries and what counts as right
    classes   number of distinct labels in the gallery (chance level = 1 / classes)
    """

    gallery: ImageSet
    queries: list[ImageSet]
    protocol: str
    classes: int

    def fingerprint(self) -> str:
        """Of names, counts and labels; the images are not decoded for it."""
        digest = hashlib.sha256(self.protocol.encode())
        for images in (self.gallery, *self.queries):
            digest.update(f"{images.name} {images.count} ".encode())
            digest.update(b"" if images.labels_M is None else images.labels_M.tobytes())
        return digest.hexdigest()
