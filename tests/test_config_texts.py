"""Whatever stands in a config file or on the command line is read, or refused in a short message that names the key."""

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs import schema, texts
from configs.schema import MAY_DIFFER, Config, load, refuse_other_run
from tests.conftest import REPOSITORY, TINY, folder_config

PLAIN = json.dumps({**TINY, "output": "runs/é"}, ensure_ascii=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def refusal(path: Path | str, *words: str) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is what the caller looks at
        load(str(path), list(words))
    assert type(caught.value) is ValueError, (
        "a kind of its own tells of an accident: UnicodeDecodeError, JSONDecodeError"
    )
    message = str(caught.value)
    assert len(message.splitlines()) <= 3 and len(message) <= 400, message
    assert message.isprintable() or "\n" in message, ascii(message)
    return message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_config_is_read_in_every_encoding_of_unicode(file, encoding):
    file.write_bytes(PLAIN.encode(encoding))
    assert load(str(file), []).output == "runs/é"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (PLAIN.encode("cp1252"), "not text in UTF-8: byte 0xe9 at line 1; save it as UTF-8"),
        (b'{"output":\n"\xff"}', "byte 0xff at line 2"),
        (b"\xff\xfe{", "not text in UTF-8"),  # half a letter of UTF-16
        (b"", "is not JSON"),
        (b"\0" * 100, "is not JSON"),
        (b'{"output": "a\0b"}', "is not JSON: Invalid control character"),
        (b'{"output": "a\\u0000b"}', "output holds characters that cannot be shown: a\\x00b"),
        (b'{"output": "a\\ud800b"}', "output is not UTF-8: a\\ud800b"),
        (b'{"out\\nput": 1}', "the key out\\nput holds characters that cannot be shown"),
        (b'{"data": {"\\udce9": 1}}', "the key data.\\xe9 is not UTF-8"),
        (b"[]", "must hold one JSON object"),
        (b"7", "must hold one JSON object"),
        (b'{"epochs": 1, "seed": 2, "epochs": 3}', "has the key epochs twice in one object"),
        (b'{"data": {"root": "a", "root": "a"}}', "has the key root twice"),
        (b'{"epochs": NaN}', "epochs is NaN, which is no finite number"),
        (b'{"optimizer": {"lr": Infinity}}', "optimizer.lr is Infinity"),
        (b'{"optimizer": {"lr": -1e999}}', "optimizer.lr is -Infinity"),
        (b'{"deepspeed": {"torch_autocast": {"x": [1, NaN]}}}', "deepspeed.torch_autocast.x is NaN"),
        (b'{"seed": ' + b"9" * 4000 + b"}", "has a number of 4,000 digits (99999999999999999999...)"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "has a number of 5,000 digits"),
        (b'{"data": ' * 2000 + b"1" + b"}" * 2000, "is nested more than 50 deep"),
        (b'{"data": ' * 60 + b"1" + b"}" * 60, "is nested more than 50 deep"),
        (b"[" * 200_000 + b"]" * 200_000, "is nested more than 50 deep"),
        (b'{"deepspeed": {"aio": ' + b"[" * 80 + b"]" * 80 + b"}}", "deepspeed.aio is nested more than 50 deep"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_a_file_that_is_no_config_is_refused_in_a_line(file, content, said):
    file.write_bytes(content)
    assert said in refusal(file)


def test_a_path_that_is_no_file_is_refused_and_never_waited_for(tmp_path, monkeypatch):
    assert "it is a directory" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "it is not a file" in refusal(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "Too many levels of symbolic links" in refusal(tmp_path / "loop")
    assert "no file has such a name" in refusal("a\0b")
    assert "\\udc" not in refusal("/nowhere/\udce9.json") and "\\xe9.json" in refusal("/nowhere/\udce9.json")
    assert "File name too long" in refusal("/" + "n" * 5000)
    assert "is not JSON" in refusal("/dev/null")
    assert "has more than 16 MiB" in refusal("/dev/zero")
    (tmp_path / "good").write_text(PLAIN)

    def broken(handle: int, count: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(texts.os, "read", broken)
    assert "Input/output error" in refusal(tmp_path / "good")


def test_of_a_huge_file_no_more_is_read_than_a_config_may_have(file):
    with file.open("wb") as sparse:
        sparse.truncate(2**40)
    assert "has more than 16 MiB" in refusal(file)


def test_what_a_shell_hands_over_is_read(file):
    """<(...) is /dev/fd/N, whose writer may not have written yet."""
    ours, theirs = os.pipe()
    released = threading.Event()

    def write() -> None:
        released.wait()
        os.write(theirs, PLAIN.encode())
        os.close(theirs)

    writer = threading.Thread(target=write)
    writer.start()
    threading.Timer(0.2, released.set).start()
    assert load(f"/dev/fd/{ours}", []).output == "runs/é"
    writer.join()
    os.close(ours)
    script = "from configs.schema import load\nprint(load('/dev/stdin', []).job)"
    for given_as in ({"input": PLAIN.encode()}, {"stdin": subprocess.DEVNULL}):
        done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, **given_as)
        assert done.stdout == b"pretrain\n" if "input" in given_as else b"is not JSON" in done.stderr
    file.write_text(PLAIN)
    with file.open() as stream:
        done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, stdin=stream)
    assert done.stdout == b"pretrain\n"


TEXT_KEYS = ("output", "data.root", "data.labels", "evaluate.backbone", "evaluate.gallery", "backbone.name")


@pytest.mark.parametrize("key", [*TEXT_KEYS, "data.held_out", "data.exclude"])
def test_text_that_is_no_name_is_refused_with_its_key(file, key):
    file.write_text(json.dumps(TINY))
    in_list = key in ("data.held_out", "data.exclude")
    for text, said in (
        ("\udce9t\udce9", "is not UTF-8: \\xe9t\\xe9"),
        ("a\0b", "holds characters that cannot be shown: a\\x00b"),
        ("a\nb", "a\\nb"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\u202eb", "a\\u202eb"),
        ("", "at least 1 character"),
    ):
        value = json.dumps([text]) if in_list else text
        message = refusal(file, f"{key}={value}")
        assert message.startswith(key) and said in message, message


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (".".join(["a"] * 2000) + "=1", "is nested more than 50 deep"),
        (".".join(["a"] * 20_000) + "=1", "is nested more than 50 deep"),
        ("data.augment=" + "[" * 100_000, "data.augment is nested more than 50 deep"),
        ('data.augment={"kind":"grey","flip":0,"flip":1}', "data.augment has the key flip twice"),
        ("seed=" + "1" * 4000, "seed has a number of 4,000 digits"),
        ("optimizer.lr=1e999", "optimizer.lr is Infinity"),
        ("optimizer.lr=1" + "0" * 350, "optimizer.lr is 1000"),
        ("steps=1" + "0" * 30, "steps is 1000"),
        ("threads=9007199254740992", "threads is 9007199254740992"),
        ("data.workers=1000000000", "data.workers is 1000000000"),
        ("=1", "is not an override"),
        ("x" * 10_000, '(10,000 characters)" is not an override'),
        ("\udce9", '\\xe9" is not an override'),
        ("configs/photos.json", "or --config before the file of a config"),
        ("x" * 10_000 + "=1", "unknown key"),
        ("epochs=" + '"' + "y" * 10_000 + '"', "(10,002 characters)"),
        ("backbone.layers=[" + ",".join(["-1"] * 5000) + "]", "backbone.layers"),
        ("output=~nobody-of-this-name/run", "there is no home directory for ~nobody-of-this-name"),
        ("evaluate.backbone=~nobody-of-this-name", "evaluate.backbone: there is no home directory"),
        ("deepspeed." + "k" * 5000 + "=1", "unknown key deepspeed.kkkk"),
        ("epochs.x.y=1", "epochs is not a section"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_an_override_that_cannot_be_is_refused_in_a_line(file, word, said):
    file.write_text(json.dumps(TINY))
    assert said in refusal(file, word)


def test_a_long_path_keeps_the_name_of_the_file(tmp_path):
    directory = tmp_path / ("d" * 200)
    directory.mkdir()
    file = directory / "my_config.json"
    file.write_text("{")
    message = refusal(file)
    assert "/my_config.json is not JSON" in message and len(message) < 300


def test_home_is_written_out_where_the_engine_opens_the_path(file, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    file.write_text(json.dumps(TINY))
    config = load(str(file), ["output=~/run", "evaluate.backbone=~/a.safetensors"])
    assert (config.output, config.evaluate.backbone) == ("/home/somebody/run", "/home/somebody/a.safetensors")
    assert load(str(file), ["output=./~"]).output == "./~"
    again = Config.model_validate_json(config.model_dump_json())  # as a run that goes on reads it
    assert again == config


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[]), max_size=8),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=8), parts, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(key=st.sampled_from(schema._known_keys()), value=json_values)
def test_any_value_of_any_key_is_taken_or_refused_in_a_short_message(tmp_path_factory, key, value):
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_text(json.dumps(TINY))
    try:
        config = load(str(file), [f"{key}={json.dumps(value)}"])
    except ValueError as error:
        assert type(error) is ValueError  # noqa: PT017
        message = str(error)
        assert len(message) <= 400 and len(message.splitlines()) <= 3 and not set(message) & set("\0\x1b\r"), message
    else:
        json.dumps(json.loads(config.model_dump_json()), allow_nan=False)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=40))
def test_any_bytes_are_no_traceback(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "bytes.json"
    file.write_bytes(content)
    refusal(file)


# Going on


def config_of(*words: str, tree: dict | None = None) -> Config:
    return Config.model_validate(
        {**json.loads(json.dumps(tree or TINY)), **dict(word.split("=") for word in words)}, strict=False
    )


def kept_of(config: Config) -> dict:
    return json.loads(config.model_dump_json())


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("", {"threads": 7, "log_every": 3, "steps": 9}),
        ("checkpoint", {"keep": 9, "every_steps": 7}),
        ("data", {"root": "/elsewhere/", "labels": "folders", "exclude": ["*.gif"], "on_unreadable": "stop"}),
        ("data", {"max_unreadable": 0.5, "patience_seconds": 5.0, "cache": "part", "cache_gib": 3.0, "workers": 3}),
        ("data", {"index": "/an/index", "rescan": True, "hash": True, "cache": "full", "cache_of": "encoded"}),
        ("deepspeed", {"steps_per_print": 5, "comms_logger": {"enabled": True}, "wall_clock_breakdown": True}),
    ],
)
def test_what_changes_no_bit_may_differ_when_a_run_goes_on(section, changes):
    kept = kept_of(config_of())
    changed = json.loads(json.dumps(TINY))
    (changed[section] if section else changed).update(changes)
    refuse_other_run(config_of(tree=changed), kept)


def test_every_other_key_is_refused_by_name():
    kept = kept_of(config_of())
    for key in ("seed", "epochs", "data.image_size", "schedule.batch", "optimizer.lr", "store.fold", "backbone.hidden"):
        other = json.loads(json.dumps(kept))
        *sections, last = key.split(".")
        place = other[sections[0]] if sections else other
        place[last] = not place[last] if isinstance(place[last], bool) else place[last] * 2 + 1
        with pytest.raises(ValueError, match=f"holds a run with {key} = "):
            refuse_other_run(config_of(), other)
    assert not any(key.startswith(("optimizer", "schedule", "backbone", "seed", "epochs")) for key in MAY_DIFFER)


def test_a_run_of_an_older_version_has_the_defaults_of_keys_that_came_later():
    photos = json.loads(json.dumps(TINY))
    photos["data"] = {
        "source": "folder",
        "root": "x",
        "augment": {"kind": "photos", "crops": [{"size": 9}, {"size": 5}]},
    }
    for tree in (TINY, photos):
        config = config_of(tree=tree)
        kept = kept_of(config)
        for key in ("exclude", "max_unreadable", "patience_seconds", "held_out", "limit"):
            del kept["data"][key]
        for key in ("store", "ranks"):
            del kept[key]
        del kept["optimizer"]["rows_clip"], kept["method"]["norm_floor"], kept["data"]["augment"]["flip"]
        for crop in kept["data"]["augment"].get("crops", []):
            del crop["count"], crop["rows_grad"]
        refuse_other_run(config, kept)
    changed = json.loads(json.dumps(photos))
    changed["data"]["augment"]["crops"][1]["count"] = 2
    with pytest.raises(ValueError, match=r"data.augment.crops"):
        refuse_other_run(config_of(tree=changed), kept)
    with pytest.raises(ValueError, match=r"optimizer.rows_clip = 0.0, now it is 2.0"):
        refuse_other_run(config_of(tree={**photos, "optimizer": {**TINY["optimizer"], "rows_clip": 2.0}}), kept)


# Packages of the same names elsewhere


@pytest.mark.parametrize("room", ["configs", "datasets", "engine", "kernels"])
@pytest.mark.parametrize("form", ["package", "module", "namespace"])
def test_a_package_of_the_same_name_elsewhere_is_not_taken_for_ours(tmp_path, room, form):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if form == "module":
        (elsewhere / f"{room}.py").write_text("raise RuntimeError('a stranger')")
    else:
        (elsewhere / room).mkdir()
        for name in ("schema", "loader", "ranks", "compiled", *(["__init__"] if form == "package" else [])):
            (elsewhere / room / f"{name}.py").write_text("raise RuntimeError('a stranger')")
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); sys.argv[0] = 'launch.py'\n"
        f"import launch, importlib; print(importlib.import_module({room!r}).__file__)"
    )
    # As `python launch.py` from anywhere: the script's directory comes first, then PYTHONPATH.
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(elsewhere)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str(REPOSITORY / room / "__init__.py"), done.stderr


@pytest.mark.parametrize("room", ["configs", "engine"])
def test_a_package_of_that_name_that_was_imported_already_is_told_in_a_line(tmp_path, room):
    (tmp_path / room).mkdir()
    (tmp_path / room / "__init__.py").write_text("")
    (tmp_path / "sitecustomize.py").write_text(f"import {room}")
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "launch.py"), "--config", "x"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"error: {room} from {tmp_path / room / '__init__.py'} was imported before" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_goes_on_where_the_images_were_moved_and_with_other_words_for_the_machine(run, tmp_path):
    images = tmp_path / "images"
    for number in range(24):
        path = images / ("cats" if number % 2 else "dogs") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (number, 10 * number, 99)).save(path)
    assert run("steps=3", config=folder_config(images)) == 0
    images.rename(tmp_path / "moved")
    words = ("checkpoint.keep=5", "checkpoint.every_steps=2", "data.on_unreadable=stop", "data.labels=folders")
    assert run("steps=5", *words, config=folder_config(f"{tmp_path}/./moved/")) == 0
    assert run.summary()["steps"] == 5
    assert run("steps=6", "optimizer.lr=0.5", config=folder_config(tmp_path / "moved")) == 2


def test_a_source_may_be_an_object_whose_keys_are_those_of_data(tmp_path):
    path = tmp_path / "config.json"
    tree = {"output": "x", "epochs": 1, "data": {"source": {"kind": "zip", "root": "/a", "index": "/i"}, "workers": 3}}
    path.write_text(json.dumps(tree))
    data = schema.load(str(path), []).data
    assert (data.source, data.root, data.index, data.workers) == ("zip", "/a", "/i", 3)
    data = schema.load(
        str(path), ['data.source={"kind":"folder","root":"/b","labels":"folders"}', "data.workers=4"]
    ).data
    assert (data.source, data.root, data.labels, data.index, data.workers) == ("folder", "/b", "folders", "/i", 4)
    data = schema.load(str(path), ["data.source.kind=folder", "data.source.root=/c", "data.cache=true"]).data
    assert (data.source, data.root, data.cache) == ("folder", "/c", "part")
    assert schema.load(str(path), ["data.cache=false"]).data.cache == "none"
    assert schema.load(str(path), ["data.cache=full", "data.cache_of=encoded"]).data.cache == "full"
    path.write_text(json.dumps({**tree, "data": {**tree["data"], "root": "/b"}}))
    with pytest.raises(ValueError, match=r"data\.source\.root and data\.root are the same key"):
        schema.load(str(path), [])
    path.write_text(json.dumps({**tree, "data": {"source": {"kind": "zip", "size": 3}}}))
    with pytest.raises(ValueError, match=r"unknown key data\.source\.size; beside kind there are root"):
        schema.load(str(path), [])
