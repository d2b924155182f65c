"""Labels from fits, views from elsewhere, the order of the hands, configurations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from handloop.core.errors import FileFormatError, InputError
from handloop.core.layout import KeypointLayout
from handloop.core.rotations import so3_exp
from handloop.hand.kinematics import Kinematics
from handloop.hand.load import embedded_hand
from handloop.loop.batches import joined, seen_from_elsewhere, source_level, with_fits, without_labels
from handloop.loop.cache import FitCache
from handloop.loop.cached_fits import CachedFits
from handloop.loop.config import PRESETS, LoopConfig, TrustOptions, ViewOptions, config_json, read_config
from handloop.loop.hand_data import HandData
from handloop.loop.memory import FitMemory
from handloop.loop.supervise import LossWeights, Supervision, losses
from handloop.losses.biomechanical import BiomechanicalWeights
from handloop.priors.anatomy import anatomical_angles, rotations_from_angles
from handloop.priors.gaussian import GaussianPosePrior
from handloop.regressors.network import Lifted
from handloop.synth.keypoints import KeypointNoise, KeypointSynth, SynthOptions

from .loop_hands import drawn, seen

HERE = KeypointLayout.identity()
KINEMATICS = Kinematics.from_hand(embedded_hand().right, torch.float32)
QUIET = SynthOptions(noise=KeypointNoise((1e-9, 1e-9), dropout=0, hidden_finger=0, swap=0, outlier=0))
SYNTH = KeypointSynth.of(embedded_hand().right, QUIET)


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> tuple[HandData, CachedFits]:
    """12 hands, right and left, exactly seen, and their fits."""
    keypoints, camera, _ = seen(drawn(12), 0.0)
    data = HandData.of(keypoints, camera, held_out=0.0)
    with FitCache.open(tmp_path_factory.mktemp("fits")) as cache:
        memory = FitMemory(cache, embedded_hand(), HERE, None)
        memory.adopt(0)
        memory.fill(keypoints, camera, None, 1, 0, "search", seeds=4)
        return data, cache.get(keypoints.ids)


def labels(some: tuple[HandData, CachedFits], fits: CachedFits, trust: TrustOptions | None = None) -> Supervision:
    return with_fits(some[0], torch.arange(12), fits, KINEMATICS, HERE, trust or TrustOptions())


def test_labels_are_the_fits_in_the_canonical_frame(some: tuple[HandData, CachedFits]) -> None:
    data, fits = some
    true = labels(some, fits)
    sign = torch.where(fits.is_right, 1.0, -1.0)[:, None, None]
    expected = torch.cat([fits.keypoints_3d[..., :1] * sign, fits.keypoints_3d[..., 1:]], -1).float()
    torch.testing.assert_close(true.hands.points, expected, rtol=0, atol=2e-6)
    used = true.params_weight > 0
    assert int(used.sum()) >= 8 and bool((~fits.is_right[used]).any())
    projected = true.hands.points[..., :2] / true.hands.points[..., 2:]
    assert float((projected - data.rays).abs()[used].mean()) < 2e-3
    # Surer fits count more.
    error = fits.expected_error_mm.float()
    torch.testing.assert_close(true.params_weight[used], (1 / (1 + (error / 12).square()))[used])
    # One that misses its keypoints by twice their noise is half as sure as it claims.
    terms = {"reprojection": torch.full((12,), 4 * 21.0).double()}
    missing = labels(some, replace(fits, energy_terms=terms))
    torch.testing.assert_close(missing.params_weight[used], (1 / (1 + (2 * error / 12).square()))[used])
    assert bool((true.depth_weight[used] < true.params_weight[used]).all())


def test_failed_fits_leave_the_keypoints_alone(some: tuple[HandData, CachedFits]) -> None:
    """SPIN's rules: with too much energy, or without a fit, only keypoints count; a strange shape becomes usual."""
    _, fits = some
    energy, found = fits.energy.clone(), fits.found.clone()
    energy[0], found[1] = 1e4, False
    betas = fits.params.betas.clone()
    betas[2, 3] = 5.0
    spoiled = replace(fits, energy=energy, found=found, params=replace(fits.params, betas=betas))
    nan = spoiled.params.hand_pose.clone()
    nan[1] = float("nan")
    spoiled = replace(spoiled, params=replace(spoiled.params, hand_pose=nan))
    true = labels(some, spoiled)
    assert true.params_weight[:3].tolist()[:2] == [0.0, 0.0] and float(true.params_weight[2]) > 0
    assert float(true.hands.betas[2].abs().max()) == 0.0
    out = Lifted(
        true.hands.rotations.clone().requires_grad_(),
        (true.hands.betas + 0.5).requires_grad_(),
        (true.hands.root + torch.tensor([0.01, 0.0, 0.1])).requires_grad_(),
        torch.zeros(12, 28),
    )
    parts = losses(out, KINEMATICS.points(out.rotations, out.betas, out.root), true, LossWeights())
    for name, value in vars(parts).items():
        assert bool((value[:2] == 0).all()) == (name != "reprojection"), name
        assert bool((value[3:][true.params_weight[3:] > 0] >= 0).all())
    parts.total().sum().backward()
    assert all(bool(torch.isfinite(t.grad).all()) for t in (out.rotations, out.betas, out.root) if t.grad is not None)


def test_known_joints_take_the_fits_place(some: tuple[HandData, CachedFits]) -> None:
    data, fits = some
    _, _, joints = seen(drawn(12), 0.0)
    joints[0, 4] = float("nan")
    given = HandData.of(data.keypoints, data.camera, joints, 0.0)
    far = replace(fits, energy=fits.energy + 1e4)
    true = with_fits(given, torch.arange(12), far, KINEMATICS, HERE, TrustOptions())
    torch.testing.assert_close(true.hands.points[1], drawn(12).points[1], rtol=0, atol=1e-6)
    assert true.points_weight[0].tolist() == [float(i != 4) for i in range(21)]
    assert bool((true.points_weight[1:] == 1).all()) and bool((true.params_weight == 0).all())


def test_views_from_elsewhere_are_exact(some: tuple[HandData, CachedFits]) -> None:
    _, fits = some
    true = labels(some, fits)
    g = torch.Generator().manual_seed(0)
    views = seen_from_elsewhere(true, SYNTH, SYNTH.prior, 40, ViewOptions(redrawn=0.0, reshaped=0.0, own_errors=0.0), g)
    assert views is not None and len(views) == 40 and bool(views.exact.all())
    hands = views.hands
    points = KINEMATICS.points(hands.rotations, hands.betas, hands.root)
    torch.testing.assert_close(points, hands.points, rtol=0, atol=1e-5)
    torch.testing.assert_close(hands.rays, points[..., :2] / points[..., 2:], rtol=0, atol=1e-4)
    # Fingers are those of trusted fits, and the turns are proper rotations.
    known = true.hands.rotations[true.params_weight > 0][:, 1:]
    for fingers in hands.rotations[:, 1:]:
        assert float((known - fingers).abs().amax((1, 2, 3)).min()) < 1e-6
    assert float((torch.linalg.det(hands.rotations[:, 0]) - 1).abs().max()) < 1e-4
    nobody = replace(true, params_weight=torch.zeros(12))
    assert seen_from_elsewhere(nobody, SYNTH, SYNTH.prior, 40, ViewOptions(), g) is None


def test_views_show_poses_of_the_prior_as_well(some: tuple[HandData, CachedFits]) -> None:
    """Drawn from a narrow prior about another pose, they lie about that pose, and are labelled so."""
    true = labels(some, some[1])
    pose = torch.deg2rad(torch.tensor(20.0)) * torch.tensor([0.0, 0.0, 1.0]).repeat(15).double()
    narrow = GaussianPosePrior(pose, 200 * torch.eye(45).double())
    g = torch.Generator().manual_seed(0)
    views = seen_from_elsewhere(true, SYNTH, narrow, 60, ViewOptions(redrawn=1.0, own_errors=0.0), g)
    assert views is not None
    fingers = views.hands.rotations[:, 1:]
    # The limits may move an angle, the same for all.
    assert float((fingers - fingers.mean(0)).abs().mean()) < 0.01
    angles = anatomical_angles(so3_exp(pose.reshape(1, 15, 3).float()), SYNTH.limits.axes)
    inside = rotations_from_angles(angles.clamp(SYNTH.limits.low, SYNTH.limits.high), SYNTH.limits.axes)
    assert float((fingers.mean(0) - inside[0]).abs().max()) < 0.02
    points = KINEMATICS.points(views.hands.rotations, views.hands.betas, views.hands.root)
    torch.testing.assert_close(views.hands.rays, points[..., :2] / points[..., 2:], rtol=0, atol=1e-4)


def test_views_show_other_shapes_with_the_fits_fingers(some: tuple[HandData, CachedFits]) -> None:
    true = labels(some, some[1])
    g = torch.Generator().manual_seed(0)
    views = seen_from_elsewhere(true, SYNTH, SYNTH.prior, 200, ViewOptions(redrawn=0.0, reshaped=1.0), g)
    assert views is not None
    known = true.hands.rotations[true.params_weight > 0][:, 1:]
    for fingers in views.hands.rotations[:, 1:]:
        assert float((known - fingers).abs().amax((1, 2, 3)).min()) < 1e-6
    assert float(views.hands.betas.std()) == pytest.approx(SYNTH.options.betas_sd, rel=0.1)


def test_views_err_as_their_source_does(some: tuple[HandData, CachedFits]) -> None:
    """By as much as the fits miss the keypoints; what the source does not show is missing."""
    true = labels(some, some[1])
    rays = true.hands.rays
    box = (rays.amax(1) - rays.amin(1)).amax(1)[:, None, None]
    noise = 0.01 * box * torch.randn(rays.shape, generator=torch.Generator().manual_seed(1))
    points = true.hands.points
    rays = points[..., :2] / points[..., 2:] + noise
    conf = true.hands.conf.clone()
    conf[:, 7] = 0.0
    noisy = replace(true, hands=replace(true.hands, rays=torch.where(conf[..., None] > 0, rays, 0 * rays), conf=conf))
    assert source_level(noisy) == pytest.approx(0.01, rel=0.2)
    g = torch.Generator().manual_seed(0)
    views = seen_from_elsewhere(noisy, SYNTH, SYNTH.prior, 400, ViewOptions(own_errors=1.0), g)
    assert views is not None
    hands = views.hands
    assert (
        bool((hands.conf[:, 7] == 0).all()) and bool((hands.rays[:, 7] == 0).all()) and int(hands.conf[0].sum()) == 20
    )
    exact = hands.points[..., :2] / hands.points[..., 2:]
    size = (exact.amax(1) - exact.amin(1)).amax(1)[:, None, None]
    missed = ((hands.rays - exact) / size)[hands.conf > 0]
    typical = float(missed.abs().median()) / 0.6745
    assert 0.005 < typical < 0.03


def test_hands_without_labels_cost_their_reprojection_only(some: tuple[HandData, CachedFits]) -> None:
    bare = without_labels(some[0], torch.arange(12), HERE)
    assert float(bare.params_weight.sum() + bare.points_weight.sum() + bare.depth_weight.sum()) == 0
    assert len(joined([bare, bare])) == 24


def test_every_hand_comes_once_per_epoch_in_an_order_of_the_step_alone() -> None:
    keypoints, camera, _ = seen(drawn(50))
    data = HandData.of(keypoints, camera, held_out=0.2)
    assert len(data.held_out) == 10 and not set(data.held_out.tolist()) & set(data.train.tolist())
    rows = torch.cat([data.rows(step, 16, 7) for step in range(1, 6)])
    assert sorted(rows[:40].tolist()) == sorted(rows[40:].tolist()) == data.train.tolist()
    assert rows[:40].tolist() != rows[40:].tolist() != data.train.tolist()
    assert data.rows(3, 16, 7).tolist() == rows[32:48].tolist()
    assert data.rows(1, 16, 8).tolist() != rows[:16].tolist()
    assert len(data.rows(1, 100, 7)) == 100 and data.epoch(5, 16) == 2
    with pytest.raises(InputError, match="a camera each"):
        HandData.of(keypoints, camera.select(torch.arange(3)))


def test_configurations_from_files(tmp_path: Path) -> None:
    toml = tmp_path / "a.toml"
    toml.write_text('mode = "static"\nlearning_rate = 1\n[prior]\nevery = 7\n[synth.noise]\njitter = [0.1, 0.2]\n')
    config = read_config(toml)
    assert config.mode == "static" and config.prior.every == 7 and config.synth.noise.jitter == (0.1, 0.2)
    assert config.learning_rate == 1.0 and config.batch == LoopConfig().batch
    file = tmp_path / "b.json"
    odd = replace(config, biomechanics=BiomechanicalWeights(palm=2.0))
    file.write_text(config_json(odd))
    assert read_config(file) == odd
    file.write_text(json.dumps({"preset": "lifter-synthetic", "steps": 3}))
    assert read_config(file) == replace(PRESETS["lifter-synthetic"], steps=3)
    for text, error, message in (
        ('{"stepz": 1}', InputError, "'stepz' is no setting"),
        ('{"fit": {"stepz": 1}}', InputError, "fit: 'stepz' is no setting"),
        ('{"steps": "many"}', FileFormatError, "steps is 'many'"),
        ('{"steps": 1.5}', FileFormatError, "steps is 1.5"),
        ('{"preset": "x"}', InputError, "preset 'x' is unknown"),
        ("[1]", FileFormatError, "an object"),
        ("{", FileFormatError, "not JSON"),
        ('{"mode": "on"}', InputError, "expected in_loop, static or off"),
        ('{"batch": 0, "synthetic": 0}', InputError, "at least 1 step of 1 hand"),
    ):
        file.write_text(text)
        with pytest.raises(error, match=message):
            read_config(file)
    with pytest.raises(InputError, match="nor a preset"):
        read_config("lifter")
