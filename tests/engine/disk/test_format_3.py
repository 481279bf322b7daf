"""What only checkpoints of format 3 have: generations in the manifest, checksums that go over generation, column and block."""

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.disk import format_3, manifest
from engine.disk.block_map import COLUMNS
from engine.disk.files import DiskFiles
from engine.disk.format_3 import bound, unbound
from engine.rows.damaged import Damaged
from tests.engine.disk.manifests import GOLDEN, NUMBERS, PATHS

places = st.tuples(
    st.integers(0, 2**32 - 1),
    st.builds("{:06d}-{:06x}".format, st.integers(1, 10**12), st.integers(0, 2**24 - 1)),
    st.integers(0, 2**50) | st.integers(0, 200) | st.sampled_from([0, 9, 10, 99, 100, 10**9, 10**9 - 1]),
)


@given(st.lists(places, max_size=20), st.sampled_from(COLUMNS))
def test_what_was_bound_comes_back(chunks, column):
    crcs, names, blocks = zip(*chunks, strict=True) if chunks else ((), (), ())
    bound_N = np.array([bound(*chunk[:2], column, chunk[2]) for chunk in chunks], np.uint32)
    found = unbound(bound_N, np.array([name.encode() for name in names], np.bytes_), column, np.array(blocks, np.int64))
    assert found.tolist() == list(crcs) and found.dtype == np.uint32


def test_an_example_by_hand():
    content = b"rows"
    crc = google_crc32c.value(content)
    whole = google_crc32c.value(content + b"000004-3fa29c/weight/17")
    assert bound(crc, "000004-3fa29c", "weight", 17) == whole
    found = unbound(np.array([whole], np.uint32), np.array([b"000004-3fa29c"]), "weight", np.array([17]))
    assert found.tolist() == [crc]


# The generations of a part


def part_of(root=GOLDEN / "format-3"):
    return manifest.read(DiskFiles(root), 2).body.json()["parts"][0]


def test_the_generations_of_a_manifest_become_arrays():
    part = part_of()
    found = format_3.generations_of(part, "float32", 2)
    assert len(found) == len(part["generations"]) > 1
    for key, said in part["generations"].items():
        generation = found[int(key)]
        assert (generation.name, generation.shared) == (said["name"], said["shared"])
        assert [list(column) for column in generation.columns] == said["columns"]


CHANGES = {
    "a name": lambda part, value: first(part).update(name=value),
    "a column": lambda part, value: first(part).update(columns=[[value, "float32", 2]]),
    "columns": lambda part, value: first(part).update(columns=value),
    "a width": lambda part, value: first(part)["columns"][0].__setitem__(2, value),
    "a key": lambda part, value: part["generations"].update({str(value): first(part)}),
    "a generation": lambda part, value: part["generations"].update({next(iter(part["generations"])): value}),
    "all generations": lambda part, value: part.update(generations=[value]),
}


def first(part):
    return next(iter(part["generations"].values()))


@pytest.mark.parametrize("where", CHANGES)
def test_what_no_manifest_says_of_a_generation_is_refused_in_a_line(where):
    for value in [*PATHS, *NUMBERS, "../../victim/rows/000001-abcdef", "0000001-abcdef", "000000-abcdef"]:
        part = part_of()
        CHANGES[where](part, value)
        with pytest.raises(Damaged) as refused:
            format_3.generations_of(part, "float32", 2)
        assert str(refused.value).isprintable() and len(str(refused.value)) < 300, value


def test_a_width_of_false_is_not_one_of_0():
    part = part_of()
    first(part)["columns"][-1][2] = False
    with pytest.raises(Damaged, match="columns"):
        format_3.generations_of(part, "float32", 2)
