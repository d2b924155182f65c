"""What the servers of FreiHAND and HO-3D are given."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from handloop.core.errors import InputError
from handloop.evaluation.prediction import Prediction, meshes
from handloop.evaluation.submission import make_submission, write_submission
from handloop.hand.model import HandPair

Arrays = dict[str, np.ndarray]
# vis_HO3D.py: jointsMapManoToSimple, from HO-3D's order to thumb-to-pinky.
HO3D_TO_SIMPLE = [0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]


@pytest.fixture
def prediction(results: Arrays) -> Prediction:
    """Six hands, the fifth without a fit."""
    return Prediction.from_arrays(results)


def test_freihand_submission(prediction: Prediction, pair: HandPair, tmp_path: Path) -> None:
    path = write_submission(make_submission(prediction, pair, "freihand"), tmp_path / "pred.json")
    xyz, verts = (np.array(part) for part in json.loads(path.read_text()))
    assert xyz.shape == (6, 21, 3) and verts.shape == (6, 778, 3)
    mesh = meshes(prediction, pair)[0].numpy()
    assert np.allclose(verts[0], mesh[0], atol=1e-7)
    assert np.allclose(xyz[0, [0, 5, 17]], (pair.right.j_regressor @ mesh[0])[[0, 1, 7]], atol=1e-7)
    assert np.allclose(xyz[3, 16], mesh[3, 555], atol=1e-7)
    assert not xyz[4].any() and not verts[4].any()
    skinning = make_submission(prediction, pair, "freihand", "skinning", "smplx")
    assert np.allclose(skinning.points[:4], prediction.points[:4])


def test_ho3d_submission(prediction: Prediction, pair: HandPair, tmp_path: Path) -> None:
    path = write_submission(make_submission(prediction, pair, "ho3d"), tmp_path / "deep" / "pred.zip")
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["pred.json"]
        xyz, verts = (np.array(part) for part in json.loads(archive.read("pred.json")))
    # Back in the canonical order and axes, by the published permutation.
    back = xyz[:, HO3D_TO_SIMPLE] * np.array([1, -1, -1])
    same = [k for k in range(21) if k not in (4, 8, 12, 16, 20)]
    assert np.allclose(back[:4, same], prediction.points[:4, same], atol=1e-7)
    assert np.allclose(xyz[0, 16:], verts[0, [744, 333, 444, 555, 672]], atol=1e-7)
    # Their pred.py refuses hands at positive z.
    fitted = [0, 1, 2, 3, 5]
    assert (verts[fitted, :, 2] < 0).all() and not xyz[4].any()


def test_order_of_the_server(prediction: Prediction, pair: HandPair) -> None:
    submission = make_submission(prediction, pair, "freihand", order=["hand3", "absent", "hand0"])
    whole = make_submission(prediction, pair, "freihand")
    assert np.allclose(submission.points[0], whole.points[3]) and np.allclose(submission.points[2], whole.points[0])
    assert not submission.points[1].any() and submission.without_fit == 1
    assert submission.notes == (
        "1 of 3 hands have no fit and were written as zeros, which counts as wrong.",
        "3 hands were written, FreiHAND's evaluation sets have 3,960: the server will refuse.",
        "1 hands are left hands; FreiHAND has right hands only.",
    )


def test_a_layout_is_kept(results: Arrays, pair: HandPair) -> None:
    """Points of a keypoint layout are the data set's own joints: nothing replaces their tips."""
    moved = Prediction.from_arrays(results | {"keypoints_3d": results["keypoints_3d"] + 0.004})
    submission = make_submission(moved, pair, "ho3d")
    back = submission.points[:, HO3D_TO_SIMPLE].numpy() * np.array([1, -1, -1])
    assert np.allclose(back[:4], results["keypoints_3d"][:4] + 0.004)


def test_the_same_hands_give_the_same_bytes(prediction: Prediction, pair: HandPair, tmp_path: Path) -> None:
    submission = make_submission(prediction, pair, "ho3d")
    first, second = (write_submission(submission, tmp_path / name).read_bytes() for name in ("a.zip", "b.zip"))
    assert first == second and sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "b.zip"]


def test_errors(prediction: Prediction, pair: HandPair, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        make_submission(prediction, pair, "rhd")
    assert str(caught.value) == "the format 'rhd' is unknown, expected one of freihand, ho3d."
    with pytest.raises(InputError) as caught:
        make_submission(prediction, pair, "ho3d", order=["SM1/0000", "SM1/0001"])
    assert str(caught.value) == "none of the 2 ids of the order is in the results, they hold 'hand0' for example."
    with pytest.raises(InputError) as caught:
        make_submission(prediction, pair, "ho3d", order=["hand0", "hand0"])
    assert str(caught.value) == "the order names 'hand0' more than once; every picture is predicted once."
    submission = make_submission(prediction, pair, "ho3d")
    with pytest.raises(InputError, match=r"pred\.txt: a submission is a \.zip file, or its \.json alone"):
        write_submission(submission, tmp_path / "pred.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"pred\.zip cannot be written \(.+\); name another file\.$"):
        write_submission(submission, tmp_path / "file" / "pred.zip")
