"""Which files of a folder are instances, and in which order."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from datasets.folder import ImageFolder
from datasets.source import Source
from tests.datasets.pictures import names, save


def test_instances_are_the_images_below_the_root_in_order_of_their_paths(tmp_path: Path) -> None:
    paths = ["b.JPG", "a/z.png", "a/b/c.Jpeg", "a.png", "a-b/x.bmp", "a0.tif", "ä/ö ü.webp", "c.gif", "d.tiff"]
    for path in paths:
        save(tmp_path / path)
    resource_forks = ["._b.JPG", "a/._z.png"]
    for path in ["notes.txt", "a/.hidden.png", ".cache/x.png", "png", "archive.png.zip", *resource_forks]:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    source = ImageFolder(tmp_path)
    assert names(source) == sorted(paths, key=os.fsencode)
    assert source.labels() is None
    protocol: Source = source
    assert protocol.image(0).shape == (4, 6, 3)


def test_the_order_does_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    for root, order in (("one", [3, 1, 2]), ("two", [2, 3, 1])):
        for number in order:
            save(tmp_path / root / f"{number % 2}" / f"{number}.png")
    one, two = ImageFolder(tmp_path / "one"), ImageFolder(tmp_path / "two")
    assert names(one) == names(two)
    assert one.fingerprint() == two.fingerprint()


def test_the_index_takes_the_bytes_of_the_paths_and_forty_more_for_each(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number:032d}.jpg").touch()
    source = ImageFolder(tmp_path)
    assert len(pickle.dumps(source)) < 200 * (37 + 40) + 2000


def test_a_source_works_after_pickling(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    source = pickle.loads(pickle.dumps(ImageFolder(tmp_path)))
    assert source.image(0)[0, 0].tolist() == [10, 20, 30]


def test_links_are_followed_and_those_that_lead_back_left_out(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "deep" / "a.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "folder").symlink_to(tmp_path / "elsewhere")
    (root / "file.png").symlink_to(tmp_path / "elsewhere" / "deep" / "a.png")
    source = ImageFolder(root)
    assert names(source) == ["file.png", "folder/deep/a.png"]
    assert np.array_equal(source.image(0), source.image(1))
    (tmp_path / "elsewhere" / "loop").symlink_to(root)
    looped = ImageFolder(root)
    assert names(looped) == names(source)
    assert looped.notes == ("the link folder/loop: leads back to a folder above it, left out",)


def test_names_that_are_not_utf8_are_images_like_others(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/caf\xe9.png"
    os.rename(save(tmp_path / "plain.png"), odd)
    source = ImageFolder(tmp_path)
    assert names(source) == ["caf\\xe9.png"]
    assert source.image(0).shape == (4, 6, 3)


def test_the_fingerprint_sees_added_renamed_and_resized_files(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    prints = [ImageFolder(tmp_path).fingerprint()]
    save(tmp_path / "b.png")
    prints.append(ImageFolder(tmp_path).fingerprint())
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    prints.append(ImageFolder(tmp_path).fingerprint())
    with (tmp_path / "c.png").open("ab") as file:
        file.write(b"\0")
    prints.append(ImageFolder(tmp_path).fingerprint())
    assert len(set(prints)) == 4
    os.utime(tmp_path / "c.png", (0, 0))
    assert ImageFolder(tmp_path).fingerprint() == prints[-1]


# ---- mistakes of the user


def test_a_bad_root_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere does not exist; set it to your folder"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"a.png is a file; set it to the folder"):
        ImageFolder(save(tmp_path / "full" / "a.png"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"no image under .*empty; looked for .jpg .jpeg .png") as error:
        ImageFolder(tmp_path / "empty")
    assert "\n" not in str(error.value)
