"""Results as Parquet: one row per hand, the columns named as the keys of `results.npz`.

What has several numbers per hand is a fixed-size list, flattened row by row, whose shape stands in the column's
metadata; the texts that hold for all hands (conventions, model, version) stand in the file's metadata.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from handloop.core.errors import FileFormatError, InputError

if TYPE_CHECKING:
    import pyarrow as pa

_TEXTS = b"handloop"
"""Key of the file's metadata: a JSON object of the texts that hold for all hands."""
_SHAPE = b"shape"
"""Key of a column's metadata: the shape of one hand's numbers, "21,3"."""
_LENSES = "distortion"
"""A column in every file, so that all files of a run have the same ones; null where there is no distortion."""


def write_parquet(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays of `results.npz`; floats are split into bytes before they are compressed, losing nothing."""
    arrow = _pyarrow()
    import pyarrow.parquet as pq

    n = len(arrays["id"])
    fields: list[pa.Field] = []
    columns: list[pa.Array] = []
    for key, array in arrays.items():
        if array.ndim == 0 or key == _LENSES:
            continue
        if array.dtype.kind == "U":
            column = arrow.array(array.tolist(), arrow.string())
        elif array.ndim == 1:
            column = arrow.array(array)
        else:
            size = int(np.prod(array.shape[1:]))
            column = arrow.FixedSizeListArray.from_arrays(arrow.array(np.ascontiguousarray(array).reshape(-1)), size)
        shape = ",".join(str(length) for length in array.shape[1:])
        fields.append(arrow.field(key, column.type, metadata={_SHAPE: shape} if shape else None))
        columns.append(column)
    fields.append(arrow.field(_LENSES, arrow.list_(arrow.float64())))
    columns.append(arrow.array(arrays[_LENSES].tolist() if _LENSES in arrays else [None] * n, fields[-1].type))
    texts = {key: str(array) for key, array in arrays.items() if array.ndim == 0}
    schema = arrow.schema(fields, metadata={_TEXTS: json.dumps(texts)})
    # A path in the file's inside, as Parquet names the numbers of a list.
    floats = [
        f"{field.name}.list.element" if arrow.types.is_fixed_size_list(field.type) else field.name
        for field in fields
        if arrow.types.is_floating(field.type) or arrow.types.is_fixed_size_list(field.type)
    ]
    words = [field.name for field in fields if arrow.types.is_string(field.type)]
    pq.write_table(
        arrow.Table.from_arrays(columns, schema=schema),
        path,
        compression="zstd",
        use_dictionary=words,
        use_byte_stream_split=floats,
    )


def read_parquet(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays that `write_parquet` was given.

    Raises:
        FileFormatError: damaged, or not written by handloop.
        InputError: pyarrow is not installed.
    """
    arrow = _pyarrow()
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, partitioning=None)
    except (arrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise FileFormatError(f"{path}: not a readable Parquet file ({reason}).") from error
    texts = (table.schema.metadata or {}).get(_TEXTS)
    if texts is None:
        raise FileFormatError(f"{path}: this Parquet file was not written by handloop.")
    arrays: dict[str, np.ndarray] = {}
    for field in table.schema:
        column = table[field.name].combine_chunks()
        shape = (field.metadata or {}).get(_SHAPE)
        if field.name == _LENSES:
            lenses = column.to_pylist()
            if lenses and all(lens is not None for lens in lenses):
                arrays[_LENSES] = np.array(lenses, dtype=np.float64)
        elif shape is not None:
            sizes = [int(part) for part in shape.split(b",")]
            arrays[field.name] = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), *sizes)
        elif arrow.types.is_string(field.type):
            arrays[field.name] = np.array(column.to_pylist(), dtype=np.str_)
        else:
            arrays[field.name] = column.to_numpy(zero_copy_only=False)
    arrays.update({key: np.array(text) for key, text in json.loads(texts).items()})
    return arrays


def _pyarrow() -> pa:
    try:
        import pyarrow
    except ImportError as error:
        raise InputError("Parquet files need pyarrow; install it with: pip install pyarrow.") from error
    return pyarrow
