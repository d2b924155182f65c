"""Drawing hands and cameras: side, pose, shape, view and place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from handloop.core.joints import CANONICAL_FROM_MANO
from handloop.core.rotations import so3_exp
from handloop.hand.mesh import skin
from handloop.hand.model import Hand, HandPair
from handloop.synth.picture import PictureOptions, Truth
from handloop.synth.poses import PoseSource, Thickness

_TRIES = 8
"""Poses drawn for one hand until its fingers are clear of each other; the last is taken as it is."""

_NEAREST = 0.12
"""m that the nearest vertex keeps from the camera."""


@dataclass(frozen=True, eq=False)
class HandSource:
    """Draws hands of both sides."""

    pair: HandPair
    """The models."""
    poses: PoseSource
    """Poses of the right-hand frame; a left hand's are mirrored."""
    thickness: Thickness
    """For the overlap test; mirrors change no distance."""

    @classmethod
    def of(cls, pair: HandPair) -> HandSource:
        """From the models' own poses."""
        return cls(pair, PoseSource.of(pair.right), Thickness.of(pair.right))

    def draw(self, generator: np.random.Generator, options: PictureOptions) -> Truth:
        """One hand before one camera."""
        is_right = bool(generator.random() < 0.5) if options.hand == "both" else options.hand == "right"
        hand = self.pair.side(is_right)
        betas = generator.standard_normal(10)
        orient = _random_rotation(generator)
        pose = vertices = joints = np.zeros(0)
        for _ in range(_TRIES):
            pose = self.poses.draw(generator)
            pose = pose if is_right else pose * np.tile([1.0, -1.0, -1.0], 15)
            vertices, joints = _posed(hand, orient, pose, betas)
            if not self.thickness.has_overlap(joints, vertices[hand.tip_ids]):
                break
        K, transl = _view(generator, vertices, options.size)
        return _truth(hand, (orient, pose, betas, transl), K, vertices, joints)


def place(hand: Hand, params: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], K: np.ndarray) -> Truth:
    """A hand with given parameters before a given camera.

    Args:
        hand: the model of the wanted side.
        params: global_orient (3,), hand_pose (45,), betas (10,), transl (3,), see `Truth`.
        K: (3, 3) px.
    """
    return _truth(hand, params, K, *_posed(hand, *params[:3]))


def _truth(
    hand: Hand,
    params: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    K: np.ndarray,
    vertices: np.ndarray,
    joints: np.ndarray,
) -> Truth:
    orient, pose, betas, transl = params
    points = np.concatenate([joints, vertices[hand.tip_ids]])[list(CANONICAL_FROM_MANO)]
    return Truth(hand.is_right, orient, pose, betas, transl, K, vertices + transl, points + transl)


def _posed(hand: Hand, orient: np.ndarray, pose: np.ndarray, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(778, 3) vertices and (16, 3) joints at the origin. One hand at a time: none depends on its batch mates."""
    given = [torch.from_numpy(array)[None] for array in (orient, pose, betas, np.zeros(3))]
    vertices, joints = skin(hand, given[0], given[1], given[2], given[3])
    return vertices[0].numpy(), joints[0].numpy()


def _random_rotation(generator: np.random.Generator) -> np.ndarray:
    """(3,) axis-angle, uniform over all rotations (a normalised Gaussian quaternion)."""
    w, *v = generator.standard_normal(4)
    vector = np.array(v) * np.copysign(1.0, w)
    length = float(np.linalg.norm(vector))
    return vector / length * 2 * np.arctan2(length, abs(w))


def _view(generator: np.random.Generator, vertices: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """K (3, 3) and the translation (3,) that puts a hand (778, 3) before that camera."""
    # A hand in 45 to 90 % of the picture, through lenses of 49 to 13 degrees.
    fill = np.exp(generator.uniform(np.log(0.45), np.log(0.9)))
    focal = size * np.exp(generator.uniform(np.log(1.1), np.log(4.5)))
    aspect = generator.uniform(0.98, 1.02)
    princpt = (size - 1) / 2 + generator.uniform(-0.1, 0.1, 2) * size
    low, high = vertices.min(0), vertices.max(0)
    middle = (low + high) / 2
    distance = focal * (high - low)[:2].max() / (fill * size)
    distance = max(distance, _NEAREST + (high - low)[2] / 2)
    # Now and then a finger leaves the picture.
    slack = ((1 - fill) / 2 + 0.03) * size
    at = (size - 1) / 2 + generator.uniform(-slack, slack, 2)
    K = np.array([[focal * aspect, 0, princpt[0]], [0, focal, princpt[1]], [0, 0, 1]])
    ray = np.array([(at[0] - K[0, 2]) / K[0, 0], (at[1] - K[1, 2]) / K[1, 1], 1.0])
    return K, ray * distance - middle


def wrist_rotation(truth: Truth) -> np.ndarray:
    """(3, 3) rotation of the wrist."""
    return so3_exp(torch.from_numpy(truth.global_orient)).numpy()
