"""`handloop predict`, `train` and `fit --start`, and `handloop.predict`, end to end with a tiny network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import handloop
from handloop.cli import main
from handloop.core.errors import InputError
from handloop.core.results import Status
from handloop.fitting.recipes import Recipe

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "examples" / "data" / "openpose"
TINY = ["--steps", "3", "--batch", "64", "--width", "16", "--blocks", "1"]


@pytest.fixture(autouse=True)
def quiet_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No MANO file of whoever runs the tests; messages on one line each."""
    monkeypatch.delenv("HANDLOOP_MANO", raising=False)
    monkeypatch.setenv("COLUMNS", "4000")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learned nothing yet, made by the command."""
    path = tmp_path_factory.mktemp("lifter") / "w.safetensors"
    assert main(["train", "lifter", "--out", str(path), "--mano", "embedded", *TINY]) == 0
    return path


def run(verb: str, *args: object) -> int:
    return main([verb, *map(str, args), "--device", "cpu", "--report-hands", "0"])


def test_training_writes_weights_and_their_description(weights: Path) -> None:
    assert {p.name for p in weights.parent.iterdir()} == {"w.safetensors", "w.json"}
    lifter = handloop.Lifter.load(weights)
    assert lifter.model_digest == handloop.load_hand("embedded").right.digest


def test_training_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "lifter", "--out", str(tmp_path / "w.pt"), *TINY]) == 2
    assert "w.pt, expected a name that ends in .safetensors" in capsys.readouterr().err
    assert main(["train", "lifter", "--out", str(tmp_path / "w.safetensors"), "--width", "1"]) == 2
    assert "a network 1 wide" in capsys.readouterr().err


def test_predict_writes_what_fit_writes(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", DATA, "--out", tmp_path / "p", "--weights", weights) == 0
    assert "10 of 10 hands predicted" in capsys.readouterr().err
    assert run("fit", DATA, "--out", tmp_path / "f", "--recipe", "fast") == 0
    predicted, fitted = (np.load(tmp_path / folder / "results.npz") for folder in "pf")
    assert set(predicted.files) == set(fitted.files)
    assert (predicted["status"] == Status.PREDICTED).all() and (predicted["steps"] == 0).all()
    for key in ("energy", "rms_px", "joints", "keypoints_3d_sd"):
        assert np.isfinite(predicted[key]).all(), key
    assert str(predicted["recipe"]) == "predict"
    # A network that has learned nothing misses; the fit from its answer does not.
    assert run("predict", DATA, "--out", tmp_path / "r", "--weights", weights, "--refine") == 0
    refined = np.load(tmp_path / "r" / "results.npz")
    assert (refined["rms_px"] < 0.5 * predicted["rms_px"]).all() and (refined["steps"] > 0).all()
    assert str(refined["recipe"]) == "predict, default"


def test_predict_again_gives_the_same_bytes(weights: Path, tmp_path: Path) -> None:
    for folder in "ab":
        assert run("predict", DATA, "--out", tmp_path / folder, "--weights", weights) == 0
    assert (tmp_path / "a" / "results.npz").read_bytes() == (tmp_path / "b" / "results.npz").read_bytes()


def test_fit_starts_from_a_file_of_hands(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """HaMeR's arrays made from a fit: carried over from its focal length, the same hands come out."""
    assert run("fit", DATA, "--out", tmp_path / "f") == 0
    fitted = np.load(tmp_path / "f" / "results.npz")
    params = handloop.HandParams(*(torch.tensor(fitted[k]) for k in ("global_orient", "hand_pose", "betas", "transl")))
    right = torch.tensor(fitted["is_right"])[:, None]
    pairs = zip(params.tensors(), params.mirrored().tensors(), strict=True)
    # The networks give left hands as the right hands of the mirrored picture.
    theirs = handloop.HandParams(*(torch.where(right, a, b) for a, b in pairs)).rotation_matrices().numpy()
    start = {
        "global_orient": theirs[:, :1],
        "hand_pose": theirs[:, 1:],
        "betas": fitted["betas"],
        "pred_cam_t_full": fitted["transl"] * [1, 1, 25],
        "scaled_focal_length": np.array(25 * fitted["focal_length"][0, 0]),
        "is_right": fitted["is_right"],
        "id": fitted["id"],
    }
    order = np.arange(10)[::-1]
    path = tmp_path / "hamer.npz"
    np.savez(path, **{k: v if v.ndim == 0 else v[order] for k, v in start.items()})
    assert run("fit", DATA, "--out", tmp_path / "s", "--start", path) == 0
    started = np.load(tmp_path / "s" / "results.npz")
    assert (started["energy"] <= 1.01 * fitted["energy"] + 0.1).all()
    np.savez(path, **{k: v if v.ndim == 0 else v[:4] for k, v in start.items()})
    assert run("fit", DATA, "--out", tmp_path / "t", "--start", path) == 2
    assert "hamer.npz: the start holds 4 hands for 10 sets of keypoints" in capsys.readouterr().err
    assert run("fit", DATA, "--out", tmp_path / "t", "--start", weights) == 2
    assert "w.safetensors: this is not an npz file" in capsys.readouterr().err
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04K\x01.")
    assert run("fit", DATA, "--out", tmp_path / "t", "--start", tmp_path / "x.pkl") == 2
    assert "x.pkl: this kind of file can run code when it is opened" in capsys.readouterr().err


def test_the_library_predicts_and_starts(weights: Path) -> None:
    read = handloop.read_keypoints([DATA]).keypoints
    predicted = handloop.predict(read, weights=weights, device="cpu")
    assert bool((predicted.status == Status.PREDICTED).all())
    again = handloop.predict(read, weights=handloop.Lifter.load(weights), refine=True, recipe="fast", device="cpu")
    assert bool((again.rms_px < predicted.rms_px).all())
    start = handloop.Proposal.without_opinion(predicted.params, read.is_right, predicted.camera, read.ids)
    one = handloop.fit(read, start=start, recipe=Recipe(seeds=0), device="cpu")
    assert bool(one.fitted().all())
    with pytest.raises(InputError, match="published method with starts of its own"):
        handloop.predict(read, weights=weights, recipe="spin")
    with pytest.raises(InputError, match="has no seeds and no proposal"):
        handloop.fit(read, recipe=Recipe(seeds=0, lifter=False), device="cpu")


def test_another_model_is_refused(weights: Path, tmp_path: Path) -> None:
    about = weights.with_suffix(".json").read_text(encoding="utf-8")
    other = tmp_path / "w.safetensors"
    other.write_bytes(weights.read_bytes())
    digest = handloop.load_hand("embedded").right.digest
    other.with_suffix(".json").write_text(about.replace(digest, "0123abcd"), encoding="utf-8")
    with pytest.raises(InputError, match=r"trained with the hand model .* \(0123abcd\), not with"):
        handloop.predict(np.zeros((1, 21, 2)), weights=other)
