"""job=index as a user meets it."""

import json
import shutil

import pytest
from PIL import Image

from datasets.index.stored import read_header
from tests.conftest import folder_config


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    for number in range(24):
        path = root / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (number * 9, 0, 0)).save(path)
    return root


def test_a_run_with_an_index_lists_nothing_until_it_is_asked_to(run, capsys, photos, tmp_path):
    config = folder_config(photos, index=str(tmp_path / "index"))
    assert run("steps=2", config=config) == 2
    assert "holds no index; make it with the same words and job=index" in capsys.readouterr().err
    assert run("job=index", config=config) == 0
    assert not run.output.exists()
    assert "24 images, 24 of them new, with 2 labels" in capsys.readouterr().out
    assert run("steps=2", config=config) == 0
    for name in "yz":
        shutil.copy(photos / "a" / "00.png", photos / "a" / f"{name}.png")
    (photos / "b" / "01.png").unlink()
    capsys.readouterr()
    assert run("steps=4", config=config) == 0
    said = capsys.readouterr().out
    assert "24 images of folder" in said and "listing" not in said and "added" not in said
    assert run("steps=6", "data.rescan=true", config=config) == 0
    said = capsys.readouterr().out
    assert "2 images were added" in said and "1 image is gone and skipped" in said and "26 images of folder" in said
    assert not (run.output / "checkpoints" / "images.index").exists()
    header = read_header(tmp_path / "index")
    assert header.count == 26 and header.runs == [0, 24]
    assert run("steps=8", config=config) == 0
    assert run.summary()["instances"] == 26


def test_exact_copies_are_counted_and_the_first_named(run, capsys, photos, tmp_path):
    shutil.copy(photos / "a" / "04.png", photos / "b" / "copy.png")
    (photos / "b" / "03.png").unlink()
    (photos / "b" / "03.png").symlink_to("nowhere")
    config = folder_config(photos, index=str(tmp_path / "index"), hash=True, workers=2)
    for _ in range(2):
        assert run("job=index", config=config) == 0
        said = capsys.readouterr().out
        assert "2 images are exact copies of one another, in 1 set:\n  a/04.png, b/copy.png" in said
        assert "1 images could not be read, and have no hash" in said
    assert read_header(tmp_path / "index").hashed == 25
    (photos / "b" / "copy.png").unlink()


def test_mistakes_are_told_in_a_line(run, capsys, photos, tmp_path):
    for words, told in (
        (["data.index=null"], "data.index is null; set it to a directory"),
        ([f"data.index={photos}"], "holds a, which is no part of an index; choose another directory"),
        (["data.root=/nowhere"], "/nowhere does not exist"),
        (["data.root=null"], "data.root is null"),
    ):
        config = folder_config(photos, index=str(tmp_path / "index"))
        assert run("job=index", *words, config=config) == 2
        assert told in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run("job=index", f"data.root={tmp_path / 'empty'}", config=config) == 2
    assert "no image under" in capsys.readouterr().err


def test_an_index_that_is_there_goes_on_with_a_run_that_listed_itself(run, capsys, photos, tmp_path):
    config = folder_config(photos)
    assert run("steps=2", config=config) == 0
    assert run("job=index", f"data.index={tmp_path / 'index'}", config=config) == 0
    assert run("steps=4", f"data.index={tmp_path / 'index'}", config=config) == 0
    assert run("steps=6", config=config) == 0
    assert run.summary()["steps"] == 6
    assert json.loads((run.output / "config.json").read_text())["data"]["index"] is None


CACHES = (
    ("data.cache=part",),
    ("data.cache=full", "data.cache_of=encoded"),
    ("data.cache=true", "data.cache_gib=1e-5"),
)


def test_whatever_is_kept_in_memory_the_run_is_the_same_to_the_bit(run, capsys, photos):
    config = folder_config(photos)
    digests, said = [], []
    for number, words in enumerate(((), *CACHES)):
        run.output = run.directory / str(number)
        assert run("steps=6", *words, config=config) == 0
        digests.append(run.summary()["digest"])
        said.append(capsys.readouterr().out)
    assert len(set(digests)) == 1
    assert "kept in memory" not in said[0]
    assert "MiB of decoded images are kept in memory by each rank\n" in said[1]
    assert "MiB of encoded images are kept in memory by each rank\n" in said[2]
    assert "images do not fit and are read at each visit" in said[3]


def test_encoded_images_of_a_source_without_files_are_refused(run, capsys):
    assert run("data.cache=part", "data.cache_of=encoded") == 2
    assert "digits has no encoded images" in capsys.readouterr().err
