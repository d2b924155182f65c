"""`BiomechanicalLimits`: what bone lengths, palm structure and joint angles a hand can have, learned from hands.

Spurr et al. (ECCV 2020) take the extremes of a data set. Here a share of the hands is cut off on every side, because
one mislabelled hand would otherwise set the limit.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from handloop.core.errors import FileFormatError, InputError, check_shape
from handloop.core.results import write_text
from handloop.core.rotations import so3_exp
from handloop.hand.kinematics import CHAINS, Kinematics
from handloop.hand.load import mirror_hand
from handloop.hand.model import Hand
from handloop.priors.anatomy import JointLimits, rotations_from_angles
from handloop.priors.angle_hulls import AngleHulls, support_polygon
from handloop.priors.biomechanics import (
    ANGLE_NAMES,
    BONE_NAMES,
    PALM_NAMES,
    REFERENCE_BONE,
    Skeleton,
    bone_lengths,
    joint_angles,
    palm_structure,
)

FORMAT, VERSION = "handloop biomechanical limits", 1

MIN_HANDS = 60
"""Fewer hands say little about the ends of a range (as many as a Gaussian pose prior needs)."""

TRIM = 0.005
"""Share of the hands cut off on each side: the joint limits of `priors.anatomy` keep the same central 99 %."""

_MAX_TRIM = 0.2
# Shapes drawn where a model carries no poses of its own.
_N_SHAPES = 1000
# Flexion at which a finger's base joint can no longer be moved aside, degrees, falling linearly (KNOWN-Hand's rule).
_NO_ABDUCTION_DEG = 70.0


@dataclass(frozen=True, eq=False)
class Interval:
    """Ranges of n quantities."""

    low: Tensor
    """(n,)."""
    high: Tensor
    """(n,)."""

    def excess(self, value: Tensor) -> Tensor:
        """(..., n) signed distance outside the range; 0 inside."""
        low, high = self.low.to(value), self.high.to(value)
        return (value - high).clamp(min=0) - (low - value).clamp(min=0)


@dataclass(frozen=True, eq=False)
class BiomechanicalLimits:
    """Ranges of the quantities of `handloop.priors.biomechanics`, in the right-hand frame."""

    bones: Interval
    """20 lengths in units of the reference bone (or m), order of `core.joints.BONES`."""
    curvature: Interval
    """4, per unit of the reference bone (or per m), thumb side first."""
    spread: Interval
    """4 angular distances of neighbouring root bones, rad."""
    hulls: AngleHulls
    """15 polygons of (flexion, abduction), rad, at `biomechanics.ANGLE_POINTS`."""
    reference: int | None = REFERENCE_BONE
    """The bone that lengths are divided by; None for limits in metres."""
    n_hands: int = 0
    """How many hands they were learned from."""
    trim: float = TRIM
    """Share of them cut off on each side."""

    @classmethod
    def from_joints(
        cls,
        joints: Tensor | np.ndarray,
        is_right: Tensor | np.ndarray | bool,
        trim: float = TRIM,
        reference: int | None = REFERENCE_BONE,
    ) -> BiomechanicalLimits:
        """Learn limits from labelled hands.

        Hands with a point that is not finite, or with points on top of each other, are left out.

        Args:
            joints: (N, 21, 3), canonical order, of one length unit; m if `reference` is None.
            is_right: (N,) bool, or one for all.
            trim: share of the hands cut off on each side of every range, 0 to 0.2.
            reference: bone that lengths are divided by; None keeps metres, which bind the size of hands as well.

        Raises:
            InputError: another shape, fewer than 60 usable hands, lengths that are no hand's in metres.
        """
        return _learn(_measure(joints, is_right, reference), trim, reference, None)

    @classmethod
    def from_hand(cls, hand: Hand, trim: float = TRIM, generator: torch.Generator | None = None) -> BiomechanicalLimits:
        """The ranges of a hand model: its own poses, each with a shape drawn about the mean, widened to anatomy's.

        The anatomical ranges of flexion and abduction (`priors.anatomy.JointLimits`) have their zero at the model's
        rest pose, those of BMC at a straight finger; so the hand is posed at the ends of the former and measured.

        Args:
            hand: either side; a left hand is mirrored.
            trim: as in `from_joints`; cuts off nothing of the anatomical ranges.
            generator: for the shapes; None draws the same ones each time.
        """
        hand = hand if hand.is_right else mirror_hand(hand)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        own = hand.poses() if len(hand.hands_coeffs) else np.zeros((_N_SHAPES, 45))
        betas = torch.randn(len(own), 10, dtype=torch.float64, generator=generator)
        posed = _pose(hand, so3_exp(torch.tensor(own).reshape(-1, 15, 3)), betas)
        ends = _anatomical_ends(hand)
        bent = Skeleton.of(_pose(hand, ends.flatten(0, 1), betas.new_zeros(len(ends[0]) * 3, 10)))
        angles = joint_angles(bent).value.reshape(3, -1, 5, 3, 2)
        # Each set of ends bends one joint of every finger, and counts for that joint only.
        always = torch.stack([angles[level, :, :, level] for level in range(3)], 2).flatten(1, 2).numpy()
        return _learn(_measure(posed, True, REFERENCE_BONE), trim, REFERENCE_BONE, always)

    def to(self, like: Tensor) -> BiomechanicalLimits:
        """With the dtype and device of `like`."""
        bones, curvature, spread = (
            Interval(i.low.to(like), i.high.to(like)) for i in (self.bones, self.curvature, self.spread)
        )
        return BiomechanicalLimits(
            bones, curvature, spread, self.hulls.to(like), self.reference, self.n_hands, self.trim
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file that people can read and `load` gives back exactly.

        Raises:
            InputError: the file cannot be written.
        """
        content = {
            "format": FORMAT,
            "version": VERSION,
            "reference_bone": None if self.reference is None else BONE_NAMES[self.reference],
            "hands": self.n_hands,
            "trim": self.trim,
            "bone_lengths": _named(BONE_NAMES, self.bones),
            "curvature": _named(PALM_NAMES, self.curvature),
            "spread_rad": _named(PALM_NAMES, self.spread),
            "flexion_abduction_rad": {
                name: polygon.tolist() for name, polygon in zip(ANGLE_NAMES, self.hulls.polygons(), strict=True)
            },
        }
        try:
            write_text(Path(path), json.dumps(content, indent=1) + "\n")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}).") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BiomechanicalLimits:
        """Read what `save` wrote.

        Raises:
            FileFormatError: no such file, another kind of file, a newer version, or damaged content.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise FileFormatError(f"{path}: cannot be read ({error.strerror}).") from error
        except ValueError as error:
            raise FileFormatError(f"{path}: not a JSON file; expected what handloop limits writes.") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise FileFormatError(f"{path}: not a file of biomechanical limits; expected what handloop limits writes.")
        if content.get("version") != VERSION:
            raise FileFormatError(
                f"{path}: version {content.get('version')} of the format, this handloop reads {VERSION}."
            )
        try:
            reference = content["reference_bone"]
            polygons = content["flexion_abduction_rad"]
            return cls(
                _interval(content["bone_lengths"], BONE_NAMES),
                _interval(content["curvature"], PALM_NAMES),
                _interval(content["spread_rad"], PALM_NAMES),
                AngleHulls.of([np.array(polygons[name], dtype=np.float64) for name in ANGLE_NAMES]),
                None if reference is None else BONE_NAMES.index(reference),
                int(content["hands"]),
                float(content["trim"]),
            )
        except KeyError as error:
            raise FileFormatError(f"{path}: {error} is missing; write the file again with handloop limits.") from error
        except (TypeError, ValueError) as error:
            raise FileFormatError(
                f"{path}: damaged ({str(error).rstrip('.')}); write the file again with handloop limits."
            ) from error


@dataclass(frozen=True, eq=False)
class _Measurements:
    """Quantities of the usable ones among `n_given` hands."""

    n_given: int
    bones: np.ndarray
    curvature: np.ndarray
    spread: np.ndarray
    angles: np.ndarray


def _measure(joints: Tensor | np.ndarray, is_right: Tensor | np.ndarray | bool, reference: int | None) -> _Measurements:
    points = torch.as_tensor(joints, dtype=torch.float64).detach().cpu()
    check_shape("joints", tuple(points.shape), (None, 21, 3))
    side = is_right if isinstance(is_right, bool) else torch.as_tensor(is_right, dtype=torch.bool).cpu()
    finite = torch.isfinite(points).all(-1)
    skeleton = Skeleton.of(points, side, finite)
    bones = bone_lengths(skeleton, reference)
    curvature, spread = palm_structure(skeleton, reference)
    angles = joint_angles(skeleton)
    parts = (bones, curvature, spread, angles)
    usable = torch.cat([part.valid for part in parts], 1).all(1) & skeleton.solid.all(1)
    return _Measurements(len(points), *(part.value[usable].numpy() for part in parts))


def _learn(hands: _Measurements, trim: float, reference: int | None, always: np.ndarray | None) -> BiomechanicalLimits:
    n = len(hands.bones)
    if not 0 <= trim <= _MAX_TRIM:
        raise InputError(f"trim is {trim}, expected a share between 0 and {_MAX_TRIM}.")
    if n < MIN_HANDS:
        raise InputError(
            f"limits need at least {MIN_HANDS} complete hands; {hands.n_given} were given, {n} of them usable."
        )
    if reference is None and not 0.03 < float(np.median(hands.bones[:, REFERENCE_BONE])) < 0.2:
        raise InputError(
            f"the middle of the palm is {np.median(hands.bones[:, REFERENCE_BONE]):.3g} long, expected about 0.1: "
            "limits without a reference bone need points in metres."
        )

    def interval(values: np.ndarray) -> Interval:
        low, high = (torch.tensor(np.quantile(values, q, axis=0)) for q in (trim, 1 - trim))
        return Interval(low, high)

    polygons = [
        support_polygon(_centred(hands.angles[:, j]), trim, None if always is None else always[:, j]) for j in range(15)
    ]
    return BiomechanicalLimits(
        interval(hands.bones),
        interval(hands.curvature),
        interval(hands.spread),
        AngleHulls.of(polygons),
        reference,
        n,
        trim,
    )


def _centred(pairs: np.ndarray) -> np.ndarray:
    """Flexion within half a turn of its mean direction, so that no joint's range is cut at 180 degrees."""
    flexion = pairs[:, 0]
    middle = np.arctan2(np.sin(flexion).mean(), np.cos(flexion).mean())
    off = flexion - middle
    return np.stack([flexion - 2 * np.pi * np.round(off / (2 * np.pi)), pairs[:, 1]], 1)


def _pose(hand: Hand, rotations: Tensor, betas: Tensor) -> Tensor:
    """(n, 21, 3) of finger rotations (n, 15, 3, 3)."""
    root = torch.eye(3, dtype=rotations.dtype).expand(len(betas), 1, 3, 3)
    return Kinematics.from_hand(hand).points(torch.cat([root, rotations], 1), betas, betas.new_zeros(len(betas), 3))


def _anatomical_ends(hand: Hand) -> Tensor:
    """(3, 9, 15, 3, 3) finger rotations: base, middle or end joints at the ends and middles of their anatomical ranges.

    The base joints of the four fingers lose their abduction with flexion; so do their ends here.
    """
    limits = JointLimits.from_hand(hand)
    sets = []
    for level in range(3):
        angles = torch.zeros(9, 15, 3, dtype=torch.float64)
        for finger, chain in enumerate(CHAINS):
            joint = chain[level] - 1
            low, high = limits.low[joint], limits.high[joint]
            for i, flexion in enumerate((low[0], torch.zeros_like(low[0]), high[0])):
                free = 1.0
                if finger and not level:
                    free = max(0.0, 1 - max(0.0, float(flexion.rad2deg())) / _NO_ABDUCTION_DEG)
                for j, abduction in enumerate((low[1], torch.zeros_like(low[1]), high[1])):
                    angles[3 * i + j, joint, 0] = flexion
                    angles[3 * i + j, joint, 1] = free * abduction
        sets.append(rotations_from_angles(angles, limits.axes))
    return torch.stack(sets)


def _named(names: tuple[str, ...], interval: Interval) -> dict[str, list[float]]:
    pairs = torch.stack([interval.low, interval.high], 1).double().cpu().tolist()
    return dict(zip(names, pairs, strict=True))


def _interval(content: dict[str, list[float]], names: tuple[str, ...]) -> Interval:
    pairs = np.array([content[name] for name in names], dtype=np.float64)
    if pairs.shape != (len(names), 2) or not np.isfinite(pairs).all() or (pairs[:, 0] > pairs[:, 1]).any():
        raise ValueError("a range is not a pair (low, high) of numbers")
    return Interval(torch.tensor(pairs[:, 0]), torch.tensor(pairs[:, 1]))
