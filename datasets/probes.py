"""Probes: the questions that evaluation asks, "what is this?" answered by the nearest labelled image.

glyph_probe     Which letter is it, in a face that training never saw? The gallery is every letter of one face, once.
labelled_probe  Two labelled sources: the gallery (what was trained on) and the queries (what was not).
split_probe     One labelled source cut in two by a keyed hash. Training saw both parts, though never a label: this asks
                whether features group the images, not whether they carry over to new ones. Leave-one-out would use all
                images as queries, but needs a search that skips the query itself; a part set aside does not.

A letter, here, is a character of Unicode category L. Letters that render to the same pixels in the gallery face (Latin
A, Greek Alpha, Cyrillic A) cannot be told apart by anyone and are one class; letters that differ by a pixel are two, be
the difference a dot that a reader would overlook. The gallery holds one image a class. A query is right if the nearest
gallery image is of its letter's class. Letters that the gallery face does not have are not asked.

A gallery or a query set that is larger than its limit is a fair sample by label (fair_sample.py), and queries whose label the gallery
lacks are left out; the protocol says both. A set that is no larger is taken whole. A label below 0 means that nothing is known of an image.
"""

import unicodedata
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from datasets.batch import ImageSet, Loaded, Probe
from datasets.clean import load_images, to_tensor
from datasets.drawn_views import drawn_views
from datasets.fair_sample import fair_sample
from datasets.glyphs import Face, characters, check_families, find_faces, render
from datasets.keyed import keyed, shuffle
from datasets.loader import Augmentation
from datasets.shown import shown
from datasets.source import Source

# (images uint8 [n, 1, S, S], keys uint64 [n]) -> distorted images of the same shape, a function of the two alone.
Jitter = Callable[[torch.Tensor, np.ndarray], torch.Tensor]

# Styles of normal weight, upright or slanted: bold and display cuts of a family are left out of the queries.
_UPRIGHT_STYLES = ("Book", "Regular", "Roman", "Normal")
_NORMAL_STYLES = (*_UPRIGHT_STYLES, "Italic", "Oblique")
# Fixed, so that every run is asked the same questions: figures of two runs compare whatever their seeds.
_JITTER_SEED = 20201
_SPLIT_SEED = 20202


class Limits(NamedTuple):
    """The most images of the gallery, and of each set of queries."""

    gallery: int
    queries: int


NO_LIMITS = Limits(2**62, 2**62)


def glyph_probe(
    fonts_dir: Path | None,
    image_size: int,
    query_families: Sequence[str],
    gallery_family: str = "DejaVu Sans",
    jitter: Jitter | None = None,
    limits: Limits = NO_LIMITS,
) -> Probe:
    """Letters of the normal-weight faces of `query_families` against the letters of one gallery face.

    Each query face gives an ImageSet named after it and, with `jitter`, a second one, "<face>, jittered"; the gallery
    is never jittered. It is the caller's part to hold `query_families` out of training. Labels are class numbers, by
    ascending code point of the class's first letter.
    Families without such letters (symbols, say) ask nothing. ValueError where a family does not exist, or none asks anything.
    """
    faces = find_faces(fonts_dir)
    check_families([gallery_family], faces, "evaluate.gallery")
    check_families(query_families, faces, "data.held_out")
    if gallery_family in query_families:
        raise ValueError(f"data.held_out: {gallery_family!r} is the gallery of the evaluation; hold out other families")
    gallery_face = _gallery_face(faces, gallery_family)
    letters = _letters(gallery_face, image_size)
    firsts, class_of_letter = _merge_equal(gallery_face, letters, image_size)
    searched = fair_sample(np.arange(len(firsts)), letters[firsts], limits.gallery)
    gallery = _glyph_set(gallery_face.name, gallery_face, letters[firsts[searched]], searched, image_size)
    queries: list[ImageSet] = []
    for family in query_families:
        for face in (face for face in faces if face.family == family and face.style in _NORMAL_STYLES):
            codes = np.intersect1d(_letters(face, image_size), letters)
            labels = class_of_letter[np.searchsorted(letters, codes)]
            there = np.flatnonzero(np.isin(labels, searched))
            asked = there[fair_sample(labels[there], codes[there], limits.queries)]
            codes, labels = codes[asked], labels[asked]
            if not len(codes):
                continue
            queries.append(_glyph_set(face.name, face, codes, labels, image_size))
            if jitter is not None:
                queries.append(_glyph_set(f"{face.name}, jittered", face, codes, labels, image_size, jitter))
    if not queries:
        raise ValueError(
            f"data.held_out: no face of normal weight in {', '.join(query_families)} has letters of {gallery_face.name}"
        )
    asking = ", ".join(query.name for query in queries if not query.jittered)
    sample = f", of which {len(searched)} were drawn" if len(searched) < len(firsts) else ""
    protocol = (
        f"gallery: the {len(letters)} letters of {gallery_face.name}, {len(firsts)} classes after merging equal pixels "
        f"at {image_size} px, one image each{sample}; queries: its letters in {asking}; "
        "right: same class"
    )
    return Probe(gallery, queries, protocol, classes=len(searched))


def labelled_probe(
    gallery: Source,
    queries: Source,
    image_size: int,
    limits: Limits = NO_LIMITS,
    augmentation: Augmentation | None = None,
) -> Probe:
    """The images of one labelled source against those of another, with the same numbering of labels.

    With `augmentation` the queries are asked a second time, each as a random view of itself. Queries whose label the gallery lacks are
    left out, and counted in the protocol. ValueError where a source has no labels, or no query remains.
    """
    gallery_labels, query_labels = _labels_of(gallery), _labels_of(queries)
    searched = _drawn(np.flatnonzero(gallery_labels >= 0), gallery_labels, limits.gallery)
    known = np.flatnonzero(np.isin(query_labels, gallery_labels[searched]))
    if len(known) == 0:
        raise ValueError(
            f"evaluate: none of the {len(queries)} images of {queries.name} has a label of the gallery ({gallery.name}); "
            "give both the same labels, or raise evaluate.limit"
        )
    asked = _drawn(known, query_labels, limits.queries)
    classes = len(np.unique(gallery_labels[searched]))
    lacking = (
        f" ({len(queries) - len(known)} whose label the gallery lacks left out)" if len(known) < len(queries) else ""
    )
    protocol = (
        f"gallery: {_of(len(searched), len(gallery))} labelled images of {gallery.name}; "
        f"queries: {_of(len(asked), len(known))} others that training did not see{lacking}; right: same label of {classes}"
    )
    return Probe(
        _source_set(f"{gallery.name}, gallery", gallery, searched, gallery_labels[searched], image_size),
        _query_sets(queries, asked, query_labels[asked], image_size, augmentation),
        protocol,
        classes,
    )


def split_probe(
    source: Source,
    image_size: int,
    query_fraction: float = 0.1,
    limits: Limits = NO_LIMITS,
    augmentation: Augmentation | None = None,
) -> Probe:
    """A fixed pseudo-random part of a labelled source against the rest of it; `augmentation` as of `labelled_probe`.

    Which images may be asked depends on N and `query_fraction` alone: those of the lowest hashes. Of images that are appended a part is
    asked, and of the older ones only those near the border change sides. Queries whose label is left without an image in the gallery
    are left out, and counted in the protocol. ValueError where there are no labels or no query remains.
    """
    labels = _labels_of(source)
    if not 0 < query_fraction < 1:
        raise ValueError(f"query_fraction {query_fraction} is not between 0 and 1")
    order = shuffle(_SPLIT_SEED, len(source))
    order = order[labels[order] >= 0]
    part, rest = np.split(order, [max(1, round(query_fraction * len(order)))])
    searched = _drawn(rest, labels, limits.gallery)
    known = part[np.isin(labels[part], labels[searched])]
    if len(known) == 0:
        raise ValueError(
            f"evaluate: none of {len(part)} queries out of {len(source)} images shares its label with another image; "
            "label more images alike"
        )
    asked = _drawn(known, labels, limits.queries)
    classes = len(np.unique(labels[searched]))
    protocol = (
        f"gallery: {len(searched)} of {len(source)} images of {source.name}; queries: {_of(len(asked), len(known))} others "
        f"(training saw both, without labels; {len(part) - len(known)} whose label the gallery lacks left out); "
        f"right: same label of {classes}"
    )
    return Probe(
        _source_set(f"{source.name}, gallery", source, searched, labels[searched], image_size),
        _query_sets(source, asked, labels[asked], image_size, augmentation),
        protocol,
        classes,
    )


def _drawn(instances: np.ndarray, labels_N: np.ndarray, limit: int) -> np.ndarray:
    """A fair sample of these instances, in their order; all of them where there are no more than `limit`."""
    return instances[fair_sample(labels_N[instances], instances, limit)]


def _of(count: int, whole: int) -> str:
    return str(count) if count == whole else f"{count} of {whole}"


def _gallery_face(faces: Sequence[Face], family: str) -> Face:
    """The upright face of normal weight."""
    of_family = [face for face in faces if face.family == family]
    for face in of_family:
        if face.style in _UPRIGHT_STYLES:
            return face
    styles = ", ".join(repr(face.style) for face in of_family)
    raise ValueError(f"evaluate.gallery: {family!r} has no upright style of normal weight; it has {styles}")


def _letters(face: Face, image_size: int) -> np.ndarray:
    """Code points, ascending."""
    codes, _ = characters(face, image_size)
    return codes[[unicodedata.category(chr(code)).startswith("L") for code in codes]]


def _merge_equal(face: Face, codes: np.ndarray, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(index of the first code of each class, ascending; class of each code), a class being one rendering."""
    class_of_rendering: dict[bytes, int] = {}
    firsts: list[int] = []
    class_of_code = np.empty(len(codes), np.int64)
    for index, code in enumerate(codes):
        rendering = render(face, int(code), image_size).tobytes()
        if rendering not in class_of_rendering:
            class_of_rendering[rendering] = len(firsts)
            firsts.append(index)
        class_of_code[index] = class_of_rendering[rendering]
    return np.array(firsts, np.int64), class_of_code


def _glyph_set(
    name: str, face: Face, codes: np.ndarray, labels: np.ndarray, image_size: int, jitter: Jitter | None = None
) -> ImageSet:
    # Keyed by face and character: a letter is distorted alike whatever else is asked, and however it is batched.
    keys = keyed(_JITTER_SEED, zlib.crc32(face.name.encode()), codes)

    def load(start: int, stop: int) -> Loaded:
        images = to_tensor([render(face, int(code), image_size) for code in codes[start:stop]], image_size)
        if jitter is not None:
            images = jitter(images, keys[start:stop])
        return Loaded(images, np.ones(len(images), dtype=bool))

    return ImageSet(
        name, len(codes), load, labels, lambda i: _character_name(int(codes[i])), jittered=jitter is not None
    )


def _character_name(codepoint: int) -> str:
    return f"{shown(chr(codepoint))} U+{codepoint:04X}"


def _source_set(name: str, source: Source, instances: np.ndarray, labels: np.ndarray, image_size: int) -> ImageSet:
    def load(start: int, stop: int) -> Loaded:
        return load_images(source, instances[start:stop], image_size)

    return ImageSet(name, len(instances), load, labels, lambda i: source.instance_name(int(instances[i])))


def _query_sets(
    source: Source, asked: np.ndarray, labels: np.ndarray, image_size: int, augmentation: Augmentation | None
) -> list[ImageSet]:
    clean = _source_set(f"{source.name}, queries", source, asked, labels, image_size)
    if augmentation is None:
        return [clean]
    views = drawn_views(source, augmentation, asked, draws=(0,))
    return [clean, replace(clean, name=f"{clean.name}, jittered", load=views.load, jittered=True)]


def _labels_of(source: Source) -> np.ndarray:
    labels = source.labels()
    if labels is None:
        raise ValueError(f"evaluate: {source.name} has no labels; set data.labels, or switch the evaluation off")
    return labels
