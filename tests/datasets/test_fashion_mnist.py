import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from datasets.fashion_mnist import FashionMnist
from datasets.source import Source

DEBIAN_ROOT = Path("/usr/share/datasets/fashion-mnist")
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
LABELS = np.array([9, 0, 3, 3, 1], np.uint8)


def idx(values: np.ndarray, magic: bytes | None = None) -> bytes:
    header = magic if magic is not None else bytes([0, 0, 8, values.ndim])
    return header + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write(root: Path, images: bytes, labels: bytes, prefix: str = "train", zipped: bool = True) -> Path:
    root.mkdir(exist_ok=True)
    for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
        name = f"{prefix}-{kind}-ubyte"
        (root / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content) if zipped else content)
    return root


def test_plain_and_gzipped_files_are_the_same_source(tmp_path: Path) -> None:
    plain: Source = FashionMnist(write(tmp_path / "plain", idx(IMAGES), idx(LABELS), zipped=False), "train")
    zipped: Source = FashionMnist(write(tmp_path / "zipped", idx(IMAGES), idx(LABELS)), "train")
    for source in (plain, zipped):
        assert len(source) == 5
        assert np.array_equal(np.stack([source.image(i) for i in range(5)]), IMAGES)
        assert np.array_equal(source.labels(), LABELS)
    assert plain.fingerprint() == zipped.fingerprint()
    assert plain.instance_name(0) == "train 0 (ankle boot)"


def test_the_test_split_is_read_from_its_own_files(tmp_path: Path) -> None:
    write(tmp_path, idx(IMAGES), idx(LABELS))
    write(tmp_path, idx(IMAGES[:2]), idx(LABELS[:2]), prefix="t10k")
    assert len(FashionMnist(tmp_path, "test")) == 2


def test_limit_keeps_the_first_images_and_is_another_source(tmp_path: Path) -> None:
    write(tmp_path, idx(IMAGES), idx(LABELS))
    limited = FashionMnist(tmp_path, "train", limit=3)
    assert len(limited) == len(limited.labels()) == 3
    assert np.array_equal(limited.image(2), IMAGES[2])
    assert limited.fingerprint() != FashionMnist(tmp_path, "train").fingerprint()
    for limit in (0, 6):
        with pytest.raises(ValueError, match=rf"data.limit: {limit} is outside 1..5"):
            FashionMnist(tmp_path, "train", limit)


def test_a_higher_limit_appends_images(tmp_path: Path) -> None:
    write(tmp_path, idx(IMAGES), idx(LABELS))
    sources = {limit: FashionMnist(tmp_path, "train", limit) for limit in (2, 3, 5)}
    for larger in (3, 5):
        assert sources[larger].fingerprint(2) == sources[2].fingerprint() == sources[2].fingerprint(2)
    assert sources[5].fingerprint(5) == sources[5].fingerprint() == FashionMnist(tmp_path, "train").fingerprint()
    write(tmp_path, idx(IMAGES[::-1]), idx(LABELS))
    assert FashionMnist(tmp_path, "train").fingerprint(2) != sources[2].fingerprint()
    sources[2].save_index(tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_labels_that_do_not_fit_are_refused_with_both_counts(tmp_path: Path) -> None:
    write(tmp_path, idx(IMAGES), idx(LABELS[:4]))
    with pytest.raises(ValueError, match="5 images but 4 labels"):
        FashionMnist(tmp_path, "train")


def test_a_missing_directory_says_what_to_install_or_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"install the Debian package dataset-fashion-mnist, or set data.root"):
        FashionMnist(tmp_path / "nowhere", "train")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, idx(IMAGES), idx(LABELS))
    with pytest.raises(ValueError, match="neither t10k-images-idx3-ubyte nor"):
        FashionMnist(tmp_path, "test")


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (idx(LABELS), "starts with 00000801, not 00000803"),
        (idx(IMAGES, magic=b"\x89PNG"), "starts with 89504e47, not 00000803"),
        (idx(IMAGES)[:-1], "holds 3919 values"),
        (idx(IMAGES) + b"\0", "holds 3921 values"),
        (b"", "is not an idx file"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, images: bytes, reason: str) -> None:
    write(tmp_path, images, idx(LABELS), zipped=False)
    with pytest.raises(ValueError, match=reason):
        FashionMnist(tmp_path, "train")


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9], lambda b: b"\0" + b[1:], lambda b: b[:40] + b"\xff" * 40 + b[80:]]
)
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, damage) -> None:
    write(tmp_path, idx(IMAGES), idx(LABELS))
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"is not a whole gzip file \(.+\); fetch it again"):
        FashionMnist(tmp_path, "train")


def test_an_image_belongs_to_the_caller(tmp_path: Path) -> None:
    source = FashionMnist(write(tmp_path, idx(IMAGES), idx(LABELS)), "train")
    source.image(1)[:] = 7
    assert np.array_equal(source.image(1), IMAGES[1])


@pytest.mark.skipif(not DEBIAN_ROOT.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_the_debian_package_holds_ten_balanced_classes() -> None:
    for split, per_class in (("train", 6000), ("test", 1000)):
        source = FashionMnist(DEBIAN_ROOT, split)
        assert np.bincount(source.labels()).tolist() == [per_class] * 10
