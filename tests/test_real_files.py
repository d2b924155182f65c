"""Files of the tools themselves and projections of measured hands through the whole fit: how well points are met."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import handloop
from handloop.cli import main

pytestmark = pytest.mark.real

DETECTED, PROJECTED = 0.03, 0.015
"""Largest median reprojection error, as a share of the hand's box: a detector's points contradict each other by 2 to 3
per cent, projections of a measured hand do not."""


@pytest.fixture(autouse=True)
def no_mano(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures are those of the embedded hand."""
    monkeypatch.delenv("HANDLOOP_MANO", raising=False)


def command_errors(inputs: Path, out: Path, *options: str) -> np.ndarray:
    """(N,) rms error / box after `handloop fit`, which must fit every hand."""
    args = ["fit", str(inputs), "--out", str(out), "--report-hands", "0", "--device", "cpu", *options]
    assert main(args) == 0, json.loads((out / "summary.json").read_text())["problems"]
    results = np.load(out / "results.npz")
    return relative(results["rms_px"], results["keypoints_2d"])


def relative(rms_px: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """(N,) errors by the longer side of the visible points' box."""
    seen = keypoints[..., 2:] > 0
    high = np.where(seen, keypoints[..., :2], -np.inf).max(1)
    low = np.where(seen, keypoints[..., :2], np.inf).min(1)
    return np.asarray(rms_px / (high - low).max(1))


def test_openpose(real_data: Path, tmp_path: Path) -> None:
    errors = command_errors(real_data / "formats/openpose_json", tmp_path)
    assert len(errors) == 5 and np.median(errors) < DETECTED


def test_mediapipe_text(real_data: Path, tmp_path: Path) -> None:
    errors = command_errors(real_data / "formats/mediapipe_pbtxt", tmp_path)
    assert len(errors) == 14 and np.median(errors) < DETECTED


def test_video(real_data: Path, tmp_path: Path) -> None:
    frames = json.loads((real_data / "formats/tfjs/asl_hand.full.json").read_text())[::5]
    (tmp_path / "asl.json").write_text(json.dumps(frames))
    errors = command_errors(tmp_path / "asl.json", tmp_path / "out", "--image-size", "620", "1080")
    assert len(errors) == 65 and np.median(errors) < DETECTED


def test_projected_hands_with_their_cameras(real_data: Path) -> None:
    freihand = np.load(real_data / "keypoints_3d/hpx.npz")
    result = handloop.fit(freihand["uv_px"], freihand["K"], is_right=freihand["is_right"], device="cpu")
    errors = relative(result.rms_px.numpy(), np.dstack([freihand["uv_px"], np.ones((2, 21))]))
    assert bool(result.fitted().all()) and np.median(errors) < PROJECTED


def test_projected_hands_of_one_person(real_data: Path) -> None:
    ge = np.load(real_data / "keypoints_3d/ge2019.npz")
    uv, n = ge["uv_crop256"], len(ge["uv_crop256"])
    result = handloop.fit(uv, ge["K_crop256"], is_right=ge["is_right"], image_size=(256, 256), device="cpu")
    errors = relative(result.rms_px.numpy(), np.dstack([uv, np.ones((n, 21))]))
    assert n == 318 and bool(result.fitted().all()) and np.median(errors) < PROJECTED
