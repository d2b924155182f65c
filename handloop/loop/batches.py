"""What a step learns from: hands with their fits as labels, the fits seen from elsewhere, synthetic hands."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.layout import KeypointLayout
from handloop.core.params import HandParams
from handloop.core.proposal import Proposal
from handloop.core.rotations import so3_exp
from handloop.hand.kinematics import Kinematics
from handloop.loop.cached_fits import CachedFits
from handloop.loop.config import TrustOptions, ViewOptions
from handloop.loop.hand_data import HandData
from handloop.loop.supervise import Supervision
from handloop.priors.anatomy import anatomical_angles, rotations_from_angles
from handloop.priors.mixture import PosePriorModel
from handloop.regressors.network import Lifted
from handloop.synth.keypoints import (
    KeypointNoise,
    KeypointSynth,
    SyntheticKeypoints,
    disturbed,
    random_places,
    random_rotations,
)

_OWN_NOISE = KeypointNoise(dropout=0.0, hidden_finger=0.0, swap=0.01, outlier=0.02)
"""Errors of keypoints like those of the source itself; their level and what is missing follow from the data."""
_LEVELS = (0.001, 0.03)
"""Between which the source's level is believed."""


def proposal_of(out: Lifted, kinematics: Kinematics, is_right: Tensor, camera: Camera) -> Proposal:
    """A network's hands, right-hand canonical, as the start of a fit of each hand's own side.

    Args:
        out: B hands.
        kinematics: of the right hand.
        is_right: (B,) bool.
        camera: B cameras.
    """
    rotations, betas, root = (t.detach().double().cpu() for t in (out.rotations, out.betas, out.root))
    transl = root - kinematics.root_offset(betas.to(kinematics.joints)).double().cpu()
    params = HandParams.from_rotation_matrices(rotations, betas, transl).as_right(is_right)
    return Proposal.without_opinion(params, is_right, camera)


def without_labels(data: HandData, rows: Tensor, layout: KeypointLayout) -> Supervision:
    """Hands of which the keypoints are known, and 3D points where there are some."""
    n = len(rows)
    rays, conf = data.rays[rows], data.conf[rows]
    turn = torch.eye(3).expand(n, 16, 3, 3)
    offsets, mean_betas = _source(layout, n)
    points = torch.zeros(n, 21, 3)
    points[..., 2] = 1.0
    weight = torch.zeros(n, 21)
    root = points[:, 0]
    if data.points_3d is not None:
        known = data.points_3d[rows].float()
        sign = torch.where(data.keypoints.is_right[rows], 1.0, -1.0)[:, None, None]
        given = torch.cat([known[..., :1] * sign, known[..., 1:3]], -1)
        points = torch.where(known[..., 3:] > 0, given, points)
        weight = known[..., 3]
    hands = SyntheticKeypoints(rays, conf, turn, mean_betas, root, points, offsets, mean_betas)
    none = torch.zeros(n)
    return Supervision(hands, weight, none, none, rays, conf, none > 0)


def with_fits(
    data: HandData, rows: Tensor, fits: CachedFits, kinematics: Kinematics, layout: KeypointLayout, trust: TrustOptions
) -> Supervision:
    """Hands with their fits as labels, each for as much as it can be trusted.

    SPIN's handling of failures: a fit of too much energy is no label, and a shape far out is replaced by the mean. A 3D
    point that is known takes the fitted one's place.

    Args:
        data, rows: the hands.
        fits: their fits; rows without one are no labels.
        kinematics: of the right hand, with the layout's offsets, float32.
        layout: what the keypoints' source means by its points.
        trust: what counts how much.
    """
    bare = without_labels(data, rows, layout)
    mean_betas = bare.hands.mean_betas
    params = fits.params.as_right(fits.is_right)
    betas = params.betas.float()
    outlier = (betas - mean_betas).abs().amax(1) > trust.max_beta
    good = fits.found & (fits.energy <= trust.max_energy) & (fits.plausible | outlier)
    good &= torch.isfinite(params.global_orient).all(1) & torch.isfinite(betas).all(1)

    def filled(value: Tensor, otherwise: Tensor) -> Tensor:
        return torch.where(good.reshape(-1, *(1,) * (value.ndim - 1)), value.float(), otherwise)

    rotations = filled(params.rotation_matrices(), bare.hands.rotations)
    betas = torch.where(outlier[:, None], mean_betas, filled(betas, mean_betas))
    fitted_betas = filled(params.betas, mean_betas)
    wrist = params.transl.float() + kinematics.root_offset(fitted_betas)
    root = filled(wrist, bare.hands.root)
    # The points are those that met the picture, with the shape they were fitted with.
    points = filled(kinematics.points(rotations, fitted_betas, root), bare.hands.points)
    known = bare.points_weight > 0
    points = torch.where(known[..., None], bare.hands.points, points)
    expected = (fits.expected_error_mm.float() * misfit(fits)).nan_to_num(1e3)
    params_weight = torch.where(good, 1 / (1 + (expected / trust.error_mm).square()), torch.zeros(1))
    relative = (fits.depth_sd.float() * misfit(fits) / root[:, 2].clamp(min=0.05)).nan_to_num(1e3)
    depth_weight = params_weight / (1 + (relative / trust.relative_depth).square())
    hands = SyntheticKeypoints(
        bare.hands.rays, bare.hands.conf, rotations, betas, root, points, bare.hands.offsets, mean_betas
    )
    points_weight = torch.where(known, bare.points_weight, params_weight[:, None].expand(-1, 21))
    return Supervision(hands, points_weight, params_weight, depth_weight, bare.seen, bare.seen_weight, bare.exact)


def misfit(fits: CachedFits) -> Tensor:
    """(B,) at least 1: how much wider a fit's posterior is than it claims, because keypoints are missed by more than
    their noise. Two fingers taken for each other often leave a hand that is possible, and badly met.

    The square is the energy of the reprojection over what noise alone costs, 1/2 for each coordinate.
    """
    energy = fits.energy_terms.get("reprojection", torch.zeros(len(fits), dtype=torch.float64))
    there = (fits.keypoints_2d[..., 2] > 0).sum(1).clamp(min=1)
    return (energy / there).clamp(min=1).sqrt().float()


def seen_from_elsewhere(
    labelled: Supervision,
    synth: KeypointSynth,
    prior: PosePriorModel,
    n: int,
    options: ViewOptions,
    g: torch.Generator,
) -> Supervision | None:
    """n views of fitted hands with fresh errors of their keypoints; None where no fit is a label.

    A hand that is trusted more is seen more often. The labels are exact whatever the fit's error: they are what was
    projected.

    Args:
        labelled: fitted hands.
        synth: its kinematics, limits, places and errors.
        prior: a share of the views shows poses drawn from it.
        n: how many.
        options: which views.
        g: source of all randomness.
    """
    odds = labelled.params_weight
    if n == 0 or not bool((odds > 0).any()):
        return None
    level = source_level(labelled)
    at = torch.multinomial(odds, n, replacement=True, generator=g)
    hands = labelled.hands
    near = torch.rand(n, generator=g) < options.near
    small = so3_exp(torch.deg2rad(torch.tensor(options.near_deg)) * torch.randn(n, 3, generator=g))
    turn = torch.where(near[:, None, None], small, random_rotations(n, g))
    rotations = hands.rotations[at]
    fingers, betas, offsets = rotations[:, 1:], hands.betas[at], hands.offsets[at]
    other = torch.rand(n, generator=g) < options.redrawn
    pose = prior.sample(n, g).float().reshape(n, 15, 3)
    angles = anatomical_angles(so3_exp(pose), synth.limits.axes).clamp(synth.limits.low, synth.limits.high)
    drawn = rotations_from_angles(angles, synth.limits.axes)
    fingers = torch.where(other[:, None, None, None], drawn, fingers)
    shape = hands.mean_betas[at] + synth.options.betas_sd * torch.randn(n, 10, generator=g)
    betas = torch.where((torch.rand(n, generator=g) < options.reshaped)[:, None], shape, betas)
    rotations = torch.cat([(turn @ rotations[:, 0])[:, None], fingers], 1)
    local = synth.kinematics.with_offsets(offsets).points(rotations, betas, torch.zeros(n, 3))
    root = random_places(local, synth.options, g)
    points = local + root[:, None]
    exact = points[..., :2] / points[..., 2:]
    rays, conf = disturbed(exact, synth.options.noise, g)
    own = (torch.rand(n, generator=g) < options.own_errors)[:, None]
    theirs, there = hands.conf[at], hands.conf[at] > 0
    like_source, _ = disturbed(exact, replace(_OWN_NOISE, jitter=(0.7 * level, 2 * level)), g)
    rays = torch.where(own[..., None], torch.where(there[..., None], like_source, torch.zeros_like(rays)), rays)
    conf = torch.where(own, theirs, conf)
    seen = SyntheticKeypoints(rays, conf, rotations, betas, root, points, offsets, hands.mean_betas[at])
    return Supervision.of_exact(seen)


def source_level(labelled: Supervision) -> float:
    """Typical error of the source's keypoints, a share of the hand's box: what the fits do not meet, of the median hand
    that counts."""
    rows = labelled.params_weight > 0
    hands = labelled.hands
    rays, there = hands.rays[rows], (hands.conf[rows] > 0)[..., None]
    missed = (hands.points[rows, :, :2] / hands.points[rows, :, 2:] - rays).square() * there
    high = torch.where(there, rays, torch.full_like(rays, -1e9)).amax(1)
    box = (high - torch.where(there, rays, torch.full_like(rays, 1e9)).amin(1)).amax(1)
    share = (missed.sum((1, 2)) / (2 * there.sum((1, 2)))).sqrt() / box
    return float(share.nanmedian().clamp(*_LEVELS))


def joined(parts: list[Supervision]) -> Supervision:
    """Several sets behind each other; at least one."""
    hands = SyntheticKeypoints(
        *(torch.cat([getattr(part.hands, f.name) for part in parts]) for f in fields(SyntheticKeypoints))
    )
    rest = [f.name for f in fields(Supervision) if f.name != "hands"]
    return Supervision(hands, *(torch.cat([getattr(part, name) for part in parts]) for name in rest))


def _source(layout: KeypointLayout, n: int) -> tuple[Tensor, Tensor]:
    return layout.offsets.float().expand(n, 21, 3), layout.mean_betas.float().expand(n, 10)
