"""`handloop limits` from end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from handloop.cli import main
from handloop.core.rotations import so3_exp
from handloop.hand.kinematics import Kinematics
from handloop.hand.load import embedded_hand
from handloop.priors.biomechanical_limits import BiomechanicalLimits
from handloop.priors.biomechanics import ANGLE_NAMES, BONE_NAMES


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages on one line each."""
    monkeypatch.setenv("COLUMNS", "4000")


@pytest.fixture(scope="module")
def joints() -> np.ndarray:
    """(80, 21, 3) m, right hands of the model's own poses."""
    import torch

    hand = embedded_hand().right
    pose = so3_exp(torch.tensor(hand.poses()[::25][:80]).reshape(80, 15, 3))
    turned = torch.cat([torch.eye(3, dtype=pose.dtype).expand(80, 1, 3, 3), pose], 1)
    zeros = pose.new_zeros(80, 10)
    return Kinematics.from_hand(hand).points(turned, zeros, zeros[:, :3]).numpy()


def test_limits_of_labels(joints: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mirrored = joints * [-1, 1, 1]
    right = np.arange(80) < 40
    np.savez(tmp_path / "hands.npz", joints_3d=np.where(right[:, None, None], joints, mirrored), is_right=right)
    out = tmp_path / "new" / "limits.json"
    assert main(["limits", str(tmp_path / "hands.npz"), "--out", str(out), "--trim", "0.01"]) == 0
    limits, direct = BiomechanicalLimits.load(out), BiomechanicalLimits.from_joints(joints, True, 0.01)
    assert limits.n_hands == 80 and limits.trim == 0.01
    np.testing.assert_array_equal(limits.hulls.vertices.numpy(), direct.hulls.vertices.numpy())
    text = capsys.readouterr().out
    assert all(name in text for name in (*ANGLE_NAMES, *BONE_NAMES))
    flexion = np.rad2deg(limits.hulls.polygons()[3][:, 0])
    assert f"{flexion.min():.0f} .. {flexion.max():.0f}" in text and "1.000 .. 1.000" in text
    assert text.rstrip().endswith(f"80 hands -> {out}")


@pytest.mark.parametrize("key", ["joints", "keypoints_3d"])
def test_limits_of_results(key: str, joints: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = joints.copy()
    failed[:3] = np.nan
    np.savez(tmp_path / "results.npz", **{key: failed}, is_right=np.ones(80, dtype=bool))
    assert main(["limits", str(tmp_path / "results.npz"), "--out", str(tmp_path / "limits.json")]) == 0
    assert "77 hands (3 left out: points missing or on top of each other) -> " in capsys.readouterr().out


def test_hand_overrides_the_file(joints: np.ndarray, tmp_path: Path) -> None:
    mirrored = joints * [-1, 1, 1]
    np.savez(tmp_path / "a.npz", joints_3d=mirrored)
    np.savez(tmp_path / "b.npz", joints_3d=mirrored, is_right=True)
    direct = BiomechanicalLimits.from_joints(joints, True)
    for name in ("a", "b"):
        out = tmp_path / f"{name}.json"
        assert main(["limits", str(tmp_path / f"{name}.npz"), "--out", str(out), "--hand", "left"]) == 0
        np.testing.assert_array_equal(BiomechanicalLimits.load(out).hulls.vertices, direct.hulls.vertices)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"a": np.zeros(3)}, [], "has no joints_3d (or joints, keypoints_3d as in results.npz), only a."),
        (
            {"joints_3d": np.zeros((80, 21, 2))},
            [],
            "joints_3d has shape (80, 21, 2) and type float64, expected numbers of shape (N, 21, 3).",
        ),
        ({"joints_3d": np.ones((80, 21, 3))}, [], "has no is_right; say with --hand which side the hands are."),
        (
            {"joints_3d": np.ones((80, 21, 3)), "is_right": np.ones(3, dtype=bool)},
            [],
            "is_right has shape (3,), expected (80,).",
        ),
    ],
)
def test_files_without_hands(
    arrays: dict[str, np.ndarray], options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "hands.npz", **arrays)
    assert main(["limits", str(tmp_path / "hands.npz"), "--out", str(tmp_path / "limits.json"), *options]) == 2
    assert capsys.readouterr().err == f"handloop: {tmp_path / 'hands.npz'}: {message}\n"


def test_errors(joints: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "hands.npz", str(tmp_path / "limits.json")
    np.savez(source, joints_3d=joints[:20], is_right=True)
    assert main(["limits", str(source), "--out", out]) == 2
    expected = "limits need at least 60 complete hands; 20 were given, 20 of them usable."
    assert capsys.readouterr().err == f"handloop: {expected}\n"
    np.savez(source, joints_3d=joints, is_right=True)
    assert main(["limits", str(source), "--out", out, "--trim", "0.5"]) == 2
    assert capsys.readouterr().err == "handloop: trim is 0.5, expected a share between 0 and 0.2.\n"
    assert main(["limits", str(tmp_path / "none.npz"), "--out", out]) == 2
    assert "cannot be read (No such file or directory)" in capsys.readouterr().err
    assert main(["limits", str(source), "--out", str(source / "limits.json")]) == 2
    assert "cannot be made" in capsys.readouterr().err
