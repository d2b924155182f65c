"""MANO files: what is read, how the side and the left model's sign are found, and what each wrong file is told."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import scipy.sparse

from handloop.core.errors import InputError, ModelError
from handloop.hand.load import embedded_hand, mirror_hand
from handloop.hand.mano_file import hand_from_arrays, read_mano, with_digest
from handloop.hand.model import Hand
from handloop.hand.side import repair_left_shapedirs, side_of_name

Arrays = dict[str, np.ndarray]
FIELDS = {
    **{key: key for key in ("v_template", "shapedirs", "posedirs", "weights")},
    **{key: key for key in ("hands_mean", "hands_components", "hands_coeffs")},
    "j_regressor": "J_regressor",
    "faces": "f",
}


def _write(path: Path, make: ModuleType, arrays: Arrays) -> Path:
    path.write_bytes(make.plain_pickle(arrays))
    return path


def _turned(arrays: Arrays, seed: int) -> Arrays:
    """The same hand in another rest frame: everything turned, as a tool with its own axes might store it."""
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    out = dict(arrays)
    out["v_template"] = arrays["v_template"] @ turn.T + 0.3
    out["hands_mean"] = (arrays["hands_mean"].reshape(15, 3) @ turn.T).ravel()
    out["hands_components"] = (arrays["hands_components"].reshape(45, 15, 3) @ turn.T).reshape(45, 45)
    return out


def _left(make: ModuleType, arrays: Arrays, sign_error: bool) -> Hand:
    return hand_from_arrays(make.mirrored_arrays(arrays, sign_error), "x.pkl", "x.pkl", "smplx")


@pytest.mark.parametrize(("protocol", "python2"), [(0, False), (2, False), (2, True), (5, False)])
def test_pickle(protocol: int, python2: bool, tmp_path: Path, make: ModuleType, arrays: Arrays) -> None:
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(make.mano_pickle(arrays, protocol, python2))
    hand = read_mano(path)
    for field, key in FIELDS.items():
        value = getattr(hand, field)
        np.testing.assert_array_equal(value, arrays[key])
        assert value.dtype == (np.int64 if field == "faces" else np.float64)
    assert (hand.is_right, hand.licensed, hand.left_shapedirs, hand.tip_set) == (True, True, "none", "smplx")
    assert hand.name == "MANO_RIGHT.pkl" and hand.notes == () and len(hand.digest) == 12


def test_npz_equals_pickle(tmp_path: Path, make: ModuleType, arrays: Arrays) -> None:
    path = _write(tmp_path / "MANO_RIGHT.pkl", make, arrays)
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    sparse = scipy.sparse.csc_matrix(arrays["J_regressor"])
    rest = {key: value for key, value in arrays.items() if key != "J_regressor"}
    parts = {f"J_regressor_{part}": getattr(sparse, part) for part in ("data", "indices", "indptr")}
    np.savez(tmp_path / "b.npz", J_regressor_shape=np.array(sparse.shape), **parts, **rest)
    (tmp_path / "named_wrong.pkl").write_bytes((tmp_path / "a.npz").read_bytes())
    digests = {read_mano(tmp_path / name).digest for name in ("a.npz", "b.npz", "named_wrong.pkl")}
    assert digests == {read_mano(path).digest}


@pytest.mark.real
@pytest.mark.parametrize("version", ["py27", "py38"])
def test_real_chumpy_files_are_read_and_their_side_is_their_names(version: str, real_data: Path) -> None:
    hand = read_mano(real_data / "mano_format" / f"{version}_MANO_RIGHT.pkl")
    assert hand.is_right and "taken from the file's name" in hand.notes[0]


# The side


@pytest.mark.parametrize("seed", range(5))
def test_side_is_found_in_any_frame(seed: int, tmp_path: Path, make: ModuleType, arrays: Arrays) -> None:
    right = _turned(make.hand_arrays(seed), seed)
    left = _turned(make.mirrored_arrays(make.hand_arrays(seed)), seed + 10)
    for content, is_right in ((right, True), (left, False)):
        hand = read_mano(_write(tmp_path / "hand.pkl", make, content))
        assert hand.is_right is is_right
        assert not any("side" in note for note in hand.notes)


def test_content_wins_over_the_name(tmp_path: Path, make: ModuleType, arrays: Arrays) -> None:
    hand = read_mano(_write(tmp_path / "MANO_LEFT.pkl", make, arrays))
    assert hand.is_right
    assert hand.notes == ("The file is named left, but its content is a right hand; the content counts.",)


def test_side_without_poses_is_read_from_manos_axes(tmp_path: Path, make: ModuleType, arrays: Arrays) -> None:
    flat = {**arrays, "hands_mean": np.zeros(45), "hands_coeffs": np.zeros((3, 45))}
    for content, is_right in ((flat, True), (make.mirrored_arrays(flat), False)):
        hand = read_mano(_write(tmp_path / "hand.pkl", make, content))
        assert hand.is_right is is_right
        assert "rest pose's axes" in hand.notes[0]
    with pytest.raises(ModelError, match="put RIGHT or LEFT into the file's name"):
        read_mano(_write(tmp_path / "hand.pkl", make, _turned(flat, 1)))
    assert not read_mano(_write(tmp_path / "my_left_hand.pkl", make, _turned(flat, 1))).is_right


def test_side_of_the_embedded_hand_is_its_content() -> None:
    pair = embedded_hand()
    for hand in (pair.right, pair.left):
        entries = {key: getattr(hand, field) for field, key in FIELDS.items()}
        again = hand_from_arrays(entries, "hand.npz", "hand.npz", "smplx")
        assert again.is_right is hand.is_right and again.notes == ()


def test_side_of_name() -> None:
    right, left = ("MANO_RIGHT.pkl", "a/mano-right.npz", "Right.pkl"), ("MANO_LEFT.pkl", "left_hand.npz")
    assert all(side_of_name(name) is True for name in right)
    assert all(side_of_name(name) is False for name in left)
    assert all(side_of_name(name) is None for name in ("mano.pkl", "bright.pkl", "right_and_left.pkl", "left/x.pkl"))


# The left model's shape directions


@pytest.mark.parametrize("beside", [True, False])
def test_left_sign_error_is_repaired(beside: bool, make: ModuleType, arrays: Arrays) -> None:
    right = hand_from_arrays(arrays, "x.pkl", "x.pkl", "smplx")
    wrong, true = _left(make, arrays, True), _left(make, arrays, False)
    repaired = repair_left_shapedirs(wrong, right if beside else None)
    np.testing.assert_array_equal(repaired.shapedirs, true.shapedirs)
    assert repaired.left_shapedirs == "repaired" and "smplx issue 48" in repaired.notes[-1]
    assert ("compared with the right file" in repaired.notes[-1]) is beside
    kept = repair_left_shapedirs(true, right if beside else None)
    np.testing.assert_array_equal(kept.shapedirs, true.shapedirs)
    assert kept.left_shapedirs == "none"


def test_a_foreign_right_file_does_not_decide(make: ModuleType, arrays: Arrays) -> None:
    other = make.hand_arrays(5)
    other["shapedirs"][:, :, 1:] *= 20
    foreign = hand_from_arrays(other, "x.pkl", "x.pkl", "smplx")
    repaired = repair_left_shapedirs(_left(make, arrays, True), foreign)
    assert repaired.left_shapedirs == "repaired" and "first direction" in repaired.notes[-1]


def test_left_sign_that_cannot_be_told_is_left_alone(make: ModuleType, arrays: Arrays) -> None:
    left = _left(make, arrays, True)
    noise = replace(left, shapedirs=np.random.default_rng(0).normal(0, 0.002, left.shapedirs.shape))
    kept = repair_left_shapedirs(noise)
    assert kept.shapedirs is noise.shapedirs and kept.left_shapedirs == "as-file"
    assert "could not be told" in kept.notes[-1]


def test_left_shapedirs_are_the_callers_choice(tmp_path: Path, make: ModuleType, arrays: Arrays) -> None:
    path = _write(tmp_path / "MANO_LEFT.pkl", make, make.mirrored_arrays(arrays, sign_error=True))
    as_file, repaired = read_mano(path, "as-file"), read_mano(path)
    assert (as_file.left_shapedirs, repaired.left_shapedirs) == ("as-file", "repaired")
    np.testing.assert_array_equal(as_file.shapedirs * [[-1], [1], [1]], repaired.shapedirs)
    assert as_file.digest != repaired.digest
    with pytest.raises(InputError, match="expected 'repair' or 'as-file'"):
        read_mano(path, "fix")  # type: ignore[arg-type]


def test_size_grows_the_repaired_embedded_hand() -> None:
    left = embedded_hand().left
    wrong = replace(left, shapedirs=left.shapedirs * np.array([-1.0, 1.0, 1.0])[:, None])
    assert repair_left_shapedirs(wrong).left_shapedirs == "repaired"
    assert repair_left_shapedirs(left).left_shapedirs == "none"


# Digests and optional entries


def test_digest_names_the_content(make: ModuleType, arrays: Arrays) -> None:
    hand = with_digest(hand_from_arrays(arrays, "x.pkl", "x.pkl", "smplx"))
    assert with_digest(replace(hand, name="other", notes=("a",))).digest == hand.digest
    for field in FIELDS:
        changed = getattr(hand, field).copy()
        changed.flat[3] += 1
        assert with_digest(replace(hand, **{field: changed})).digest != hand.digest, field
    assert mirror_hand(mirror_hand(hand)).digest == hand.digest != mirror_hand(hand).digest


def test_what_may_be_missing(make: ModuleType, arrays: Arrays) -> None:
    entries = {key: value for key, value in arrays.items() if key not in ("hands_coeffs", "kintree_table", "J")}
    entries["shapedirs"] = np.concatenate([arrays["shapedirs"], arrays["shapedirs"]], 2)
    hand = hand_from_arrays(entries, "x.pkl", "x.pkl", "smplx")
    assert hand.hands_coeffs.shape == (0, 45) and hand.is_right
    np.testing.assert_array_equal(hand.shapedirs, arrays["shapedirs"])
    assert len(hand.notes) == 2


# Wrong files


def _vertices(n: int, joints: int) -> Arrays:
    return {"v_template": np.zeros((n, 3)), "J_regressor": np.zeros((joints, n)), "f": np.zeros((9, 3))}


WRONG_ARRAYS: dict[str, tuple[Arrays, str]] = {
    "SMPL": (_vertices(6890, 24), "SMPL with 6890 vertices, not MANO with 778"),
    "SMPL-H": (_vertices(6890, 52), "SMPL-H with 6890 vertices"),
    "SMPL-X": (_vertices(10475, 55), "SMPL-X with 10475 vertices"),
    "FLAME": (_vertices(5023, 5), "FLAME with 5023 vertices"),
    "unknown": (_vertices(1000, 16), "an unknown model with 1000 vertices"),
    "vertex ids": ({"left_hand": np.arange(778), "right_hand": np.arange(778)}, "MANO's vertex ids in SMPL-X"),
    "nothing": ({"a": np.zeros(2)}, "no 'v_template', so this is not a MANO file. It holds: a"),
}


@pytest.mark.parametrize("suffix", ["pkl", "npz"])
@pytest.mark.parametrize("kind", list(WRONG_ARRAYS))
def test_other_models_are_named(kind: str, suffix: str, tmp_path: Path, make: ModuleType) -> None:
    content, message = WRONG_ARRAYS[kind]
    path = tmp_path / f"MANO_RIGHT.{suffix}"
    if suffix == "pkl":
        _write(path, make, content)
    else:
        np.savez(path, **content)
    with pytest.raises(ModelError) as caught:
        read_mano(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def _nan(array: np.ndarray) -> np.ndarray:
    out = array.copy()
    out.flat[5] = np.nan
    return out


DAMAGE: dict[str, tuple[str, object, str]] = {
    "shape": ("weights", np.zeros((778, 24)), r"weights has shape \(778, 24\), expected \(778, 16\)"),
    "posedirs": ("posedirs", np.zeros((778, 3, 9)), r"expected \(778, 3, 135\)"),
    "few directions": ("shapedirs", np.zeros((778, 3, 6)), "has 6 shape directions, expected 10"),
    "other tree": ("kintree_table", np.zeros((2, 16)), "parents are"),
    "faces": ("f", np.full((1538, 3), 900), "name vertex 900, expected 0 to 777"),
    "text": ("weights", "none", "weights is a str, expected an array of numbers"),
    "objects": ("weights", np.array([None]), "weights is .*expected an array"),
    "missing": ("hands_mean", None, "no 'hands_mean'"),
}


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_damaged_entries_are_named(kind: str, tmp_path: Path, make: ModuleType, arrays: Arrays) -> None:
    key, value, message = DAMAGE[kind]
    content: dict[str, object] = {**arrays, key: value}
    if value is None:
        del content[key]
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(make.plain_pickle(content))
    with pytest.raises(ModelError, match=message):
        read_mano(path)


@pytest.mark.parametrize("key", [*FIELDS.values(), "kintree_table"])
def test_nan_is_refused_and_named(key: str, make: ModuleType, arrays: Arrays) -> None:
    content = {**arrays, key: _nan(arrays[key].astype(float))}
    with pytest.raises(ModelError, match=f"x.pkl: {key} holds 1 values that are not finite"):
        hand_from_arrays(content, "x.pkl", "x.pkl", "smplx")


def test_millimetres_are_refused(arrays: Arrays) -> None:
    with pytest.raises(ModelError, match="Convert the file to metres"):
        hand_from_arrays({**arrays, "v_template": arrays["v_template"] * 1000}, "x.pkl", "x.pkl", "smplx")


NOT_MODELS = {
    "web page": (b"\n<!DOCTYPE html>\n<html><body>Please log in</body></html>", "a web page, not a model"),
    "bare page": (b"<html>", "a web page"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3821356\n", "a git-lfs pointer"),
    "text": (b"Not found\n", "a text file"),
    "json": (b'{"error": 404}', "a text file"),
    "gzip": (b"\x1f\x8b\x08\x00", "an archive or another data format"),
    "npy": (b"\x93NUMPY\x01\x00", "an archive or another data format"),
    "cut zip": (b"PK\x03\x04 and so on", "a damaged npz file"),
    "empty": (b"", "the file is empty"),
}


@pytest.mark.parametrize("kind", list(NOT_MODELS))
def test_files_that_are_no_models_are_named(kind: str, tmp_path: Path) -> None:
    content, message = NOT_MODELS[kind]
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_mano(path)


def test_truncated_pickle(tmp_path: Path, make: ModuleType, arrays: Arrays) -> None:
    path = tmp_path / "MANO_RIGHT.pkl"
    data = make.mano_pickle(arrays, 2, True)
    for length in (100, 5000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError, match=f"ends too early, after {length:,} bytes"):
            read_mano(path)


def test_zip_archives(tmp_path: Path, make: ModuleType, arrays: Arrays) -> None:
    path = tmp_path / "mano_v1_2.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mano_v1_2/models/MANO_RIGHT.pkl", b"x")
    with pytest.raises(ModelError, match=r"holding mano_v1_2/models/MANO_RIGHT\.pkl; unpack it"):
        read_mano(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(2**28))
    with pytest.raises(ModelError, match="unpacks to more than 200 MB"):
        read_mano(path)


def test_npz_with_pickled_objects_is_not_unpickled(tmp_path: Path, arrays: Arrays) -> None:
    path = tmp_path / "MANO_RIGHT.npz"
    sparse = np.array(scipy.sparse.csc_matrix(arrays["J_regressor"]), dtype=object)
    np.savez(path, **{**arrays, "J_regressor": sparse})
    with pytest.raises(ModelError, match="J_regressor is a pickled object, expected an array"):
        read_mano(path)
