from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from datasets.batch import ImageSet, Probe
from datasets.digits import Digits
from datasets.glyphs import find_faces
from datasets.grey import GreyAugment
from datasets.keyed import uniform
from datasets.probes import Limits, glyph_probe, labelled_probe, split_probe

SIZE = 24
RNG = np.random.default_rng(0)


def shift(images: torch.Tensor, keys: np.ndarray) -> torch.Tensor:
    """A jitter that rolls each image by a keyed number of columns."""
    columns = (uniform(keys, 1)[:, 0] * 8).astype(int)
    return torch.stack([image.roll(int(by), dims=-1) for image, by in zip(images, columns, strict=True)])


@pytest.fixture(scope="module")
def probe() -> Probe:
    return glyph_probe(None, SIZE, ["DejaVu Serif", "STIXGeneral"], jitter=shift)


class Pictures:
    """A source of given arrays."""

    def __init__(self, images: np.ndarray, labels: list[int] | None) -> None:
        self.name, self.notes = "pictures", ()
        self.channels = 1 if images.ndim == 3 else 3
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._images)

    def image(self, instance: int) -> np.ndarray:
        return self._images[instance].copy()

    def labels(self) -> np.ndarray | None:
        return None if self._labels is None else np.array(self._labels)

    def instance_name(self, instance: int) -> str:
        return str(instance)

    def file_bytes(self, instance: int) -> int:
        return 0

    def fingerprint(self, count: int | None = None, were: Mapping[int, int] | None = None) -> str:
        return ""

    def save_index(self, path: Path) -> None:
        pass


def whole(images: ImageSet) -> torch.Tensor:
    loaded = images.load(0, images.count)
    assert loaded.readable_B.all() and len(loaded.images) == images.count
    return loaded.images


def nearest_is_right(gallery: ImageSet, queries: ImageSet) -> float:
    gallery_MP = functional.normalize(whole(gallery).float().flatten(1))
    nearest = (functional.normalize(whole(queries).float().flatten(1)) @ gallery_MP.T).argmax(1).numpy()
    assert gallery.labels_M is not None
    assert queries.labels_M is not None
    return float((gallery.labels_M[nearest] == queries.labels_M).mean())


# ---- glyphs


def test_each_face_of_normal_weight_asks_clean_and_jittered(probe: Probe) -> None:
    assert [queries.name for queries in probe.queries] == [
        "DejaVu Serif Italic",
        "DejaVu Serif Italic, jittered",
        "DejaVu Serif Book",
        "DejaVu Serif Book, jittered",
        "STIXGeneral Regular",
        "STIXGeneral Regular, jittered",
        "STIXGeneral Italic",
        "STIXGeneral Italic, jittered",
    ]
    assert len(glyph_probe(None, SIZE, ["STIXGeneral"]).queries) == 2


def test_the_gallery_holds_each_rendering_once_and_both_counts_are_told(probe: Probe) -> None:
    images = whole(probe.gallery)
    assert images.shape == (probe.classes, 1, SIZE, SIZE)
    assert images.dtype == torch.uint8
    assert len({image.numpy().tobytes() for image in images}) == probe.classes
    assert probe.gallery.labels_M is not None
    assert probe.gallery.labels_M.tolist() == list(range(probe.classes))
    assert f"{probe.classes} classes" in probe.protocol
    letters = int(probe.protocol.split(" letters")[0].split()[-1])
    assert 1.05 * probe.classes < letters < 1.3 * probe.classes


def test_letters_that_look_alike_in_the_gallery_have_one_label(probe: Probe) -> None:
    """Serif's A, Alpha and Cyrillic A are three queries of the label of Sans's one A; B has another label."""
    serif = probe.queries[2]
    a, b = (probe.gallery.load(i, i + 1).images for i in (0, 1))
    assert serif.labels_M is not None
    counts = np.bincount(serif.labels_M, minlength=probe.classes)
    # Letters are ordered by code point: the first two classes are A and B, which Greek and Cyrillic have too.
    assert counts[0] == 3
    assert counts[1] == 3
    assert not torch.equal(a, b)


def test_query_labels_are_labels_of_the_gallery(probe: Probe) -> None:
    for queries in probe.queries:
        assert queries.labels_M is not None
        assert queries.labels_M.shape == (queries.count,)
        assert queries.count > 300
        assert queries.labels_M.min() >= 0
        assert queries.labels_M.max() < probe.classes


def test_raw_pixels_find_half_of_the_upright_serif_letters(probe: Probe) -> None:
    """Wrong labels would leave chance, 1 in 2,900. Measured at 24 pixels: 53.8 % upright, 24.7 % italic."""
    assert 0.45 < nearest_is_right(probe.gallery, probe.queries[2]) < 0.7
    assert 0.15 < nearest_is_right(probe.gallery, probe.queries[0]) < 0.4


def test_images_do_not_depend_on_how_they_are_batched(probe: Probe) -> None:
    for images in [probe.gallery, *probe.queries[:2]]:
        at_once = images.load(100, 140).images
        for start, stop in ((100, 101), (110, 137), (139, 140)):
            assert torch.equal(images.load(start, stop).images, at_once[start - 100 : stop - 100])


def test_jitter_is_fixed_for_a_letter_of_a_face_whatever_else_is_asked(probe: Probe) -> None:
    alone = glyph_probe(None, SIZE, ["STIXGeneral"], jitter=shift)
    assert torch.equal(whole(alone.queries[1]), whole(probe.queries[5]))
    clean, jittered = whole(probe.queries[4]), whole(probe.queries[5])
    moved = (clean != jittered).flatten(1).any(1).float().mean()
    assert 0.7 < moved < 0.95  # 7 of 8 shifts move the image


def test_wrong_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"evaluate.gallery: no font family 'Dejavu Sans'; the nearest are 'DejaVu"):
        glyph_probe(None, SIZE, ["DejaVu Serif"], gallery_family="Dejavu Sans")
    with pytest.raises(ValueError, match=r"data.held_out: no font family 'Serif'"):
        glyph_probe(None, SIZE, ["Serif"])
    with pytest.raises(ValueError, match="'DejaVu Sans' is the gallery of the evaluation; hold out other families"):
        glyph_probe(None, SIZE, ["DejaVu Sans"])
    with pytest.raises(ValueError, match="no face of normal weight in STIXNonUnicode has letters of DejaVu Sans Book"):
        glyph_probe(None, SIZE, ["STIXNonUnicode"])
    assert "STIXNonUnicode" in {face.family for face in find_faces(None)}


# ---- labelled sources


def test_digits_are_found_by_raw_pixels() -> None:
    probe = labelled_probe(Digits("train"), Digits("test"), 8)
    assert (probe.gallery.count, probe.queries[0].count, probe.classes) == (1437, 360, 10)
    assert nearest_is_right(probe.gallery, probe.queries[0]) == pytest.approx(0.953, abs=0.005)


def test_grey_images_are_resized_whole_and_photographs_cropped() -> None:
    grey = np.zeros((2, 64, 64), np.uint8)
    grey[:, :2] = 255
    for images, kept in ((grey, True), (np.stack([grey] * 3, axis=3), False)):
        source = Pictures(images, [0, 1])
        first = labelled_probe(source, source, 28).gallery.load(0, 1).images
        assert first.shape == (1, source.channels, 28, 28)
        assert bool(first[:, :, 0].max() > 102) is kept


def test_sources_without_labels_or_with_other_labels_are_refused() -> None:
    images = RNG.integers(0, 256, (3, 8, 8), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"pictures has no labels; set data.labels"):
        labelled_probe(Pictures(images, None), Pictures(images, [0, 1, 2]), 8)
    with pytest.raises(ValueError, match=r"none of the 3 images of pictures has a label of the gallery \(pictures\)"):
        labelled_probe(Pictures(images, [0, 1, 2]), Pictures(images, [5, 6, -1]), 8)


def test_queries_whose_label_the_gallery_lacks_are_left_out_and_counted() -> None:
    images = RNG.integers(0, 256, (5, 8, 8), dtype=np.uint8)
    probe = labelled_probe(Pictures(images, [0, -1, 2, 2, 7]), Pictures(images, [0, 5, 2, 6, -1]), 8)
    assert probe.gallery.labels_M is not None and probe.gallery.labels_M.tolist() == [0, 2, 2, 7]
    (queries,) = probe.queries
    assert queries.labels_M is not None and queries.labels_M.tolist() == [0, 2]
    assert [queries.names(i) for i in range(2)] == ["0", "2"]
    assert torch.equal(whole(queries)[:, 0], torch.from_numpy(images[[0, 2]]))
    assert probe.classes == 3
    assert probe.protocol == (
        "gallery: 4 of 5 labelled images of pictures; queries: 2 others that training did not see "
        "(3 whose label the gallery lacks left out); right: same label of 3"
    )


def test_sets_above_their_limits_are_fair_samples_and_others_are_whole() -> None:
    images = RNG.integers(0, 256, (120, 8, 8), dtype=np.uint8)
    labels = np.repeat(np.arange(10), 12).tolist()
    gallery, queries = Pictures(images, labels), Pictures(images[::-1], labels[:60])
    unlimited, above = (labelled_probe(gallery, queries, 8, *limits) for limits in ((), (Limits(120, 60),)))
    assert above.fingerprint() == unlimited.fingerprint()
    assert torch.equal(whole(above.gallery), whole(unlimited.gallery)) and above.gallery.count == 120
    probe = labelled_probe(gallery, queries, 8, Limits(40, 20))
    for images_of, classes, each in ((probe.gallery, 10, 4), (probe.queries[0], 5, 4)):
        assert images_of.labels_M is not None
        assert np.bincount(images_of.labels_M).tolist() == [each] * classes
        numbers = [int(images_of.names(i)) for i in range(images_of.count)]
        assert [labels[number] for number in numbers] == images_of.labels_M.tolist()
        assert numbers != [12 * label + i for label in range(classes) for i in range(each)]
    assert "gallery: 40 of 120 labelled images of pictures; queries: 20 of 60 others" in probe.protocol
    few = labelled_probe(gallery, queries, 8, Limits(6, 1000))  # fewer images than labels
    assert few.classes == few.gallery.count == 6
    assert few.queries[0].count == 12 * len(set(few.gallery.labels_M) & set(range(5)))


def test_queries_are_asked_again_as_views_that_are_the_same_each_time_and_in_any_batch() -> None:
    images = RNG.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    source, augment = Pictures(images, [0, 1] * 20), GreyAugment(size=8, view_count=2)
    for made in (labelled_probe, split_probe):
        asked = (source, source, 8) if made is labelled_probe else (source, 8)
        (clean, jittered), (alone,) = made(*asked, augmentation=augment).queries, made(*asked).queries
        assert torch.equal(whole(clean), whole(alone)) and not clean.jittered and jittered.jittered
        assert jittered.name == f"{clean.name}, jittered" and jittered.names(1) == clean.names(1)
        assert np.array_equal(jittered.labels_M, clean.labels_M)
        views = whole(jittered)
        assert views.shape == whole(clean).shape and not torch.equal(views, whole(clean))
        assert torch.equal(torch.cat([jittered.load(0, 1).images, jittered.load(1, jittered.count).images]), views)


def test_glyphs_above_the_limits_are_asked_for_the_letters_that_the_gallery_has(probe: Probe) -> None:
    few = glyph_probe(None, SIZE, ["STIXGeneral"], jitter=shift, limits=Limits(200, 50))
    assert few.gallery.count == few.classes == 200
    assert few.gallery.labels_M is not None and probe.gallery.labels_M is not None
    for number in (0, 77, 199):  # a label means the same letter as ever
        label = int(few.gallery.labels_M[number])
        assert torch.equal(few.gallery.load(number, number + 1).images, probe.gallery.load(label, label + 1).images)
    for queries, of_all in zip(few.queries, probe.queries[4:], strict=True):
        assert queries.name == of_all.name and 0 < queries.count <= 50
        assert np.isin(queries.labels_M, few.gallery.labels_M).all()
    assert ", of which 200 were drawn; queries" in few.protocol


# ---- one labelled source cut in two


def test_a_split_asks_every_image_once_in_gallery_or_queries() -> None:
    images = RNG.integers(0, 256, (200, 8, 8), dtype=np.uint8)
    source = Pictures(images, [i % 4 for i in range(200)])
    probe = split_probe(source, 8, query_fraction=0.2)
    assert (probe.gallery.count, probe.queries[0].count) == (160, 40)
    parts = [whole(part).numpy() for part in (probe.gallery, probe.queries[0])]
    seen = [image.tobytes() for image in np.concatenate(parts)]
    assert sorted(seen) == sorted(image.tobytes() for image in images)
    instance_of = {image.tobytes(): i for i, image in enumerate(images)}
    assert probe.gallery.labels_M is not None
    assert probe.queries[0].labels_M is not None
    labels = np.concatenate([probe.gallery.labels_M, probe.queries[0].labels_M])
    assert labels.tolist() == [instance_of[image] % 4 for image in seen]
    again = split_probe(Pictures(images, [0] * 200), 8, query_fraction=0.2)
    assert torch.equal(whole(again.queries[0]), whole(probe.queries[0]))


def test_a_split_above_its_limits_is_sampled_out_of_its_parts() -> None:
    images = RNG.integers(0, 256, (400, 8, 8), dtype=np.uint8)
    source = Pictures(images, [0] * 300 + [1] * 50 + [2] * 40 + [-1] * 10)
    full, few = split_probe(source, 8, 0.25), split_probe(source, 8, 0.25, Limits(60, 9))
    for part, of_all, each in ((few.gallery, full.gallery, 20), (few.queries[0], full.queries[0], 3)):
        assert part.labels_M is not None
        assert np.bincount(part.labels_M).tolist() == [each] * 3
        assert {part.names(i) for i in range(part.count)} < {of_all.names(i) for i in range(of_all.count)}
    assert (
        "gallery: 60 of 400 images" in few.protocol and f"queries: 9 of {full.queries[0].count} others" in few.protocol
    )
    assert full.gallery.count + full.queries[0].count == 390


def test_queries_alone_in_their_class_are_left_out_and_counted() -> None:
    images = RNG.integers(0, 256, (100, 8, 8), dtype=np.uint8)
    labels = [0] * 50 + list(range(1, 51))
    probe = split_probe(Pictures(images, labels), 8, query_fraction=0.3)
    queries = probe.queries[0]
    assert 0 < queries.count < 30
    assert queries.labels_M is not None
    assert set(queries.labels_M) == {0}
    assert f"{30 - queries.count} whose label the gallery lacks left out" in probe.protocol
    with pytest.raises(ValueError, match="none of 30 queries out of 100 images shares its label"):
        split_probe(Pictures(images, list(range(100))), 8, query_fraction=0.3)
    with pytest.raises(ValueError, match=r"query_fraction 1.0 is not between 0 and 1"):
        split_probe(Pictures(images, labels), 8, query_fraction=1.0)
