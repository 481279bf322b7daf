"""Labels of a folder: by its first directories, or by a csv file."""

from pathlib import Path

import pytest

from datasets.folder import ImageFolder
from tests.datasets.pictures import save


def test_folders_label_by_the_first_component(tmp_path: Path) -> None:
    for path in ("dog/1.png", "cat/deep/2.png", "cat-big/3.png", "cat/4.png"):
        save(tmp_path / path)
    source = ImageFolder(tmp_path, labels="folders")
    assert source.label_names == ["cat", "cat-big", "dog"]
    found = {source.instance_name(i): source.label_names[label] for i, label in enumerate(source.labels())}
    assert found == {"dog/1.png": "dog", "cat/deep/2.png": "cat", "cat-big/3.png": "cat-big", "cat/4.png": "cat"}
    save(tmp_path / "stray.png")
    with pytest.raises(ValueError, match=r'"folders", but stray\.png lies directly in'):
        ImageFolder(tmp_path, labels="folders")


def test_a_csv_file_labels_by_path(tmp_path: Path) -> None:
    for path in ("x/1.png", "2.png", "x/3, big.png"):
        save(tmp_path / path)
    table = tmp_path / "labels.csv"
    table.write_text('path,label\n2.png,zebra\n"x/3, big.png",ant\nx/1.png,zebra\n')
    source = ImageFolder(tmp_path, labels=table)
    assert source.label_names == ["ant", "zebra"]
    found = {source.instance_name(i): source.label_names[label] for i, label in enumerate(source.labels())}
    assert found == {"x/1.png": "zebra", "2.png": "zebra", "x/3, big.png": "ant"}
    assert source.fingerprint() == ImageFolder(tmp_path).fingerprint()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\na.png,1\n", r"no line for b\.png \(2 of 3 images have no label\)"),
        (
            "path,label\na.png,1\nb.png,1\nc.png,1\nd.png,2\ne.png,2\n",
            r"names d\.png, .*\(2 of 5 lines name no image\)",
        ),
        ("path,label\na.png,1\nb.png,1\nc.png,1\na.png,2\n", r"line 5 gives a\.png a second label"),
        ("a.png,1\nb.png,1\nc.png,1\n", "the first line of .* is 'a.png,1'; it must be 'path,label'"),
        ("path,label\na.png,1,2\n", "line 2 is not a path, a comma and a label"),
        ("path,label\na.png,\n", "line 2 is not a path, a comma and a label"),
        ("", "must be 'path,label'"),
    ],
)
def test_a_csv_file_that_does_not_fit_is_refused(tmp_path: Path, content: str, message: str) -> None:
    for name in "abc":
        save(tmp_path / f"{name}.png")
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        ImageFolder(tmp_path, labels=tmp_path / "labels.csv")


def test_a_missing_csv_file_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="is not a file; set it to a csv file"):
        ImageFolder(tmp_path, labels=tmp_path / "labels.csv")
