"""Seeds, poses, looks, batches."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from handloop.core.errors import InputError
from handloop.core.rotations import so3_exp
from handloop.hand.model import HandPair
from handloop.priors.anatomy import anatomical_angles
from handloop.synth import PictureBatch, PictureOptions, Renderer, Segment, Visibility, render_batch, stream_batches
from handloop.synth.lights import from_srgb, to_srgb
from handloop.synth.noise import Noise
from handloop.synth.picture import Picture, project
from handloop.synth.poses import Thickness
from handloop.synth.skin import FEATURES, Tone


def same(a: Picture, b: Picture) -> bool:
    return (
        bool((a.rgb == b.rgb).all())
        and bool((a.segments == b.segments).all())
        and bool((a.depth == b.depth).all())
        and bool((a.visibility == b.visibility).all())
        and bool((a.truth.vertices == b.truth.vertices).all())
    )


def test_a_picture_depends_on_seed_and_number_only(renderer: Renderer, pictures: list[Picture]) -> None:
    assert same(renderer.render(7), pictures[7])
    assert same(renderer.render(3), pictures[3])
    assert not same(pictures[3], pictures[7])


def test_another_seed_gives_other_pictures(renderer: Renderer, pictures: list[Picture], pair: HandPair) -> None:
    other = Renderer(pair, replace(renderer.options, seed=6, hand="left"))
    picture = other.render(3)
    assert not picture.truth.is_right
    assert np.abs(picture.truth.betas - pictures[3].truth.betas).max() > 0.1


def test_poses_keep_to_the_joint_limits(renderer: Renderer, pictures: list[Picture]) -> None:
    limits = renderer._hands.poses.limits
    turn = np.tile([1.0, -1.0, -1.0], 15)
    poses = np.stack([p.truth.hand_pose * (1 if p.truth.is_right else turn) for p in pictures])
    angles = anatomical_angles(so3_exp(torch.from_numpy(poses).reshape(-1, 15, 3)), limits.axes)
    assert float(limits.excess(angles).abs().max()) < 1e-9
    # They are no copies of one pose, and most are free of overlap.
    assert np.rad2deg(poses.std(0)).max() > 10
    thickness = renderer._hands.thickness
    hands = renderer.pair
    order = [0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3]  # MANO's joints among the canonical points.
    overlaps = [
        thickness.has_overlap(p.truth.keypoints_3d[order], p.truth.vertices[hands.right.tip_ids]) for p in pictures
    ]
    assert np.mean(overlaps) < 0.1


def test_overlap_is_seen(pair: HandPair) -> None:
    thickness = Thickness.of(pair.right)
    joints, tips = pair.right.joints_rest, pair.right.v_template[pair.right.tip_ids]
    assert not thickness.has_overlap(joints, tips)
    moved, moved_tips = joints.copy(), tips.copy()
    moved[[1, 2, 3]], moved_tips[1] = joints[[4, 5, 6]] + 0.004, tips[2] + 0.004  # The index in the middle finger.
    assert thickness.has_overlap(moved, moved_tips)
    assert thickness.radii.min() > 0.004 and thickness.radii.max() < 0.02
    assert 0.008 < thickness.palm < 0.03


def test_hands_are_in_sight(pictures: list[Picture]) -> None:
    for picture in pictures:
        assert picture.mask.sum() > 100
        seen = (picture.visibility >= Visibility.BEHIND_HAND).sum()
        assert seen >= 8
    codes = np.stack([p.visibility for p in pictures])
    assert {int(c) for c in np.unique(codes)} >= {
        Visibility.BEHIND_OCCLUDER,
        Visibility.BEHIND_HAND,
        Visibility.VISIBLE,
    }
    with_objects = np.mean([(p.segments == Segment.OCCLUDER).any() for p in pictures])
    assert 0.1 < with_objects < 0.7


def test_cameras(pictures: list[Picture]) -> None:
    for picture in pictures:
        K, box = picture.truth.K, project(picture.truth.K, picture.truth.vertices)
        assert 0.98 * 1.1 * 96 <= K[0, 0] <= 1.02 * 4.5 * 96 and 0.97 < K[0, 0] / K[1, 1] < 1.03
        assert (np.abs(K[:2, 2] - 47.5) <= 9.6).all()
        side = (box.max(0) - box.min(0)).max() / 96
        assert 0.25 < side < 1.3  # 0.45 to 0.9 but for perspective, and less where the hand would come too near.
        assert (np.abs((box.max(0) + box.min(0)) / 2 - 47.5) < 40).all()


def test_hands_differ_from_what_is_behind_them(pictures: list[Picture]) -> None:
    """Skin is never greener than red nor blue, and has shades."""
    for picture in pictures:
        skin = picture.rgb[picture.mask].astype(float)
        assert skin[:, 0].mean() > skin[:, 2].mean() - 12
        assert skin.std(0).max() > 4
        assert 8 < skin.mean() < 245


def test_tones_run_from_dark_to_light() -> None:
    generator = np.random.default_rng(0)
    tones = [Tone.draw(generator) for _ in range(300)]
    back = np.exp(np.stack([tone.base for tone in tones]))
    luminance = back @ [0.2126, 0.7152, 0.0722]
    # L* of 25 and 75 are luminances of 0.044 and 0.48.
    assert luminance.min() < 0.08 and luminance.max() > 0.42
    assert (back[:, 0] > back[:, 1]).all() and (back[:, 1] >= back[:, 2]).mean() > 0.98
    palm = np.exp(np.stack([tone.base + tone.gains[FEATURES.index("palm")] for tone in tones])) @ [0.21, 0.72, 0.07]
    assert palm.std() < 0.7 * luminance.std()
    dark = luminance < 0.15
    assert (palm[dark] > luminance[dark]).all()


def test_display_values_are_srgb() -> None:
    values = np.linspace(0, 0.8, 30)
    np.testing.assert_allclose(from_srgb(to_srgb(values)), values, atol=1e-6)
    assert to_srgb(np.array(0.2140)) == pytest.approx(0.5, abs=1e-3)  # IEC 61966-2-1.
    assert to_srgb(np.array(9.0)) <= 1 and (np.diff(to_srgb(np.linspace(0, 3, 100))) > 0).all()


def test_noise_is_smooth_and_repeats() -> None:
    noise = Noise(np.random.default_rng(1))
    points = np.random.default_rng(2).uniform(-1, 1, (500, 3))
    values = noise.at(points, 0.1)
    np.testing.assert_allclose(noise.at(points + [3.2, 0, -3.2], 0.1), values, atol=1e-4)
    assert np.abs(noise.at(points + 1e-5, 0.1) - values).max() < 2e-3
    assert 0.2 < values.std() < 0.5 and abs(values.mean()) < 0.1


def test_skin_moves_with_the_hand(renderer: Renderer) -> None:
    """Features belong to places on the mesh: nails on the back of the fingertips, creases on the palm's side."""
    skin, hand = renderer._skins[True], renderer.pair.right
    centre = np.full(len(hand.faces), 1 / 3, np.float32)
    features = skin.at(np.arange(len(hand.faces)), centre, centre)
    middles = hand.v_template[hand.faces].mean(1)
    nail = features[:, FEATURES.index("nail")] > 0.5
    to_tip = np.linalg.norm(middles[:, None] - hand.v_template[hand.tip_ids], axis=2)
    assert to_tip[nail].min(1).max() < 0.02
    assert all((to_tip[nail].argmin(1) == finger).any() for finger in range(5))
    palm = features[:, FEATURES.index("palm")]
    assert palm[nail].max() < 0.5 and palm.max() > 0.9 and palm.min() < 0.1


def test_batches(renderer: Renderer, pictures: list[Picture]) -> None:
    batch = render_batch(renderer, [4, 2])
    assert isinstance(batch, PictureBatch) and len(batch) == 2
    assert batch.rgb.shape == (2, 96, 96, 3) and batch.rgb.dtype == torch.uint8
    np.testing.assert_array_equal(batch.rgb[1].numpy(), pictures[2].rgb)
    torch.testing.assert_close(batch.camera.project(batch.keypoints_3d), batch.keypoints_2d)
    assert batch.is_right.tolist() == [pictures[4].truth.is_right, pictures[2].truth.is_right]
    assert len(batch.params) == 2
    streamed = list(islice(stream_batches(renderer, 2, first=1, step=3), 2))
    assert [b.index.tolist() for b in streamed] == [[1, 4], [7, 10]]
    np.testing.assert_array_equal(streamed[1].depth[0].numpy(), pictures[7].depth)
    with pytest.raises(InputError, match="at least one index"):
        render_batch(renderer, [])


def test_backgrounds_of_a_folder(tmp_path: Path, renderer: Renderer, pair: HandPair) -> None:
    (tmp_path / "deep").mkdir()
    Image.new("RGB", (300, 200), (10, 250, 30)).save(tmp_path / "deep" / "green.png")
    options = PictureOptions(size=64, hand="right", backgrounds=tmp_path)
    own = Renderer(pair, options)
    greens = 0
    for index in range(8):
        picture = own.render(index)
        behind = picture.rgb[picture.segments == Segment.BACKGROUND].astype(int)
        greens += bool((behind[:, 1] > behind[:, 0] + 100).mean() > 0.9)  # Outlines are mixed.
    assert greens >= 4
    (tmp_path / "deep" / "green.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"green\.png cannot be read; repair or remove it"):
        for index in range(8):
            own.render(index)


def test_options_that_cannot_be() -> None:
    with pytest.raises(InputError, match="pictures of 8 px were asked for, expected 16 to 2048"):
        PictureOptions(size=8)
    with pytest.raises(InputError, match="the seed is -1"):
        PictureOptions(seed=-1)
    with pytest.raises(InputError, match="expected 0 to 1"):
        PictureOptions(occluders=1.5)
    with pytest.raises(InputError, match="'up', expected one of both, right, left"):
        PictureOptions(hand="up")  # type: ignore[arg-type]


def test_backgrounds_that_are_not_there(tmp_path: Path, pair: HandPair) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        Renderer(pair, PictureOptions(backgrounds=tmp_path / "none", hand="right"))
    with pytest.raises(InputError, match="holds no picture"):
        Renderer(pair, PictureOptions(backgrounds=tmp_path, hand="right"))
