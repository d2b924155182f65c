"""Reading bytes, text, JSON and numbers from files of strangers: limits, clear errors, nothing ever executed."""

from __future__ import annotations

import codecs
import json
import os
import stat
import zipfile
from pathlib import Path

import numpy as np

from handloop.core.errors import FileFormatError
from handloop.core.results import load_npz

MAX_BYTES = 2_000_000_000
"""Largest file, and largest unpacked npz, that is read: more is split, or not keypoints."""


def check_file(path: Path) -> int:
    """Size in bytes of a regular, non-empty file within the limit.

    Raises:
        FileFormatError: missing, unreadable, empty, too large, or a device.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise FileFormatError(f"the file cannot be read ({error.strerror}).") from error
    if not stat.S_ISREG(status.st_mode):
        raise FileFormatError("this is not an ordinary file; give a file or a folder.")
    if status.st_size == 0:
        raise FileFormatError("the file is empty.")
    if status.st_size > MAX_BYTES:
        raise FileFormatError(f"the file has {status.st_size / 1e9:.1f} GB, the limit is 2 GB; split it.")
    return status.st_size


def read_bytes(path: Path) -> bytes:
    """The content of a file that passes `check_file`."""
    check_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileFormatError(f"the file cannot be read ({error.strerror}).") from error


def read_text(path: Path) -> str:
    """Text in UTF-8, or UTF-16 with its mark."""
    raw = read_bytes(path)
    utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError("the file is not text in UTF-8; it is damaged or of another kind.") from error
    if "\0" in text:
        raise FileFormatError("the file holds binary data, expected text.")
    return text


def read_json(path: Path) -> object:
    """The value of a JSON file in UTF-8, -16 or -32."""
    raw = read_bytes(path)
    try:
        # json.loads finds the encoding of bytes by itself, but takes no UTF-8 mark.
        value: object = json.loads(raw.removeprefix(codecs.BOM_UTF8))
    except UnicodeDecodeError as error:
        raise FileFormatError("the file is not text, expected JSON; it is damaged or of another kind.") from error
    except json.JSONDecodeError as error:
        if error.pos >= len(error.doc.rstrip()) and error.doc.strip():
            raise FileFormatError("the JSON ends too early; the file is truncated, write it again.") from error
        where = f"line {error.lineno}, column {error.colno}"
        raise FileFormatError(f"this is not valid JSON ({error.msg} at {where}).") from error
    except RecursionError as error:
        raise FileFormatError("the JSON is nested too deeply to be keypoints.") from error
    except ValueError as error:
        raise FileFormatError(f"this is not valid JSON ({error}).") from error
    return value


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz, never unpickled."""
    check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise FileFormatError("this is not an npz file, or it is damaged.") from error
    if unpacked > MAX_BYTES:
        raise FileFormatError(f"the npz unpacks to {unpacked / 1e9:.1f} GB, the limit is 2 GB; split it.")
    try:
        return load_npz(path)
    except FileFormatError as error:
        text = str(error).removeprefix(f"{path}: ")
        if "allow_pickle" in text:
            text = "the npz holds Python objects, which are never loaded; save plain arrays."
        elif text.startswith("cannot be read"):
            # The file was there a moment ago: zipfile also raises OSError for offsets that make no sense.
            text = "this is not an npz file, or it is damaged."
        raise FileFormatError(text) from error


def read_npy(path: Path) -> np.ndarray:
    """The array of an npy file, never unpickled."""
    check_file(path)
    try:
        # A memory map refuses a header that claims more than the file holds, before anything is allocated.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises many kinds for damaged files.
        if "bject" in str(error) or "ickle" in str(error):
            message = "the npy holds Python objects, which are never loaded; save a plain array."
        else:
            message = "this is not an npy file, or it is damaged."
        raise FileFormatError(message) from error
    if not isinstance(array, np.ndarray):
        raise FileFormatError("this is not an npy file; name an npz file .npz.")
    return float_array(array, "the array")


def float_array(array: np.ndarray, what: str) -> np.ndarray:
    """A copy as float64 of an array of numbers."""
    if array.dtype.kind not in "iufb":
        raise FileFormatError(f"{what} holds {array.dtype} values, expected numbers.")
    return np.array(array, dtype=np.float64)


def numbers(value: object, what: str) -> np.ndarray:
    """Nested JSON lists of numbers as a float64 array; null becomes NaN.

    Raises:
        FileFormatError: text or objects among the numbers, or rows of different lengths.
    """
    if isinstance(value, list):
        try:
            array = np.asarray(value)
            if array.dtype.kind in "iuf":
                return array.astype(np.float64, copy=False)
            # JavaScript writes NaN as null; everything else that is not a number stays an error.
            if array.dtype.kind == "O" and all(v is None or type(v) in (int, float) for v in array.flat):
                return array.astype(np.float64)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise FileFormatError(f"{what} is not a regular table of numbers (rows differ in length).") from error
        raise FileFormatError(f"{what} holds something other than numbers.")
    raise FileFormatError(f"{what} is {json_kind(value)}, expected a list of numbers.")


def json_kind(value: object) -> str:
    """A JSON value in words, for messages."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        keys = ", ".join(repr(str(k)[:40]) for k in list(value)[:6])
        return f"an object with the keys {keys}" if value else "an empty object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"the text {value[:40]!r}" if isinstance(value, str) else f"the value {str(value)[:40]}"
