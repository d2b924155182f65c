"""Inert stand-ins for what a MANO pickle names, and the arrays that are built from what they collected.

No stand-in does anything but keep its arguments and state, so a forged pickle has nothing to call; sizes, types and
indices are checked here before numpy sees them.
"""

from __future__ import annotations

import math
import re
from typing import Any, Self

import numpy as np

MAX_ARRAY_BYTES = 200 * 2**20
"""Largest array built: the arrays of the biggest body models are near 100 MB, MANO's are below 3 MB."""

MAX_DEPTH = 6
"""How deep chumpy expressions may nest; MANO has two levels. Also ends expressions that contain themselves."""

MAX_AXES = 32
"""Longest shape accepted: numpy's own limit for long."""


class Inert:
    """A stand-in for a class: keeps the arguments and the state it is given and does nothing with them."""

    __slots__ = ("args", "state")
    args: tuple[object, ...]
    state: object

    def __new__(cls, *args: object) -> Self:
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    def __setstate__(self, state: object) -> None:
        self.state = state

    def get(self, key: str) -> object:
        """An attribute the pickle gave to the object."""
        if not isinstance(self.state, dict) or key not in self.state:
            raise ValueError(f"a {type(self).__name__} object lacks {key!r}")
        found: object = self.state[key]
        return found


class Array(Inert):
    __slots__ = ()


class Dtype(Inert):
    __slots__ = ()


class SparseColumns(Inert):
    __slots__ = ()


class SparseRows(Inert):
    __slots__ = ()


class Chumpy(Inert):
    __slots__ = ()


class Select(Inert):
    __slots__ = ()


class Reshape(Inert):
    __slots__ = ()


class Transpose(Inert):
    __slots__ = ()


class Plain(Inert):
    """Sets and bare objects: they occur in chumpy's bookkeeping, which nobody needs."""

    __slots__ = ()


class InertCall:
    """A stand-in for a function: an object without attributes, which BUILD cannot alter as it could a function."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise ValueError("the pickle tries to change a function")


class ReconstructArray(InertCall):
    """numpy's `_reconstruct(ndarray, shape, code)`; shape and contents arrive later as the state."""

    __slots__ = ()

    def __call__(self, kind: object, shape: object, code: object) -> Array:
        if kind is not Array:
            raise ValueError("an array of a class other than numpy.ndarray")
        return Array()


class ArrayFromBuffer(InertCall):
    """numpy's `_frombuffer(buffer, dtype, shape, order)` of protocol 5."""

    __slots__ = ()

    def __call__(self, buffer: object, dtype: object, shape: object, order: object) -> Array:
        made = Array()
        made.state = (1, shape, dtype, order == "F", buffer)
        return made


class Scalar(InertCall):
    """numpy's `scalar(dtype, bytes)`."""

    __slots__ = ()

    def __call__(self, dtype: object, raw: object) -> Array:
        made = Array()
        made.state = (1, (), dtype, False, raw)
        return made


class ReconstructObject(InertCall):
    """copyreg's `_reconstructor(class, object, None)` of protocols 0 and 1, for stand-ins only."""

    __slots__ = ()

    def __call__(self, kind: object, base: object, state: object) -> Inert:
        if not (isinstance(kind, type) and issubclass(kind, Inert)) or base is not Plain or state is not None:
            raise ValueError("an object rebuilt from something unexpected")
        return kind()


class EncodeLatin1(InertCall):
    """`_codecs.encode(text, "latin1")`: how Python 3 writes bytes in the old protocols. No other codec."""

    __slots__ = ()

    def __call__(self, text: object, encoding: object) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise ValueError(f"bytes encoded as {encoding!r}, expected latin1")
        return text.encode("latin1")


class NoBytes(InertCall):
    """`bytes()`: how Python 3 writes empty bytes in the old protocols."""

    __slots__ = ()

    def __call__(self) -> bytes:
        return b""


def describe(value: object) -> str:
    return type(value).__name__


def evaluate(value: object, depth: int) -> np.ndarray:
    """The array a collected object stands for."""
    if depth > MAX_DEPTH:
        raise ValueError(f"an expression nested more than {MAX_DEPTH} deep")
    if isinstance(value, Array):
        return _build_array(value)
    if isinstance(value, SparseColumns):
        return _build_dense(value, columns=True)
    if isinstance(value, SparseRows):
        return _build_dense(value, columns=False)
    if isinstance(value, Chumpy):
        return evaluate(value.get("x"), depth + 1)
    if isinstance(value, Select):
        picked: np.ndarray = evaluate(value.get("a"), depth + 1).ravel()[evaluate(value.get("idxs"), depth + 1)]
        has_shape = isinstance(value.state, dict) and "preferred_shape" in value.state
        return picked.reshape(_shape(value.get("preferred_shape"), picked.size)) if has_shape else picked
    if isinstance(value, Reshape):
        inner = evaluate(value.get("a"), depth + 1)
        return inner.reshape(_shape(value.get("newshape"), inner.size))
    if isinstance(value, Transpose):
        inner = evaluate(value.get("a"), depth + 1)
        axes = value.state.get("axes") if isinstance(value.state, dict) else None
        order = tuple(range(inner.ndim))[::-1] if axes is None else _integers(axes)
        turned: np.ndarray = np.ascontiguousarray(np.transpose(inner, order))
        return turned
    raise ValueError(f"a {describe(value)}, expected an array")


def _integers(value: object) -> tuple[int, ...]:
    """A tuple of integers, from whatever sequence or array of them the pickle holds."""
    if isinstance(value, Array):
        numbers = _build_array(value).ravel()
        if len(numbers) > MAX_AXES:
            raise ValueError(f"{len(numbers)} integers for the lengths of an array")
        return tuple(int(i) for i in numbers)
    if isinstance(value, int):
        return (value,)
    if isinstance(value, tuple | list) and len(value) <= MAX_AXES:
        out = [_integers(item)[0] if isinstance(item, Array) else item for item in value]
        if all(isinstance(item, int) for item in out):
            return tuple(int(item) for item in out if isinstance(item, int))
    raise ValueError(f"a {describe(value)} where integers were expected")


def _shape(value: object, size: int) -> tuple[int, ...]:
    """A shape for `size` elements, where one length may be -1."""
    shape = _integers(value)
    known = math.prod(length for length in shape if length != -1)
    if any(length < -1 for length in shape) or (-1 not in shape and known != size):
        raise ValueError(f"{size} numbers for the shape {shape}")
    return shape


def _build_array(value: Array) -> np.ndarray:
    """A numeric or text array from its pickled state; object and structured arrays are refused."""
    if not isinstance(value.state, tuple) or len(value.state) not in (4, 5):
        raise ValueError("an array without contents")
    shape_value, dtype_value, column_major, raw = value.state[-4:]
    dtype = _build_dtype(dtype_value)
    shape = _integers(shape_value) if shape_value != () else ()
    if isinstance(raw, str):  # Python 2's text, decoded as latin1.
        raw = raw.encode("latin1")
    if not isinstance(raw, bytes):
        raise ValueError(f"an array whose contents are a {describe(raw)}")
    if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError(f"an array of shape {shape} and type {dtype} with {len(raw)} bytes")
    flat = np.frombuffer(raw, dtype) if raw else np.zeros(0, dtype)
    built = flat.reshape(shape, order="F" if column_major is True else "C")
    # Native byte order, and memory of its own that may be written to.
    return np.array(built, dtype=dtype.newbyteorder("="), order="C")


def _build_dtype(value: object) -> np.dtype[Any]:
    if not isinstance(value, Dtype) or not value.args or not isinstance(value.args[0], str):
        raise ValueError("an array without a type")
    code = value.args[0]
    if not re.fullmatch(r"b1|[iu][1248]|f[248]|[SU][1-9][0-9]{0,4}", code):
        raise ValueError(f"an array of type {code!r}, expected numbers")
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "="
    return np.dtype((order if order in ("<", ">") else "=") + code)


def _build_dense(value: Inert, columns: bool) -> np.ndarray:
    """A compressed sparse matrix as a dense array; entries given twice are added, as scipy does."""
    shape = _integers(value.get("_shape" if isinstance(value.state, dict) and "_shape" in value.state else "shape"))
    data, inner, starts = (evaluate(value.get(key), 0).ravel() for key in ("data", "indices", "indptr"))
    return dense_from_compressed(data, inner, starts, shape, columns)


def dense_from_compressed(
    data: np.ndarray, inner: np.ndarray, starts: np.ndarray, shape: tuple[int, ...], columns: bool
) -> np.ndarray:
    """The (rows, columns) array of a compressed sparse matrix.

    Args:
        data: (nnz,) values.
        inner: (nnz,) row of each value (column for compressed rows).
        starts: (columns + 1,) where each column starts in `data` ((rows + 1,) for compressed rows).
        shape: rows and columns.
        columns: compressed by columns (CSC) rather than by rows (CSR).

    Raises:
        ValueError: the parts do not belong together.
    """
    if data.dtype.kind not in "biuf" or inner.dtype.kind not in "iu" or starts.dtype.kind not in "iu":
        raise ValueError("a sparse matrix of something other than numbers")
    if len(shape) != 2 or min(shape) < 0 or math.prod(shape) * 8 > MAX_ARRAY_BYTES:
        raise ValueError(f"a sparse matrix of shape {shape}")
    n_outer, n_inner = (shape[1], shape[0]) if columns else shape
    starts = starts.astype(np.int64)
    counts = starts[1:] - starts[:-1]
    if (
        len(starts) != n_outer + 1
        or starts[0] != 0
        or starts[-1] != len(data)
        or len(inner) != len(data)
        or bool((counts < 0).any())
        or bool(((inner < 0) | (inner >= n_inner)).any())
    ):
        raise ValueError(f"a sparse matrix of shape {shape} whose parts do not fit together")
    outer = np.repeat(np.arange(n_outer), counts)
    dense = np.zeros(shape, dtype=data.dtype)
    np.add.at(dense, (inner.astype(np.int64), outer) if columns else (outer, inner.astype(np.int64)), data)
    return dense
