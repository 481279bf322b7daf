"""Where a set has two parts, they are never trained together, and one asks."""

from pathlib import Path

import pytest

from datasets.folder import ImageFolder
from datasets.splits import Splits, find_splits
from tests.datasets.pictures import names
from tests.datasets.published import CLASSES, as_folders


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


@pytest.mark.parametrize(
    ("there", "splits"),
    [
        ("train val", Splits("train", "val")),
        ("Training TEST", Splits("Training", "TEST")),
        ("train test val valid", Splits("train", "val", ("valid", "test"))),
        ("train trainval test", Splits("train", "test", ("trainval",))),
        ("train car", Splits()),
        ("val test", Splits()),
        ("cat dog", Splits()),
    ],
)
def test_parts_are_known_by_their_names_where_there_are_two_at_least(
    tmp_path: Path, there: str, splits: Splits
) -> None:
    for name in there.split():
        (tmp_path / name).mkdir()
    assert find_splits(tmp_path) == splits
    if splits.others:
        assert splits.notes("train")[0].endswith(f"{', '.join(splits.others)}: not used")


def test_train_and_val_are_never_trained_together_labelled_or_not(tmp_path: Path) -> None:
    root = as_folders(tmp_path)
    for labels in (None, "folders"):
        source = ImageFolder(root, labels)
        assert len(source) == 36 and all(name.startswith(CLASSES) for name in names(source))
        assert source.notes == ("trained on train, never on val, whose images are the queries",)
        assert source.fingerprint() == ImageFolder(root / "train").fingerprint()
    asked = source.beside()
    assert asked is not None and len(asked) == 12 and asked.label_names == source.label_names
    assert asked.labels().tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert ImageFolder(root).beside() is None  # nobody has labels to ask for
    assert ImageFolder(root / "train", "folders").beside() is None


def test_labels_of_the_split_that_is_asked_go_by_name_and_new_ones_come_behind(tmp_path: Path) -> None:
    touch(tmp_path, "train/b/1.png", "train/d/2.png", "val/a/3.png", "val/d/4.png", "val/b/5.png")
    source = ImageFolder(tmp_path, "folders")
    asked = source.beside()
    assert asked is not None and asked.label_names == ["b", "d", "a"]
    assert dict(zip(names(asked), asked.labels().tolist(), strict=True)) == {"a/3.png": 2, "b/5.png": 0, "d/4.png": 1}


def test_a_csv_file_may_label_both_parts(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "train/1.png", "train/2.png", "val/3.png")
    table = tmp_path / "labels.csv"
    table.write_text("path,label\ntrain/1.png,y\ntrain/2.png,x\nval/3.png,y\n")
    source = ImageFolder(root, table)
    assert source.labels().tolist() == [1, 0]
    asked = source.beside()
    assert asked is not None and asked.labels().tolist() == [1]
    table.write_text("path,label\ntrain/1.png,y\nval/3.png,y\n")
    with pytest.raises(ValueError, match=r"has no line for train/2\.png"):
        ImageFolder(root, table)


def test_a_part_without_class_folders_asks_nothing_and_is_told(tmp_path: Path) -> None:
    source = ImageFolder(touch(tmp_path, "train/a/1.png", "train/b/2.png", "val/1.png"), "folders")
    assert source.beside() is None
    assert source.notes[-1] == "no image of val has a label, so none of them is asked"


def test_exclude_goes_by_the_path_from_the_root_and_may_leave_out_a_whole_part(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "train/b/2.png", "train/b/x/3.png", "val/b/4.png")
    assert names(ImageFolder(tmp_path, exclude=["train/b/*"])) == ["a/1.png"]
    assert names(ImageFolder(tmp_path, exclude=["b"])) == ["a/1.png"]
    assert names(ImageFolder(tmp_path, exclude=["./train/b", "val/b"])) == ["a/1.png"]
    assert names(ImageFolder(tmp_path, exclude=["val"])) == ["train/a/1.png", "train/b/2.png", "train/b/x/3.png"]


def test_a_path_is_compared_whole_from_the_root_or_from_the_part_and_one_of_another_part_means_nothing(
    tmp_path: Path,
) -> None:
    touch(tmp_path, "train/a/1.png", "train/x/a/2.png", "train/val/b/3.png", "val/b/4.png", "val/c/5.png")
    source = ImageFolder(tmp_path, "folders", exclude=["train/a", "val/b", "*/x/b", "y/a"])
    assert names(source) == ["val/b/3.png", "x/a/2.png"]
    assert source.notes[-1] == "data.exclude: '*/x/b', 'y/a' left nothing of train out"
    assert names(ImageFolder(tmp_path, exclude=["x/a", "val/b"])) == ["a/1.png", "val/b/3.png"]
    beside = source.beside()
    assert beside is not None
    assert names(beside) == ["c/5.png"]


def test_a_run_goes_on_with_the_part_that_it_had(tmp_path: Path) -> None:
    root, index = as_folders(tmp_path / "root"), tmp_path / "index"
    source = ImageFolder(root)
    source.save_index(index)
    touch(root, "train/n01440764/new.png")
    for place in (root, root / "train"):
        again = ImageFolder(place, known=index)
        assert names(again) == [*names(source), "n01440764/new.png"]
        assert again.fingerprint(36) == source.fingerprint()
    together = tmp_path / "together"  # of a time when there was no val
    ImageFolder(touch(tmp_path / "other", "train/1.png", "x/2.png")).save_index(together)
    touch(tmp_path / "other", "val/3.png")
    assert names(ImageFolder(tmp_path / "other", known=together)) == ["train/1.png", "x/2.png", "val/3.png"]
