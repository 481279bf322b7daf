"""What lies in a folder of images beside good ones, and sources that hold none."""

import os
import shutil
import socket
import struct
import zlib

from PIL import Image

from tests.hostile.case import hostile, photo


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
