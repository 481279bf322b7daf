"""The checksum of a chunk's content, from the one that is bound to generation, column and block: the inverse of crc32c's last bytes."""

import google_crc32c
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.disk.block_map import COLUMNS
from engine.disk.zarr_format import bound, unbound

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
