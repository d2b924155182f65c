"""Where hand models are looked for, which side becomes which, and mirror images."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from handloop.core.errors import InputError, ModelError
from handloop.core.params import HandParams
from handloop.hand.load import load_hand, mirror_hand
from handloop.hand.mano_file import read_mano
from handloop.hand.mesh import skin

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def right_bytes(make: ModuleType, arrays: Arrays) -> bytes:
    data: bytes = make.plain_pickle(arrays)
    return data


@pytest.fixture(scope="module")
def left_bytes(make: ModuleType, arrays: Arrays) -> bytes:
    """With the official file's sign error."""
    data: bytes = make.plain_pickle(make.mirrored_arrays(arrays, sign_error=True))
    return data


def _put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_embedded_hand_without_any_path() -> None:
    pair = load_hand()
    assert pair.right.is_right and not pair.left.is_right
    assert pair.left_is_mirror and pair.left.name == pair.right.name + " (mirrored)"
    assert not pair.right.licensed and not pair.left.licensed
    assert pair.right.notes == () and pair.right.tip_set == "smplx"
    assert pair.side(True) is pair.right and pair.side(False) is pair.left
    assert load_hand().right.digest == pair.right.digest
    assert load_hand(tip_set="manopth").left.tip_set == "manopth"


def test_environment_variable(tmp_path: Path, right_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDLOOP_MANO", str(_put(tmp_path / "MANO_RIGHT.pkl", right_bytes)))
    assert load_hand().right.name == "MANO_RIGHT.pkl"
    assert load_hand("embedded").right.name != "MANO_RIGHT.pkl"
    monkeypatch.setenv("HANDLOOP_MANO", str(tmp_path / "gone.pkl"))
    with pytest.raises(ModelError, match=r"gone\.pkl \(from HANDLOOP_MANO\) does not exist"):
        load_hand()


def test_one_right_file(tmp_path: Path, right_bytes: bytes) -> None:
    pair = load_hand(_put(tmp_path / "MANO_RIGHT.pkl", right_bytes))
    assert pair.right.licensed and pair.left.licensed and pair.left_is_mirror
    assert pair.left.name == "MANO_RIGHT.pkl (mirrored)" and not pair.left.is_right


def test_one_left_file(tmp_path: Path, left_bytes: bytes, make: ModuleType, arrays: Arrays) -> None:
    pair = load_hand(_put(tmp_path / "hand.pkl", left_bytes))
    assert pair.left.left_shapedirs == "repaired" and pair.right.left_shapedirs == "none"
    assert pair.right.name == "hand.pkl (mirrored)" and pair.right.is_right and pair.left_is_mirror
    np.testing.assert_array_equal(pair.right.shapedirs, arrays["shapedirs"])
    np.testing.assert_array_equal(pair.right.v_template, arrays["v_template"])


@pytest.mark.parametrize("given", ["MANO_RIGHT.pkl", "MANO_LEFT.pkl", ""])
def test_both_files(given: str, tmp_path: Path, right_bytes: bytes, left_bytes: bytes, arrays: Arrays) -> None:
    _put(tmp_path / "MANO_RIGHT.pkl", right_bytes)
    _put(tmp_path / "MANO_LEFT.pkl", left_bytes)
    pair = load_hand(tmp_path / given)
    assert (pair.right.name, pair.left.name) == ("MANO_RIGHT.pkl", "MANO_LEFT.pkl")
    assert not pair.left_is_mirror
    assert pair.left.left_shapedirs == "repaired" and "compared with the right file" in pair.left.notes[-1]
    np.testing.assert_array_equal(pair.left.shapedirs, arrays["shapedirs"] * [[-1], [1], [1]])
    assert pair.left.digest == mirror_hand(pair.right).digest
    assert load_hand(tmp_path / given, left_shapedirs="as-file").left.left_shapedirs == "as-file"


def test_files_whose_names_are_exchanged(tmp_path: Path, right_bytes: bytes, left_bytes: bytes) -> None:
    _put(tmp_path / "MANO_RIGHT.pkl", left_bytes)
    _put(tmp_path / "MANO_LEFT.pkl", right_bytes)
    pair = load_hand(tmp_path)
    assert (pair.right.name, pair.left.name) == ("MANO_LEFT.pkl", "MANO_RIGHT.pkl")
    assert "the content counts" in pair.right.notes[0]


def test_the_same_side_twice_is_refused(tmp_path: Path, right_bytes: bytes) -> None:
    _put(tmp_path / "MANO_RIGHT.pkl", right_bytes)
    _put(tmp_path / "MANO_LEFT.pkl", right_bytes)
    with pytest.raises(ModelError, match="both hold a right hand"):
        load_hand(tmp_path)


@pytest.mark.parametrize(
    "place",
    [
        *("MANO_RIGHT.pkl", "mano/MANO_RIGHT.pkl", "models/mano/MANO_RIGHT.pkl", "mano/models/MANO_RIGHT.pkl"),
        *("_DATA/data/mano/MANO_RIGHT.pkl", "data/mano/MANO_RIGHT.pkl", "mano_v1_2/models/MANO_RIGHT.pkl"),
        *("models/MANO/mano_right.PKL", "Mano_v1_2/Models/Mano_Right.pkl", "mano_data/mano_right.pkl"),
    ],
)
def test_layouts_of_other_tools(
    place: str, tmp_path: Path, right_bytes: bytes, left_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _put(tmp_path / place, right_bytes)
    _put(path.with_name("unrelated.pkl"), b"x")
    assert load_hand(tmp_path).right.name == path.name
    _put(path.with_name("MANO_left.pkl"), left_bytes)
    assert load_hand(tmp_path).left.name == "MANO_left.pkl"
    assert load_hand(path).left.name == "MANO_left.pkl"
    # A bare file name has no folder in it.
    monkeypatch.chdir(path.parent)
    assert load_hand(path.name).left.name == "MANO_left.pkl"


def test_npz_beside_pkl(tmp_path: Path, right_bytes: bytes, make: ModuleType, arrays: Arrays) -> None:
    path = _put(tmp_path / "MANO_RIGHT.pkl", right_bytes)
    np.savez(tmp_path / "MANO_LEFT.npz", **make.mirrored_arrays(arrays))
    pair = load_hand(path)
    assert pair.left.name == "MANO_LEFT.npz" and pair.left.left_shapedirs == "none"
    np.savez(tmp_path / "MANO_RIGHT.npz", **arrays)
    assert load_hand(tmp_path).right.name == "MANO_RIGHT.pkl"


def test_missing_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_hand(tmp_path / "MANO_RIGHT.pkl")
    assert str(caught.value) == (
        f"{tmp_path}/MANO_RIGHT.pkl does not exist. To get it, register at mano.is.tue.mpg.de and download "
        '"Models & Code" (MANO v1.2), file MANO_RIGHT.pkl; then name the file or its folder with --mano or the '
        "environment variable HANDLOOP_MANO. Without them the embedded hand is used.\n"
        f"Searched:\n  {tmp_path}/MANO_RIGHT.pkl"
    )
    with pytest.raises(ModelError) as caught:
        load_hand(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"no MANO_RIGHT.pkl or MANO_LEFT.pkl in {tmp_path}. ")
    for place in ("models/mano", "mano/models", "_DATA/data/mano", "mano_v1_2/models"):
        assert f"\n  {tmp_path}/{place}" in message


def test_wrong_options() -> None:
    with pytest.raises(InputError, match="tip set 'mano' is unknown, expected one of smplx"):
        load_hand(tip_set="mano")
    with pytest.raises(InputError, match="expected 'repair' or 'as-file'"):
        load_hand(left_shapedirs="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["embedded", "made up"])
def test_mirrored_model_with_mirrored_parameters_is_the_mirror_image(
    source: str, tmp_path: Path, right_bytes: bytes
) -> None:
    right = load_hand().right if source == "embedded" else read_mano(_put(tmp_path / "MANO_RIGHT.pkl", right_bytes))
    left = mirror_hand(right)
    generator = torch.Generator().manual_seed(0)
    params = HandParams(*(torch.randn(6, k, generator=generator, dtype=torch.float64) for k in (3, 45, 10, 3)))
    mirror = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    for ours, theirs in zip(skin(left, *params.mirrored().tensors()), skin(right, *params.tensors()), strict=True):
        torch.testing.assert_close(ours, theirs * mirror, atol=1e-12, rtol=0)


def test_mirrored_model_keeps_coefficients_and_outward_faces() -> None:
    right = load_hand().right
    left = mirror_hand(right)
    turn = np.tile([1.0, -1.0, -1.0], 15)
    np.testing.assert_allclose(left.poses(), right.poses() * turn, atol=1e-14)
    np.testing.assert_array_equal(left.hands_coeffs, right.hands_coeffs)
    volumes = [np.linalg.det(hand.v_template[hand.faces]).sum() / 6 for hand in (right, left)]
    assert volumes[0] > 0
    np.testing.assert_allclose(volumes[0], volumes[1])
    again = mirror_hand(left)
    assert (again.name, again.is_right, again.digest) == (right.name, True, right.digest)
