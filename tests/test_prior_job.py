"""`handloop prior` from end to end, and fits with what it learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from handloop.api import fit
from handloop.cli import main
from handloop.hand.load import embedded_hand
from handloop.priors.learn import learn_pose_prior
from handloop.priors.prior_file import load_prior, save_prior

DATA = Path(__file__).resolve().parents[1] / "examples" / "data"
HAND = embedded_hand().right


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages on one line each; no MANO file of whoever runs the tests."""
    monkeypatch.setenv("COLUMNS", "4000")
    monkeypatch.delenv("HANDLOOP_MANO", raising=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Open and curled hands, half of them left: 90 poses in one file, 60 in another."""
    folder = tmp_path_factory.mktemp("poses")
    rng = np.random.default_rng(0)
    bent = np.where(np.arange(45) % 3 == 2, 1.1, 0.0) * (rng.random(150) < 0.5)[:, None]
    poses = bent + rng.normal(0, 0.08, (150, 45))
    right = np.arange(150) % 2 == 0
    given = np.where(right[:, None], poses, poses * np.tile([1, -1, -1], 15))
    np.savez(folder / "a.npz", hand_pose=given[:90], is_right=right[:90], truth=poses[:90])
    np.savez(folder / "b.npz", hand_pose=given[90:], is_right=right[90:], truth=poses[90:])
    return folder / "a.npz", folder / "b.npz"


@pytest.fixture(scope="module")
def prior(files: tuple[Path, Path]) -> Path:
    """What the command learns of both files."""
    out = files[0].parent / "new" / "prior.npz"
    assert main(["prior", *map(str, files), "--out", str(out)]) == 0
    return out


def test_learns_what_the_library_learns(files: tuple[Path, Path], prior: Path) -> None:
    poses = np.concatenate([np.load(path)["truth"] for path in files])
    direct, written = learn_pose_prior(poses).prior, load_prior(prior)
    assert written.means.shape == (2, 45) and written.model_digest == ""
    assert written.name == "a, b (150 poses, 2 Gaussians, one shared covariance)"
    np.testing.assert_allclose(written.means, direct.means, atol=1e-9)
    np.testing.assert_allclose(written.offsets, direct.offsets, atol=1e-6)


def test_prints_the_candidates(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "prior.npz"
    assert main(["prior", str(files[0]), "--out", str(out), "--components", "1"]) == 0
    text = capsys.readouterr().out
    poses = np.load(files[0])["truth"]
    held_out = learn_pose_prior(poses, components=1).chosen.held_out
    row = next(line for line in text.splitlines() if "1 Gaussian" in line)
    assert f"{held_out:.2f}" in row and "chosen" in row
    assert "a.npz: 90 of 90 poses." in text
    assert f"90 poses -> {out}, 1 Gaussian, for any hand model; use it with: handloop fit ... --prior {out}" in text


def test_own_poses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "prior.npz"
    assert main(["prior", "--own-poses", "--components", "1", "--out", str(out)]) == 0
    assert f"for hand model {HAND.digest} only" in capsys.readouterr().out
    prior = load_prior(out)
    np.testing.assert_allclose(prior.mean, HAND.poses().mean(0), atol=1e-9)
    assert prior.model_digest == HAND.digest and prior.name == "poses of the hand model (2000 poses, 1 Gaussian)"


def test_fits_with_it_and_learns_from_the_fits(prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = np.load(DATA / "hands.npz")
    three = {"keypoints_2d": given["keypoints_2d"][:3], "K": given["K"], "is_right": given["is_right"][:3]}
    np.savez(tmp_path / "three.npz", **three)
    args = ["fit", str(tmp_path / "three.npz"), "--out", str(tmp_path), "--device", "cpu", "--report-hands", "0"]
    assert main([*args, "--prior", str(prior)]) == 0
    results = np.load(tmp_path / "results.npz")
    assert str(results["pose_prior"]) == load_prior(prior).name
    points = three["keypoints_2d"]
    alone = fit(points, three["K"], is_right=three["is_right"], prior=load_prior(prior), device="cpu")
    np.testing.assert_allclose(results["hand_pose"], alone.params.hand_pose, atol=1e-5)
    default = fit(points, three["K"], is_right=three["is_right"], device="cpu")
    assert float(np.abs(results["hand_pose"] - default.params.hand_pose.numpy()).max()) > 0.01
    capsys.readouterr()
    assert main(["prior", str(tmp_path / "results.npz"), "--out", str(tmp_path / "x.npz")]) == 2
    assert "a pose prior of 1 component needs at least 60 poses, got" in capsys.readouterr().err


def test_refusals(prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    other = learn_pose_prior(HAND.poses()[:100], components=1, name="theirs", model_digest="0123456789ab").prior
    save_prior(other, tmp_path / "theirs.npz")
    for args, message in (
        (["prior", "--out", out], "no poses were given; name npz files with hand_pose or results.npz"),
        (["prior", str(tmp_path / "none.npz"), "--out", out], "none.npz: cannot be read"),
        (
            ["fit", str(DATA / "hands.npz"), "--out", out, "--prior", str(tmp_path / "theirs.npz")],
            f"was learned with the hand model 0123456789ab, not with {HAND.digest}; learn it again",
        ),
        (
            ["fit", str(DATA / "hands.npz"), "--out", out, "--prior", str(DATA / "hands.npz")],
            "hands.npz: not a file of a pose prior; expected what handloop prior writes.",
        ),
    ):
        assert main(args) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
