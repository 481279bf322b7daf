"""Some hundred hostile starts: files, texts and limits of the machine that people report of such tools. Data for test_hostile_starts.py."""

import atexit
import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import socket
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

import launch
from tests.conftest import TINY

Prepare = Callable[[Path], "list[str] | None"]
CASES: list["Hostile"] = []


@dataclass(frozen=True)
class Hostile:
    """prepare(directory) lays the trap and returns further words of the command line.

    code     what the start ends with     expect   words of what it says
    env      variables, in which {directory} stands for the case's own     others as in tests/pooled_start.py
    """

    name: str
    prepare: Prepare
    code: int
    expect: str
    env: dict[str, str] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    fault: Callable[[], None] | None = None
    encoding: str = "utf-8"


def hostile(code: int, expect: str, **options) -> Callable[[Prepare], Prepare]:
    """Enter a function into the table, under its own name."""

    def enter(prepare: Prepare) -> Prepare:
        CASES.append(Hostile(prepare.__name__.strip("_"), prepare, code, expect, **options))
        return prepare

    return enter


def config(directory: Path, **changed) -> dict:
    """Photos in `directory`/photos, a run in `directory`/out."""
    augment = {"kind": "photos", "crops": [{"size": 16, "scale": [0.3, 1.0]}]}
    return {
        **TINY,
        "output": str(directory / "out"),
        "epochs": 4,
        "steps": 2,
        "data": {
            "source": "folder",
            "root": str(directory / "photos"),
            "image_size": 16,
            "augment": augment,
            "max_unreadable": 0.2,
        },
        "schedule": {"batch": 8, "window": 16, "stride": 8, "block": 4, "lanes": 2, "reshuffle": False},
        "method": {**TINY["method"], "active": 8},
        **changed,
    }


def lay(directory: Path) -> None:
    """What every start finds: 24 photos in two classes, and a config."""
    draw = np.random.default_rng(0)
    for number in range(24):
        path = directory / "photos" / ("cats" if number % 2 else "dogs") / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path)
    write_config(directory, config(directory))


def write_config(directory: Path, content: dict) -> None:
    (directory / "config.json").write_text(json.dumps(content))


@cache
def earlier_run() -> Path:
    """A run of two steps; made once, and copied."""
    directory = Path(tempfile.mkdtemp(prefix="hostile-starts-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    lay(directory)
    with contextlib.redirect_stdout(io.StringIO()):
        assert launch.main(["--config", str(directory / "config.json")]) == 0
    return directory / "out"


def photo(directory: Path, name: str | bytes = "cats/01.jpg") -> bytes:
    """The path of a photo, as bytes; the file that was there is removed."""
    path = os.path.join(os.fsencode(directory / "photos"), os.fsencode(name))
    if os.path.lexists(path):
        os.unlink(path)
    return path


def labelled(directory: Path, content: bytes) -> list[str]:
    (directory / "labels.csv").write_bytes(content)
    return [f"data.labels={directory / 'labels.csv'}"]


def all_labels(directory: Path, head: str = "path,label\n", tail: str = "", end: str = "\n") -> str:
    root = directory / "photos"
    return head + "".join(f"{p.relative_to(root)},{p.parent.name}{end}" for p in sorted(root.glob("*/*.jpg"))) + tail


# Texts of a config


@hostile(0, "active rows")
def a_config_in_utf_16(directory):
    (directory / "config.json").write_bytes(json.dumps(config(directory)).encode("utf-16"))
    return ["--dry-run"]


@hostile(0, "active rows")
def a_config_with_a_byte_order_mark(directory):
    (directory / "config.json").write_bytes(json.dumps(config(directory)).encode("utf-8-sig"))
    return ["--dry-run"]


@hostile(2, "config.json")
def a_config_in_cp1252(directory):
    (directory / "config.json").write_bytes(
        json.dumps(config(directory, output="é"), ensure_ascii=False).encode("cp1252")
    )


@hostile(2, "config.json")
def a_config_of_bytes(directory):
    (directory / "config.json").write_bytes(bytes(range(256)))


@hostile(2, "config.json")
def an_empty_config(directory):
    (directory / "config.json").write_text("")


@hostile(2, "config.json")
def a_config_nested_2000_deep(directory):
    (directory / "config.json").write_text('{"a":' * 2000 + "1" + "}" * 2000)


@hostile(2, "config.json")
def a_list_of_a_hundred_thousand_brackets(directory):
    (directory / "config.json").write_text("[" * 100_000)


@hostile(2, "")
def an_override_of_2000_sections(directory):
    return [".".join(["a"] * 2000) + "=1"]


@hostile(2, "seed")
def a_key_that_stands_twice(directory):
    (directory / "config.json").write_text('{"seed": 1, "seed": 2, "output": "out"}')


@hostile(2, "optimizer.lr")
def a_number_that_is_not_finite(directory):
    (directory / "config.json").write_text('{"optimizer": {"lr": 1e999}}')


@hostile(2, "")
def a_number_of_5000_digits(directory):
    return ["seed=" + "9" * 5000]


@hostile(2, "config.json")
def a_config_that_is_a_directory(directory):
    (directory / "config.json").unlink()
    (directory / "config.json").mkdir()


@hostile(2, "config.json")
def a_config_that_is_a_fifo(directory):
    (directory / "config.json").unlink()
    os.mkfifo(directory / "config.json")


@hostile(2, "config.json")
def a_config_of_20_megabytes(directory):
    (directory / "config.json").write_text('{"output": "' + "x" * 20_000_000 + '"}')


@hostile(2, "config.json")
def a_config_that_links_to_itself(directory):
    (directory / "config.json").unlink()
    (directory / "config.json").symlink_to("config.json")


@hostile(2, "output")
def an_output_that_is_not_utf_8(directory):
    return [os.fsdecode(b"output=" + os.fsencode(directory) + b"/\xff")]


@hostile(2, "output")
def an_output_with_a_zero_byte(directory):
    write_config(directory, config(directory, output="a\0b"))


@hostile(2, "output")
def an_output_with_an_escape_sequence(directory):
    return ["output=" + str(directory) + "/\x1b[31mred"]


@hostile(2, "data.root")
def a_root_that_is_not_utf_8(directory):
    return [os.fsdecode(b"data.root=" + os.fsencode(directory) + b"/\xff")]


@hostile(1, "too long")
def an_output_whose_name_is_too_long(directory):
    return [f"output={directory}/" + "x" * 300]


@hostile(2, "nobody-of-that-name")
def a_home_of_nobody(directory):
    return ["output=~nobody-of-that-name/x"]


@hostile(2, "nobody-of-that-name")
def a_root_in_the_home_of_nobody(directory):
    return ["data.root=~nobody-of-that-name/x"]


@hostile(2, "epochs")
def a_number_that_no_run_reaches(directory):
    return ["epochs=1e308"]


@hostile(2, "count")
def a_thousand_million_views(directory):
    return ['data.augment={"kind":"photos","crops":[{"size":16,"count":1000000000}]}', "--dry-run"]


@hostile(2, "read_ahead")
def a_window_read_ahead_for_ever(directory):
    return ["store.read_ahead=9007199254740992"]


@hostile(2, "deepspeed.steps_per_print")
def an_interval_in_words(directory):
    return ["deepspeed.steps_per_print=often"]


# Variables


@hostile(0, "active rows", env={"WORLD_SIZE": "", "RANK": "", "LOCAL_RANK": "", "MASTER_PORT": ""})
def variables_of_a_launcher_that_are_empty(directory):
    return ["--dry-run"]


@hostile(2, "WORLD_SIZE", env={"WORLD_SIZE": "two"})
def a_number_of_processes_in_words(directory): ...


@hostile(2, "WORLD_SIZE", env={"WORLD_SIZE": "0"})
def no_process_at_all(directory): ...


@hostile(2, "RANK", env={"RANK": "5"})
def a_rank_that_does_not_exist(directory): ...


@hostile(2, "LOCAL_RANK", env={"LOCAL_RANK": "x"})
def a_local_rank_in_words(directory): ...


@hostile(0, "report", env={"CXX": "", "CUDA_HOME": "", "PIC_KERNELS_CACHE": "", "OMP_NUM_THREADS": ""})
def variables_of_compilers_that_are_empty(directory): ...


@hostile(0, "report", env={"PIC_KERNELS_CACHE": "/dev/null"})
def a_cache_of_kernels_that_is_no_directory(directory): ...


@hostile(0, "report", encoding="ascii")
def a_file_name_that_the_terminal_cannot_show(directory):
    shutil.move(photo(directory) and directory / "photos" / "dogs" / "00.jpg", directory / "photos" / "dogs" / "é.jpg")
    (directory / "photos" / "cats" / "01.jpg").write_text("<html>é</html>")
    (directory / "photos" / "dogs" / "é.jpg").write_text("<html>é</html>")
    return ["data.labels=folders", "steps=6"]


@hostile(0, "report", env={"TMPDIR": "{directory}/" + "x" * 90})
def a_temporary_directory_of_90_characters(directory):
    (directory / ("x" * 90)).mkdir()
    return ["data.workers=2"]


@hostile(0, "report", env={"TMPDIR": "/dev/null/nowhere", "HOME": "/dev/null/nowhere"})
def no_temporary_directory_and_no_home(directory):
    return ["data.workers=1"]


# Images


@hostile(2, "does not exist")
def no_root(directory):
    shutil.rmtree(directory / "photos")


@hostile(2, "data.root")
def a_root_without_images(directory):
    shutil.rmtree(directory / "photos")
    (directory / "photos").mkdir()


@hostile(2, "data.root")
def a_root_that_is_a_fifo(directory):
    shutil.rmtree(directory / "photos")
    os.mkfifo(directory / "photos")


@hostile(2, "data.root")
def a_root_that_links_to_itself(directory):
    shutil.rmtree(directory / "photos")
    (directory / "photos").symlink_to("photos")


@hostile(1, "8 of 8 images of this window could not be read")
def images_that_are_all_html(directory):
    for path in (directory / "photos").glob("*/*.jpg"):
        path.write_text("<html>")
    return ["steps=20"]


@hostile(1, "could not be read")
def images_of_which_half_are_html(directory):
    for path in (directory / "photos" / "cats").glob("*.jpg"):
        path.write_text("<html>")
    return ["steps=20"]


@hostile(2, "cannot read")
def an_image_that_stops_the_run(directory):
    for path in (directory / "photos" / "cats").glob("*.jpg"):
        path.write_text("<html>")
    return ["data.on_unreadable=stop"]


@hostile(0, "report")
def a_fifo_called_jpg(directory):
    os.mkfifo(photo(directory))
    return ["steps=6"]


@hostile(0, "report")
def a_socket_called_jpg(directory):
    at = photo(directory)
    os.chdir(os.path.dirname(at))
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.basename(at))
    os.chdir(directory)
    return ["steps=6"]


@hostile(0, "report")
def a_link_to_a_device_called_jpg(directory):
    os.symlink("/dev/zero", photo(directory))
    return ["steps=6"]


@hostile(0, "report")
def a_link_to_nothing_called_jpg(directory):
    os.symlink("nothing", photo(directory))
    return ["steps=6"]


@hostile(0, "report")
def a_link_to_itself_called_jpg(directory):
    os.symlink("01.jpg", photo(directory))
    return ["steps=6"]


@hostile(0, "report")
def a_folder_called_jpg(directory):
    os.mkdir(photo(directory))


@hostile(0, "report")
def a_link_that_leads_back_to_the_root(directory):
    (directory / "photos" / "cats" / "back").symlink_to(directory / "photos")


@hostile(0, "report")
def a_large_file_that_points_nowhere(directory):
    path = photo(directory)
    with open(path, "wb") as file:
        file.write(b"II\x2b\0" + struct.pack("<HHQ", 8, 0, 2**62))
        file.truncate(300 << 20)
    return ["steps=6"]


@hostile(0, "report")
def an_empty_file_and_a_cut_one(directory):
    photo(directory)
    (directory / "photos" / "cats" / "01.jpg").write_bytes(b"")
    cut = directory / "photos" / "dogs" / "02.jpg"
    cut.write_bytes(cut.read_bytes()[:200])
    return ["steps=6"]


@hostile(0, "report")
def a_png_that_says_it_has_a_billion_pixels(directory):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    (directory / "photos" / "cats" / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    return ["steps=6"]


@hostile(0, "report")
def an_image_with_a_profile_of_two_megabytes(directory):
    Image.new("RGB", (20, 20)).save(directory / "photos" / "cats" / "profile.png", icc_profile=os.urandom(2_000_000))
    return ["steps=6", "data.on_unreadable=stop"]


@hostile(0, "report")
def names_that_no_terminal_should_obey(directory):
    for name in (
        b"\xff\xfe.jpg",
        b"a\nb.jpg",
        b"\x1b[2J.jpg",
        "\u202egpj.exe.jpg".encode(),
        b"[red]x.jpg",
        b"x" * 250 + b".jpg",
    ):
        with open(photo(directory, b"cats/" + name), "wb") as file:
            file.write(b"<html>")
    return ["steps=12", "data.max_unreadable=1", "data.labels=folders"]


@hostile(0, "report")
def folders_nested_1100_deep(directory):
    os.chdir(directory / "photos")
    for _ in range(1100):
        os.mkdir("d")
        os.chdir("d")
    shutil.copy(directory / "photos" / "cats" / "01.jpg", "deep.jpg")
    os.chdir(directory)
    return ["steps=6"]


@hostile(2, "avif")
def images_in_a_format_that_is_not_read(directory):
    for path in (directory / "photos").glob("*/*.jpg"):
        path.rename(path.with_suffix(".avif"))


@hostile(0, "avif")
def some_images_in_a_format_that_is_not_read(directory):
    for number in range(5):
        (directory / "photos" / f"{number}.avif").write_bytes(b"x")
    return ["--dry-run"]


@hostile(0, "24 images")
def what_a_nas_leaves_in_a_folder(directory):
    for name in ("@eaDir", "lost+found", ".thumbnails", "__MACOSX", "#recycle"):
        (directory / "photos" / name).mkdir()
        shutil.copy(directory / "photos" / "cats" / "01.jpg", directory / "photos" / name / "x.jpg")
    return ["--dry-run"]


@hostile(2, "data.root")
def everything_excluded(directory):
    return ['data.exclude=["*"]']


@hostile(0, "trained on train, never on val")
def a_split_above_the_classes(directory):
    for split in ("train", "val"):
        shutil.copytree(directory / "photos", directory / "split" / split)
    return [f"data.root={directory / 'split'}", "data.labels=folders"]


@hostile(2, "do not fill one batch")
def fewer_images_than_a_batch(directory):
    shutil.rmtree(directory / "photos" / "cats")
    return ["schedule.batch=16", "method.active=16"]


@hostile(2, "data.root")
def fonts_that_are_none(directory):
    for path in (directory / "photos").glob("*/*.jpg"):
        path.rename(path.with_suffix(".ttf"))
    return ["data.source=glyphs", 'data.augment={"kind":"grey"}', "data.max_unreadable=0.1"]


@hostile(2, "train-images-idx3-ubyte")
def clothes_that_are_none(directory):
    for name in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ):
        (directory / "photos" / name).write_bytes(b"\0\0\x08\x03\xff\xff\xff\xff")
    return ["data.source=fashion_mnist", 'data.augment={"kind":"grey"}']


# Labels


@hostile(0, "report")
def labels_in_utf_16_with_a_blank_last_line(directory):
    return labelled(directory, all_labels(directory, tail="\n").encode("utf-16"))


@hostile(0, "report")
def labels_with_the_line_ends_of_windows(directory):
    return labelled(directory, b"\xef\xbb\xbf" + all_labels(directory, end="\r\n").encode())


@hostile(2, "labels.csv")
def labels_in_cp1252(directory):
    return labelled(directory, all_labels(directory, tail="é.jpg,é\n").encode("cp1252"))


@hostile(2, "labels.csv")
def a_quote_that_stays_open(directory):
    return labelled(directory, all_labels(directory, head='path,label\n"').encode())


@hostile(2, "labels.csv")
def a_label_of_200000_characters(directory):
    return labelled(directory, all_labels(directory, tail="x.jpg," + "x" * 200_000).encode())


@hostile(2, "labels.csv")
def a_zero_byte_in_the_labels(directory):
    return labelled(directory, all_labels(directory, tail="x\0.jpg,x\n").encode())


@hostile(2, "labels.csv")
def labels_without_a_header(directory):
    return labelled(directory, all_labels(directory, head="").encode())


@hostile(2, "labels.csv")
def labels_that_are_empty(directory):
    return labelled(directory, b"")


@hostile(2, "cats/01.jpg")
def an_image_without_a_label(directory):
    return labelled(directory, all_labels(directory).replace("cats/01.jpg,cats\n", "").encode())


@hostile(2, "stranger")
def a_label_without_an_image(directory):
    return labelled(directory, all_labels(directory, tail="stranger.jpg,x\n").encode())


@hostile(2, "labels")
def labels_that_are_a_fifo(directory):
    os.mkfifo(directory / "labels.csv")
    return [f"data.labels={directory / 'labels.csv'}"]


@hostile(2, "labels")
def labels_that_are_a_folder(directory):
    return [f"data.labels={directory}"]


# The output directory


@hostile(2, "not a directory")
def an_output_that_is_a_file(directory):
    (directory / "out").write_text("mine")


@hostile(2, "a link to nothing")
def an_output_that_links_to_nothing(directory):
    (directory / "out").symlink_to("nothing")


@hostile(2, "output")
def an_output_that_links_to_itself(directory):
    (directory / "out").symlink_to("out")


@hostile(2, "did not write")
def an_output_with_a_thesis_in_it(directory):
    (directory / "out").mkdir()
    (directory / "out" / "thesis.tex").write_text("mine")
    return ["--fresh"]


@hostile(2, "is above data.root")
def an_output_above_the_images(directory):
    return [f"output={directory}", "--fresh"]


@hostile(2, "is above data.root")
def an_output_that_is_the_folder_of_images(directory):
    return [f"output={directory / 'photos'}"]


def _after(*words: str) -> Callable[[Callable[[Path], object]], Prepare]:
    """Lay the trap in a run that was made before, and start it again."""

    def wrap(trap: Callable[[Path], object]) -> Prepare:
        def prepare(directory: Path) -> list[str]:
            shutil.copytree(earlier_run(), directory / "out")
            trap(directory / "out")
            return list(words)

        prepare.__name__ = trap.__name__
        return prepare

    return wrap


@hostile(2, "lock")
@_after("steps=4")
def a_lock_that_is_a_link(out):
    (out / "lock").unlink()
    (out / "lock").symlink_to(out / "config.json")


@hostile(2, "lock")
@_after("steps=4")
def a_lock_that_is_a_fifo(out):
    (out / "lock").unlink()
    os.mkfifo(out / "lock")


@hostile(0, "report")
@_after("steps=4")
def a_lock_full_of_bytes(out):
    (out / "lock").write_bytes(bytes(range(256)))


@hostile(2, "config.json is a link")
@_after("steps=4")
def a_config_of_a_run_that_is_a_link(out):
    (out / "config.json").unlink()
    (out / "config.json").symlink_to("plan.json")


@hostile(2, "report.html is a link")
@_after("steps=4")
def a_report_that_is_a_link(out):
    (out / "report.html").unlink()
    (out / "report.html").symlink_to("/dev/full")


@hostile(0, "report")
@_after("steps=4")
def no_files_for_people(out):
    for name in (
        "metrics.jsonl",
        "evaluations.jsonl",
        "summary.json",
        "config.json",
        "plan.json",
        "backbone.safetensors",
    ):
        (out / name).unlink()


@hostile(0, "report")
@_after("steps=4")
def files_for_people_that_are_broken(out):
    (out / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": NaN}\n{"st\xff\n[]\nnull\n{"step": "x"}\n')
    (out / "evaluations.jsonl").write_bytes(b"{}\n\0\n")
    (out / "summary.json").write_text("[]")
    (out / "plan.json").write_bytes(b"\xff\xfe")


@hostile(0, "report")
@_after("steps=4")
def no_mark(out):
    (out / ".pic-engine").unlink()


@hostile(2, "checkpoints")
@_after("steps=4")
def checkpoints_that_are_a_file(out):
    shutil.rmtree(out / "checkpoints")
    (out / "checkpoints").write_text("mine")


@hostile(2, "whole")
@_after("steps=4")
def manifests_that_are_html(out):
    for path in (out / "checkpoints" / "manifests").iterdir():
        path.write_text("<html>")


@hostile(2, "whole")
@_after("steps=4")
def manifests_nested_50000_deep(out):
    for path in (out / "checkpoints" / "manifests").iterdir():
        path.write_text("[" * 50_000)


@hostile(2, "whole")
@_after("steps=4")
def a_manifest_that_names_files_elsewhere(out):
    for path in (out / "checkpoints" / "manifests").iterdir():
        body = json.loads(path.read_text())["body"]
        body["files"]["../../victim"] = "0" * 64
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        path.write_text(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "body": body}))


@hostile(2, "rows is a link")
@_after("steps=4")
def rows_that_are_a_link(out):
    shutil.move(out / "checkpoints" / "rows", out.parent / "rows")
    (out / "checkpoints" / "rows").symlink_to(out.parent / "rows")


@hostile(0, "report")
@_after("steps=4")
def a_lost_list_of_images(out):
    for path in out.rglob("images.index"):
        path.unlink()


@hostile(0, "report")
@_after("steps=4")
def a_broken_list_of_images(out):
    for path in out.rglob("images.index"):
        path.write_bytes(b"\xff" * 10)


@hostile(0, "stays")
@_after("steps=4", "--fresh")
def somebodys_files_in_every_room(out):
    for name in ("", "checkpoints", "checkpoints/rows", "checkpoints/manifests"):
        (out / name / "mine").write_text("mine")


@hostile(2, "exports is a link")
@_after("job=export")
def exports_that_are_a_link(out):
    (out / "exports").symlink_to(out.parent)


@hostile(2, "linear is a link")
@_after("job=linear", "data.labels=folders")
def kept_features_that_are_a_link(out):
    (out / "linear").symlink_to(out.parent)


@hostile(2, "linear.json is a directory")
@_after("job=linear")
def figures_of_a_probe_that_are_a_directory(out):
    (out / "linear.json").mkdir()


@hostile(2, "store.png")
@_after("job=store")
def a_picture_that_is_a_link(out):
    (out / "store.png").symlink_to(out.parent / "config.json")


@hostile(2, "is no file of weights that torch or safetensors wrote")
@_after("job=knn")
def a_backbone_of_bytes(out):
    (out / "backbone.safetensors").write_bytes(bytes(1000))


def _after_a_tampered_manifest(name: str, change: Callable[[dict], object]) -> None:
    """A start after a run whose manifest says something odd, with its checksum made right again."""

    def trap(out: Path) -> None:
        for path in (out / "checkpoints" / "manifests").iterdir():
            body = json.loads(path.read_text())["body"]
            change(body)
            text = json.dumps(body, sort_keys=True, separators=(",", ":"))
            path.write_text(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "body": body}))

    trap.__name__ = name
    hostile(1, "its manifest ")(_after("steps=4")(trap))


_after_a_tampered_manifest(
    "a_manifest_with_a_list_of_nothing", lambda body: body.update(unreadable=[["x", 1], [{}, 2]])
)
_after_a_tampered_manifest("a_manifest_with_totals_in_words", lambda body: body["totals"].update(images="many"))
_after_a_tampered_manifest("a_manifest_without_a_config", lambda body: body.pop("config"))
_after_a_tampered_manifest("a_manifest_without_images", lambda body: body.pop("segments"))
_after_a_tampered_manifest("a_manifest_with_kernels_in_lists", lambda body: body["kernels"].update(sampled_softmax=[1]))


@hostile(2, "summary.json is a directory")
@_after("steps=4")
def a_summary_that_is_a_directory(out):
    (out / "summary.json").unlink()
    (out / "summary.json").mkdir()


@hostile(0, "exported step 2")
@_after("job=export")
def a_fifo_in_the_place_of_the_list_of_unreadable_images(out):
    os.mkfifo(out / "unreadable.jsonl")


# Limits of the machine


def _no_stdout():
    os.close(1)
    sys.stdout = None


@hostile(0, "", fault=_no_stdout)
def no_stdout_at_all(directory): ...


@hostile(1, "error: ", limits={"RLIMIT_NOFILE": 12})
def hardly_any_open_files(directory): ...


@hostile(1, "error: ", limits={"RLIMIT_FSIZE": 3000})
def no_file_above_3000_bytes(directory): ...


def _no_fork():
    def refuse():
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    os.fork = refuse


@hostile(1, "data.workers", fault=_no_fork)
def a_limit_on_processes(directory):
    return ["data.workers=2"]


def _no_thread():
    import threading

    def refuse(self):
        raise RuntimeError("can't start new thread")

    threading.Thread.start = refuse


@hostile(1, "thread", fault=_no_thread)
def a_limit_on_threads(directory): ...


def _no_locks():
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    fcntl.lockf = refuse


@hostile(1, "lock", fault=_no_locks)
def a_file_system_without_locks(directory): ...


def _no_access():
    real = os.open

    def refuse(path, *arguments, **options):
        if os.fsencode(path).endswith(b"01.jpg"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, *arguments, **options)

    os.open = refuse


@hostile(1, "Permission denied", fault=_no_access)
def an_image_that_may_not_be_read(directory):
    return ["steps=6"]


def _no_space():
    real = os.writev

    def refuse(handle, parts):
        raise OSError(errno.ENOSPC, "No space left on device")

    os.writev = refuse
    assert real


@hostile(1, "No space left", fault=_no_space)
def a_full_disk(directory): ...


def _no_memory():
    import simplejpeg
    from PIL import Image

    def refuse(*_, **__):
        raise MemoryError

    Image.open = simplejpeg.decode_jpeg = refuse


@hostile(1, "emory", fault=_no_memory)
def no_memory_to_decode(directory): ...
