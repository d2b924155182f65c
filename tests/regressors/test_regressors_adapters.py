"""Other networks' arrays as proposals, against projections made by hand with smplx's rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from handloop.core.errors import FileFormatError
from handloop.core.params import HandParams
from handloop.hand.load import embedded_hand
from handloop.hand.mesh import skin
from handloop.regressors.adapters import proposal_of

N = 4
WIDTH, HEIGHT = 1280, 720
FOCAL = 5000 / 256 * WIDTH
RIGHT = np.array([True, False, True, False])


@pytest.fixture
def hamer() -> dict[str, np.ndarray]:
    """What HaMeR's demo holds: right-hand parameters of the mirrored picture for left hands, place in the picture."""
    rng = np.random.default_rng(0)
    rotations = Rotation.from_rotvec(0.4 * rng.normal(size=(N * 16, 3))).as_matrix().reshape(N, 16, 3, 3)
    return {
        "global_orient": rotations[:, :1],
        "hand_pose": rotations[:, 1:],
        "betas": rng.normal(size=(N, 10)),
        "pred_cam_t_full": np.array([[0.4, -0.2, 50.0], [-1.0, 0.3, 60.0], [0.0, 0.0, 40.0], [0.9, 0.9, 55.0]]),
        "scaled_focal_length": np.array(FOCAL),
        "is_right": RIGHT.astype(np.float32),
        "image_size": np.array([WIDTH, HEIGHT]),
    }


def vertices(params: HandParams, right: np.ndarray) -> np.ndarray:
    pair = embedded_hand()
    out = []
    for i, is_right in enumerate(right):
        out.append(skin(pair.side(bool(is_right)), *params.select(torch.tensor([i])).tensors())[0][0].numpy())
    return np.stack(out)


def test_hamers_vertices_land_where_hamer_draws_them(hamer: dict[str, np.ndarray]) -> None:
    """HaMeR: right-hand vertices, x negated for left hands, plus pred_cam_t_full, projected about the middle."""
    zero = torch.zeros(N, 3, dtype=torch.float64)
    rotations = torch.tensor(np.concatenate([hamer["global_orient"], hamer["hand_pose"]], 1))
    theirs = vertices(HandParams.from_rotation_matrices(rotations, torch.tensor(hamer["betas"]), zero), np.ones(N))
    theirs[..., 0] *= np.where(RIGHT, 1, -1)[:, None]
    theirs += hamer["pred_cam_t_full"][:, None]
    # Their pixels start at the corner, ours at the middle of the first one.
    uv = FOCAL * theirs[..., :2] / theirs[..., 2:] + np.array([WIDTH, HEIGHT]) / 2 - 0.5
    proposal = proposal_of(hamer)
    ours = vertices(proposal.params, RIGHT)
    assert proposal.camera is not None and not bool(proposal.camera.is_known().any())
    np.testing.assert_allclose(ours, theirs, atol=1e-9)
    np.testing.assert_allclose(proposal.camera.project(torch.tensor(ours)).numpy(), uv, atol=1e-6)
    assert proposal.is_right.tolist() == RIGHT.tolist()


def test_wilor_minis_left_hands_are_their_own(hamer: dict[str, np.ndarray]) -> None:
    """WiLoR-mini gives axis-angle, with y and z negated for left hands, in shapes with an axis of length 1."""
    turn = np.where(RIGHT[:, None, None], 1.0, [1.0, -1.0, -1.0])
    mini = dict(hamer)
    for key, joints in (("global_orient", 1), ("hand_pose", 15)):
        vector = Rotation.from_matrix(hamer[key].reshape(-1, 3, 3)).as_rotvec().reshape(N, joints, 3)
        mini[key] = (vector * turn)[:, None]
    mini["betas"] = hamer["betas"][:, None]
    mini["pred_cam_t_full"] = hamer["pred_cam_t_full"][:, None]
    for ours, theirs in zip(proposal_of(mini).params.tensors(), proposal_of(hamer).params.tensors(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_the_convention_of_left_hands_can_be_named(hamer: dict[str, np.ndarray]) -> None:
    own = proposal_of({**hamer, "mirrored_left": np.array(False)}).params
    expected = Rotation.from_matrix(hamer["global_orient"][:, 0]).as_rotvec()
    np.testing.assert_allclose(own.global_orient.numpy(), expected, atol=1e-12)


def test_pred_cam_gives_hamers_place(hamer: dict[str, np.ndarray]) -> None:
    """cam_crop_to_full by hand: z = 2 f / (b s), x = t_x + 2 (c_x - w / 2) / (b s)."""
    right = {key: value for key, value in hamer.items() if key not in ("pred_cam_t_full", "is_right")}
    right["pred_cam"] = np.tile([0.9, 0.05, -0.02], (N, 1))
    right["box_center"] = np.tile([(WIDTH - 1) / 2 + 200.0, (HEIGHT - 1) / 2], (N, 1))
    right["box_size"] = np.array(300.0)
    z = 2 * FOCAL / (300 * 0.9)
    expected = np.array([0.05 + 2 * 200 / (300 * 0.9), -0.02, z])
    np.testing.assert_allclose(proposal_of(right).params.transl.numpy(), np.tile(expected, (N, 1)), rtol=1e-12)
    with pytest.raises(FileFormatError, match="save pred_cam_t_full"):
        proposal_of({**right, "is_right": RIGHT})
    del right["box_size"]
    with pytest.raises(FileFormatError, match="box_center"):
        proposal_of(right)


def test_plain_mano_arrays() -> None:
    rng = np.random.default_rng(1)
    arrays: dict[str, np.ndarray] = {
        "global_orient": rng.normal(size=(2, 3)),
        "hand_pose": rng.normal(size=(2, 45)),
        "betas": rng.normal(size=(2, 10)),
    }
    bare = proposal_of(arrays)
    assert bare.camera is None and bool(bare.params.transl.isnan().all()) and bare.ids is None
    np.testing.assert_array_equal(bare.params.hand_pose.numpy(), arrays["hand_pose"])
    k = np.array([[700.0, 0, 320], [0, 710, 240], [0, 0, 1]])
    placed = proposal_of({**arrays, "transl": rng.normal(size=(2, 3)), "K": k, "id": np.array(["a", "b"])})
    assert placed.camera is not None and placed.camera.focal.tolist() == [[700.0, 710.0]] * 2
    assert placed.ids == ("a", "b")
    ours = proposal_of(
        {**arrays, "transl": np.ones((2, 3)), "focal_length": np.full((2, 2), 600.0), "princpt": np.ones(2)}
    )
    assert ours.camera is not None and float(ours.camera.focal[0, 0]) == 600


def test_the_size_of_the_picture_can_come_from_the_keypoints(hamer: dict[str, np.ndarray]) -> None:
    expected = proposal_of(hamer).camera
    del hamer["image_size"]
    size = torch.tensor([[WIDTH, HEIGHT]], dtype=torch.float64)
    found = proposal_of(hamer, size.repeat(9, 1)).camera
    assert expected is not None and found is not None and torch.equal(expected.princpt, found.princpt)
    for unknown in (None, torch.full((N, 2), float("nan"))):
        with pytest.raises(FileFormatError, match="principal point that the network assumed is unknown"):
            proposal_of(hamer, unknown)


REFUSED = [
    ("betas", None, "there is no 'betas'"),
    ("betas", np.zeros((4, 9)), r"betas has shape \(4, 9\), expected \(N, 10\)"),
    ("hand_pose", np.zeros((4, 15, 6)), "hand_pose has shape"),
    ("hand_pose", np.zeros((4, 15, 3, 3)), "matrices that are not rotations"),
    ("pred_cam_t_full", np.zeros((3, 3)), "pred_cam_t_full has shape"),
    ("scaled_focal_length", None, "there is no 'scaled_focal_length'"),
    ("is_right", np.full(4, 0.5), "values other than true and false"),
    ("is_right", np.array(["r"] * 4), "expected numbers"),
    ("id", np.array(["a", "a", "b", "c"]), "3 different names for 4 hands"),
]


@pytest.mark.parametrize(("key", "value", "message"), REFUSED)
def test_arrays_that_cannot_be_used_are_refused(
    hamer: dict[str, np.ndarray], key: str, value: np.ndarray | None, message: str
) -> None:
    if value is None:
        del hamer[key]
    else:
        hamer[key] = value
    with pytest.raises(FileFormatError, match=message):
        proposal_of(hamer)
