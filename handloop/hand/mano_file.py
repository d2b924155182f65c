"""Read a MANO file (`.pkl` as distributed, or an `.npz` made from it) into a `Hand`, or say what is wrong with it."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from handloop.core.errors import InputError, ModelError
from handloop.core.joints import MANO_PARENTS
from handloop.hand.model import N_BETAS, N_FACES, N_JOINTS, N_VERTICES, Hand
from handloop.hand.pickle_parts import dense_from_compressed
from handloop.hand.pickle_reader import MAX_BYTES, UnreadableValue, read_bytes, read_pickle
from handloop.hand.side import find_side, repair_left_shapedirs

LeftShapedirs = Literal["repair", "as-file"]

WHERE_TO_GET_IT = 'register at mano.is.tue.mpg.de and download "Models & Code" (MANO v1.2)'

_OTHER_MODELS = {6890: "SMPL, SMPL-H or STAR", 10475: "SMPL-X", 5023: "FLAME", 3889: "SMAL"}
"""Body models by their number of vertices."""

_HASHED = (
    *("v_template", "shapedirs", "posedirs", "j_regressor", "weights", "faces"),
    *("hands_mean", "hands_components", "hands_coeffs"),
)


def read_mano(path: str | os.PathLike[str], left_shapedirs: LeftShapedirs = "repair", tip_set: str = "smplx") -> Hand:
    """A hand model from a MANO file. Its side is found from its content, not from its name.

    Args:
        path: MANO_RIGHT.pkl, MANO_LEFT.pkl, or an npz with the same keys; J_regressor dense, or in four arrays
            J_regressor_data, _indices, _indptr, _shape (CSC).
        left_shapedirs: "repair" negates the x part of a left model's `shapedirs` where it has the right hand's sign
            (smplx issue 48); "as-file" leaves it, as DexYCB did.
        tip_set: which vertices are fingertips, a key of `core.joints.TIP_SETS`.

    Raises:
        ModelError: missing, damaged, or another kind of file; the message says which.
        UnsafePickleError: the pickle names something outside the allow-list; nothing was executed.
    """
    if left_shapedirs not in ("repair", "as-file"):
        raise InputError(f"left_shapedirs is {left_shapedirs!r}, expected 'repair' or 'as-file'.")
    name = Path(path).name
    hand = hand_from_arrays(_read_entries(path), str(path), name, tip_set)
    if not hand.is_right:
        hand = repair_left_shapedirs(hand) if left_shapedirs == "repair" else replace(hand, left_shapedirs="as-file")
    return with_digest(hand)


def hand_from_arrays(entries: Mapping[str, object], path: str, name: str, tip_set: str) -> Hand:
    """Build and check a `Hand` from MANO's entries by MANO's key names; `path` is for messages, `name` for people.

    Raises:
        ModelError: entries are missing, have other shapes, or hold NaN.
    """
    notes: list[str] = []
    _refuse_other_models(entries, path)
    template = _array(entries, "v_template", path, (N_VERTICES, 3))
    extent = float(np.ptp(template, axis=0).max())
    if not 0.02 < extent < 5.0:
        raise ModelError(
            f"{path}: v_template spans {extent:.4g}, expected a hand of about 0.2 m. Convert the file to metres."
        )
    shapedirs = _array(entries, "shapedirs", path, (N_VERTICES, 3, None))
    if shapedirs.shape[2] < N_BETAS:
        raise ModelError(f"{path}: shapedirs has {shapedirs.shape[2]} shape directions, expected {N_BETAS} as in MANO.")
    if shapedirs.shape[2] > N_BETAS:
        notes.append(f"Of {shapedirs.shape[2]} shape directions the first {N_BETAS} are used.")
    faces = _array(entries, "f", path, (N_FACES, 3)).astype(np.int64)
    if faces.min() < 0 or faces.max() >= N_VERTICES:
        raise ModelError(f"{path}: faces name vertex {faces.max()}, expected 0 to {N_VERTICES - 1}.")
    _check_tree(entries, path)
    if "hands_coeffs" in entries:
        coeffs = _array(entries, "hands_coeffs", path, (None, 45))
    else:
        coeffs = np.zeros((0, 45))
        notes.append("The file lacks hands_coeffs: priors cannot be learned from it.")
    if isinstance(entries.get("J_regressor"), UnreadableValue) or "J_regressor" not in entries:
        regressor = _assemble_regressor(entries, path)
    else:
        regressor = _array(entries, "J_regressor", path, (N_JOINTS, N_VERTICES))
    hand = Hand(
        name=name,
        is_right=True,
        v_template=template,
        shapedirs=np.ascontiguousarray(shapedirs[:, :, :N_BETAS]),
        posedirs=_array(entries, "posedirs", path, (N_VERTICES, 3, 135)),
        j_regressor=regressor,
        weights=_array(entries, "weights", path, (N_VERTICES, N_JOINTS)),
        faces=faces,
        hands_mean=_array(entries, "hands_mean", path, (45,)),
        hands_components=_array(entries, "hands_components", path, (45, 45)),
        hands_coeffs=coeffs,
        tip_set=tip_set,
        licensed="handloop_model" not in entries,
    )
    is_right, side_notes = find_side(hand, path)
    return replace(hand, is_right=is_right, notes=(*notes, *side_notes))


def with_digest(hand: Hand) -> Hand:
    """The same hand with `digest` set: 12 hex digits of the SHA-256 of its side and arrays."""
    digest = hashlib.sha256(b"right" if hand.is_right else b"left")
    for name in _HASHED:
        array = getattr(hand, name)
        # Adding zero turns -0.0, which mirroring makes, into 0.0.
        data = np.ascontiguousarray(array, dtype="<i8" if name == "faces" else "<f8") + 0
        digest.update(f"{name}{data.shape}".encode())
        digest.update(data.tobytes())
    return replace(hand, digest=digest.hexdigest()[:12])


def _read_entries(path: str | os.PathLike[str]) -> Mapping[str, object]:
    """The file's entries, whatever its suffix says it is."""
    head = read_bytes(path)[:4096]
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        raise ModelError(
            f"{path}: a git-lfs pointer, not the model itself. Run 'git lfs pull' there, or {WHERE_TO_GET_IT}."
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ModelError(
            f"{path}: a web page, not a model: the download was answered by a page (a login?). "
            f"With a browser, {WHERE_TO_GET_IT}."
        )
    if head.startswith(b"PK\x03\x04"):
        return _read_npz(path)
    if head.startswith((b"\x1f\x8b", b"\x89HDF", b"7z\xbc\xaf", b"BZh", b"\x93NUMPY")):
        raise ModelError(f"{path}: an archive or another data format, expected MANO_RIGHT.pkl or an npz made from it.")
    printable = sum(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head)
    if printable == len(head) and not head.startswith((b"(", b"c", b"}")):
        raise ModelError(f"{path}: a text file, expected MANO_RIGHT.pkl: {WHERE_TO_GET_IT}.")
    return read_pickle(path)


def _read_npz(path: str | os.PathLike[str]) -> Mapping[str, object]:
    """The arrays of an npz, never unpickling; entries that would need it become `UnreadableValue`."""
    entries: dict[str, object] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(read_bytes(path))) as archive:
            names = archive.namelist()
            if sum(item.file_size for item in archive.infolist()) > MAX_BYTES:
                raise ModelError(f"{path}: unpacks to more than {MAX_BYTES >> 20} MB (a body model?), expected MANO.")
            if not any(name.endswith(".npy") for name in names):
                inside = next((name for name in names if name.lower().endswith("mano_right.pkl")), names[0])
                raise ModelError(f"{path}: a zip archive holding {inside}; unpack it and name the folder or the file.")
            for name in names:
                if name.endswith(".npy"):
                    entries[name[:-4]] = _read_npy(archive.read(name))
    except ModelError:
        raise
    except Exception as error:  # zipfile and zlib raise many kinds for damaged archives.
        raise ModelError(f"{path}: a damaged npz file ({error}). Get it again.") from None
    return entries


def _read_npy(data: bytes) -> object:
    try:
        array: np.ndarray = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except ValueError:
        return UnreadableValue("a pickled object")
    return array


def _array(entries: Mapping[str, object], key: str, path: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """An entry as finite float64 of the expected shape."""
    if key not in entries:
        present = ", ".join(sorted(entries)[:20]) or "nothing"
        raise ModelError(f"{path}: no {key!r}, so this is not a MANO file. It holds: {present}.")
    value = entries[key]
    if isinstance(value, UnreadableValue):
        raise ModelError(
            f"{path}: {key} is {value.reason}, expected an array. Use MANO_RIGHT.pkl itself, or store {key} as a plain "
            "array."
        )
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        raise ModelError(f"{path}: {key} is a {type(value).__name__}, expected an array of numbers.")
    if len(value.shape) != len(shape) or any(e not in (None, s) for s, e in zip(value.shape, shape, strict=True)):
        wanted = ", ".join("n" if e is None else str(e) for e in shape)
        raise ModelError(f"{path}: {key} has shape {value.shape}, expected ({wanted}) as in MANO.")
    array = np.array(value, dtype=np.float64, order="C")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise ModelError(f"{path}: {key} holds {bad} values that are not finite. The file is damaged; get it again.")
    return array


def _assemble_regressor(entries: Mapping[str, object], path: str) -> np.ndarray:
    """The joint regressor from the four arrays of a CSC matrix."""
    parts = ("data", "indices", "indptr", "shape")
    if not all(f"J_regressor_{part}" in entries for part in parts):
        return _array(entries, "J_regressor", path, (N_JOINTS, N_VERTICES))  # Says what is missing or unreadable.
    data, indices, starts, shape = (_array(entries, f"J_regressor_{part}", path, (None,)) for part in parts)
    size = tuple(int(n) for n in shape)
    try:
        dense = dense_from_compressed(data, indices.astype(np.int64), starts.astype(np.int64), size, columns=True)
    except ValueError as error:
        raise ModelError(f"{path}: J_regressor is {error}.") from None
    return _array({"J_regressor": dense}, "J_regressor", path, (N_JOINTS, N_VERTICES))


def _refuse_other_models(entries: Mapping[str, object], path: str) -> None:
    """Name the well-known files that people give instead."""
    if {"left_hand", "right_hand"} <= set(entries) and "v_template" not in entries:
        raise ModelError(
            f"{path}: MANO's vertex ids in SMPL-X, not a hand model; expected MANO_RIGHT.pkl: {WHERE_TO_GET_IT}."
        )
    template = entries.get("v_template")
    if not isinstance(template, np.ndarray) or template.ndim != 2 or len(template) == N_VERTICES:
        return
    kind = _OTHER_MODELS.get(len(template), "an unknown model")
    regressor = entries.get("J_regressor")
    if len(template) == 6890 and isinstance(regressor, np.ndarray):
        kind = "SMPL-H" if regressor.shape[0] == 52 else "SMPL"
    raise ModelError(
        f"{path}: {kind} with {len(template)} vertices, not MANO with {N_VERTICES}; expected MANO_RIGHT.pkl: "
        f"{WHERE_TO_GET_IT}."
    )


def _check_tree(entries: Mapping[str, object], path: str) -> None:
    """Refuse another skeleton; a file without the table is taken to have MANO's."""
    if "kintree_table" not in entries:
        return
    table = _array(entries, "kintree_table", path, (2, None))
    # The root's parent is -1, stored as an unsigned number by Python 2.
    given = tuple(-1 if parent < 0 or parent > 1000 else int(parent) for parent in table[0])
    if given != MANO_PARENTS:
        raise ModelError(f"{path}: the joints' parents are {given}, expected MANO's {MANO_PARENTS}.")
