"""`handloop eval` and `handloop export` as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from handloop.cli import main
from handloop.evaluation.prediction import Prediction, with_definition
from handloop.hand.model import HandPair

Arrays = dict[str, np.ndarray]
Save = Callable[[str, Arrays], Path]


@pytest.fixture
def folder(results: Arrays, save: Save) -> Path:
    """What `handloop fit` left."""
    return save("out/results.npz", results).parent


@pytest.fixture
def truth(results: Arrays, save: Save) -> Path:
    """The first four hands, 5 mm away."""
    joints = results["keypoints_3d"][:4] + np.array([0.003, 0.0, 0.004])
    return save("truth.npz", {"joints_3d": joints, "id": results["id"][:4]})


def test_eval_prints_and_writes(folder: Path, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(folder), str(truth), "--out", str(tmp_path / "eval")]) == 0
    printed = capsys.readouterr().out
    assert "4 of 4 hands with truth compared; 0 without a fit, 0 not in the results. 2 results" in printed
    assert "nothing (camera space)" in printed and "5.00 [5.00, 5.00]" in printed
    data = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert data["errors"][0]["mpjpe_mm"]["mean"] == pytest.approx(5) and data["counts"]["results_without_truth"] == 2
    assert (tmp_path / "eval" / "eval_hands.csv").is_file() and (tmp_path / "eval" / "eval_curves.html").is_file()


def test_eval_from_the_shell(folder: Path, truth: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "handloop.cli", "eval", str(folder), str(truth)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Procrustes (PA)" in done.stdout


def test_eval_against_freihand(
    results: Arrays, pair: HandPair, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """FreiHAND's own definition has no error where it is asked for, millimetres where it is not."""
    kept = {key: value[[0, 1, 3]] if value.ndim else value for key, value in results.items()}
    names = np.array(["00000000", "00000001", "00000002"])
    folder = save("out/results.npz", kept | {"id": names}).parent
    like = with_definition(Prediction.from_arrays(kept), pair, "regressed", "freihand")
    (tmp_path / "training_xyz.json").write_text(json.dumps(like.points.tolist()))
    (tmp_path / "training_verts.json").write_text(json.dumps([[[0.0, 0.0, 0.5]] * 778] * 3))
    numbers = {}
    for extra in ([], ["--joint-definition", "regressed", "--tip-set", "freihand"]):
        out = tmp_path / f"eval{len(extra)}"
        assert main(["eval", str(folder), str(tmp_path), "--out", str(out), *extra]) == 0
        printed = capsys.readouterr().out
        assert ("FreiHAND's joints are regressed from the mesh" in printed) == (not extra)
        assert "paired by their order" not in printed and "vertices of 3 hands" in printed
        numbers[len(extra)] = json.loads((out / "eval.json").read_text())["errors"][0]["mpjpe_mm"]["mean"]
    assert numbers[4] == pytest.approx(0, abs=1e-9) and 0.5 < numbers[0] < 10
    # A mesh of another model is no reason not to compare joints.
    save("out/results.npz", kept | {"id": names, "hand_model_digest": np.array("a b")})
    assert main(["eval", str(folder), str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "note: vertices were not compared: the results were fitted with" in printed
    assert main(["eval", str(folder), str(tmp_path), "--no-vertices"]) == 0
    assert "vertices" not in capsys.readouterr().out


def test_export(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = tmp_path / "evaluation.txt"
    order.write_text("hand1\nhand0\n\n")
    out = tmp_path / "pred.zip"
    assert main(["export", str(folder), "--format", "ho3d", "--out", str(out), "--order", str(order)]) == 0
    said = capsys.readouterr().err
    assert f"2 hands in {out}" in said and "HO-3D's evaluation sets have 11,524 or 20,137" in said
    with zipfile.ZipFile(out) as archive:
        xyz, verts = json.loads(archive.read("pred.json"))
    assert len(xyz) == len(verts) == 2 and len(xyz[0]) == 21 and len(verts[0]) == 778


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["eval", "nowhere", "t.npz"], "does not exist; name a results.npz, or the folder that handloop fit wrote"),
        (["eval", "out", "nowhere.npz"], "does not exist; name an npz with joints_3d, or FreiHAND's training_xyz"),
        (["eval", "out", "truth.npz", "--mano", "no.pkl", "--joint-definition", "regressed"], "no.pkl does not exist"),
        (["eval", "out", "truth.npz", "--out", "truth.npz"], "the folder truth.npz cannot be written (File exists)"),
        (["export", "out", "--format", "freihand", "--out", "p.txt"], "a submission is a .zip file, or its .json"),
        (
            ["export", "out", "--format", "ho3d", "--out", "p.zip", "--order", "none.txt"],
            "the order none.txt cannot be read; expected a text file with one id per line.",
        ),
    ],
)
def test_wrong_usage(
    folder: Path,
    truth: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(folder.parent)
    assert main(args) == 2
    assert message in capsys.readouterr().err
