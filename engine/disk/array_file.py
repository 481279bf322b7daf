"""A file of named arrays in the safetensors format, as parts that are written one after the other.

`safetensors.numpy.save` gives the same bytes, in one piece: it copies each array, and then all of them together. Here the arrays are the
parts themselves, so that a checkpoint of large arrays takes no memory beside them. Files are read with the library.
"""

import json
from collections.abc import Mapping

import numpy as np

from engine.disk.files import Buffer

# In this order they lie in a file; arrays of one type by name.
_TYPES = {
    np.dtype(kind): name
    for kind, name in (
        *(("uint64", "U64"), ("int64", "I64"), ("float64", "F64"), ("float32", "F32"), ("uint32", "U32")),
        *(("int32", "I32"), ("float16", "F16"), ("uint8", "U8"), ("bool", "BOOL")),
    )
}


def parts_of(arrays: Mapping[str, np.ndarray]) -> list[Buffer]:
    """The header, and the arrays in their order; together `safetensors.numpy.save(arrays)`.

    An array that is not contiguous is copied; the others may not change before they are written.
    """
    order = list(_TYPES)
    assert all(array.dtype in _TYPES for array in arrays.values()), arrays
    header, parts, end = {}, [], 0
    for name, array in sorted(arrays.items(), key=lambda one: (order.index(one[1].dtype), one[0])):
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _TYPES[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
        if array.nbytes:
            parts.append(np.ascontiguousarray(array).data.cast("B"))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *parts]
