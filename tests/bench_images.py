"""Many small JPEGs as folder and as zip with a map file: to list, to open, to read, and to make views of, beside other loaders.

    python -m tests.bench_images [--count 200000] [--rounds 3] [--seconds 8] [--no-views] [--directory .]

The images are JPEGs of 96 to 400 px, cut out of the two photographs that scikit-learn ships, in 1,000 class folders. The same bytes lie
in a folder, in a stored zip with a map file, in tar shards (WebDataset) and in chunks (LitData).

    index and open   job=index in a process of its own; then what a start does, in a fresh process. Of torchvision: ImageFolder's walk
    read             the encoded bytes of images in a random order from the page cache, one process. Tars only have the order they have;
                     LitData is read in the same random order and in its own, which shuffles within chunks
    views            decode and PIC's four published views, through the loader, with 1 and 2 workers, batches of 64

Ways take turns in each round; told are the median, the least and the most of images a second. Peers that are not installed are left out
(`pip install webdataset litdata`). MosaicML streaming is not among them: it asks for numpy below 2.2.
"""

import argparse
import importlib.util
import io
import itertools
import random
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import sklearn.datasets
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from datasets.catalog import Kept, open_source
from datasets.loader import StepDataset, batches
from datasets.photos import PhotoAugment
from datasets.regular_file import read_whole
from datasets.schedule import Schedule
from tests.bench_support import machine, scratch, spread
from tests.bench_views import on_pillow, on_tensors

_CLASSES, _BATCH, _SHARD = 1000, 64, 5000
_LAUNCH = str(Path(__file__).parents[1] / "launch.py")
_CONFIG = str(Path(__file__).parents[1] / "configs" / "photos.json")


def write_all(directory: Path, count: int) -> None:
    """The same images in every layout."""
    draw = random.Random(0)
    photographs = [np.asarray(Image.fromarray(one)) for one in sklearn.datasets.load_sample_images().images]
    for number in range(_CLASSES):
        (directory / "folder" / f"n{number:04d}").mkdir(parents=True)
    (directory / "zip").mkdir()
    (directory / "tar").mkdir()
    lines = []
    with zipfile.ZipFile(directory / "zip" / "train.zip", "w", zipfile.ZIP_STORED) as packed:
        for start in range(0, count, _SHARD):
            with tarfile.open(directory / "tar" / f"{start // _SHARD:05d}.tar", "w") as shard:
                for number in range(start, min(start + _SHARD, count)):
                    content = one_jpeg(draw, photographs)
                    label = number % _CLASSES
                    name = f"n{label:04d}/{number}.jpg"
                    (directory / "folder" / name).write_bytes(content)
                    packed.writestr(name, content)
                    lines.append(f"{name}\t{label}\n")
                    member = tarfile.TarInfo(f"{number:07d}.jpg")
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
    (directory / "zip" / "train_map.txt").write_text("".join(lines))


def one_jpeg(draw: random.Random, photographs: list[np.ndarray]) -> bytes:
    photograph = draw.choice(photographs)
    height, width = draw.randint(96, 400), draw.randint(96, 400)
    top, left = draw.randint(0, photograph.shape[0] - height), draw.randint(0, photograph.shape[1] - width)
    piece = np.ascontiguousarray(photograph[top : top + height, left : left + width])
    content: bytes = simplejpeg.encode_jpeg(piece, quality=90, colorsubsampling="420")
    return content


def encoded(place: str) -> dict[str, bytes]:
    """What LitData keeps of an image."""
    return {"image": Path(place).read_bytes()}


def into_page_cache(directory: Path) -> None:
    """Of what was just written the system may have let go again."""
    for path in directory.rglob("*"):
        if path.is_file():
            path.read_bytes()


def write_chunks(directory: Path) -> None:
    from litdata import optimize

    places = [str(path) for path in sorted((directory / "folder").rglob("*.jpg"))]
    optimize(encoded, places, str(directory / "chunks"), chunk_bytes="64MB", num_workers=2, verbose=False)


def engine_source(kind: str, directory: Path, index: Path | None = None) -> Any:
    kept = Kept(directory=None if index is None else str(index))
    return open_source(
        kind, root=str(directory / kind), image_size=160, limit=None, held_out=(), labels=None, kept=kept
    )


def index_and_open(directory: Path) -> None:
    print(
        "\n| | index made, s | bytes an image | opened by the index, ms | listed at a start, s |\n|---|---|---|---|---|"
    )
    for kind in ("folder", "zip"):
        index = directory / f"index_{kind}"
        words = [f"data.source={kind}", f"data.root={directory / kind}", f"data.index={index}", "job=index"]
        start = time.monotonic()
        line = [sys.executable, _LAUNCH, "--config", _CONFIG, f"output={directory / 'none'}", *words]
        printed = subprocess.run(line, check=True, capture_output=True, text=True).stdout
        made = time.monotonic() - start
        found = re.search(r"(\d+) bytes an image", printed)
        assert found, printed
        opened, listed = (seconds_to_open(f"engine {kind}", directory, own) for own in (index, None))
        print(f"| engine, {kind} | {made:.1f} | {found[1]} | {1000 * opened:.1f} | {listed:.2f} |", flush=True)
    print(f"| torchvision ImageFolder | | | | {seconds_to_open('torchvision', directory, None):.2f} |", flush=True)


def seconds_to_open(way: str, directory: Path, index: Path | None) -> float:
    """In a fresh process, without its imports."""
    line = [sys.executable, "-m", "tests.bench_images", "--open", way, "--directory", str(directory)]
    line += ["--index", str(index)] if index else []
    return float(subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()[-1])


def open_one(way: str, directory: Path, index: Path | None) -> None:
    start = time.perf_counter()
    opened = (
        ImageFolder(str(directory / "folder"))
        if way == "torchvision"
        else engine_source(way.split()[1], directory, index)
    )
    seconds = time.perf_counter() - start
    assert len(opened) > 0
    print(seconds)


def readers(directory: Path, count: int) -> dict[str, Callable[[], Iterator[bytes]]]:
    """How the encoded bytes of all images come, for ever."""
    order = random.Random(1).sample(range(count), count)
    found: dict[str, Callable[[], Iterator[bytes]]] = {}
    for kind in ("folder", "zip"):
        source = engine_source(kind, directory, directory / f"index_{kind}")
        found[f"engine, {kind}"] = lambda source=source: map(source.encoded, order)
    paths = [path for path, _ in ImageFolder(str(directory / "folder")).samples]
    found["torchvision's paths, open and read"] = lambda: (Path(paths[number]).read_bytes() for number in order)
    found["single files, pread"] = lambda: (read_whole(paths[number]) for number in order)
    if importlib.util.find_spec("webdataset"):
        found["WebDataset, in order"] = lambda: (one["jpg"] for one in web_dataset(directory))
    if importlib.util.find_spec("litdata"):
        from litdata import StreamingDataset

        chunks, shuffled = (StreamingDataset(str(directory / "chunks"), shuffle=shuffle) for shuffle in (False, True))
        found["LitData, the same random order"] = lambda: (chunks[number]["image"] for number in order)
        found["LitData, its own shuffle"] = lambda: (one["image"] for one in iter(shuffled))
    return found


def web_dataset(directory: Path, transform: Callable[[Any], Any] | None = None) -> Any:
    import webdataset

    shards = [str(path) for path in sorted((directory / "tar").glob("*.tar"))]
    stream = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
    return stream if transform is None else stream.map(transform)


def pillow_views(content: bytes) -> list[torch.Tensor]:
    return on_pillow(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def views_of_member(member: dict[str, Any]) -> list[torch.Tensor]:
    return pillow_views(member["jpg"])


def views_of_chunk(one: dict[str, bytes]) -> list[torch.Tensor]:
    return pillow_views(one["image"])


def pillow_of_image(image: Image.Image) -> list[torch.Tensor]:
    return on_pillow(np.asarray(image))


def tensors_of_image(image: Image.Image) -> list[torch.Tensor]:
    return on_tensors(np.asarray(image))


def loaders(directory: Path, count: int, workers: int) -> dict[str, Callable[[], Iterable[Any]]]:
    """Batches of `_BATCH` images with their four views, for ever or nearly so."""
    found: dict[str, Callable[[], Iterable[Any]]] = {}
    for kind in ("folder", "zip"):
        found[f"engine, {kind}"] = lambda kind=kind: engine_batches(kind, directory, count, workers)

    def peer(dataset: Any, shuffle: bool | None) -> Iterable[Any]:
        return torch.utils.data.DataLoader(dataset, _BATCH, shuffle=shuffle, num_workers=workers)

    for name, transform in (("PIL", pillow_of_image), ("v2 on tensors", tensors_of_image)):
        dataset = ImageFolder(str(directory / "folder"), transform)
        found[f"torchvision, {name}"] = lambda dataset=dataset: peer(dataset, True)
    if importlib.util.find_spec("webdataset"):
        found["WebDataset, PIL"] = lambda: peer(web_dataset(directory, views_of_member), None)
    if importlib.util.find_spec("litdata"):
        from litdata import StreamingDataLoader, StreamingDataset

        chunks = StreamingDataset(str(directory / "chunks"), shuffle=True, transform=views_of_chunk)
        found["LitData, PIL"] = lambda: StreamingDataLoader(chunks, batch_size=_BATCH, num_workers=workers)
    return found


def engine_batches(kind: str, directory: Path, count: int, workers: int) -> Iterable[Any]:
    source = engine_source(kind, directory, directory / f"index_{kind}")
    window = count // 512 * 512
    schedule = Schedule(0, count, window, window, _BATCH, block=64, lanes=8, reshuffle=False)
    dataset = StepDataset(source, schedule, PhotoAugment(), seed=0)
    return batches(dataset, 0, int(schedule.steps_per_pass), workers, pin=False)


def rate_of(stream: Iterable[Any], images_each: int, skip: int, seconds: float) -> float:
    """Images a second, after the first `skip` items."""
    items = iter(stream)
    for _ in itertools.islice(items, skip):
        pass
    start, done = time.perf_counter(), 0
    for _ in items:
        done += 1
        if time.perf_counter() - start > seconds:
            break
    rate = done * images_each / (time.perf_counter() - start)
    if hasattr(items, "close"):
        items.close()
    return rate


def in_turns(
    ways: dict[str, Callable[[], Iterable[Any]]], images_each: int, skip: int, rounds: int, seconds: float
) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, make in ways.items():
            rates[name].append(rate_of(make(), images_each, skip, seconds))
    return rates


def table(title: str, rates: dict[str, list[float]]) -> None:
    print(f"\n{title}\n\n| | images/s, median (least - most) | of the folder's |\n|---|---|---|")
    own = float(np.median(rates["engine, folder"]))
    for name, found in rates.items():
        print(f"| {name} | {spread(found, 0)} | {np.median(found) / own:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--no-views", action="store_true", help="indexes and reading alone")
    parser.add_argument("--directory", type=Path, default=Path())
    parser.add_argument("--open", help=argparse.SUPPRESS)
    parser.add_argument("--index", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.open:
        open_one(options.open, options.directory, options.index)
        return
    print(machine())
    with scratch(options.directory) as directory:
        start = time.monotonic()
        write_all(directory, options.count)
        if importlib.util.find_spec("litdata"):
            write_chunks(directory)
        size = (directory / "zip" / "train.zip").stat().st_size
        print(f"{options.count:,} images, {size / 2**20:,.0f} MiB, made in {time.monotonic() - start:.0f} s")
        index_and_open(directory)
        into_page_cache(directory)
        read = in_turns(readers(directory, options.count), 1, 1000, options.rounds, options.seconds / 2)
        table("Reading alone, one process", read)
        for workers in () if options.no_views else (1, 2):
            rates = in_turns(loaders(directory, options.count, workers), _BATCH, 4, options.rounds, options.seconds)
            table(f"Decode and four views, {workers} workers", rates)


if __name__ == "__main__":
    main()
