"""Truth files, results files, and which hand is which."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from handloop.core.errors import FileFormatError, InputError
from handloop.core.keypoints import Keypoints
from handloop.evaluation.prediction import Prediction, meshes, read_prediction, with_definition
from handloop.evaluation.truth import pair_hands, read_truth
from handloop.formats import read_keypoints
from handloop.hand.load import load_hand
from handloop.hand.model import HandPair

Arrays = dict[str, np.ndarray]
Save = Callable[[str, Arrays], Path]


def joints(n: int) -> np.ndarray:
    """(n, 21, 3) m, each hand at its own depth."""
    return np.full((n, 21, 3), 0.5) + 0.01 * np.arange(n)[:, None, None]


# The npz.


def test_npz_with_everything(save: Save) -> None:
    arrays = {"joints_3d": joints(3), "id": np.array(["a", "b", "c"]), "is_right": np.array([1, 0, 1])}
    k = np.array([[500.0, 0, 100], [0, 510, 90], [0, 0, 1]])
    arrays |= {"K": k, "dist": np.array([0.1, 0, 0, 0]), "vertices": np.full((3, 778, 3), 0.5)}
    truth = read_truth(save("t.npz", arrays))
    assert truth.ids == ("a", "b", "c") and truth.own_ids and not truth.is_freihand
    assert truth.is_right is not None and truth.is_right.tolist() == [True, False, True]
    assert truth.camera is not None and truth.camera.focal[2].tolist() == [500, 510] and truth.camera.dist is not None
    assert truth.camera.dist.shape == (3, 4) and truth.vertices is not None and truth.vertices.shape == (3, 778, 3)
    assert read_truth(save("t.npz", arrays), vertices=False).vertices is None


def test_names_without_ids_are_those_that_the_reader_gives(save: Save) -> None:
    for n in (1, 3):
        points = np.random.default_rng(0).uniform(50, 200, (n, 21, 3))
        path = save("some_keypoints.npz", {"keypoints_2d": points, "joints_3d": joints(n)})
        assert read_truth(path).ids == read_keypoints(path).keypoints.ids


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"xyz": joints(1)}, "the npz has no 'joints_3d' (N, 21, 3) in m; it holds xyz."),
        ({"joints_3d": joints(2)[:, :20]}, "joints_3d has shape (2, 20, 3), expected (N, 21, 3)."),
        (
            {"joints_3d": 1000 * joints(2)},
            "joints_3d reaches 510, expected metres in the camera frame; divide by 1000 if these are millimetres.",
        ),
        ({"joints_3d": joints(2), "id": np.array(["a", "a"])}, "id holds 1 different names, expected 2."),
        (
            {"joints_3d": joints(2), "vertices": np.zeros((1, 778, 3))},
            "vertices has shape (1, 778, 3), expected (2, 778, 3).",
        ),
        (
            {"joints_3d": joints(2), "is_right": np.array([1, 2])},
            "is_right has shape (2,), expected one or 2 times true or false.",
        ),
        ({"joints_3d": joints(2), "K": np.eye(4)}, "K has shape (4, 4), expected (2, 3, 3)."),
    ],
)
def test_npz_errors(save: Save, arrays: Arrays, message: str) -> None:
    path = save("t.npz", arrays)
    with pytest.raises(FileFormatError) as caught:
        read_truth(path)
    assert str(caught.value) == f"{path}: {message}"


# FreiHAND's files.


def write_freihand(folder: Path, n: int, name: str = "training") -> None:
    values = {"xyz": joints(n), "K": np.broadcast_to(np.diag([480.0, 480.0, 1.0]), (n, 3, 3))}
    values["verts"] = np.full((n, 778, 3), 0.5)
    for part, array in values.items():
        (folder / f"{name}_{part}.json").write_text(json.dumps(array.tolist()))


def test_freihand_folder_and_file(tmp_path: Path) -> None:
    write_freihand(tmp_path, 2)
    for path in (tmp_path, tmp_path / "training_xyz.json"):
        truth = read_truth(path)
        assert truth.is_freihand and not truth.own_ids and truth.ids == ("00000000", "00000001")
        assert np.allclose(truth.joints.numpy(), joints(2)) and truth.vertices is not None
        assert truth.camera is not None and truth.camera.focal[1].tolist() == [480, 480]
        assert truth.is_right is not None and bool(truth.is_right.all())
    (tmp_path / "training_verts.json").unlink()
    (tmp_path / "training_K.json").unlink()
    alone = read_truth(tmp_path)
    assert alone.vertices is None and alone.camera is None


def test_freihand_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds 0 of training_xyz\.json and evaluation_xyz\.json, expected one"):
        read_truth(tmp_path)
    write_freihand(tmp_path, 2)
    (tmp_path / "training_K.json").write_text(json.dumps([np.eye(3).tolist()]))
    with pytest.raises(FileFormatError, match=r"training_K\.json: it holds 1 cameras for 2 hands\.$"):
        read_truth(tmp_path)
    (tmp_path / "training_xyz.json").write_text(json.dumps([[[0, 0, 500]] * 21]))
    with pytest.raises(FileFormatError, match=r"training_xyz\.json: the list reaches 500, expected metres"):
        read_truth(tmp_path)
    (tmp_path / "training_xyz.json").write_text("[[")
    with pytest.raises(FileFormatError, match=r"training_xyz\.json: the JSON ends too early"):
        read_truth(tmp_path)
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(InputError, match=r"FreiHAND's true joints are called training_xyz\.json"):
        read_truth(tmp_path / "other.json")
    with pytest.raises(InputError, match=r"nothing\.npz does not exist; name an npz with joints_3d"):
        read_truth(tmp_path / "nothing.npz")


# Pairing.


def test_pairing_by_name(save: Save) -> None:
    truth = read_truth(save("t.npz", {"joints_3d": joints(3), "id": np.array(["a", "b", "c"])}))
    pairing = pair_hands(truth, ("c", "x", "a"), 3)
    assert pairing.rows.tolist() == [2, -1, 0] and pairing.without_truth == 1 and not pairing.by_order
    with pytest.raises(InputError) as caught:
        pair_hands(truth, ("x", "y", "z"), 3)
    assert str(caught.value) == (
        "the truth and the results have no id in common ('a' there, 'x' here); "
        "make them the same, or remove id from the truth to compare in order."
    )
    assert pair_hands(truth, None, 3).by_order


def test_pairing_by_the_names_of_the_file_survives_dropped_hands(save: Save) -> None:
    truth = read_truth(save("t.npz", {"joints_3d": joints(4)}))
    pairing = pair_hands(truth, ("t:000003", "t:000001"), 2)
    assert pairing.rows.tolist() == [-1, 1, -1, 0] and not pairing.by_order


def test_pairing_by_order(save: Save) -> None:
    truth = read_truth(save("t.npz", {"joints_3d": joints(3)}))
    pairing = pair_hands(truth, ("p", "q", "r"), 3)
    assert pairing.rows.tolist() == [0, 1, 2] and pairing.by_order
    with pytest.raises(InputError) as caught:
        pair_hands(truth, ("p", "q"), 2)
    assert str(caught.value) == (
        "the truth has 3 hands without names in common with the 2 of the results, and "
        "different numbers cannot be paired by order; give the truth an id per hand."
    )


# Results.


def test_results_are_read_with_missing_hands_as_nan(results: Arrays, save: Save, tmp_path: Path) -> None:
    save("out/results.npz", results)
    for path in (tmp_path / "out", tmp_path / "out" / "results.npz"):
        prediction = read_prediction(path)
        assert prediction.fitted().tolist() == [True, True, True, True, False, True]
        assert prediction.ids == tuple(f"hand{i}" for i in range(6)) and not prediction.has_layout
        assert prediction.texts["tip_set"] == "smplx" and prediction.points_sd is None
    odd = Prediction.from_arrays(results | {"status": np.array([0, 1, 3, 0, 2, 0])})
    assert odd.fitted().tolist() == [True, True, False, True, False, True]


def test_another_methods_file_needs_points_only() -> None:
    prediction = Prediction.from_arrays({"keypoints_3d": joints(2).astype(np.float32)})
    assert len(prediction) == 2 and prediction.ids is None and prediction.camera is None
    assert prediction.points.dtype == torch.float64 and bool(prediction.fitted().all())
    with pytest.raises(InputError, match=r"the results hold no hand parameters \(global_orient, hand_pose"):
        meshes(prediction, load_hand("embedded"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keypoints_3d": joints(6)[:, :, :2]}, "keypoints_3d has shape (6, 21, 2) of float64, expected (6, 21, 3)"),
        ({"id": np.array(["a"] * 6)}, "the results' id holds 1 different names, expected 6."),
        ({"keypoints_3d_sd": joints(5)}, "keypoints_3d_sd has shape (5, 21, 3) of float64, expected (6, 21, 3)"),
    ],
)
def test_results_errors(results: Arrays, save: Save, change: Arrays, message: str) -> None:
    path = save("results.npz", results | change)
    with pytest.raises(FileFormatError) as caught:
        read_prediction(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_results_missing(tmp_path: Path, save: Save) -> None:
    with pytest.raises(InputError, match=r"results\.npz does not exist; name a results\.npz, or the folder that"):
        read_prediction(tmp_path)
    with pytest.raises(FileFormatError, match=r"no 'keypoints_3d' \(N, 21, 3\) in m; they hold a, b\."):
        read_prediction(save("results.npz", {"b": joints(1), "a": joints(1)}))


# Meshes and definitions.


def test_regressed_points_are_the_regressor_on_the_mesh(results: Arrays, pair: HandPair) -> None:
    prediction = Prediction.from_arrays(results)
    vertices, _ = meshes(prediction, pair)
    assert bool(torch.isnan(vertices[4]).all()) and bool(torch.isfinite(vertices[[0, 1, 2, 3, 5]]).all())
    # The fixture's own tips are vertices of the same meshes, the left hand's included.
    assert torch.allclose(vertices[[0, 2], 744], prediction.points[[0, 2], 4], atol=1e-12)
    changed = with_definition(prediction, pair, "regressed", "freihand")
    for i in (0, 2):
        mesh = vertices[i].numpy()
        mano = pair.side(i == 0).j_regressor @ mesh
        assert np.allclose(changed.points[i, 0], mano[0]) and np.allclose(changed.points[i, 17], mano[7])
        assert np.allclose(changed.points[i, 13], mano[10]) and np.allclose(changed.points[i, 2], mano[14])
        assert np.allclose(changed.points[i, [4, 8, 12, 16, 20]], mesh[[744, 320, 443, 555, 672]])
    assert changed.texts["joint_definition"] == "regressed" and changed.texts["tip_set"] == "freihand"
    apart = (changed.points[0] - prediction.points[0]).norm(dim=1)
    assert 1e-4 < float(apart[:4].max()) < 0.02


def test_other_tips_leave_the_joints_alone(results: Arrays, pair: HandPair) -> None:
    prediction = Prediction.from_arrays(results)
    assert with_definition(prediction, pair, "skinning") is prediction
    changed = with_definition(prediction, pair, "skinning", "manopth")
    same = [k for k in range(21) if k not in (4, 8, 12, 16, 20)]
    assert torch.allclose(changed.points[:4, same], prediction.points[:4, same], atol=1e-12)
    assert float((changed.points - prediction.points)[0, 4].norm()) > 1e-3


def test_definition_errors(results: Arrays, pair: HandPair) -> None:
    other = Prediction.from_arrays(results | {"hand_model_digest": np.array("a b")})
    with pytest.raises(InputError) as caught:
        with_definition(other, pair, "regressed")
    assert str(caught.value) == (
        f"the results were fitted with {pair.right.name} (digest a b), but {pair.right.name} (digest "
        f"{pair.right.digest} {pair.left.digest}) was loaded; name the file that was fitted with --mano."
    )
    moved = Prediction.from_arrays(results | {"keypoints_3d": results["keypoints_3d"] + 0.004})
    assert moved.has_layout
    with pytest.raises(InputError, match=r"the results follow a keypoint layout, so that their fingertips are no"):
        with_definition(moved, pair, "skinning", "ho3d")
    assert not with_definition(moved, pair, "regressed").has_layout
    with pytest.raises(InputError, match=r"the tip set 'x' is unknown, expected one of smplx, freihand"):
        with_definition(moved, pair, "skinning", "x")


def test_results_of_a_fit_can_be_evaluated_at_once() -> None:
    """`Prediction.from_result` takes what `handloop.fit` returns."""
    import handloop

    points = np.load(Path(__file__).parents[2] / "examples" / "data" / "hands.npz")["keypoints_2d"][:2]
    keypoints = Keypoints.from_arrays(points, image_size=(640, 480), ids=["a", "b"])
    prediction = Prediction.from_result(handloop.fit(keypoints, recipe="fast", device="cpu"))
    assert prediction.ids == ("a", "b") and bool(prediction.fitted().all()) and prediction.params is not None
