"""Camera files in every form, and what is wrong with bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from handloop.core.errors import FileFormatError
from handloop.formats import read_camera

K = [[600.0, 0.0, 320.0], [0.0, 610.0, 240.0], [0.0, 0.0, 1.0]]
FLAT = [v for row in K for v in row]
DIST = [0.1, -0.2, 0.001, -0.002, 0.05]

OPENCV_YAML = """%YAML:1.0
---
calibration_time: "Fri 01 Jan 2021 10:00:00"
image_width: 640
camera_matrix: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 6.0e+02, 0., 320., 0., 610., 240.,
       0., 0., 1. ]
distortion_coefficients: !!opencv-matrix
   rows: 5
   cols: 1
   dt: d
   data: [ 1.0e-01, -0.2, 1.0e-03,
       -2.0e-03, .05 ]
avg_reprojection_error: 3.0e-01
"""
ROS_YAML = """image_width: 640
camera_name: cam  # a comment with 5 numbers
camera_matrix:
  rows: 3
  cols: 3
  data: [600, 0, 320, 0, 610, 240, 0, 0, 1]
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [0.1, -0.2, 0.001, -0.002, 0.05]}
"""
LIST_YAML = """K:
- - 600.0
  - 0.0
  - 320.0
- [0.0, 610.0, 240.0]
- [0, 0, 1]
dist: [0.1, -0.2, 0.001, -0.002, 0.05]
"""
STORAGE = {
    "camera_matrix": {"type_id": "opencv-matrix", "rows": 3, "cols": 3, "dt": "d", "data": FLAT},
    "distortion_coefficients": {"type_id": "opencv-matrix", "rows": 1, "cols": 5, "dt": "d", "data": DIST},
}
WITH_DIST = [json.dumps({"K": K, "dist": DIST}), json.dumps({"mtx": FLAT, "distCoeffs": [DIST]}), json.dumps(STORAGE)]
WITHOUT = [
    json.dumps(K),
    json.dumps([K]),
    json.dumps({"fx": 600, "fy": 610, "cx": 320, "cy": 240}),
    json.dumps({"intrinsics": {"fx": 600, "fy": 610, "cx": 320, "cy": 240}, "dist": []}),
    json.dumps({"focal": [600, 610], "princpt": [320, 240]}),
    json.dumps({"K": K, "dist": [0, 0, 0, 0, 0]}),
    "fx: 600\nfy: 610.0\ncx: 320\ncy: 240\n",
]


@pytest.mark.parametrize("text", [*WITH_DIST, OPENCV_YAML, ROS_YAML, LIST_YAML])
def test_forms_with_distortion(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cam"
    path.write_text(text)
    camera = read_camera(path)
    np.testing.assert_allclose(camera.matrix()[0].numpy(), K)
    assert camera.dist is not None and camera.dist.tolist() == [DIST]


@pytest.mark.parametrize("text", WITHOUT)
def test_forms_without_distortion(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cam"
    path.write_text(text)
    camera = read_camera(str(path))
    np.testing.assert_allclose(camera.matrix().numpy(), [K])
    assert camera.dist is None and len(camera) == 1 and bool(camera.is_known().all())


def test_numpy_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mtx=np.array(K), dist=np.array([DIST]), rvecs=np.zeros((3, 3, 1)))
    np.save(tmp_path / "b.npy", np.array(K))
    camera = read_camera(tmp_path / "a.npz")
    assert camera.dist is not None and camera.dist.tolist() == [DIST]
    np.testing.assert_allclose(read_camera(tmp_path / "b.npy").matrix()[0].numpy(), K)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("{", "truncated"),
        ("{}", "the file holds no camera; it holds nothing"),
        ('{"a": 1}', "it holds a, expected K"),
        (json.dumps({"K": [[1, 2], [3, 4]]}), "K has shape (2, 2)"),
        (json.dumps([K, K]), "K has shape (2, 3, 3), expected one 3 x 3 matrix"),
        (json.dumps({"K": [["a"] * 3] * 3}), "something other than numbers"),
        (json.dumps({"K": np.transpose(K).tolist()}), "last row is not 0 0 1"),
        (json.dumps([[1.2, 0, 0.5], [0, 1.6, 0.5], [0, 0, 1]]), "the focal length is 1.2, expected px"),
        (json.dumps({"K": K, "dist": [0.1, 0.2]}), "the distortion has 2 coefficients"),
        (json.dumps({"fx": "600", "fy": 610, "cx": 320, "cy": 240}), "fx is the text '600'"),
        (json.dumps({"fx": 600, "fy": 600}), "no camera"),
        (ROS_YAML.replace("plumb_bob", "equidistant"), "the lens model is 'equidistant'"),
        ("<?xml version='1.0'?>", "XML is not read"),
        ("12", "no camera"),
    ],
)
def test_bad_cameras_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "cam.json"
    path.write_text(text)
    with pytest.raises(FileFormatError) as caught:
        read_camera(path)
    assert words in str(caught.value) and str(path) in str(caught.value)
