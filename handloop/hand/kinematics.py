"""The 21 points of a posed hand and their closed-form Jacobian, without the mesh.

Everything the points need is cut out of the model once: 16 rest joints with their shape directions, and for the five
fingertip vertices the template, shape and pose blend-shape rows and skinning weights. The points equal the posed
skinning joints and the full mesh's tip vertices to rounding.

Notation: R_k is the rotation of joint k relative to its parent, G_k its product down the chain, x_k its position.
A right perturbation R_k exp(d) turns every descendant m of k about x_k: dx_m = (G_k d) x (x_m - x_k).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from handloop.core.joints import CANONICAL_FROM_MANO
from handloop.core.products import bmm
from handloop.core.tables import index, matrix
from handloop.hand.fingers import FingerModel
from handloop.hand.model import Hand

CHAINS = ((13, 14, 15), (1, 2, 3), (4, 5, 6), (10, 11, 12), (7, 8, 9))
"""MANO joints of thumb, index, middle, ring, pinky, base first."""

STARTING_JOINT = (0, *(joint for base, middle, distal in CHAINS for joint in (base, middle, distal, distal)))
"""MANO joint whose frame starts at each canonical point: the wrist's, the finger joints' own, the distal at tips."""

_ORDER = [0, *(chain[level] for level in range(3) for chain in CHAINS)]
_BY_LEVEL = [_ORDER.index(joint) for joint in range(16)]
"""Where each MANO joint stands in the order (wrist, bases, middles, distals)."""

N_ROT = 48
N_COLUMNS = 61
"""Columns of the points' Jacobian: 48 rotation increments (MANO joint order), 10 betas, 3 wrist position."""


@dataclass(frozen=True, eq=False)
class Kinematics:
    """The constants of one hand model on one device. Build with `Kinematics.from_hand`."""

    joints: Tensor
    """(16, 3) rest joints of the mean shape, m."""
    joints_dirs: Tensor
    """(16, 3, 10) joint displacement per beta, m."""
    tips: Tensor
    """(5, 3) rest tip vertices, m."""
    tips_dirs: Tensor
    """(5, 3, 10) tip displacement per beta, m."""
    tips_pose: Tensor
    """(5, 3, 15, 9) tip displacement per entry of R - I of the finger joints, m."""
    tips_weights: Tensor
    """(5, 16) skinning weights of the tips."""
    offsets: Tensor | None = None
    """(21, 3) m, what a source's points add to the model's, in the frame of `STARTING_JOINT`, for the mean hand (see
    `core.layout.KeypointLayout`), or (B, 21, 3) for hands of many sources; None for nothing."""

    @classmethod
    def from_hand(
        cls, hand: Hand, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> Kinematics:
        """Cut the constants out of a model."""
        ids = hand.tip_ids

        def tensor(array: np.ndarray) -> Tensor:
            return torch.tensor(array, dtype=dtype, device=device)

        return cls(
            tensor(hand.joints_rest),
            tensor(hand.joints_shapedirs),
            tensor(hand.v_template[ids]),
            tensor(hand.shapedirs[ids]),
            tensor(hand.posedirs[ids].reshape(5, 3, 15, 9)),
            tensor(hand.weights[ids]),
        )

    def with_offsets(self, offsets: Tensor | None) -> Kinematics:
        """The same model seen by a source whose points lie off the model's by `offsets` (21, 3) or (B, 21, 3)."""
        return replace(self, offsets=None if offsets is None else offsets.to(self.joints))

    @cached_property
    def fingers(self) -> FingerModel:
        """The same constants as the solver uses them."""
        return FingerModel.of(self, CHAINS)

    def points_and_rows(self, rotations: Tensor, turn: Tensor, betas: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
        """The points and their Jacobian by fingers, see `FingerModel.points_and_rows`."""
        return self.fingers.points_and_rows(rotations, turn, betas, root)

    def scale_dirs(self) -> Tensor:
        """(10,) relative change of the hand's length (wrist to middle fingertip) per beta, at the mean shape.

        Offsets grow with the hand: they are multiplied by 1 + scale_dirs . betas.
        """
        ids = index([0, 4, 5, 6], self.joints.device)
        bones = torch.cat([self.joints[ids], self.tips[2:3]]).diff(dim=0)
        dirs = torch.cat([self.joints_dirs[ids], self.tips_dirs[2:3]]).diff(dim=0)
        lengths = bones.norm(dim=1, keepdim=True)
        return ((bones / lengths)[..., None] * dirs).sum((0, 1)) / lengths.sum()

    def root_offset(self, betas: Tensor) -> Tensor:
        """(B, 3) J_0(betas): smplx's `transl` is the wrist position minus this."""
        return self.joints[0] + (self.joints_dirs[0] * betas[:, None]).sum(2)

    def points(self, rotations: Tensor, betas: Tensor, root: Tensor) -> Tensor:
        """The 21 points in canonical order.

        Args:
            rotations: (B, 16, 3, 3) wrist rotation and the finger joints' relative rotations, MANO order.
            betas: (B, 10).
            root: (B, 3) position of the wrist, m.

        Returns:
            (B, 21, 3) m.
        """
        # torch multiplies a lone matrix by another routine, with other rounding, than a batch of two.
        n = len(betas)
        if n == 1:
            rotations, betas, root = rotations.repeat(2, 1, 1, 1), betas.repeat(2, 1), root.repeat(2, 1)
        return self._forward(rotations, betas, root).points[:n]

    def rest_points(self) -> Tensor:
        """(21, 3) m, the points of the mean shape at rest, the wrist at the origin."""
        eye = torch.eye(3).to(self.joints).expand(1, 16, 3, 3)
        return self.points(eye, self.joints.new_zeros(1, 10), self.joints.new_zeros(1, 3))[0]

    def frames(self, rotations: Tensor) -> Tensor:
        """(B, 16, 3, 3) world rotations of the joints' frames, MANO order, of (B, 16, 3, 3) relative ones."""
        like = rotations[:, 0, 0]
        return self._forward(rotations, like.new_zeros(len(like), 10), torch.zeros_like(like)).world

    def points_and_jacobian(self, rotations: Tensor, betas: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
        """The points and their derivative by (rotation increments, betas, wrist position).

        Returns:
            (B, 21, 3) m and (B, 21, 3, 61). Columns 3 k .. 3 k + 2 are d in R_k exp(d) for joint k in MANO order,
            48..57 the betas at a fixed wrist position, 58..60 the wrist position.
        """
        fwd = self._forward(rotations, betas, root)
        b = betas.shape[0]
        jac = rotations.new_zeros(b, 21, 3, N_COLUMNS)
        # Joints: ancestors turn them.
        for finger, chain in enumerate(CHAINS):
            for depth, m in enumerate(chain):
                row = jac[:, 1 + 4 * finger + depth]
                for k in (0, *chain[:depth]):
                    row[:, :, 3 * k : 3 * k + 3] = _turn(fwd.world[:, k], fwd.x[:, m] - fwd.x[:, k])
                row[:, :, N_ROT : N_ROT + 10] = fwd.x_dirs[:, m]
        # Tips: every joint turns the part of the skinning sum that hangs on it, and its pose blend shapes.
        inherit = _descendants(rotations)
        weighted = fwd.skinned * self.tips_weights[..., None]
        share = self.tips_weights @ inherit.T
        arm = _apply(inherit, weighted.transpose(1, 2).flatten(2)).unflatten(2, (5, 3)).transpose(1, 2)
        arm = arm - share[..., None] * fwd.x[:, None]
        tips = jac[:, 4::4]
        tips[..., :N_ROT] = _turn(fwd.world[:, None], arm).movedim(2, 3).reshape(b, 5, 3, N_ROT)
        tips[..., 3:N_ROT] += bmm(fwd.blend.flatten(0, 1), self._pose_dirs(rotations).flatten(0, 1)).unflatten(
            0, (b, 5)
        )
        carried = fwd.x_dirs - fwd.world @ self.joints_dirs
        tips[..., N_ROT : N_ROT + 10] = fwd.blend @ self.tips_dirs
        tips[..., N_ROT : N_ROT + 10] += _apply(self.tips_weights, carried.flatten(2)).unflatten(2, (3, 10))
        jac[..., N_ROT + 10 :] = torch.eye(3, dtype=jac.dtype, device=jac.device)
        if self.offsets is not None:
            turned = (fwd.world[:, index(STARTING_JOINT, betas.device)] @ self.offsets[..., None])[..., 0]
            added = turned * self._scale(betas)[:, None, None]
            for p, start in enumerate(STARTING_JOINT):
                finger = (p - 1) // 4
                own = () if p == 0 else CHAINS[finger][: CHAINS[finger].index(start) + 1]
                for k in (0, *own):
                    jac[:, p, :, 3 * k : 3 * k + 3] += _turn(fwd.world[:, k], added[:, p])
            jac[..., N_ROT : N_ROT + 10] += turned[..., None] * self.scale_dirs()
        return fwd.points, jac

    def _scale(self, betas: Tensor) -> Tensor:
        return 1 + (betas * self.scale_dirs()).sum(1)

    def _pose_dirs(self, rotations: Tensor) -> Tensor:
        """(B, 5, 3, 45) derivative of the unposed tips by the finger joints' increments, through the blend shapes."""
        # d(R)/d(e_x) = R skew(e_x) has the columns (0, z, -y) of R's columns x, y, z; e_y (-z, 0, x); e_z (y, -x, 0).
        # `by` holds the blend shapes' row i, column k with R's column c put in: sum_i tips_pose[i, k] R[i, c], as
        # (B, 15, c, k, 15). A plain sum of three: faster here than a product of small matrices.
        rows = self.tips_pose.unflatten(3, (3, 3)).permute(2, 3, 4, 0, 1).reshape(15, 3, 1, 45)
        r = rotations[:, 1:, :, :, None]
        by = (rows[:, 0] * r[:, :, 0] + rows[:, 1] * r[:, :, 1] + rows[:, 2] * r[:, :, 2]).unflatten(3, (3, 15))
        turned = [by[:, :, 2, 1] - by[:, :, 1, 2], by[:, :, 0, 2] - by[:, :, 2, 0], by[:, :, 1, 0] - by[:, :, 0, 1]]
        return torch.stack(turned, -1).unflatten(2, (5, 3)).permute(0, 2, 3, 1, 4).flatten(3)

    def _forward(self, rotations: Tensor, betas: Tensor, root: Tensor) -> _Forward:
        b = betas.shape[0]
        rest = self.joints + _shape(self.joints_dirs, betas)
        device = betas.device
        world = [rotations[:, :1].expand(b, 5, 3, 3)]
        x = [root[:, None].expand(b, 5, 3)]
        dirs = [betas.new_zeros(b, 5, 3, 10)]
        parent_rest, parent_dirs = rest[:, :1], self.joints_dirs[:1]
        for level in range(3):
            ids = index([chain[level] for chain in CHAINS], device)
            bone, bone_dirs = rest[:, ids] - parent_rest, self.joints_dirs[ids] - parent_dirs
            x.append(x[-1] + (world[-1] @ bone[..., None])[..., 0])
            dirs.append(dirs[-1] + world[-1] @ bone_dirs)
            world.append(world[-1] @ rotations[:, ids])
            parent_rest, parent_dirs = rest[:, ids], self.joints_dirs[ids]
        # From (level, finger) to MANO's order.
        order = index(_BY_LEVEL, device)
        joint_x = torch.cat([root[:, None], *x[1:]], 1)[:, order]
        joint_world = torch.cat([rotations[:, :1], *world[1:]], 1)[:, order]
        joint_dirs = torch.cat([dirs[0][:, :1], *dirs[1:]], 1)[:, order]
        eye = torch.eye(3, dtype=betas.dtype, device=betas.device)
        feature = (rotations[:, 1:] - eye).reshape(b, 1, 135)
        posed = bmm(feature, self.tips_pose.reshape(15, 135).T.expand(b, 135, 15)).reshape(b, 5, 3)
        unposed = self.tips + _shape(self.tips_dirs, betas) + posed
        arm = unposed[:, :, None] - rest[:, None]
        skinned = (joint_world[:, None] @ arm[..., None])[..., 0] + joint_x[:, None]
        tips = (skinned * self.tips_weights[..., None]).sum(2)
        blend = _apply(self.tips_weights, joint_world.flatten(2)).unflatten(2, (3, 3))
        points = torch.cat([joint_x, tips], 1)[:, index(CANONICAL_FROM_MANO, device)]
        if self.offsets is not None:
            turned = (joint_world[:, index(STARTING_JOINT, device)] @ self.offsets[..., None])[..., 0]
            points = points + turned * self._scale(betas)[:, None, None]
        return _Forward(points, joint_world, joint_x, joint_dirs, skinned, blend)


@dataclass(frozen=True, eq=False)
class _Forward:
    points: Tensor
    """(B, 21, 3) canonical order."""
    world: Tensor
    """(B, 16, 3, 3) G_k, MANO order."""
    x: Tensor
    """(B, 16, 3) posed joints, MANO order."""
    x_dirs: Tensor
    """(B, 16, 3, 10) their derivative by the betas."""
    skinned: Tensor
    """(B, 5, 16, 3) each tip as moved by each joint alone."""
    blend: Tensor
    """(B, 5, 3, 3) weighted sum of the G_k for each tip."""


def _shape(dirs: Tensor, betas: Tensor) -> Tensor:
    """(n, 3, 10) directions and (B, 10) betas to (B, n, 3)."""
    return _apply(dirs.reshape(-1, 10), betas[..., None]).reshape(-1, dirs.shape[0], 3)


def _apply(matrix: Tensor, x: Tensor) -> Tensor:
    """(m, n) times (B, n, k), as a batch of small products.

    torch would fold this into one large product over the batch, whose rounding depends on the batch's size; done so, a
    hand's result does not depend on how many others are computed with it.
    """
    return bmm(matrix.expand(x.shape[0], *matrix.shape), x)


def _turn(world: Tensor, arm: Tensor) -> Tensor:
    """d/dd of (G d) x arm at zero: (..., 3, 3), column e being the cross product of G's column e with the arm."""
    return torch.linalg.cross(*torch.broadcast_tensors(world, arm[..., None]), dim=-2)


def _descendants(like: Tensor) -> Tensor:
    """(16, 16) with 1 where column m is row k or one of its descendants."""
    below = {0: set(range(16))} | {k: set(chain[i:]) for chain in CHAINS for i, k in enumerate(chain)}
    return matrix([[float(m in below[k]) for m in range(16)] for k in range(16)], like)
