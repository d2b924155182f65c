"""Inputs of the tests of bulk fitting: the bundled hands, jittered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).resolve().parents[2] / "examples" / "data"


@pytest.fixture(autouse=True)
def no_mano_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """No MANO file of whoever runs the tests; messages on one line each."""
    monkeypatch.delenv("HANDLOOP_MANO", raising=False)
    monkeypatch.setenv("COLUMNS", "4000")


@pytest.fixture(scope="session")
def many_hands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with two npz of 300 hands together (one of them with a lens), two OpenPose files and a damaged one."""
    folder = tmp_path_factory.mktemp("hands")
    bundled = np.load(DATA / "hands.npz")
    points = np.tile(bundled["keypoints_2d"], (13, 1, 1))[:300]
    points[..., :2] += np.random.default_rng(0).normal(0, 1.5, points[..., :2].shape)
    sides = np.tile(bundled["is_right"], 13)[:300]
    given = {"K": bundled["K"], "image_size": bundled["image_size"]}
    np.savez(folder / "many.npz", keypoints_2d=points[:280], is_right=sides[:280], **given)
    lens = np.array([0.01, -0.02, 0.0, 0.0])
    np.savez(folder / "lens.npz", keypoints_2d=points[280:], is_right=sides[280:], dist=lens, **given)
    for name in ("00_spread", "02_victory_rest"):
        text = (DATA / "openpose" / f"{name}_keypoints.json").read_text()
        (folder / f"{name}_keypoints.json").write_text(text)
    (folder / "bad.json").write_text('{"people": [')
    return folder
