"""The contract's npz, and results.npz as input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from handloop.core.camera import Camera
from handloop.core.keypoints import Keypoints
from handloop.core.params import HandParams
from handloop.core.results import FitResult
from handloop.formats import ReadOptions, read_keypoints

K = np.array([[600.0, 0, 320], [0, 610, 240], [0, 0, 1]])


def points(n: int) -> np.ndarray:
    xyc = np.random.default_rng(0).uniform(10, 400, (n, 21, 3))
    xyc[..., 2] = 0.5
    return xyc


def save(path: Path, **arrays: object) -> Path:
    np.savez(path, allow_pickle=True, **{k: np.asarray(v) for k, v in arrays.items()})
    return path


def test_everything_is_read(tmp_path: Path) -> None:
    joints = np.full((2, 21, 3), 0.5)
    path = save(
        tmp_path / "a.npz",
        keypoints_2d=points(2),
        is_right=[True, False],
        K=K,
        dist=np.full(5, 0.01),
        image_size=(640, 480),
        id=["x", "y"],
        image=["x.jpg", "y.jpg"],
        joints_3d=joints,
    )
    result = read_keypoints([path])
    assert result.problems == () and result.notes == ()
    kp = result.keypoints
    assert kp.ids == ("x", "y") and kp.is_right.tolist() == [True, False]
    assert kp.image_size.tolist() == [[640.0, 480.0]] * 2 and kp.image == ("x.jpg", "y.jpg")
    np.testing.assert_array_equal(kp.xy.numpy(), points(2)[..., :2])
    assert result.camera is not None and result.camera.dist is not None
    np.testing.assert_array_equal(result.camera.matrix().numpy(), np.stack([K, K]))
    assert result.camera.is_known().all() and result.camera.dist.shape == (2, 5)
    assert result.truth_joints is not None
    np.testing.assert_array_equal(result.truth_joints.numpy(), joints)


def test_the_least_is_enough(tmp_path: Path) -> None:
    result = read_keypoints([save(tmp_path / "a.npz", keypoints_2d=points(3)[..., :2])])
    assert result.keypoints.ids == ("a:000000", "a:000001", "a:000002")
    assert result.keypoints.conf.min() == 1 and result.keypoints.is_right.all()
    assert result.camera is None and "assumed, --hand left" in result.notes[0]


def test_cameras_of_some_hands_only(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", keypoints_2d=points(1), is_right=True, K=K, dist=np.full(4, 0.1), id=["same"])
    save(tmp_path / "b.npz", keypoints_2d=points(2)[1:], is_right=True, id=["same"], image_size=(300, 400))
    save(tmp_path / "c.npz", keypoints_2d=points(3)[2:], is_right=True, K=K[None], dist=np.full((1, 8), 0.2))
    result = read_keypoints([tmp_path])
    assert result.keypoints.ids == ("a:same", "b:same", "c")
    assert result.camera is not None and result.camera.dist is not None
    assert result.camera.is_known().tolist() == [True, False, True]
    assert result.camera.focal[1].tolist() == [500.0, 500.0]
    assert result.camera.dist.tolist() == [[0.1] * 4 + [0] * 4, [0] * 8, [0.2] * 8]


def test_truth_of_some_hands_is_left_aside(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", keypoints_2d=points(1), joints_3d=np.full((1, 21, 3), 0.5))
    save(tmp_path / "b.npz", keypoints_2d=points(1))
    result = read_keypoints([tmp_path])
    assert result.truth_joints is None and len(result.keypoints) == 2


def test_results_npz_is_an_input(tmp_path: Path) -> None:
    keypoints = Keypoints.from_arrays(
        points(3), np.array([True, False, True]), ids=["p", "q", "r"], source="s.json", frame=np.array([4, 5, 6])
    )
    camera = Camera.from_matrix(K, 3)
    camera = Camera(camera.focal, camera.princpt, None, torch.tensor([True, False, True]))
    n = len(keypoints)

    class NoMesh:
        def vertices(self, params: HandParams, is_right: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(params), 778, 3)

        def provenance(self) -> dict[str, str]:
            return {}

    result = FitResult(
        HandParams.zeros(n), torch.zeros(n, 21, 3), torch.zeros(n, 21, 3), torch.zeros(n, 21, 3), torch.zeros(n),
        torch.zeros(n), ("",) * n, torch.ones(n, dtype=torch.bool), ("",) * n,
        keypoints, camera, torch.zeros(n, 21, 2), torch.zeros(n), {},
        torch.zeros(n), torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64), torch.zeros(n), NoMesh(),
        {"recipe": "test"},
    )  # fmt: skip
    again = read_keypoints([result.save(tmp_path)])
    assert again.problems == () and again.notes == ()
    assert again.keypoints.ids == keypoints.ids and again.keypoints.source == keypoints.source
    assert again.keypoints.frame.tolist() == [4, 5, 6] and again.keypoints.is_right.tolist() == [True, False, True]
    np.testing.assert_allclose(again.keypoints.xy.numpy(), keypoints.xy.numpy(), atol=1e-4)
    assert again.camera is not None and again.camera.is_known().tolist() == [True, False, True]
    assert again.camera.focal[0].tolist() == [600.0, 610.0]


def test_empty_rows_are_counted(tmp_path: Path) -> None:
    kp = points(3)
    kp[1] = 0
    result = read_keypoints([save(tmp_path / "a.npz", keypoints_2d=kp, is_right=True, joints_3d=np.ones((3, 21, 3)))])
    assert result.keypoints.ids == ("a:000000", "a:000002") and result.hands_empty == 1
    assert result.truth_joints is not None and len(result.truth_joints) == 2
    result = read_keypoints([save(tmp_path / "b.npz", keypoints_2d=np.zeros((0, 21, 3)))])
    assert result.files_without_hands == 1 and result.problems == ()


def test_normalised_points_ask_for_the_size(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", keypoints_2d=points(1) / [400, 400, 1], is_right=True)
    assert "--image-size" in read_keypoints([path]).problems[0].message
    result = read_keypoints([path], ReadOptions(image_size=(400, 400)))
    np.testing.assert_allclose(result.keypoints.xy.numpy(), points(1)[..., :2] - 0.5)


GOOD = points(2)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"left": GOOD}, "no 'keypoints_2d'"),
        ({"keypoints_2d": GOOD[:, :20]}, "keypoints_2d has shape (2, 20, 3)"),
        ({"keypoints_2d": GOOD.astype(str)}, "expected numbers"),
        ({"keypoints_2d": GOOD, "is_right": [1, 2]}, "other than true and false"),
        ({"keypoints_2d": GOOD, "is_right": [1, 0, 1]}, "is_right has shape (3,)"),
        ({"keypoints_2d": GOOD, "K": K.T}, "last row is not 0 0 1"),
        ({"keypoints_2d": GOOD, "K": np.stack([K] * 3)}, "K has shape (3, 3, 3)"),
        ({"keypoints_2d": GOOD, "K": -K}, "camera cannot be used"),
        ({"keypoints_2d": GOOD, "K": K, "dist": [1.0, 2.0]}, "dist has shape (2,)"),
        ({"keypoints_2d": GOOD, "id": ["a", "a"]}, "the id 'a' occurs more than once"),
        ({"keypoints_2d": GOOD, "id": ["a"]}, "id has shape (1,)"),
        ({"keypoints_2d": GOOD, "joints_3d": np.full((2, 21, 3), 500.0)}, "divide by 1000"),
        ({"keypoints_2d": GOOD, "joints_3d": np.full((2, 21, 3), -0.5)}, "OpenGL"),
        ({"keypoints_2d": GOOD, "joints_3d": np.ones((21, 3, 2))}, "joints_3d has shape"),
        ({"keypoints_2d": np.array([{"a": 1}], dtype=object)}, "Python objects, which are never loaded"),
    ],
)
def test_bad_arrays_are_named(tmp_path: Path, arrays: dict[str, object], words: str) -> None:
    result = read_keypoints([save(tmp_path / "a.npz", **arrays)])
    assert len(result.problems) == 1 and words in result.problems[0].message


def test_what_a_run_wrote_is_not_read_as_input(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", keypoints_2d=points(1))
    out = tmp_path / "out"
    out.mkdir()
    save(out / "results.npz", keypoints_2d=points(2))
    (out / "summary.json").write_text("{}")
    interrupted = tmp_path / "other" / "parts"
    interrupted.mkdir(parents=True)
    save(interrupted / "part-000000.npz", keypoints_2d=points(3))
    (interrupted / "fingerprint.txt").write_text("x")
    assert len(read_keypoints([tmp_path]).keypoints) == 1
    # Named itself, the folder gives its results.
    named = read_keypoints([out])
    assert len(named.keypoints) == 2 and named.problems == ()
