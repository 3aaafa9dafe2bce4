"""Arrays as Arrow columns and back.

Flows in: numpy arrays [rows, ...]. Flows out: plain nested FixedSizeList columns, which plain pyarrow, Parquet and
DuckDB all read with their shape (Ray's own tensor type does not survive outside Ray). No copy either way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def to_column(array: NDArray[Any]) -> pa.Array:
    """`array` [rows, *shape] as a column of nested FixedSizeLists of its own dtype."""
    column = pa.array(np.ascontiguousarray(array).reshape(-1))
    for size in reversed(array.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def to_array(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    """The array [rows, *shape] in a column of nested FixedSizeLists."""
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(values, pa.ChunkedArray):  # combine_chunks keeps an empty column chunked
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], type=values.type)
    shape = [len(values)]
    kind = values.type
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind = kind.value_type
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False).reshape(shape)
