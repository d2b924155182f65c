"""Crops, virtual cameras, rotations and mirrors: round trips, projections that commute, and the mirrored hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from handloop.core.augmentation import AugmentOptions, draw_augmentation
from handloop.core.camera import Camera
from handloop.core.crop import affine_crop, keypoint_box, look_at_crop, square_box
from handloop.core.errors import InputError
from handloop.core.keypoints import Keypoints
from handloop.core.params import HandParams
from handloop.core.view_change import ViewChange, move_params
from handloop.hand.kinematics import Kinematics
from handloop.hand.load import embedded_hand

N = 12
SIZE = 224
CROPS = {"affine": affine_crop, "look-at": look_at_crop}


def scene(seed: int = 0, dist: bool = False) -> tuple[Camera, torch.Tensor, Keypoints, torch.Tensor]:
    """Cameras with unequal focal lengths, points (N, 21, 3) m far off the axis, their keypoints and square boxes."""
    rng = np.random.default_rng(seed)
    focal = torch.from_numpy(rng.uniform(500, 900, (N, 2)))
    princpt = torch.from_numpy(rng.uniform(200, 500, (N, 2)))
    lens = torch.tensor([[-0.1, 0.02, 1e-3, -2e-3]], dtype=torch.float64).repeat(N, 1) if dist else None
    camera = Camera(focal, princpt, lens)
    middle = np.concatenate([rng.uniform(-0.25, 0.25, (N, 1, 2)), rng.uniform(0.4, 0.9, (N, 1, 1))], -1)
    points = torch.from_numpy(middle + rng.normal(size=(N, 21, 3)) * 0.04)
    sides = torch.from_numpy(rng.random(N) < 0.5)
    keypoints = Keypoints.from_arrays(camera.project(points), sides, (800, 600))
    return camera, points, keypoints, keypoint_box(keypoints)


def views(kind: str, seed: int = 0, dist: bool = False) -> tuple[ViewChange, torch.Tensor, Keypoints, torch.Tensor]:
    """Turned and partly mirrored crops, with the points, keypoints and boxes they were made for."""
    camera, points, keypoints, box = scene(seed, dist)
    angle = torch.linspace(-3.0, 3.0, N, dtype=torch.float64)
    flip = torch.arange(N) % 2 == 1
    view = CROPS[kind](camera, box, SIZE, keypoints.image_size, angle, flip)
    return view, points, keypoints, box


@pytest.mark.parametrize("kind", CROPS)
@pytest.mark.parametrize("dist", [False, True])
def test_projection_commutes_and_the_way_back_is_exact(kind: str, dist: bool) -> None:
    view, points, keypoints, _ = views(kind, dist=dist)
    there, back = view.points(points), view.inverse()
    crop_px = view.pixels(keypoints.xy)
    assert torch.isfinite(crop_px).all()
    torch.testing.assert_close(view.camera_out.project(there), crop_px, rtol=0, atol=1e-8)
    torch.testing.assert_close(back.points(there), points, rtol=0, atol=1e-12)
    torch.testing.assert_close(back.pixels(crop_px), keypoints.xy, rtol=0, atol=1e-9)
    assert torch.equal(back.camera_out.princpt, view.camera_in.princpt)
    again = back.inverse()
    torch.testing.assert_close(again.frame(), view.frame(), rtol=0, atol=1e-14)
    assert torch.equal(again.flip, view.flip) and torch.equal(again.size_in, view.size_in)


@pytest.mark.parametrize("kind", CROPS)
def test_the_frame_is_a_rotation_or_its_mirror(kind: str) -> None:
    view, *_ = views(kind)
    frame = view.frame()
    torch.testing.assert_close(frame @ frame.mT, torch.eye(3, dtype=torch.float64).expand(N, 3, 3))
    sign = torch.where(view.flip, -1.0, 1.0).double()
    torch.testing.assert_close(torch.linalg.det(frame), sign)


def test_affine_crop_is_a_scaling_of_the_picture() -> None:
    camera, points, keypoints, box = scene()
    view = affine_crop(camera, box, SIZE, keypoints.image_size)
    side = box[:, 2] - box[:, 0]
    # By hand: edges of the box go to -0.5 and SIZE - 0.5.
    expected = (keypoints.xy - box[:, None, :2]) * (SIZE / side)[:, None, None] - 0.5
    torch.testing.assert_close(view.pixels(keypoints.xy), expected, rtol=0, atol=1e-9)
    assert torch.equal(view.points(points), points)
    by_camera = camera.crop(box[:, 0] + 0.5, box[:, 1] + 0.5).resize(SIZE / side)
    torch.testing.assert_close(view.camera_out.matrix(), by_camera.matrix(), rtol=0, atol=1e-9)


def test_affine_crop_turns_about_its_middle_as_a_picture_does() -> None:
    """With square pixels the turned crop is the unturned one, rotated about its middle by the angle, clockwise."""
    camera, _, keypoints, box = scene()
    camera = Camera(camera.focal[:, :1].repeat(1, 2), camera.princpt)
    angle = torch.linspace(-2.0, 2.0, N, dtype=torch.float64)
    still = affine_crop(camera, box, SIZE, keypoints.image_size).pixels(keypoints.xy) - (SIZE - 1) / 2
    turned = affine_crop(camera, box, SIZE, keypoints.image_size, angle).pixels(keypoints.xy) - (SIZE - 1) / 2
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    expected = torch.stack([cos * still[..., 0] - sin * still[..., 1], sin * still[..., 0] + cos * still[..., 1]], -1)
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-9)


def test_look_at_crop_looks_at_the_middle_and_holds_the_box() -> None:
    view, _, _, box = views("look-at")
    middle = (box[:, None, :2] + box[:, None, 2:]) / 2
    torch.testing.assert_close(view.pixels(middle), torch.full((N, 1, 2), (SIZE - 1) / 2).double(), rtol=0, atol=1e-9)
    corners = torch.stack([box[:, [0, 1]], box[:, [2, 1]], box[:, [2, 3]], box[:, [0, 3]]], 1)
    seen = view.pixels(corners)
    assert (seen > -0.5 - 1e-9).all() and (seen < SIZE - 0.5 + 1e-9).all()
    # Nothing is given away: some corner touches the edge.
    reach = (seen - (SIZE - 1) / 2).abs().amax((1, 2))
    torch.testing.assert_close(reach, torch.full((N,), SIZE / 2).double(), rtol=0, atol=1e-8)


def test_look_at_crop_on_the_axis_is_the_affine_one() -> None:
    camera = Camera(torch.full((1, 2), 600.0).double(), torch.tensor([[320.0, 240.0]]).double())
    box = torch.tensor([[270.0, 190.0, 370.0, 290.0]]).double()
    size = torch.tensor([[640.0, 480.0]])
    one, other = (crop(camera, box, 64, size) for crop in (affine_crop, look_at_crop))
    torch.testing.assert_close(one.camera_out.matrix(), other.camera_out.matrix())
    torch.testing.assert_close(one.frame(), other.frame(), rtol=0, atol=1e-15)


def test_look_at_turns_by_the_smallest_rotation() -> None:
    camera, _, keypoints, box = scene()
    view = look_at_crop(camera, box, SIZE, keypoints.image_size)
    middle = camera.normalise((box[:, None, :2] + box[:, None, 2:]) / 2)[:, 0]
    ray = np.concatenate([middle.numpy(), np.ones((N, 1))], 1)
    angle = np.arccos(ray[:, 2] / np.linalg.norm(ray, axis=1))
    np.testing.assert_allclose(Rotation.from_matrix(view.rotation.numpy()).magnitude(), angle, atol=1e-12)


def hands(seed: int = 1) -> HandParams:
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=(N, k)) * s for k, s in ((3, 1.0), (45, 0.4), (10, 1.0))]
    place = np.concatenate([rng.uniform(-0.1, 0.1, (N, 2)), rng.uniform(0.4, 0.8, (N, 1))], 1)
    return HandParams(*(torch.from_numpy(a) for a in (*parts, place)))


def pose(params: HandParams, is_right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 21, 3) points and (N, 3) rest wrists of the embedded hand, each row by its own side's model."""
    pair = embedded_hand()
    points, rests = [], []
    for hand in (pair.left, pair.right):
        kin = Kinematics.from_hand(hand)
        rest = kin.root_offset(params.betas)
        points.append(kin.points(params.rotation_matrices(), params.betas, rest + params.transl))
        rests.append(rest)
    at, row = is_right.long(), torch.arange(N)
    return torch.stack(points)[at, row], torch.stack(rests)[at, row]


@pytest.mark.parametrize("kind", CROPS)
def test_moved_parameters_pose_the_moved_hand(kind: str) -> None:
    view, _, keypoints, _ = views(kind)
    params, sides = hands(), keypoints.is_right
    points, rest = pose(params, sides)
    there = view.params(params, rest)
    posed, rest_there = pose(there, view.sides(sides))
    torch.testing.assert_close(posed, view.points(points), rtol=0, atol=1e-12)
    torch.testing.assert_close(rest_there, view.wrist_rest(rest), rtol=0, atol=1e-15)
    back = view.inverse().params(there, view.wrist_rest(rest))
    torch.testing.assert_close(back.rotation_matrices(), params.rotation_matrices(), rtol=0, atol=1e-12)
    torch.testing.assert_close(back.transl, params.transl, rtol=0, atol=1e-12)
    assert torch.equal(back.betas, params.betas)


def test_a_pure_flip_is_the_mirrored_hand() -> None:
    """The whole picture mirrored: parameters become `mirrored()`, pixels W - 1 - x, and the camera `mirror()`."""
    camera, points, keypoints, _ = scene()
    camera = Camera(camera.focal[:, :1].repeat(1, 2), camera.princpt)
    width = 600.0
    box = torch.tensor([[-0.5, -0.5, width - 0.5, width - 0.5]]).double().repeat(N, 1)
    flip = torch.ones(N, dtype=torch.bool)
    view = affine_crop(camera, box, int(width), keypoints.image_size, flip=flip)
    mirrored = keypoints.xy * torch.tensor([-1.0, 1.0]) + torch.tensor([width - 1, 0.0])
    torch.testing.assert_close(view.pixels(keypoints.xy), mirrored, rtol=0, atol=1e-9)
    expected = camera.mirror(torch.full((N,), width)).matrix()
    torch.testing.assert_close(view.camera_out.matrix(), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(view.points(points), points * torch.tensor([-1.0, 1, 1]), rtol=0, atol=0)
    params = hands()
    moved = view.params(params, torch.randn(N, 3, dtype=torch.float64))
    assert torch.equal(view.sides(keypoints.is_right), ~keypoints.is_right)
    torch.testing.assert_close(moved.rotation_matrices(), params.mirrored().rotation_matrices(), rtol=0, atol=1e-12)
    torch.testing.assert_close(moved.transl, params.mirrored().transl, rtol=0, atol=1e-15)


@pytest.mark.parametrize("second", CROPS)
def test_two_changes_are_one(second: str) -> None:
    """A crop, then a turned and mirrored crop of the crop."""
    first, points, keypoints, _ = views("look-at")
    inner = torch.tensor([[20.0, 30.0, 180.0, 190.0]]).double().repeat(N, 1)
    angle = torch.linspace(1.0, -1.0, N, dtype=torch.float64)
    flip = torch.arange(N) % 3 == 0
    after = CROPS[second](first.camera_out, inner, 96, first.size_out, angle, flip)
    both = first.then(after)
    torch.testing.assert_close(both.pixels(keypoints.xy), after.pixels(first.pixels(keypoints.xy)), rtol=0, atol=1e-8)
    torch.testing.assert_close(both.points(points), after.points(first.points(points)), rtol=0, atol=1e-12)
    assert torch.equal(both.sides(keypoints.is_right), after.sides(first.sides(keypoints.is_right)))
    torch.testing.assert_close(torch.linalg.det(both.rotation), torch.ones(N).double())
    params = hands()
    _, rest = pose(params, keypoints.is_right)
    step = after.params(first.params(params, rest), first.wrist_rest(rest))
    torch.testing.assert_close(both.params(params, rest).transl, step.transl, rtol=0, atol=1e-12)
    nothing = first.then(first.inverse())
    torch.testing.assert_close(nothing.frame(), torch.eye(3).double().expand(N, 3, 3), rtol=0, atol=1e-14)
    with pytest.raises(InputError, match="starts from other cameras"):
        first.then(first)


def test_keypoints_move_with_side_size_and_confidence() -> None:
    view, _, keypoints, _ = views("look-at")
    seen = view.keypoints(keypoints)
    torch.testing.assert_close(seen.xy, view.pixels(keypoints.xy))
    assert (seen.image_size == SIZE).all() and seen.ids == keypoints.ids
    assert torch.equal(seen.is_right, keypoints.is_right ^ view.flip)
    # A pixel whose ray lies behind the new camera goes missing.
    camera = Camera(torch.full((1, 2), 100.0).double(), torch.zeros(1, 2).double())
    box = torch.tensor([[990.0, -10.0, 1010.0, 10.0]]).double()
    far = look_at_crop(camera, box, 64, torch.full((1, 2), float("nan")))
    one = Keypoints.from_arrays(np.array([[[-2000.0, 0.0]] + [[1000.0, 0.0]] * 20]))
    conf = far.keypoints(one).conf
    assert conf[0, 0] == 0 and (conf[0, 1:] == 1).all() and torch.isfinite(far.keypoints(one).xy).all()


def test_a_row_does_not_depend_on_its_batch() -> None:
    view, points, keypoints, _ = views("look-at")
    for i in (0, 5):
        one = view.select(torch.tensor([i]))
        torch.testing.assert_close(one.pixels(keypoints.xy[i : i + 1]), view.pixels(keypoints.xy)[i : i + 1])
        torch.testing.assert_close(one.points(points[i : i + 1]), view.points(points)[i : i + 1])
    assert len(view.select(view.flip)) == int(view.flip.sum())


def test_move_params_with_an_offset() -> None:
    params = hands()
    points, rest = pose(params, torch.ones(N, dtype=torch.bool))
    rotation = torch.from_numpy(Rotation.random(N, rng=3).as_matrix())
    offset = torch.randn(N, 3, dtype=torch.float64)
    moved, _ = pose(move_params(params, rotation, offset, rest), torch.ones(N, dtype=torch.bool))
    torch.testing.assert_close(moved, points @ rotation.mT + offset[:, None], rtol=0, atol=1e-12)


def test_boxes() -> None:
    box = square_box(torch.tensor([[10.0, 20.0, 30.0, 60.0], [5.0, 5.0, 5.0, 5.0]]), 1.5)
    torch.testing.assert_close(box, torch.tensor([[-10.0, 10.0, 50.0, 70.0], [4.25, 4.25, 5.75, 5.75]]))
    with pytest.raises(InputError, match="margin of 0"):
        square_box(box, 0)


def test_unusable_boxes_are_named() -> None:
    camera, _, keypoints, box = scene()
    for wrong, words in (
        (box[:, [2, 1, 0, 3]], "no extent"),
        (box + torch.tensor([0.0, 0.0, 9.0, 0.0]), "not square"),
        (box[:3], "expected \\(12, 4\\)"),
    ):
        with pytest.raises(InputError, match=words):
            affine_crop(camera, wrong, SIZE, keypoints.image_size)
    huge = torch.tensor([[-1e6, -1e6, 1e6 + 2000, 1e6 + 2000]]).double().repeat(N, 1)
    with pytest.raises(InputError, match="use affine_crop"):
        look_at_crop(camera, huge + torch.tensor([9e5, 0, 9e5, 0]), SIZE, keypoints.image_size)
    with pytest.raises(InputError, match="expected at least 1"):
        look_at_crop(camera, box, 0, keypoints.image_size)


def draw(options: AugmentOptions, seed: int = 0, n: int = 400) -> tuple[ViewChange, torch.Tensor, torch.Tensor]:
    """Many draws for one hand in the middle of its picture."""
    camera = Camera(torch.full((n, 2), 500.0).double(), torch.full((n, 2), 319.5).double())
    box = torch.tensor([[269.5, 269.5, 369.5, 369.5]]).double().repeat(n, 1)
    sides = torch.arange(n) % 4 == 0
    generator = torch.Generator().manual_seed(seed)
    drawn = draw_augmentation(camera, box, SIZE, torch.full((n, 2), 640.0), sides, options, generator)
    return drawn.view, drawn.patch_box, drawn.gain


def test_draws_fill_their_ranges() -> None:
    options = AugmentOptions(crop="affine", rotation_deg=40, scale=0.5, shift=0.1, flip="random", occlusion=0.5)
    view, patches, gain = draw(options)
    turn = Rotation.from_matrix(view.rotation.numpy()).as_rotvec(degrees=True)
    assert np.abs(turn[:, :2]).max() == 0 and 38 < np.abs(turn[:, 2]).max() <= 40 and abs(turn[:, 2].mean()) < 5
    scale = (view.camera_out.focal[:, 0] / 500 * 100 / SIZE).numpy()
    assert 1 / 1.5 <= scale.min() < 0.69 and 1.45 < scale.max() <= 1.5
    middle = view.inverse().pixels(torch.full((len(view), 1, 2), (SIZE - 1) / 2).double())[:, 0] - 319.5
    assert 9.5 < middle.abs().max() <= 10 + 1e-9
    assert 150 < int(view.flip.sum()) < 250
    hidden = torch.isfinite(patches).all((1, 2))
    assert 150 < int(hidden.sum()) < 250 and torch.isnan(patches[~hidden]).all()
    width = (patches[hidden][..., 2] - patches[hidden][..., 0]) / SIZE
    assert 0.1 <= width.min() < 0.11 and 0.39 < width.max() <= 0.4
    assert 0.8 <= gain.min() < 0.81 and 1.19 < gain.max() <= 1.2


def test_draws_come_from_the_generator_alone() -> None:
    options = AugmentOptions(flip="random", occlusion=0.5)
    one, patches, one_gain = draw(options, seed=7)
    same, same_patches, _ = draw(options, seed=7)
    other, _, _ = draw(options, seed=8)
    assert torch.equal(one.rotation, same.rotation) and torch.equal(one.camera_out.focal, same.camera_out.focal)
    assert torch.equal(patches.nan_to_num(), same_patches.nan_to_num())
    assert not torch.equal(one.rotation, other.rotation)
    # Switching one thing off leaves the rest as it was.
    straight, nothing, gain = draw(AugmentOptions(rotation_deg=0, flip="random"), seed=7)
    assert torch.equal(straight.flip, one.flip) and torch.equal(gain, one_gain) and torch.isnan(nothing).all()


def test_zero_ranges_are_the_plain_crop_and_left_hands_can_be_made_right() -> None:
    still = AugmentOptions(crop="look-at", rotation_deg=0, scale=0, shift=0, flip="to-right", colour=0)
    view, patches, gain = draw(still, n=8)
    plain = look_at_crop(view.camera_in, torch.tensor([[269.5, 269.5, 369.5, 369.5]]).repeat(8, 1), SIZE, view.size_in)
    torch.testing.assert_close(view.camera_out.focal, plain.camera_out.focal)
    assert torch.equal(view.sides(torch.arange(8) % 4 == 0), torch.ones(8, dtype=torch.bool))
    assert torch.isnan(patches).all() and (gain == 1).all()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"crop": "square"}, "expected"),
        ({"flip": "always"}, "expected"),
        ({"scale": -0.1}, "must not be negative"),
        ({"patch_size": (0.5, 0.2)}, "patch_size"),
    ],
)
def test_wrong_options(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        AugmentOptions(**wrong)  # type: ignore[arg-type]


def test_the_angle_turns_x_towards_y() -> None:
    camera = Camera(torch.full((1, 2), 100.0).double(), torch.zeros(1, 2).double())
    box = torch.tensor([[-50.0, -50.0, 50.0, 50.0]]).double()
    nan = torch.full((1, 2), float("nan"))
    view = affine_crop(camera, box, 100, nan, torch.tensor([math.pi / 2], dtype=torch.float64))
    there = view.pixels(torch.tensor([[[10.0, 0.0]]]).double())
    torch.testing.assert_close(there, torch.tensor([[[49.5, 59.5]]]).double(), rtol=0, atol=1e-9)
