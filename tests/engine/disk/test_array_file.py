"""The parts of a file of arrays are, one after the other, what the library writes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from engine.disk.array_file import parts_of

KINDS = ["uint64", "int64", "float64", "float32", "uint32", "int32", "float16", "uint8", "bool"]
arrays = st.dictionaries(
    st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=6),
    st.builds(
        lambda kind, shape: np.ones(shape, kind), st.sampled_from(KINDS), st.lists(st.integers(0, 3), max_size=3)
    ),
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(arrays)
def test_together_they_are_the_files_of_the_library(named):
    assert b"".join(parts_of(named)) == save(named)


def test_an_array_is_a_part_as_it_lies_in_memory_and_a_strided_one_is_copied():
    whole, strided = np.arange(8.0), np.arange(16.0)[::2]
    _, first, second = parts_of({"a": whole, "b": strided})
    assert np.shares_memory(np.frombuffer(first), whole) and not np.shares_memory(np.frombuffer(second), strided)
    assert np.array_equal(load(b"".join(parts_of({"b": strided})))["b"], strided)


def test_a_type_that_no_checkpoint_has_is_our_mistake():
    with pytest.raises(AssertionError):
        parts_of({"a": np.ones(2, np.complex64)})
