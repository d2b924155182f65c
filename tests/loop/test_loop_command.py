"""`handloop train loop` from end to end, and that its files are what the other commands take."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from handloop.cli import main

from .loop_hands import drawn, seen

SETTINGS = {
    **{"steps": 4, "batch": 16, "views": 8, "synthetic": 8, "log_every": 2, "save_every": 2},
    **{"size": {"width": 24, "blocks": 1}, "prior": {"every": 0}},
}


@pytest.fixture(autouse=True)
def quiet_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HANDLOOP_MANO", raising=False)
    monkeypatch.setenv("COLUMNS", "4000")
    monkeypatch.setattr("handloop.loop.train._CALIBRATION_HANDS", 64)


@pytest.fixture
def hands(tmp_path: Path) -> Path:
    keypoints, camera, _ = seen(drawn(24))
    points = np.concatenate([keypoints.xy.numpy(), keypoints.conf.numpy()[..., None]], -1)
    path = tmp_path / "hands.npz"
    k = camera.matrix()[0].numpy()
    np.savez(path, keypoints_2d=points, is_right=keypoints.is_right.numpy(), K=k, image_size=np.array([640, 480]))
    return path


def test_the_command_from_end_to_end(tmp_path: Path, hands: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = tmp_path / "c.json", tmp_path / "run"
    config.write_text(json.dumps(SETTINGS))
    call = ["train", "loop", str(hands), "--out", str(run), "--config", str(config), "--fresh"]
    assert main(call) == 0
    said = capsys.readouterr().err
    assert "22 hands to learn from, 2 held out; step 0 of 4" in said and "report.html" in said
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "layout.json", "lifter.safetensors", "lifter.json", "prior.npz", "results.npz"} <= names
    assert json.loads((run / "config.json").read_text())["batch"] == 16
    page = (run / "report.html").read_text()
    assert "Losses" in page and page.count("<img") >= 8 and "https://" not in page
    assert (run / "report_files" / "plotly.min.js").is_file()
    # A second run in the folder must be asked for; it has nothing left to do.
    before = (run / "lifter.safetensors").read_bytes()
    assert main(call) == 2 and "go on with --resume" in capsys.readouterr().err
    assert main([*call, "--resume"]) == 0 and "step 4 of 4" in capsys.readouterr().err
    assert (run / "lifter.safetensors").read_bytes() == before
    # What it leaves is what the other commands take.
    learned = ["--layout", str(run / "layout.json"), "--prior", str(run / "prior.npz"), "--report-hands", "0"]
    fit = ["fit", str(hands), "--out", str(tmp_path / "fit"), *learned, "--recipe", "fast"]
    assert main(fit) == 0
    weights = ["--weights", str(run / "lifter.safetensors")]
    assert main(["predict", str(hands), "--out", str(tmp_path / "lifted"), *learned, *weights]) == 0
    started = ["fit", str(hands), "--out", str(tmp_path / "again"), *learned, "--recipe", "fast"]
    whole = tmp_path / "lifted" / "results.npz"
    assert main([*started, "--start", str(whole)]) == 0
    assert main(["cache", "verify", str(run / "fits")]) == 0


def test_wrong_use_is_explained(tmp_path: Path, hands: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "run")]
    for arguments, message in (
        (["loop", str(hands), *out, "--config", "nothing"], "nor a preset"),
        (["loop", str(tmp_path / "none.npz"), *out], "no hand that can be read"),
        (["loop", *out], "no input was given"),
        (["loop", str(hands), *out, "--learn-layout"], "layout"),
        (["loop", str(hands), *out, "--fresh", "--weights", "w.safetensors"], "--fresh and --weights"),
    ):
        assert main(["train", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
