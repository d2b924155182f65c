"""The 21 points and their Jacobian against plain numpy, smplx, the mesh, automatic and finite differences."""

from __future__ import annotations

import contextlib
import io
import shutil
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from handloop.core.joints import CANONICAL_FROM_MANO, MANO_PARENTS
from handloop.core.params import HandParams
from handloop.core.rotations import so3_exp
from handloop.hand.kinematics import CHAINS, Kinematics
from handloop.hand.load import embedded_hand, mirror_hand
from handloop.hand.mesh import skin
from handloop.hand.model import Hand

F64 = torch.float64
N = 100


def spread_hand() -> Hand:
    """The embedded hand with random skinning weights on all 16 joints, pose and shape directions, and rest mesh."""
    rng = np.random.default_rng(5)
    right = embedded_hand().right
    return replace(
        right,
        name="spread",
        v_template=right.v_template + rng.normal(0, 0.004, (778, 3)),
        shapedirs=right.shapedirs + rng.normal(0, 0.002, (778, 3, 10)),
        posedirs=rng.normal(0, 0.003, (778, 3, 135)),
        weights=rng.dirichlet(np.ones(16), 778),
    )


@dataclass(frozen=True, eq=False)
class Poses:
    """Axis-angle, shape and place of some hands."""

    pose: Tensor
    betas: Tensor
    root: Tensor

    @property
    def rotations(self) -> Tensor:
        return so3_exp(self.pose.reshape(-1, 16, 3))


def make_poses() -> Poses:
    """100 hands: ordinary ones, straight fingers (zero rotations), nearly zero, and angles up to and at pi."""
    g = torch.Generator().manual_seed(3)
    pose = 0.6 * torch.randn(N, 16, 3, dtype=F64, generator=g)
    axis = torch.nn.functional.normalize(torch.randn(N, 16, 3, dtype=F64, generator=g), dim=-1)
    pose[:8, 1:] = 0
    pose[4:8] = 0
    pose[8:16] *= 1e-8
    pose[16:24] = (torch.pi - 1e-3) * axis[16:24]
    pose[24:28] = torch.pi * axis[24:28]
    pose[28:32] = (torch.pi - 1e-9) * axis[28:32]
    betas = torch.randn(N, 10, dtype=F64, generator=g)
    root = torch.randn(N, 3, dtype=F64, generator=g) * 0.1 + torch.tensor([0.0, 0.0, 0.6], dtype=F64)
    return Poses(pose.reshape(N, 48), betas, root)


@pytest.fixture(scope="module", params=["embedded", "spread"])
def hand(request: pytest.FixtureRequest) -> Hand:
    return embedded_hand().right if request.param == "embedded" else spread_hand()


OFFSETS = 0.02 * torch.randn(21, 3, dtype=F64, generator=torch.Generator().manual_seed(12))
"""What a source's points might lie off the model's, m."""


@pytest.fixture(scope="module")
def poses() -> Poses:
    return make_poses()


def numpy_points(hand: Hand, rotations: np.ndarray, betas: np.ndarray, root: np.ndarray) -> np.ndarray:
    """(21, 3) of one hand by the textbook: shaped rest joints, a chain of 4x4 matrices, skinned tip vertices."""
    vertices = hand.v_template + hand.shapedirs @ betas
    rest = hand.j_regressor @ vertices
    world = np.zeros((16, 4, 4))
    for j in range(16):
        local = np.eye(4)
        local[:3, :3] = rotations[j]
        local[:3, 3] = root if j == 0 else rest[j] - rest[MANO_PARENTS[j]]
        world[j] = local if j == 0 else world[MANO_PARENTS[j]] @ local
    feature = (rotations[1:] - np.eye(3)).reshape(135)
    points = [world[j, :3, 3] for j in range(16)]
    for tip in hand.tip_ids:
        unposed = vertices[tip] + hand.posedirs[tip] @ feature
        moved = [world[j] @ np.append(unposed - rest[j], 1.0) for j in range(16)]
        points.append(sum(w * m[:3] for w, m in zip(hand.weights[tip], moved, strict=True)))
    return np.array(points)[list(CANONICAL_FROM_MANO)]


def test_points_equal_plain_numpy(hand: Hand, poses: Poses) -> None:
    ours = Kinematics.from_hand(hand).points(poses.rotations, poses.betas, poses.root)
    for i in range(0, N, 3):
        arrays = (t[i].numpy() for t in (poses.rotations, poses.betas, poses.root))
        np.testing.assert_allclose(ours[i].numpy(), numpy_points(hand, *arrays), atol=1e-12)


def test_offsets_are_rigid_points_of_their_joint_that_grow_with_the_hand(hand: Hand, poses: Poses) -> None:
    plain = Kinematics.from_hand(hand)
    points = plain.with_offsets(OFFSETS).points(poses.rotations, poses.betas, poses.root)
    bare = plain.points(poses.rotations, poses.betas, poses.root)
    joints, tips = hand.joints_rest, hand.v_template[hand.tip_ids]
    # The mean hand's relative growth in length per beta, by differences.
    chain = np.concatenate([joints[[0, 4, 5, 6]], tips[[2]]])
    dirs = np.concatenate([hand.joints_shapedirs[[0, 4, 5, 6]], hand.shapedirs[hand.tip_ids[[2]]]])

    def length(betas: np.ndarray) -> float:
        return float(np.linalg.norm(np.diff(chain + dirs @ betas, axis=0), axis=1).sum())

    step = 1e-5 * np.eye(10)
    growth = np.array([(length(e) - length(-e)) / 2e-5 for e in step]) / length(np.zeros(10))
    np.testing.assert_allclose(plain.scale_dirs().numpy(), growth, atol=1e-8)
    # A finger's points hang on the joint they start at, tips on the distal one.
    joint_of = [0, *(j for chain in CHAINS for j in (*chain, chain[2]))]
    for i in range(0, N, 9):
        rotations = poses.rotations[i].numpy()
        scale = 1 + growth @ poses.betas[i].numpy()
        for point, joint in enumerate(joint_of):
            world = rotations[joint]
            parent = MANO_PARENTS[joint]
            while parent >= 0:
                world, parent = rotations[parent] @ world, MANO_PARENTS[parent]
            expected = bare[i, point].numpy() + scale * world @ OFFSETS[point].numpy()
            np.testing.assert_allclose(points[i, point].numpy(), expected, atol=1e-9)
    assert torch.equal(plain.with_offsets(None).points(poses.rotations, poses.betas, poses.root), bare)


def test_points_equal_smplx_joints_and_tips(poses: Poses, tmp_path: Path) -> None:
    smplx = pytest.importorskip("smplx")
    path = tmp_path / "MANO_RIGHT.npz"
    with resources.as_file(resources.files("handloop.hand") / "data" / "embedded_right.npz") as asset:
        shutil.copy(asset, path)
    with contextlib.redirect_stdout(io.StringIO()):
        model = smplx.MANO(
            str(path), ext="npz", use_pca=False, flat_hand_mean=True, is_rhand=True, dtype=F64, batch_size=N
        )
    hand = embedded_hand().right
    kinematics = Kinematics.from_hand(hand)
    transl = poses.root - kinematics.root_offset(poses.betas)
    out = model(betas=poses.betas, global_orient=poses.pose[:, :3], hand_pose=poses.pose[:, 3:], transl=transl)
    both = torch.cat([out.joints[:, :16], out.vertices[:, torch.from_numpy(hand.tip_ids)]], 1).detach()
    ours = kinematics.points(poses.rotations, poses.betas, poses.root)
    # smplx keeps the constants in float32.
    torch.testing.assert_close(ours, both[:, list(CANONICAL_FROM_MANO)], atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("is_right", [True, False])
def test_points_equal_the_mesh_of_either_side(hand: Hand, poses: Poses, is_right: bool) -> None:
    kinematics = Kinematics.from_hand(hand)
    params = HandParams(
        *(poses.pose[:, :3], poses.pose[:, 3:], poses.betas, poses.root - kinematics.root_offset(poses.betas))
    )
    points = kinematics.points(poses.rotations, poses.betas, poses.root)
    model = hand
    if not is_right:
        model, params = mirror_hand(hand), params.mirrored()
        points = points * torch.tensor([-1.0, 1.0, 1.0], dtype=F64)
    vertices, joints = skin(model, *params.tensors())
    both = torch.cat([joints, vertices[:, torch.from_numpy(model.tip_ids)]], 1)
    torch.testing.assert_close(points, both[:, list(CANONICAL_FROM_MANO)], atol=1e-9, rtol=0.0)


def test_root_offset_is_the_shaped_rest_wrist(hand: Hand, poses: Poses) -> None:
    vertices = hand.v_template + np.einsum("vcs,bs->bvc", hand.shapedirs, poses.betas.numpy())
    wrist = np.einsum("v,bvc->bc", hand.j_regressor[0], vertices)
    ours = Kinematics.from_hand(hand).root_offset(poses.betas)
    np.testing.assert_allclose(ours.numpy(), wrist, atol=1e-12)


def test_moving_the_wrist_moves_every_point(hand: Hand, poses: Poses) -> None:
    kinematics = Kinematics.from_hand(hand)
    shift = torch.tensor([0.1, -0.2, 0.3], dtype=F64)
    before = kinematics.points(poses.rotations, poses.betas, poses.root)
    after = kinematics.points(poses.rotations, poses.betas, poses.root + shift)
    torch.testing.assert_close(after, before + shift, atol=1e-12, rtol=0.0)
    assert torch.equal(before[:, 0], poses.root)


def _moved(kinematics: Kinematics, poses: Poses, delta: Tensor) -> Tensor:
    """Points after an increment (B, 61), through the forward pass only."""
    spin = so3_exp(delta[:, :48].reshape(-1, 16, 3))
    return kinematics.points(poses.rotations @ spin, poses.betas + delta[:, 48:58], poses.root + delta[:, 58:])


@pytest.mark.parametrize("offsets", [None, OFFSETS], ids=["plain", "offsets"])
def test_jacobian_equals_automatic_differentiation(hand: Hand, poses: Poses, offsets: Tensor | None) -> None:
    kinematics = Kinematics.from_hand(hand).with_offsets(offsets)
    points, jac = kinematics.points_and_jacobian(poses.rotations, poses.betas, poses.root)
    assert torch.equal(points, kinematics.points(poses.rotations, poses.betas, poses.root))
    assert jac.shape == (N, 21, 3, 61) and bool(torch.isfinite(jac).all())
    delta = torch.zeros(N, 61, dtype=F64, requires_grad=True)
    flat = _moved(kinematics, poses, delta).flatten(1)
    rows = [torch.autograd.grad(flat[:, r].sum(), delta, retain_graph=True)[0] for r in range(63)]
    expected = torch.stack(rows, 1).reshape(N, 21, 3, 61)
    error = (jac - expected).flatten(1).abs().amax(1) / expected.flatten(1).abs().amax(1)
    assert float(error.max()) < 1e-6, f"worst hand {int(error.argmax())}: {float(error.max()):.1e}"
    assert float(error.max()) < 1e-12  # Both are exact to rounding; this catches a series cut too early.


def test_jacobian_equals_differences_of_plain_numpy(hand: Hand, poses: Poses) -> None:
    """A second witness that shares no code with the first: numpy's forward pass, fourth-order differences."""
    _, jac = Kinematics.from_hand(hand).points_and_jacobian(poses.rotations, poses.betas, poses.root)
    step = 1e-3
    for i in (0, 5, 10, 20, 25, 50, 99):
        rotations, betas, root = (t[i].numpy() for t in (poses.rotations, poses.betas, poses.root))

        def moved(column: int, by: float, r: np.ndarray, b: np.ndarray, w: np.ndarray) -> np.ndarray:
            r, b, w = r.copy(), b.copy(), w.copy()
            if column < 48:
                e = np.eye(3)[column % 3]
                k = np.cross(e, np.eye(3)).T  # k @ v = e x v.
                r[column // 3] = r[column // 3] @ (np.eye(3) + np.sin(by) * k + (1 - np.cos(by)) * k @ k)
            elif column < 58:
                b[column - 48] += by
            else:
                w[column - 58] += by
            return numpy_points(hand, r, b, w)

        for column in (0, 1, 2, 3, 4, 5, 10, 22, 29, 33, 38, 43, 47, 48, 53, 57, 58, 60):
            near = moved(column, step, rotations, betas, root) - moved(column, -step, rotations, betas, root)
            far = moved(column, 2 * step, rotations, betas, root) - moved(column, -2 * step, rotations, betas, root)
            expected = (8 * near - far) / (12 * step)
            scale = max(float(np.abs(jac[i].numpy()).max()), 1e-9)
            assert np.abs(jac[i, :, :, column].numpy() - expected).max() / scale < 1e-6, (i, column)


def test_a_finger_moves_no_other_fingers_joints(poses: Poses) -> None:
    """With one-finger skinning and no blend shapes across, a finger's nine columns reach its own points only."""
    hand = embedded_hand().right
    own = np.zeros((778, 16))
    for tip, chain in zip(hand.tip_ids, CHAINS, strict=True):
        own[tip, chain[2]] = 1.0
    hand = replace(hand, weights=own, posedirs=np.zeros((778, 3, 135)))
    _, jac = Kinematics.from_hand(hand).points_and_jacobian(poses.rotations, poses.betas, poses.root)
    for finger, chain in enumerate(CHAINS):
        columns = [3 * joint + axis for joint in chain for axis in range(3)]
        others = [p for p in range(1, 21) if not 1 + 4 * finger <= p <= 4 + 4 * finger]
        assert bool((jac[:, others][..., columns] == 0).all())
        assert bool((jac[:, 0, :, :48] == 0).all())


@pytest.mark.parametrize("rows", [[7], [0, 99], [98, 3, 50], list(range(17)), list(range(99, -1, -1))])
@pytest.mark.parametrize("offsets", [None, OFFSETS], ids=["plain", "offsets"])
def test_a_hand_does_not_depend_on_its_batch(hand: Hand, poses: Poses, rows: list[int], offsets: Tensor | None) -> None:
    kinematics = Kinematics.from_hand(hand).with_offsets(offsets)
    at = torch.tensor(rows)
    points, jac = kinematics.points_and_jacobian(poses.rotations, poses.betas, poses.root)
    some, some_jac = kinematics.points_and_jacobian(poses.rotations[at], poses.betas[at], poses.root[at])
    assert torch.equal(kinematics.points(poses.rotations[at], poses.betas[at], poses.root[at]), points[at])
    if len(rows) > 1:  # The solver keeps a lone hand company, see there.
        assert torch.equal(some, points[at]) and torch.equal(some_jac, jac[at])
    torch.testing.assert_close(some, points[at], atol=1e-15, rtol=1e-14)
    torch.testing.assert_close(some_jac, jac[at], atol=1e-15, rtol=1e-14)


def test_a_broken_hand_does_not_spread(hand: Hand, poses: Poses) -> None:
    kinematics = Kinematics.from_hand(hand)
    rotations = poses.rotations.clone()
    rotations[10] = float("nan")
    points, jac = kinematics.points_and_jacobian(rotations, poses.betas, poses.root)
    clean, clean_jac = kinematics.points_and_jacobian(poses.rotations, poses.betas, poses.root)
    others = torch.arange(N) != 10
    assert torch.equal(points[others], clean[others]) and torch.equal(jac[others], clean_jac[others])
    assert bool(torch.isnan(points[10, 1:]).all())


def test_float32_is_within_a_hundredth_of_a_millimetre(hand: Hand, poses: Poses) -> None:
    double = Kinematics.from_hand(hand).points(poses.rotations, poses.betas, poses.root)
    kinematics = Kinematics.from_hand(hand, torch.float32)
    arguments = (t.float() for t in (poses.rotations, poses.betas, poses.root))
    single, jac = kinematics.points_and_jacobian(*arguments)
    assert single.dtype == jac.dtype == torch.float32
    assert float((single.double() - double).abs().max()) < 1e-5


def test_no_hands(hand: Hand, poses: Poses) -> None:
    points, jac = Kinematics.from_hand(hand).points_and_jacobian(poses.rotations[:0], poses.betas[:0], poses.root[:0])
    assert points.shape == (0, 21, 3) and jac.shape == (0, 21, 3, 61)
