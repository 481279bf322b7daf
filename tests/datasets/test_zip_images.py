"""Zips of the published layout are sources like folders: the same images, numbers, labels and batches."""

import pickle
import shutil
import zipfile
from pathlib import Path

import pytest

from datasets.batch import UnreadableImage
from datasets.folder import ImageFolder
from datasets.index import making
from datasets.index.image_index import WrongIndex
from datasets.zip_images import ZipImages
from tests.datasets.pictures import names
from tests.datasets.published import CLASSES, as_folders, as_zips, images


def packed(path: Path, *files: tuple[str, bytes], mode: str = "w") -> Path:
    with zipfile.ZipFile(path, mode) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_published_zips_are_the_images_of_the_folder_in_the_same_order(tmp_path: Path, method: int) -> None:
    folder = ImageFolder(as_folders(tmp_path / "folder"), "folders")
    zips = ZipImages(as_zips(tmp_path / "zips", method=method))
    assert len(zips) == len(folder) == 36
    for instance in range(36):
        assert zips.encoded(instance) == folder.encoded(instance)
        assert zips.file_bytes(instance) == folder.file_bytes(instance)
        assert zips.instance_name(instance) == f"train/{folder.instance_name(instance)}"
        assert (zips.image(instance) == folder.image(instance)).all()
    assert (zips.labels() == folder.labels()).all()
    assert (zips.label_names, folder.label_names) == (["0", "1", "2"], list(CLASSES))
    assert pickle.loads(pickle.dumps(zips)).encoded(3) == folder.encoded(3)


def test_the_other_split_is_asked_and_labelled_by_the_same_numbers(tmp_path: Path) -> None:
    root = as_zips(tmp_path / "zips")
    zips = ZipImages(root)
    assert zips.notes[0] == "trained on train, never on val, whose images are the queries"
    asked = zips.beside()
    assert asked is not None and asked.name == "zip (val)" and len(asked) == 12
    assert asked.labels().tolist() == [0] * 4 + [1] * 4 + [2] * 4
    # Names, not places, are what labels have in common; what training has not comes behind.
    (root / "val_map.txt").write_text("".join(f"{path}\t{10 - 5 * label}\n" for path, label, _ in images("val", 4)))
    (root / "train_map.txt").write_text("".join(f"{path}\t{5 * label}\n" for path, label, _ in images("train", 12)))
    zips = ZipImages(root)
    assert zips.label_names == ["0", "5", "10"]
    asked = zips.beside()
    assert asked is not None and asked.labels().tolist() == [2] * 4 + [1] * 4 + [0] * 4


def test_a_map_says_which_images_there_are_and_in_which_order(tmp_path: Path) -> None:
    packed(tmp_path / "a.zip", ("x/1.jpg", b"1"), ("y/2.jpg", b"2"), ("y/3.jpg", b"3"), ("4.jpg", b"4"))
    plain = ZipImages(tmp_path / "a.zip")
    assert names(plain) == ["x/1.jpg", "y/2.jpg", "y/3.jpg", "4.jpg"] and plain.labels() is None
    with pytest.raises(ValueError, match=r'data.labels: "folders", but 4\.jpg lies in no folder'):
        ZipImages(tmp_path / "a.zip", "folders")
    (tmp_path / "a_map.txt").write_text("y/3.jpg\t10\nx/1.jpg\t9\nno.jpg\t9\n")
    mapped = ZipImages(tmp_path)
    assert names(mapped) == ["y/3.jpg", "x/1.jpg"] and mapped.encoded(0) == b"3"
    assert mapped.labels().tolist() == [1, 0] and mapped.label_names == ["9", "10"]
    assert [note.split(",")[0] for note in mapped.notes] == [
        "1 of 3 lines of the map name no image of the zip",
        "2 of 4 images of the zip have no line in the map",
    ]
    (tmp_path / "a_map.txt").unlink()
    packed(tmp_path / "a.zip", ("x/1.jpg", b"1"), ("y/2.jpg", b"2"))
    by_folder = ZipImages(tmp_path, "folders")
    assert by_folder.labels().tolist() == [0, 1] and by_folder.label_names == ["x", "y"]


def test_a_zip_that_is_packed_anew_keeps_the_numbers_of_its_images(tmp_path: Path) -> None:
    path, index = tmp_path / "a.zip", tmp_path / "index"
    packed(path, ("x/1.jpg", b"one"), ("y/2.jpg", b"two"), ("y/3.jpg", b"three"))
    before = ZipImages(path, "folders")
    before.save_index(index)
    packed(path, ("0.jpg", b"zero"), ("y/3.jpg", b"three"), ("y/2.jpg", b"TWO"), ("x/1.jpg", b"one"))
    with pytest.raises(ValueError, match="lies in no folder"):
        ZipImages(path, "folders", index)
    after = ZipImages(path, None, index)
    assert names(after) == [*names(before), "0.jpg"]
    assert after.fingerprint(3) == before.fingerprint()
    assert [after.encoded(instance) for instance in (0, 2, 3)] == [b"one", b"three", b"zero"]
    assert after.notes[0] == "1 image is gone and skipped; a number is never given to another one: y/2.jpg"
    with pytest.raises(UnreadableImage, match=r"y/2\.jpg: "):  # another image never takes its place
        after.encoded(1)
    (tmp_path / "list").write_bytes(b"x/1.jpg\0")
    with pytest.raises(WrongIndex, match="is the list of a folder"):
        ZipImages(path, None, tmp_path / "list")


def test_a_fingerprint_is_of_names_and_contents_however_they_are_packed(tmp_path: Path) -> None:
    prints = [
        ZipImages(as_zips(tmp_path / str(method), method=method)).fingerprint()
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    ]
    assert prints[0] == prints[1]
    path = tmp_path / "a.zip"
    contents = [(("1.jpg", b"one"),), (("1.jpg", b"two"),), (("2.jpg", b"one"),)]
    assert len({ZipImages(packed(path, *content)).fingerprint() for content in contents}) == 3


def test_an_index_of_a_zip_is_opened_without_its_directory(tmp_path: Path) -> None:
    root = as_zips(tmp_path / "zips")
    for split, place in (("train", tmp_path / "index"), ("val", tmp_path / "index" / "val")):
        made = making.of_zip(place, root / f"{split}.zip", split, lambda _: None)
        assert made.added == len(made.index)
    plain, kept = ZipImages(root), ZipImages(root, stored=tmp_path / "index")
    assert kept.fingerprint() == plain.fingerprint() and (kept.labels() == plain.labels()).all()
    assert kept.encoded(7) == plain.encoded(7)
    packed(root / "train.zip", ("train/n02/new.JPEG", b"new"), mode="a")
    with (root / "train_map.txt").open("a") as lines:
        lines.write("n02/new.JPEG\t1\n")
    assert len(ZipImages(root, stored=tmp_path / "index")) == 36
    grown = ZipImages(root, stored=tmp_path / "index", rescan=True)
    assert len(grown) == 37 and grown.fingerprint(36) == plain.fingerprint() and grown.encoded(36) == b"new"
    assert grown.labels()[36] == 1
    grown.save_index(tmp_path / "unused")
    assert len(ZipImages(root, stored=tmp_path / "index")) == 37 and not (tmp_path / "unused").exists()
    shutil.copy(as_zips(tmp_path / "again", method=zipfile.ZIP_DEFLATED) / "train.zip", root / "train.zip")
    with pytest.raises(ValueError, match="packed anew since it was indexed"):
        ZipImages(root, stored=tmp_path / "index", rescan=True)


def test_what_is_no_set_of_zips_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere does not exist; set it to a zip"):
        ZipImages(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has 0 zips \(none\)"):
        ZipImages(tmp_path)
    for name in "ab":
        packed(tmp_path / f"{name}.zip", ("1.jpg", b"1"))
    with pytest.raises(ValueError, match=r"has 2 zips \(a\.zip, b\.zip\); name them train\.zip and val\.zip"):
        ZipImages(tmp_path)
    with pytest.raises(ValueError, match=r"no image in .*c\.zip \(notes\.txt: no image by its suffix"):
        ZipImages(packed(tmp_path / "c.zip", ("notes.txt", b"1")))
    with pytest.raises(ValueError, match="a zip has its labels"):
        ZipImages(tmp_path / "a.zip", tmp_path / "labels.csv")
