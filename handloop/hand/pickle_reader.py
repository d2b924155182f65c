"""Read a model pickle as data: without chumpy, without scipy, and without executing anything it names.

Every class or function a MANO pickle names is answered by an inert stand-in that only collects what it is given; the
arrays are then built from the collected pieces by the code below. Anything else is refused by name.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from handloop.core.errors import ModelError, UnsafePickleError
from handloop.hand.pickle_parts import (
    Array,
    ArrayFromBuffer,
    Chumpy,
    Dtype,
    EncodeLatin1,
    NoBytes,
    Plain,
    ReconstructArray,
    ReconstructObject,
    Reshape,
    Scalar,
    Select,
    SparseColumns,
    SparseRows,
    Transpose,
    describe,
    evaluate,
)

MAX_BYTES = 200 * 2**20
"""Largest file read, and most memory its arrays may take: the biggest body models are near 150 MB, MANO is 4 MB."""


@dataclass(frozen=True)
class UnreadableValue:
    """Stands for an entry of the pickle that is not an array, text or number."""

    reason: str
    """What it is, to be put into an error message."""


def _allow_list() -> dict[tuple[str, str], object]:
    allowed: dict[tuple[str, str], object] = {
        ("numpy", "ndarray"): Array,
        ("numpy", "dtype"): Dtype,
        ("_codecs", "encode"): EncodeLatin1(),
        ("copyreg", "_reconstructor"): ReconstructObject(),
        ("copy_reg", "_reconstructor"): ReconstructObject(),
        ("chumpy.ch", "Ch"): Chumpy,
        ("chumpy.reordering", "Select"): Select,
        ("chumpy.reordering", "Reshape"): Reshape,
        ("chumpy.reordering", "transpose"): Transpose,
    }
    for package in ("numpy.core", "numpy._core"):
        allowed[package + ".multiarray", "_reconstruct"] = ReconstructArray()
        allowed[package + ".multiarray", "scalar"] = Scalar()
        allowed[package + ".numeric", "_frombuffer"] = ArrayFromBuffer()
    for package in ("scipy.sparse.", "scipy.sparse._"):
        for kind in ("matrix", "array"):
            allowed[package + "csc", "csc_" + kind] = SparseColumns
            allowed[package + "csr", "csr_" + kind] = SparseRows
    for builtins in ("builtins", "__builtin__"):
        allowed[builtins, "set"] = allowed[builtins, "object"] = Plain
        allowed[builtins, "bytes"] = NoBytes()
    return allowed


_ALLOWED = _allow_list()


def _refuse_opcode(reader: Any) -> None:
    raise UnsafePickleError("the pickle uses a persistent id, an extension code or an outside buffer")


def _bytes_for_bytearray(reader: Any) -> None:
    """Protocol 5's bytearray, read as bytes: the standard handler allocates whatever length the file claims."""
    (length,) = struct.unpack("<Q", reader.read(8))
    reader.append(reader.read(length))


_REFUSED_OPCODES = (
    *(pickle.PERSID, pickle.BINPERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4),
    *(pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
)


class _Reader(pickle._Unpickler):
    """The standard library's unpickler in Python, with its vocabulary cut down.

    The C one would allocate a memo as large as a single forged instruction asks for, and its instructions cannot be
    taken away.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        **{opcode[0]: _refuse_opcode for opcode in _REFUSED_OPCODES},
        pickle.BYTEARRAY8[0]: _bytes_for_bytearray,
    }

    def find_class(self, module: str, name: str) -> object:
        found = _ALLOWED.get((module, name))
        if found is None:
            raise UnsafePickleError(f"the pickle names {module}.{name}")
        return found


def read_pickle(path: str | os.PathLike[str]) -> dict[str, object]:
    """The entries of a pickled dictionary, as plain values.

    Args:
        path: a pickle of Python 2 or 3, any protocol, as MANO_RIGHT.pkl is.

    Returns:
        By key: numpy arrays (chumpy expressions evaluated, sparse matrices dense), texts, numbers, or
        `UnreadableValue` for anything else.

    Raises:
        UnsafePickleError: it names something outside the allow-list; nothing was executed.
        ModelError: it is missing, too large, truncated, damaged, or not a pickled dictionary.
    """
    content = _collected(
        path,
        "which a MANO file never does. It was refused and nothing was executed: get the file again from "
        "mano.is.tue.mpg.de.",
    )
    if not isinstance(content, dict):
        raise ModelError(f"{path}: the pickle holds a {describe(content)}, expected a dictionary of arrays (MANO).")
    # Sharing lets a small pickle name one large array under many keys; each would become a copy.
    entries: dict[str, object] = {}
    total = 0
    for key, value in content.items():
        if not isinstance(key, str):
            continue
        entries[key] = plain = _plain(value)
        total += plain.nbytes if isinstance(plain, np.ndarray) else 0
        if total > MAX_BYTES:
            raise ModelError(f"{path}: its arrays need more than {MAX_BYTES >> 20} MB, a MANO file needs 4 MB.")
    return entries


def read_pickle_tree(path: str | os.PathLike[str]) -> object:
    """The content of a pickle of dictionaries, lists, numbers, texts and arrays, as data sets come in.

    Returns:
        The same nesting of dict (keys str or int; others are left out), list (tuples too), numpy arrays, texts and
        numbers; `UnreadableValue` for anything else.

    Raises:
        UnsafePickleError: it names something outside the allow-list; nothing was executed.
        ModelError: it is missing, too large, truncated, damaged, or nested too deeply.
    """
    advice = "which annotations never do. It was refused and nothing was executed: get the file again from its authors."
    budget = [MAX_BYTES]
    tree = _plain_tree(_collected(path, advice), budget, 0)
    if budget[0] < 0:
        raise ModelError(f"{path}: its arrays need more than {MAX_BYTES >> 20} MB.")
    return tree


_MAX_NESTING = 20
"""Annotations nest two or three deep; a forged pickle can nest without end, or contain itself."""


def _plain_tree(value: object, budget: list[int], depth: int) -> object:
    """`value` with everything the pickle machine collected turned into plain values; bytes are taken off the budget."""
    # Sharing lets a small pickle name one large array many times; each would become a copy.
    if budget[0] < 0 or depth > _MAX_NESTING:
        return UnreadableValue("nested too deeply, or too large")
    if isinstance(value, dict):
        budget[0] -= 64 * len(value)
        items = ((k, v) for k, v in value.items() if isinstance(k, (str, int)))
        return {key: _plain_tree(item, budget, depth + 1) for key, item in items}
    if isinstance(value, list | tuple):
        budget[0] -= 64 * len(value)
        return [_plain_tree(item, budget, depth + 1) for item in value]
    plain = _plain(value)
    budget[0] -= plain.nbytes if isinstance(plain, np.ndarray) else 64
    return plain


def _collected(path: str | os.PathLike[str], advice: str) -> object:
    """What the pickle machine builds out of inert stand-ins; `advice` ends the message about a foreign name."""
    data = read_bytes(path)
    try:
        content: object = _Reader(io.BytesIO(data), encoding="latin1").load()
        return content
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path}: {error}, {advice}") from None
    except Exception as error:  # A damaged pickle can make the machine fail in any way.
        if isinstance(error, EOFError | struct.error) or "exhausted" in str(error) or "truncated" in str(error):
            raise ModelError(
                f"{path}: the pickle ends too early, after {len(data):,} bytes. Get the file again; the download or "
                "copy was probably cut short."
            ) from None
        raise ModelError(f"{path}: not a readable pickle ({type(error).__name__}: {error}).") from None


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """A regular file's bytes, at most `MAX_BYTES`.

    Raises:
        ModelError: missing, unreadable, empty or too large.
    """
    if not Path(path).is_file():
        found = "a folder" if Path(path).is_dir() else "no such file"
        raise ModelError(f"{path}: {found}, expected a hand model file.")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if not data:
        raise ModelError(f"{path}: the file is empty. Get it again; the download was probably cut short.")
    if len(data) > MAX_BYTES:
        raise ModelError(f"{path}: larger than {MAX_BYTES >> 20} MB (a body model?), a MANO file has about 4 MB.")
    return data


def _plain(value: object) -> object:
    if isinstance(value, str | bytes | int | float | bool | None):
        return value
    try:
        return evaluate(value, 0)
    except (ValueError, TypeError, IndexError, OverflowError, MemoryError) as error:
        return UnreadableValue(str(error))
