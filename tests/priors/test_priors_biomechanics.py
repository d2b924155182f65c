"""Bones, palm and joint angles of 21 points: by hand on built hands, against the paper's formulas, derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from handloop.core.errors import InputError
from handloop.core.joints import BONES
from handloop.priors.biomechanics import (
    ANGLE_NAMES,
    BONE_NAMES,
    Skeleton,
    bone_lengths,
    joint_angles,
    palm_structure,
)
from handloop.priors.biomechanics_jacobian import (
    bone_lengths_jacobian,
    joint_angles_jacobian,
    palm_structure_jacobian,
)

F64 = torch.float64
PALMAR = np.array([0.0, 0.0, 1.0])
ROOTS_DEG, ROOT_MM = (50.0, 15.0, 0.0, -12.0, -25.0), (40.0, 92.0, 90.0, 85.0, 80.0)
"""A right hand with its palm to the viewer: directions of the root bones from straight up towards the thumb (+x)."""


def build(bends_deg: dict[tuple[int, int], tuple[float, float]] | None = None) -> Tensor:
    """(21, 3) m, a flat right hand, bent at (finger, level) by (flexion, abduction)."""
    points = np.zeros((21, 3))
    for finger in range(5):
        turn = np.deg2rad(ROOTS_DEG[finger])
        # Columns x out of the palm, y towards the thumb, z along the finger.
        z = np.array([np.sin(turn), np.cos(turn), 0.0])
        frame = np.stack([PALMAR, np.cross(z, PALMAR), z], 1)
        at = z * ROOT_MM[finger]
        points[1 + 4 * finger] = at
        for level, length in enumerate((40.0, 25.0, 20.0)):
            f, a = np.deg2rad((bends_deg or {}).get((finger, level), (0.0, 0.0)))
            bone = np.array([np.cos(a) * np.sin(f), np.sin(a), np.cos(a) * np.cos(f)])
            # The smallest rotation from z to the bone, in the frame.
            axis = np.cross([0.0, 0.0, 1.0], bone)
            angle = np.arctan2(np.linalg.norm(axis), bone[2])
            axis = axis / max(np.linalg.norm(axis), 1e-300)
            frame = frame @ Rotation.from_rotvec(angle * axis).as_matrix()
            at = at + frame[:, 2] * length
            points[2 + 4 * finger + level] = at
    return torch.tensor(points / 1000)


def random_hands(n: int, seed: int = 0, noise: float = 0.015) -> Tensor:
    """(n, 21, 3) bent, noisy and turned hands."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        bends = {(f, k): (rng.uniform(-30, 100), rng.uniform(-30, 30)) for f in range(5) for k in range(3)}
        points = build(bends).numpy() + rng.normal(0, noise, (21, 3))
        out.append(Rotation.random(random_state=rng).apply(points) + rng.normal(0, 0.3, 3))
    return torch.tensor(np.array(out))


def hard_hands() -> dict[str, Tensor]:
    """(21, 3) each: where careless formulas divide by zero."""
    flat = build()
    same = flat.clone()
    same[6] = same[5]
    folded = build({(1, 1): (180.0, 0.0), (2, 0): (180.0, 0.0)})
    thin = flat.clone()
    thin[1:] *= torch.tensor([0.0, 1.0, 0.0], dtype=F64)
    two = flat.clone()
    two[9:13] = two[5:9]
    no_reference = flat.clone()
    no_reference[9] = 0
    return {
        "straight": flat,
        "along an axis": torch.tensor(Rotation.from_euler("z", 25, degrees=True).apply(flat.numpy())),
        "two points in one": same,
        "folded back": folded,
        "square to the frame": build({(f, k): (0.0, 90.0) for f in range(5) for k in range(3)}),
        "all points on a line": thin,
        "two fingers in one": two,
        "no reference bone": no_reference,
        "all points in one": torch.full((21, 3), 0.1, dtype=F64),
        "nothing": torch.zeros(21, 3, dtype=F64),
        "far away": flat + 5.0,
    }


def quantities(points: Tensor, reference: int | None = 8, **options: Tensor | bool) -> Tensor:
    """(B, 58) all of them."""
    skeleton = Skeleton.of(points, options.get("is_right", True), options.get("visible"))  # type: ignore[arg-type]
    curvature, spread = palm_structure(skeleton, reference)
    parts = (bone_lengths(skeleton, reference).value, curvature.value, spread.value)
    return torch.cat([*parts, joint_angles(skeleton).value.flatten(-2)], -1)


def angles_deg(points: Tensor, is_right: bool = True) -> np.ndarray:
    """(5, 3, 2) finger, level, flexion and abduction."""
    return joint_angles(Skeleton.of(points[None], is_right)).value.rad2deg().reshape(5, 3, 2).numpy()


# By hand.


def test_names_follow_the_points() -> None:
    assert len(BONE_NAMES) == 20 and BONE_NAMES[8] == "wrist-middle_mcp"
    assert len(ANGLE_NAMES) == 15 and ANGLE_NAMES[:4] == ("thumb_cmc", "thumb_mcp", "thumb_ip", "index_mcp")


def test_a_flat_hand_is_all_zeros() -> None:
    np.testing.assert_allclose(angles_deg(build()), 0, atol=1e-9)


@pytest.mark.parametrize("finger", range(5))
@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize("bend", [(30.0, 0.0), (0.0, 10.0), (-20.0, 0.0), (90.0, 0.0), (50.0, -15.0), (170.0, 0.0)])
def test_one_bent_joint_shows_there_and_nowhere_else(finger: int, level: int, bend: tuple[float, float]) -> None:
    expected = np.zeros((5, 3, 2))
    expected[finger, level] = bend
    np.testing.assert_allclose(angles_deg(build({(finger, level): bend})), expected, atol=1e-9)


def test_joints_bent_together_keep_their_angles() -> None:
    bends = {(f, k): (20.0 + 10 * f + 5 * k, -8.0 + 3 * f - 2 * k) for f in range(5) for k in range(3)}
    found = angles_deg(build(bends))
    for (f, k), bend in bends.items():
        np.testing.assert_allclose(found[f, k], bend, atol=1e-9)


def test_flexion_is_into_the_palm_and_abduction_towards_the_thumb() -> None:
    straight = build()
    bent, aside = build({(1, 0): (30.0, 0.0)}), build({(1, 0): (0.0, 10.0)})
    assert float(bent[8, 2] - straight[8, 2]) > 0.02
    assert float((aside[8] - straight[8]) @ (straight[4] - straight[8])) > 0


def test_lengths_and_spread_of_the_flat_hand() -> None:
    skeleton = Skeleton.of(build()[None])
    metres = bone_lengths(skeleton, None).value[0].numpy()
    np.testing.assert_allclose(metres.reshape(5, 4)[:, 0] * 1000, ROOT_MM)
    np.testing.assert_allclose(metres.reshape(5, 4)[:, 1:] * 1000, np.tile([40.0, 25.0, 20.0], (5, 1)))
    np.testing.assert_allclose(bone_lengths(skeleton).value[0].numpy(), metres / 0.09)
    curvature, spread = palm_structure(skeleton)
    np.testing.assert_allclose(spread.value[0].rad2deg().numpy(), -np.diff(ROOTS_DEG), atol=1e-9)
    np.testing.assert_allclose(curvature.value.numpy(), 0, atol=1e-9)


def test_curvature_of_a_palm_on_a_cylinder_is_one_over_its_radius() -> None:
    """Root bones from the wrist to a ring about the forearm's axis, thumb side first, hollow on the palm's side."""
    points = build()
    radius, turns = 0.03, np.deg2rad([40.0, 20.0, 0.0, -20.0, -40.0])
    ring = np.stack([radius * np.sin(turns), np.full(5, 2.0), radius * (1 - np.cos(turns))], 1)
    points[[1, 5, 9, 13, 17]] = torch.tensor(ring)
    points[0] = 0
    curvature, _ = palm_structure(Skeleton.of(points[None]), None)
    # From that far away the normals n_i are those of the chords, which turn by 20 degrees from one to the next; the
    # inner edge normals are the surface's own: e' - e = 2 sin(10 deg) along a chord of 2 r sin(10 deg).
    np.testing.assert_allclose(curvature.value[0, 1:3].numpy(), 1 / radius, rtol=1e-3)


# Against the formulas as published.


def published(points: np.ndarray) -> np.ndarray:
    """(58,) by acos, rotation matrices and loops."""

    def unit(v: np.ndarray) -> np.ndarray:
        return v / np.linalg.norm(v)

    def between(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.arccos(np.clip(unit(a) @ unit(b), -1, 1)))

    bones = [points[child] - points[parent] for parent, child in BONES]
    lengths = np.array([np.linalg.norm(b) for b in bones]) / np.linalg.norm(bones[8])
    roots = [bones[4 * i] / np.linalg.norm(bones[8]) for i in range(5)]
    n = [unit(np.cross(roots[i + 1], roots[i])) for i in range(4)]
    e = [n[0], *(unit(n[i] + n[i - 1]) for i in (1, 2, 3)), n[3]]
    steps = [roots[i + 1] - roots[i] for i in range(4)]
    curvature = [(e[i + 1] - e[i]) @ steps[i] / (steps[i] @ steps[i]) for i in range(4)]
    spread = [between(roots[i], roots[i + 1]) for i in range(4)]
    backs = [n[0], n[1], unit(n[1] + n[2]), unit(n[2] + n[3]), n[3]]
    angles = []
    for finger in range(5):
        z, x = unit(roots[finger]), -backs[finger]
        for level in range(3):
            y = np.cross(z, x)
            u = unit(bones[4 * finger + 1 + level])
            flat = u - (u @ y) * y
            angles += [between(flat, z) * np.sign(u @ x), between(flat, u) * np.sign(u @ y)]
            x = Rotation.from_rotvec(between(z, u) * unit(np.cross(z, u))).apply(x)
            z = u
    return np.array([*lengths, *curvature, *spread, *angles])


def test_random_hands_against_the_published_formulas() -> None:
    hands = random_hands(100)
    expected = np.array([published(p) for p in hands.numpy()])
    # acos knows small angles to half the digits only.
    np.testing.assert_allclose(quantities(hands).numpy(), expected, atol=3e-7)


def test_left_hands_are_mirrored_right_hands() -> None:
    right = random_hands(20)
    left = right * torch.tensor([-1.0, 1.0, 1.0], dtype=F64)
    expected = quantities(right)
    assert torch.equal(quantities(left, is_right=False), expected)
    side = torch.arange(20) % 2 == 0
    mixed = torch.where(side[:, None, None], right, left)
    assert torch.equal(quantities(mixed, is_right=side), expected)
    # Measured as a right hand, a left hand's flexion and curvature change sign.
    wrong = quantities(left)
    torch.testing.assert_close(wrong[:, 28::2], -expected[:, 28::2])
    torch.testing.assert_close(wrong[:, 29::2], expected[:, 29::2])
    torch.testing.assert_close(wrong[:, 20:24], -expected[:, 20:24])


def test_place_turn_and_size_do_not_matter() -> None:
    hands = random_hands(20)
    turn = torch.tensor(Rotation.random(random_state=3).as_matrix())
    moved = 3.0 * hands @ turn.T + torch.tensor([0.1, -2.0, 1.0], dtype=F64)
    torch.testing.assert_close(quantities(moved), quantities(hands), rtol=0.0, atol=1e-10)
    assert torch.allclose(quantities(moved, None)[:, :20], 3 * quantities(hands, None)[:, :20])


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_hand_does_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    hands = random_hands(30).to(dtype)
    values = quantities(hands)
    for at in (torch.tensor([7]), torch.tensor([29, 0, 3]), torch.arange(29, -1, -1)):
        assert torch.equal(quantities(hands[at]), values[at])
    assert torch.equal(quantities(hands.reshape(5, 6, 21, 3)).reshape(30, -1), values)
    assert torch.equal(quantities(hands[4]), values[4])


# What does not exist.


def test_invisible_points_take_their_quantities_with_them() -> None:
    hands = random_hands(1)
    visible = torch.ones(1, 21, dtype=torch.bool)
    visible[0, [6, 17]] = False
    broken = hands.clone()
    broken[0, [6, 17]] = float("nan")
    skeleton = Skeleton.of(broken, True, visible)
    lengths, angles = bone_lengths(skeleton), joint_angles(skeleton)
    curvature, spread = palm_structure(skeleton)
    assert (~lengths.valid[0]).nonzero()[:, 0].tolist() == [5, 6, 16, 17]
    assert spread.valid[0].tolist() == [True, True, True, False]
    # The little finger's normal also enters the edge normal at the ring finger.
    assert curvature.valid[0].tolist() == [True, True, False, False]
    # Index: PIP missing; ring: its frame rests on the little finger's knuckle.
    expected = [True] * 3 + [False] * 3 + [True] * 3 + [False] * 3 + [False] * 3
    assert angles.valid[0].tolist() == expected
    whole = Skeleton.of(hands)
    for part, reference in ((lengths, bone_lengths(whole)), (spread, palm_structure(whole)[1])):
        assert torch.equal(part.value[part.valid], reference.value[part.valid])
    assert torch.equal(angles.value[angles.valid], joint_angles(whole).value[angles.valid])


def test_degenerate_hands_say_what_is_missing() -> None:
    hands = hard_hands()

    def valid(name: str) -> np.ndarray:
        return joint_angles(Skeleton.of(hands[name][None])).valid.reshape(5, 3).numpy()

    assert valid("straight").all() and valid("along an axis").all() and valid("far away").all()
    # Two joints in one: the index has neither base angle nor frames beyond.
    assert valid("two points in one").tolist() == [[True] * 3, [False] * 3, *[[True] * 3] * 3]
    # Folded back: that angle is 180 degrees, the next has no frame.
    assert valid("folded back").tolist() == [[True] * 3, [True, True, False], [True, False, False], *[[True] * 3] * 2]
    assert not valid("all points on a line").any() and not valid("nothing").any()
    assert not bone_lengths(Skeleton.of(hands["no reference bone"][None])).valid.any()
    assert bone_lengths(Skeleton.of(hands["no reference bone"][None]), None).valid.all()


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("name", hard_hands())
def test_values_and_gradients_are_finite(name: str, dtype: torch.dtype) -> None:
    points = hard_hands()[name].to(dtype)[None].requires_grad_()
    values = quantities(points)
    assert bool(torch.isfinite(values).all())
    for row in range(values.shape[1]):
        (gradient,) = torch.autograd.grad(values[0, row], points, retain_graph=True)
        assert bool(torch.isfinite(gradient).all())


def test_shape_errors() -> None:
    with pytest.raises(InputError, match=r"^points has shape \(2, 20, 3\), expected \(2, 21, 3\)\.$"):
        Skeleton.of(torch.zeros(2, 20, 3))
    with pytest.raises(InputError, match=r"^visible has shape \(21,\), expected \(2, 21\)\.$"):
        Skeleton.of(torch.zeros(2, 21, 3), True, torch.ones(21))
    with pytest.raises(InputError, match=r"^is_right has shape \(3,\), expected \(2\)\.$"):
        Skeleton.of(torch.zeros(2, 21, 3), torch.ones(3, dtype=torch.bool))


# Derivatives.


@pytest.fixture(scope="module")
def mixed_hands() -> Tensor:
    """(110, 21, 3): ordinary, nearly straight, and every hard one."""
    straight = build()[None].repeat(10, 1, 1)
    straight[1:] += 1e-7 * torch.randn(9, 21, 3, dtype=F64, generator=torch.Generator().manual_seed(2))
    return torch.cat([random_hands(89, 1), straight, torch.stack(list(hard_hands().values()))])


def by_autograd(points: Tensor, reference: int | None) -> Tensor:
    leaf = points.clone().requires_grad_()
    values = quantities(leaf, reference)
    rows = [torch.autograd.grad(values[:, r].sum(), leaf, retain_graph=True)[0] for r in range(values.shape[1])]
    return torch.stack(rows, 1).flatten(2)


def closed_form(points: Tensor, reference: int | None) -> Tensor:
    eye = torch.eye(63, dtype=points.dtype).reshape(21, 3, 63)
    by = eye[[b for _, b in BONES]] - eye[[a for a, _ in BONES]]
    by = by.expand(len(points), 20, 3, 63)
    skeleton = Skeleton.of(points)
    parts = [bone_lengths_jacobian(skeleton, by, reference), *palm_structure_jacobian(skeleton, by, reference)]
    return torch.cat([*parts, joint_angles_jacobian(skeleton, by).flatten(1, 2)], 1)


@pytest.mark.parametrize("reference", [8, None])
def test_closed_form_equals_autograd(mixed_hands: Tensor, reference: int | None) -> None:
    expected, found = by_autograd(mixed_hands, reference), closed_form(mixed_hands, reference)
    assert bool(torch.isfinite(found).all())
    scale = expected.abs().amax((1, 2), keepdim=True).clamp(min=1)
    assert float(((found - expected).abs() / scale).max()) < 1e-10


def test_autograd_equals_differences() -> None:
    hands = torch.cat([random_hands(9, 4), build()[None]])
    expected, step = by_autograd(hands, 8), 1e-6
    for column in range(63):
        e = step * torch.eye(63, dtype=F64)[column].reshape(21, 3)
        numeric = (quantities(hands + e) - quantities(hands - e)) / (2 * step)
        scale = expected.abs().amax((1, 2))[:, None]
        assert float(((numeric - expected[..., column]).abs() / scale).max()) < 1e-6
