"""Helpers that write tiny keypoint files; every test makes its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

WriteJson = Callable[[str, object], Path]


@pytest.fixture
def write_json(tmp_path: Path) -> WriteJson:
    """Write a value as JSON under a name below the test's folder."""

    def write(name: str, value: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
        return path

    return write


@pytest.fixture
def right_hand() -> np.ndarray:
    """(21, 3) x, y in 0..1 of the picture, z (smaller is nearer): an open right hand seen from its back.

    Back towards the viewer and fingers up: a right hand's thumb is on the left. The thumb leans away from the viewer,
    towards the palm's side.
    """
    hand = np.zeros((21, 3))
    hand[0] = 0.5, 0.8, 0.0
    for finger, x in enumerate((0.35, 0.44, 0.5, 0.56, 0.62)):
        for part in range(4):
            hand[1 + 4 * finger + part] = x, 0.6 - 0.08 * part, 0.005
    hand[1:5] = [[0.44, 0.74, 0.02], [0.4, 0.68, 0.05], [0.37, 0.62, 0.08], [0.35, 0.57, 0.11]]
    return hand


@pytest.fixture
def landmarks(right_hand: np.ndarray) -> list[dict[str, float]]:
    """`right_hand` as MediaPipe's dictionaries."""
    return [{"x": float(x), "y": float(y), "z": float(z), "visibility": 0.0} for x, y, z in right_hand]
