"""Sets of images that are only rows: paths, sizes and times, without files."""

from collections.abc import Iterable

from datasets.index.image_index import Held, ImageIndex
from datasets.index.rows import Gathered, Labels, Rows
from datasets.walk import Found


def found(*names: str, size: int = 7, stamp: int = 5) -> list[Found]:
    return [(name.encode(), size + len(name), stamp) for name in sorted(names)]


def rows_of(walk: Iterable[Found], labels: Labels | None = None) -> Rows:
    gathered = Gathered(labels or Labels())
    for one in walk:
        gathered.add(*one)
    return gathered.take()


def index_of(walk: Iterable[Found]) -> ImageIndex:
    labels = Labels()
    return ImageIndex("folder", Held(rows_of(walk, labels)), [0], labels.names)


def many(count: int, first: int = 0) -> list[Found]:
    """In byte order; 37 labels."""
    return [(b"%03d/%09d.jpg" % (n * 37 // max(count, 1), n + first), n % 977, n) for n in range(count)]


def paths_of(index: ImageIndex) -> list[str]:
    return [index.entry(instance).path.decode() for instance in range(len(index))]
