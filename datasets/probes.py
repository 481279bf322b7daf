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
"""

import unicodedata
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from datasets.batch import ImageSet, Loaded, Probe
from datasets.clean import load_images, to_tensor
from datasets.glyphs import Face, characters, check_families, find_faces, render
from datasets.keyed import keyed, shuffle
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


def glyph_probe(
    fonts_dir: Path | None,
    image_size: int,
    query_families: Sequence[str],
    gallery_family: str = "DejaVu Sans",
    jitter: Jitter | None = None,
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
    gallery = _glyph_set(gallery_face.name, gallery_face, letters[firsts], np.arange(len(firsts)), image_size)
    queries: list[ImageSet] = []
    for family in query_families:
        normal = [face for face in faces if face.family == family and face.style in _NORMAL_STYLES]
        asked = [(face, np.intersect1d(_letters(face, image_size), letters)) for face in normal]
        asked = [(face, codes) for face, codes in asked if len(codes)]
        for face, codes in asked:
            labels = class_of_letter[np.searchsorted(letters, codes)]
            queries.append(_glyph_set(face.name, face, codes, labels, image_size))
            if jitter is not None:
                queries.append(_glyph_set(f"{face.name}, jittered", face, codes, labels, image_size, jitter))
    if not queries:
        raise ValueError(
            f"data.held_out: no face of normal weight in {', '.join(query_families)} has letters of {gallery_face.name}"
        )
    protocol = (
        f"gallery: the {len(letters)} letters of {gallery_face.name}, {len(firsts)} classes after merging equal pixels "
        f"at {image_size} px, one image each; queries: its letters in {', '.join(query.name for query in queries if not query.jittered)}; "
        "right: same class"
    )
    return Probe(gallery, queries, protocol, classes=len(firsts))


def labelled_probe(gallery: Source, queries: Source, image_size: int) -> Probe:
    """All images of one labelled source against all of another, with the same numbering of labels.

    ValueError where one has no labels, or where a query's label does not occur in the gallery.
    """
    gallery_labels, query_labels = _labels_of(gallery), _labels_of(queries)
    strange = ~np.isin(query_labels, gallery_labels)
    if strange.any():
        raise ValueError(
            f"evaluate: label {query_labels[strange][0]} of {queries.name} is not in the gallery "
            f"({strange.sum()} of {len(strange)} queries)"
        )
    classes = len(np.unique(gallery_labels))
    protocol = (
        f"gallery: {len(gallery)} labelled images of {gallery.name}; "
        f"queries: {len(queries)} others that training did not see; right: same label of {classes}"
    )
    everything = np.arange(len(gallery))
    return Probe(
        _source_set(f"{gallery.name}, gallery", gallery, everything, gallery_labels, image_size),
        [_source_set(f"{queries.name}, queries", queries, np.arange(len(queries)), query_labels, image_size)],
        protocol,
        classes,
    )


def split_probe(source: Source, image_size: int, query_fraction: float = 0.1) -> Probe:
    """A fixed pseudo-random part of a labelled source against the rest of it.

    Which images are asked depends on N and `query_fraction` alone. Queries whose label is left without an image in the
    gallery are dropped, and counted in the protocol. ValueError where there are no labels or no query remains.
    """
    labels = _labels_of(source)
    if not 0 < query_fraction < 1:
        raise ValueError(f"query_fraction {query_fraction} is not between 0 and 1")
    order = shuffle(_SPLIT_SEED, len(source))
    # Left in shuffled order: who takes the first of them takes a fair sample.
    drawn = order[: round(query_fraction * len(source))]
    rest = order[len(drawn) :]
    asked = drawn[np.isin(labels[drawn], labels[rest])]
    if len(asked) == 0:
        raise ValueError(
            f"evaluate: none of {len(drawn)} queries out of {len(source)} images shares its label with another image; "
            "label more images alike"
        )
    classes = len(np.unique(labels[rest]))
    protocol = (
        f"gallery: {len(rest)} of {len(source)} images of {source.name}; queries: {len(asked)} others "
        f"(training saw both, without labels; {len(drawn) - len(asked)} alone in their class left out); "
        f"right: same label of {classes}"
    )
    return Probe(
        _source_set(f"{source.name}, gallery", source, rest, labels[rest], image_size),
        [_source_set(f"{source.name}, queries", source, asked, labels[asked], image_size)],
        protocol,
        classes,
    )


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


def _labels_of(source: Source) -> np.ndarray:
    labels = source.labels()
    if labels is None:
        raise ValueError(f"evaluate: {source.name} has no labels; set data.labels, or switch the evaluation off")
    return labels
