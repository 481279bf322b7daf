"""A run goes on with the images that it knows: by their index, or without one where none was needed."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from configs import schema
from datasets.source import Source
from engine.disk.body import RunState
from engine.jobs import data as data_of_run
from tests.conftest import TINY
from tests.datasets.pictures import names

AUGMENT = {"kind": "photos", "crops": [{"size": 16}]}


def body_of(state: dict[str, Any]) -> SimpleNamespace:
    """What a manifest's body says of a run."""
    return SimpleNamespace(state=RunState.of(state))


class Run:
    """A photo run in a directory: `start` is what launch.py does with the source, `go_on` with that of the checkpoint before."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root, self.output = directory / "photos", directory / "run"
        self.index = self.output / "checkpoints" / "images.index"
        self.index.parent.mkdir(parents=True)
        self.last: Any = None

    def add(self, *names: str) -> None:
        for name in names:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (1, 2, 3)).save(self.root / name)

    def config(self, **data: Any) -> schema.Config:
        tree = {
            **TINY,
            "output": str(self.output),
            "data": {"source": "folder", "root": str(self.root), "image_size": 16, "augment": AUGMENT, **data},
            "schedule": {"batch": 4, "window": 8, "stride": 4, "block": 2, "lanes": 2, "reshuffle": False},
            "method": {**TINY["method"], "active": 4},
        }
        (self.directory / "config.json").write_text(json.dumps(tree))
        return schema.load(str(self.directory / "config.json"), [])

    def start(self, unreadable: tuple[int, ...] = (), **data: Any) -> Source:
        config = self.config(**data)
        source, _, schedule, config = data_of_run.open_data(config, self.last)
        source.save_index(self.index)
        self.last = SimpleNamespace(
            step=4,
            body=body_of(
                {
                    "config": json.loads(config.model_dump_json()),
                    "segments": schedule.history,
                    "source": source.fingerprint(),
                    "unreadable": [[instance, source.file_bytes(instance)] for instance in unreadable],
                    "kernels": {},
                    "totals": {},
                }
            ),
        )
        return source

    def go_on(self, **data: Any) -> Source:
        return data_of_run.open_data(self.config(**data), self.last)[0]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path)
    made.add(*(f"{number}.png" for number in "13579bdf"))
    return made


def lose(index: Path) -> None:
    index.unlink()


def cut(index: Path) -> None:
    index.write_bytes(index.read_bytes()[:-3])


def half(index: Path) -> None:
    index.write_bytes(index.read_bytes()[:12])


def empty(index: Path) -> None:
    index.write_bytes(b"")


def foreign(index: Path) -> None:
    index.write_bytes(b"../../etc/passwd\0/etc/shadow\0" * 20)


def directory(index: Path) -> None:
    index.unlink()
    index.mkdir()


DAMAGES: list[Callable[[Path], None]] = [lose, cut, half, empty, foreign, directory]


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_index_that_was_never_needed_is_not_missed(run: Run, damage: Callable[[Path], None], capsys: Any) -> None:
    before = run.start()
    damage(run.index)
    again = run.go_on()
    assert names(again) == names(before)
    assert again.fingerprint() == before.fingerprint()
    said = capsys.readouterr().out
    assert "images.index" in said or "instance 0 of this run and is gone" in said
    assert "it was not needed, as the images are in the order of their names; it is made anew" in said


@pytest.mark.parametrize("damage", [lose, cut, half, empty, directory])
def test_where_only_the_index_knew_the_order_the_message_names_the_file_to_restore(
    run: Run, damage: Callable[[Path], None]
) -> None:
    run.start()
    run.add("0.png", "2.png")
    grown = run.start()
    content = run.index.read_bytes()
    damage(run.index)
    with pytest.raises(ValueError, match=r"checkpoints/images\.index.*restore") as error:
        run.go_on()
    assert len(str(error.value).splitlines()) == 1
    if run.index.is_dir():
        run.index.rmdir()
    run.index.write_bytes(content)  # what the message says
    assert names(run.go_on()) == names(grown)


def test_the_index_of_an_older_run_is_read_and_a_whole_one_is_taken_where_the_other_is_cut(
    run: Run, capsys: Any
) -> None:
    run.start()
    run.add("0.png", "2.png")
    grown = run.start()
    older = run.output / "images.index"
    run.index.rename(older)
    assert names(run.go_on()) == names(grown)
    run.index.write_bytes(older.read_bytes()[:-1])
    capsys.readouterr()
    assert names(run.go_on()) == names(grown)
    assert f"{older} is whole" in capsys.readouterr().out
    older.write_bytes(b"1.png\0")  # left over from before the folder grew
    run.index.unlink()
    with pytest.raises(ValueError, match=r"images\.index lists 1 of 10 images; restore it"):
        run.go_on()


def test_one_image_that_changed_is_named_and_several_are_another_set(run: Run) -> None:
    before = run.start()
    for name in "3", "5":
        with (run.root / f"{name}.png").open("ab") as file:
            file.write(b"\0")
        if name == "3":
            source = run.go_on()
            assert "3.png" in source.notes[0] and source.fingerprint() == before.fingerprint()
    with pytest.raises(
        ValueError, match=r"the images changed since .*: 2 images are .* 3\.png, 5\.png.*; restore them"
    ):
        run.go_on()
    assert len(run.go_on(max_unreadable=0.5)) == 8
    (run.root / "5.png").unlink()
    with pytest.raises(ValueError, match=r"1 image is gone and skipped.*: 5\.png; 1 image is of another size"):
        run.go_on()
    with pytest.raises(ValueError, match="the images changed"):
        run.go_on(max_unreadable=0)


def test_one_image_that_is_gone_is_skipped(run: Run) -> None:
    run.start()
    (run.root / "3.png").unlink()
    source = run.go_on()
    assert names(source) == [f"{number}.png" for number in "13579bdf"]
    assert source.notes[0].endswith("3.png")


def test_an_image_that_could_not_be_read_may_be_repaired(run: Run) -> None:
    whole = (run.root / "5.png").read_bytes()
    (run.root / "5.png").write_text("<html>")
    (run.root / "7.png").unlink()
    (run.root / "7.png").symlink_to("gone")
    before = run.start(unreadable=(2, 3))
    (run.root / "5.png").write_bytes(whole)
    (run.root / "7.png").unlink()
    run.add("7.png")
    repaired = run.go_on()
    assert names(repaired) == names(before)
    assert repaired.image(2).shape == repaired.image(3).shape == (20, 20, 3)
    assert run.start(unreadable=(2, 3)).fingerprint() == before.fingerprint()
    run.index.unlink()
    assert names(run.go_on()) == names(before)


def test_a_missing_index_of_another_source_is_nothing_to_tell(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "output": str(tmp_path / "run")}))
    loaded = schema.load(str(tmp_path / "config.json"), [])
    source, _, schedule, loaded = data_of_run.open_data(loaded, None)
    last: Any = SimpleNamespace(
        step=4,
        body=body_of(
            {
                "config": json.loads(loaded.model_dump_json()),
                "segments": schedule.history,
                "source": source.fingerprint(),
                "kernels": {},
                "totals": {},
            }
        ),
    )
    data_of_run.open_data(loaded, last)
    assert capsys.readouterr().out == ""


def test_the_output_within_the_images_is_no_part_of_them(run: Run) -> None:
    run.output = run.root / "out"
    run.index = run.output / "checkpoints" / "images.index"
    run.index.parent.mkdir(parents=True)
    before = run.start()
    run.add("out/store.png", "out/exports/map.png")
    assert names(run.go_on()) == names(before)


def test_exclude_goes_by_the_config(run: Run) -> None:
    run.add("thumbs/1.png", "2.gif")
    assert len(run.start(exclude=["thumbs", "*.gif"])) == 8
