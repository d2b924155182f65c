"""Keypoints of synthetic hands as detectors give them: random poses, shapes, views, sources and errors; exact labels.

Everything is drawn from one generator, so that a seed names its hands. Coordinates are rays (x/z, y/z): a focal length
would only multiply them, and random focal lengths are random distances here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.core.joints import COCO_WHOLEBODY_SIGMAS
from handloop.core.rotations import so3_exp
from handloop.hand.kinematics import CHAINS, Kinematics
from handloop.hand.model import Hand
from handloop.priors.anatomy import JointLimits, anatomical_angles, rotations_from_angles
from handloop.priors.gaussian import GaussianPosePrior


@dataclass(frozen=True)
class KeypointNoise:
    """Errors of a detector. Lengths are shares of the hand's box; rates are per hand unless said otherwise."""

    jitter: tuple[float, float] = (0.001, 0.03)
    """Range of a hand's typical error, log-uniform: 0.2 to 7 px at a 224-px box. Each point's own error follows
    COCO-WholeBody's annotation noise and grows as its confidence falls."""
    dropout: float = 0.2
    """Hands that lack points."""
    hidden_finger: float = 0.1
    """Hands that lack part of a finger, from some joint to the tip."""
    swap: float = 0.02
    """Hands with two fingers taken for each other."""
    outlier: float = 0.1
    """Hands with gross outliers."""
    outlier_point: float = 0.08
    """Share of such a hand's points that lie anywhere about the box."""


@dataclass(frozen=True)
class SynthOptions:
    """What to draw from."""

    noise: KeypointNoise = KeypointNoise()
    shuffled: float = 0.5
    """Share of hands whose fingers come from different draws: the prior's fingers move together more than hands do."""
    extra_deg: tuple[float, float, float] = (12.0, 9.0, 5.0)
    """Largest standard deviation added to flexion, abduction and twist: a model's own poses are a narrow sample. Each
    hand takes a random share of it."""
    distance_m: tuple[float, float] = (0.25, 2.0)
    """Range of the hand's distance, log-uniform."""
    off_axis: float = 0.4
    """Standard deviation of the bearing x/z, y/z."""
    identity: float = 0.3
    """Share of hands whose source means the model's own points."""
    offset_mm: float = 7.0
    """Largest standard deviation of a source's offsets, per axis; each source takes a random share of this and of the
    following."""
    base_offset_mm: float = 16.0
    """The same for wrist and thumb base, which sources disagree about most."""
    wrist_shift_mm: float = 35.0
    """Sources put the wrist up to this far along the hand."""
    mean_betas_sd: float = 2.0
    """Largest standard deviation of a source's mean betas: they absorb much of what a source means differently."""
    betas_sd: float = 1.0
    """Of a hand's betas about its source's mean."""


@dataclass(frozen=True, eq=False)
class SyntheticKeypoints:
    """B right hands, their keypoints and their exact labels."""

    rays: Tensor
    """(B, 21, 2) x/z, y/z of the keypoints, with their errors; 0 where missing."""
    conf: Tensor
    """(B, 21) 0..1; 0 means missing."""
    rotations: Tensor
    """(B, 16, 3, 3) wrist rotation and relative joint rotations, MANO order."""
    betas: Tensor
    """(B, 10)."""
    root: Tensor
    """(B, 3) wrist joint, m, camera frame."""
    points: Tensor
    """(B, 21, 3) m, camera frame, as the source means them; their projection is what `rays` disturbs."""
    offsets: Tensor
    """(B, 21, 3) m, the source's offsets (see `core.layout.KeypointLayout`)."""
    mean_betas: Tensor
    """(B, 10) the source's mean betas."""

    def __len__(self) -> int:
        return self.betas.shape[0]


@dataclass(frozen=True, eq=False)
class KeypointSynth:
    """Draws hands of one model. Build with `KeypointSynth.of`."""

    kinematics: Kinematics
    prior: GaussianPosePrior
    limits: JointLimits
    options: SynthOptions

    @classmethod
    def of(
        cls, hand: Hand, options: SynthOptions = SynthOptions(), dtype: torch.dtype = torch.float32
    ) -> KeypointSynth:
        """From a right hand (or a left one mirrored)."""
        like = torch.zeros(0, dtype=dtype)
        prior = GaussianPosePrior.from_hand(hand)
        prior = GaussianPosePrior(prior.mean.to(like), prior.precision_factor.to(like))
        return cls(Kinematics.from_hand(hand, dtype), prior, JointLimits.from_hand(hand).to(like), options)

    def poses(self, n: int, g: torch.Generator) -> Tensor:
        """(n, 15, 3, 3) joint rotations inside the limits: the model's own poses, mixed and widened."""
        drawn = self.prior.sample(5 * n, g).reshape(5, n, 15, 3)
        pose = drawn[0]
        apart = _chance(n, self.options.shuffled, g)[:, None, None]
        for other, chain in enumerate(CHAINS[1:], 1):
            index = [joint - 1 for joint in chain]
            pose[:, index] = torch.where(apart, drawn[other][:, index], pose[:, index])
        angles = anatomical_angles(so3_exp(pose), self.limits.axes)
        share = torch.rand(n, 1, 1, generator=g)
        spread = torch.deg2rad(torch.tensor(self.options.extra_deg)).to(angles)
        angles = angles + share * spread * torch.randn(n, 15, 3, generator=g)
        return rotations_from_angles(angles.clamp(self.limits.low, self.limits.high), self.limits.axes)

    def sources(self, n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """(n, 21, 3) offsets in m and (n, 10) mean betas of random sources of keypoints."""
        o, like = self.options, self.kinematics.joints
        sd = torch.full((21, 1), o.offset_mm)
        sd[:2] = o.base_offset_mm
        offsets = sd * torch.randn(n, 21, 3, generator=g)
        along = torch.nn.functional.normalize(like[4] - like[0], dim=0).cpu()
        shift = o.wrist_shift_mm * (2 * torch.rand(n, 1, generator=g) - 1)
        offsets[:, 0] += shift * along
        # A source that lets the hand begin further up does so for the thumb, too.
        offsets[:, 1] += torch.rand(n, 1, generator=g) * shift * along
        size = torch.rand(n, 1, generator=g)
        changed = ~_chance(n, o.identity, g)[:, None]
        offsets = torch.where(changed[..., None], size[..., None] * offsets / 1000, torch.zeros(1))
        betas = torch.where(changed, size * o.mean_betas_sd * torch.randn(n, 10, generator=g), torch.zeros(1))
        return offsets.to(like), betas.to(like)

    def draw(self, n: int, g: torch.Generator) -> SyntheticKeypoints:
        """n hands."""
        o, like = self.options, self.kinematics.joints
        offsets, mean_betas = self.sources(n, g)
        betas = mean_betas + o.betas_sd * torch.randn(n, 10, generator=g).to(like)
        turn = random_rotations(n, g).to(like)
        rotations = torch.cat([turn[:, None], self.poses(n, g)], 1)
        local = self.kinematics.with_offsets(offsets).points(rotations, betas, like.new_zeros(n, 3))
        root = random_places(local, o, g)
        points = local + root[:, None]
        rays, conf = disturbed(points[..., :2] / points[..., 2:], o.noise, g)
        return SyntheticKeypoints(rays, conf, rotations, betas, root, points, offsets, mean_betas)


def random_places(local: Tensor, options: SynthOptions, g: torch.Generator) -> Tensor:
    """(n, 3) m, wrists that put hands with points (n, 21, 3) about their wrists in front of a camera."""
    n = len(local)
    near, far = options.distance_m
    distance = near * (far / near) ** torch.rand(n, 1, generator=g)
    bearing = (options.off_axis * torch.randn(n, 2, generator=g)).clamp(-1, 1)
    ray = torch.nn.functional.normalize(torch.cat([bearing, torch.ones(n, 1)], 1), dim=1)
    middle = (local.amin(1) + local.amax(1)) / 2
    root = (distance * ray).to(local) - middle
    # No point behind the camera or nearly: a finger pointing at it from close by.
    root[:, 2] += (0.05 - (local[..., 2] + root[:, 2:]).amin(1)).clamp(min=0)
    return root


def disturbed(rays: Tensor, noise: KeypointNoise, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Exact (B, 21, 2) rays to a detector's rays and confidences (B, 21)."""
    n = len(rays)
    box = (rays.amax(1) - rays.amin(1)).amax(1)[:, None, None]
    low, high = noise.jitter
    level = low * (high / low) ** torch.rand(n, 1, 1, generator=g)
    typical = torch.tensor(COCO_WHOLEBODY_SIGMAS)
    # Half of the detectors give every point full confidence.
    conf = torch.where(_chance(n, 0.5, g)[:, None], torch.ones(1), 1 - 0.8 * torch.rand(n, 21, generator=g).square())
    sd = level * (typical / typical.mean())[:, None] / conf[..., None]
    out = _swapped(rays, _chance(n, noise.swap, g), g) + box * (sd * torch.randn(n, 21, 2, generator=g)).to(rays)
    wild = _chance(n, noise.outlier, g)[:, None] & (torch.rand(n, 21, generator=g) < noise.outlier_point)
    centre = (rays.amax(1, keepdim=True) + rays.amin(1, keepdim=True)) / 2
    anywhere = centre + 0.6 * box * torch.randn(n, 21, 2, generator=g).to(rays)
    out = torch.where(wild[..., None], anywhere, out)
    missing = torch.rand(n, 21, generator=g) < 0.5 * torch.rand(n, 1, generator=g)
    missing &= _chance(n, noise.dropout, g)[:, None]
    finger = torch.randint(5, (n, 1), generator=g)
    first = 1 + 4 * finger + torch.randint(4, (n, 1), generator=g)
    column = torch.arange(21)
    hidden = (column >= first) & (column <= 4 * finger + 4) & _chance(n, noise.hidden_finger, g)[:, None]
    seen = ~(missing | hidden)
    # Four points at least, as a fit needs.
    seen |= (seen.sum(1) < 4)[:, None]
    return torch.where(seen[..., None], out, torch.zeros_like(out)), torch.where(seen, conf, torch.zeros(1)).to(rays)


def random_rotations(n: int, g: torch.Generator) -> Tensor:
    """(n, 3, 3) rotations, uniform (normalised Gaussian quaternions)."""
    w, x, y, z = torch.nn.functional.normalize(torch.randn(n, 4, generator=g), dim=1).unbind(1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, 1).reshape(n, 3, 3)


def _swapped(rays: Tensor, which: Tensor, g: torch.Generator) -> Tensor:
    """With two neighbouring fingers exchanged where `which` (B,)."""
    n = len(rays)
    first = torch.randint(1, 4, (n, 1), generator=g)  # Index, middle or ring with the next.
    column = torch.arange(21).expand(n, 21)
    finger = (column - 1).div(4, rounding_mode="floor")
    up, down = finger == first, finger == first + 1
    source = column + 4 * up - 4 * down
    source = torch.where(which[:, None] & (column > 0), source, column)
    return torch.gather(rays, 1, source[..., None].expand(n, 21, 2))


def _chance(n: int, rate: float, g: torch.Generator) -> Tensor:
    return torch.rand(n, generator=g) < rate
