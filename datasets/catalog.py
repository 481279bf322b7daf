"""From the names in a config to a source, an augmentation and a probe. Nothing but naming happens here.

Each source, and what decodes or augments, is imported where it is asked for: a run needs the libraries of its own images alone.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.batch import ImageSet, Loaded, Probe
from datasets.clean import load_images
from datasets.source import Source
from datasets.synthetic import CLASSES, MOST_IMAGES, Synthetic

if TYPE_CHECKING:
    from datasets.grey import GreyAugment
    from datasets.photos import PhotoAugment

FASHION_MNIST_ROOT = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it
_GALLERY, _QUERIES = 2000, 500  # synthetic images of the evaluation


@dataclass(frozen=True)
class Kept:
    """What is known of the images from before; of folders and zips alone, others ignore it.

    path, count   what the source's `save_index` wrote at an earlier start, and how many images of it keep their numbers; None: all
    directory     of an index that job=index made
    rescan        list the images all the same, and add what is new
    """

    path: Path | None = None
    count: int | None = None
    directory: str | None = None
    rescan: bool = False


NOTHING_KEPT = Kept()


def open_source(
    name: str,
    *,
    root: str | None,
    image_size: int,
    limit: int | None,
    held_out: tuple[str, ...],
    labels: str | None,
    exclude: tuple[str, ...] = (),
    leave_out: Path | None = None,
    kept: Kept = NOTHING_KEPT,
) -> Source:
    """The training images. Raises ValueError where files are missing, do not match, or a key means nothing here.

    root, labels: "~" at their beginning is the home directory, as in a shell.
    limit: so many images, the first ones; synthetic ones have no other N.
    leave_out: a directory under the root that no image is taken from, because the run writes into it.
    ImagesUnavailable, an OSError, where the machine cannot give them.
    """
    if limit is not None and name not in ("fashion_mnist", "synthetic"):
        raise ValueError(f"data.limit is for fashion_mnist and synthetic; {name} has no use for it: set it to null")
    if held_out and name != "glyphs":
        raise ValueError(f"data.held_out names font families; {name} has none: set it to []")
    if exclude and name != "folder":
        raise ValueError(f"data.exclude is for folders; {name} has no use for it: set it to []")
    directory = _expanded(root)
    if name in ("folder", "zip"):
        return _open_files(name, directory, labels, exclude, leave_out, kept)
    if labels is not None:
        raise ValueError(f"data.labels is for folders and zips; {name} brings its own: set it to null")
    if kept.directory is not None:
        raise ValueError(f"data.index is for folders and zips; {name} has no use for it: set it to null")
    if name == "glyphs":
        from datasets.glyphs import Glyphs

        return Glyphs(directory, image_size, held_out)
    if name == "digits":
        from datasets.digits import Digits

        return Digits("train")
    if name == "fashion_mnist":
        from datasets.fashion_mnist import FashionMnist

        return FashionMnist(directory or FASHION_MNIST_ROOT, "train", limit)
    if directory:
        raise ValueError("data.root: synthetic images have no files; set it to null")
    if limit is None or limit > MOST_IMAGES:
        raise ValueError(
            f"data.limit is {'null' if limit is None else limit}; set it to how many synthetic images there are to be, at most 10^12"
        )
    return Synthetic(limit, image_size)


def _open_files(
    name: str, root: Path | None, labels: str | None, exclude: tuple[str, ...], leave_out: Path | None, kept: Kept
) -> Source:
    if root is None:
        raise ValueError("data.root is null; set it to your folder of images")
    by: Any = "folders" if labels == "folders" else _expanded(labels)
    stored = _expanded(kept.directory)
    if name == "zip":
        from datasets.zip_images import ZipImages

        return ZipImages(root, by, kept.path, kept.count, stored=stored, rescan=kept.rescan)
    from datasets.folder import ImageFolder

    options: dict[str, Any] = {"exclude": exclude, "leave_out": leave_out, "stored": stored, "rescan": kept.rescan}
    return ImageFolder(root, by, kept.path, kept.count, **options)


def _expanded(path: str | None) -> Path | None:
    return Path(os.path.expanduser(path)) if path else None


def make_augmentation(settings: dict, image_size: int, channels: int) -> "GreyAugment | PhotoAugment":
    """settings: the config's data.augment section. Raises ValueError where it does not suit the images."""
    others = ("kind", "views", "crops", "rand_augment")
    fields = {key: value for key, value in settings.items() if key not in others}
    if settings["kind"] == "grey":
        if channels != 1:
            raise ValueError(
                'data.augment is for grey images, and these have colour; set data.augment={"kind":"photos"}'
            )
        from datasets.grey import GreyAugment

        return GreyAugment(size=image_size, view_count=settings["views"], **fields)
    if channels != 3:
        raise ValueError('data.augment is for photos, and these images are grey; set data.augment={"kind":"grey"}')
    from datasets.photos import Crop, PhotoAugment, RandAugment

    operations = settings["rand_augment"]
    return PhotoAugment(
        crops=tuple(Crop(**crop) for crop in settings["crops"]),
        rand_augment=None if operations is None else RandAugment(**operations),
        **fields,
    )


def make_probe(
    source: Source,
    augmentation: "GreyAugment | PhotoAugment",
    *,
    root: str | None,
    image_size: int,
    held_out: tuple[str, ...],
    gallery: str,
    limit: int,
    query_limit: int,
    jittered: bool = False,
) -> Probe | None:
    """How this source is evaluated; None where nothing is labelled or held out.

    limit, query_limit: the most images of the gallery, and of each set of queries; a larger set is a fair sample.
    jittered: ask labelled images a second time, as random views of them; glyphs are asked so in any case.
    """
    from datasets.probes import Limits, glyph_probe, labelled_probe, split_probe

    limits = Limits(limit, query_limit)
    asked_again = augmentation if jittered else None

    if source.name == "glyphs":
        from datasets.grey import GreyAugment

        if not held_out:
            return None
        assert isinstance(augmentation, GreyAugment)
        return glyph_probe(_expanded(root), image_size, held_out, gallery, augmentation, limits)
    if source.name == "digits":
        from datasets.digits import Digits

        return labelled_probe(source, Digits("test"), image_size, limits, asked_again)
    if source.name == "fashion_mnist":
        from datasets.fashion_mnist import FashionMnist

        queries = FashionMnist(_expanded(root) or FASHION_MNIST_ROOT, "test")
        return labelled_probe(source, queries, image_size, limits, asked_again)
    if source.name == "synthetic":
        trained, others = (
            Synthetic(min(len(source), _GALLERY), image_size),
            Synthetic(_QUERIES, image_size, MOST_IMAGES),
        )
        # Of a few dozen images some labels are not there.
        is_whole = set(trained.labels_of(np.arange(len(trained)))) == set(range(CLASSES))
        return labelled_probe(trained, others, image_size, limits, asked_again) if is_whole else None
    if source.labels() is None:
        return None
    from datasets.indexed import IndexedImages

    asked = source.beside() if isinstance(source, IndexedImages) else None
    if asked is not None:
        return labelled_probe(source, asked, image_size, limits, asked_again)
    return split_probe(source, image_size, limits=limits, augmentation=asked_again)


def sample_images(source: Source, image_size: int, count: int) -> ImageSet:
    """Up to `count` training images, evenly spread, for figures that need no labels (RankMe, the map)."""
    instances = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(np.int64)

    def load(start: int, stop: int) -> Loaded:
        return load_images(source, instances[start:stop], image_size)

    return ImageSet(source.name, len(instances), load, names=lambda i: source.instance_name(int(instances[i])))


def every_image(source: Source, image_size: int, count: int, batch: int = 256) -> Iterator[tuple[np.ndarray, Loaded]]:
    """(instances int64 [B], their images) of the first `count` instances."""
    for start in range(0, count, batch):
        instances = np.arange(start, min(start + batch, count))
        yield instances, load_images(source, instances, image_size)
