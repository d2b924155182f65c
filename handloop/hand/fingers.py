"""The 21 points of a posed hand with their Jacobian by fingers: what a solver needs of it, and no more.

A finger's points depend on its own nine angles and on what all fingers share. Blend shapes and skinning weights that
reach over from other fingers' joints stay in the points and are left out of the Jacobian, as in the compiled engine:
they change a tip by fractions of a millimetre per radian. `Kinematics.points_and_jacobian` has all columns.

Fingers count thumb, index, middle, ring, pinky here; notation as in `hand.kinematics`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from handloop.core.products import padded_shared, shared_product

if TYPE_CHECKING:
    from handloop.hand.kinematics import Kinematics

OWN, SHARED = slice(0, 9), slice(9, 25)
"""Columns of a point's row: its finger's nine angles; wrist rotation 3, betas 10, wrist position 3."""

N_OWN_COLUMNS = 25

_DIRS = 12
"""Columns of an affine map of the betas: its value at zero, ten directions, and a zero, for alignment."""


@dataclass(frozen=True, eq=False)
class FingerModel:
    """The constants of `Kinematics` in the order of fingers, ready to multiply."""

    bones: Tensor
    """(5, 3, 3, 12) from each finger joint's parent to it, as an affine map of the betas."""
    joints: Tensor
    """(16, 3, 12) rest joints, the wrist first."""
    tips: Tensor
    """(5, 3, 12) tips before skinning, without what rotations add through the blend shapes."""
    tips_pose: Tensor
    """(136, 16) from the finger joints' rotations to the tips before skinning."""
    own_pose: Tensor
    """(5, 3, 3, 3, 3) the same from a finger's own joints: finger, joint, row and column of R, coordinate."""
    weights: Tensor
    """(8, 16) skinning weights of the tips."""
    own_weights: Tensor
    """(5, 3, 1) of a finger's own joints."""
    own_share: Tensor
    """(5, 3, 1) sum of the weights of a joint and those behind it."""
    moves: Tensor
    """(3, 3, 1) 1 where a joint (row) hangs on a joint (column) of its finger, or is it."""
    offsets: Tensor | None
    """(21, 3) or (B, 21, 3), see `Kinematics`."""
    scale_dirs: Tensor
    """(10,)."""

    @classmethod
    def of(cls, kinematics: Kinematics, chains: tuple[tuple[int, int, int], ...]) -> FingerModel:
        """From kinematics whose fingers' joints are `chains`."""
        ids = [joint for chain in chains for joint in chain]
        parents = [parent for chain in chains for parent in (0, *chain[:2])]
        joints = _affine(kinematics.joints, kinematics.joints_dirs)
        pose = kinematics.tips_pose[:, :, [joint - 1 for joint in ids]]
        # The blend shapes act on R - I: what -I gives belongs to the rest shape.
        rest = kinematics.tips - pose.unflatten(3, (3, 3)).diagonal(dim1=3, dim2=4).sum((2, 3))
        fingers = torch.arange(5)
        own_pose = pose.unflatten(2, (5, 3))[fingers, :, fingers].unflatten(3, (3, 3)).permute(0, 2, 3, 4, 1)
        weights = kinematics.tips_weights
        own = weights[:, ids].unflatten(1, (5, 3))[fingers, fingers][..., None]
        return cls(
            (joints[ids] - joints[parents]).unflatten(0, (5, 3)),
            joints[[0, *ids]],
            _affine(rest, kinematics.tips_dirs),
            padded_shared(pose.permute(2, 3, 0, 1).reshape(135, 15)),
            own_pose.contiguous(),
            torch.nn.functional.pad(weights[:, [0, *ids]], (0, 0, 0, 3)),
            own,
            own.flip(1).cumsum(1).flip(1),
            torch.ones(3, 3).tril()[..., None].to(own),
            kinematics.offsets,
            kinematics.scale_dirs(),
        )

    def points_and_rows(self, rotations: Tensor, turn: Tensor, betas: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
        """The points and their derivative.

        Args:
            rotations: (B, 16, 3, 3), MANO order.
            turn: (B, 15, 3, 3) from what the own nine columns are to increments of the finger joints' rotations;
                right Jacobians for axis-angles.
            betas: (B, 10).
            root: (B, 3) m.

        Returns:
            (B, 21, 3) m in canonical order, and (B, 21, 3, 25); see `OWN` and `SHARED`.
        """
        b = len(betas)
        wrist = rotations[:, None, :1].expand(b, 5, 1, 3, 3)
        both = by_finger(torch.cat([rotations[:, 1:], turn], 3))
        local, turn = both[..., :3], both[..., 3:]
        first = wrist[:, :, 0] @ local[:, :, 0]
        second = first @ local[:, :, 1]
        world = torch.stack([first, second, second @ local[:, :, 2]], 2)
        before = torch.cat([wrist, world[:, :, :2]], 2)
        amount = torch.nn.functional.pad(betas, (1, 1))[:, None, None]
        amount[..., 0] = 1
        along = _times(before, self.bones).cumsum(2)
        x = _at(along, amount[:, None]) + root[:, None, None]
        unposed = _at(self.tips, amount) + shared_product(local.reshape(b, 135), self.tips_pose)[:, :15].view(b, 5, 3)
        every = torch.cat([rotations[:, :1], world.flatten(1, 2)], 1)
        # A joint carries the tip t to G t + `carried`, seen from the wrist.
        carried = -_times(every, self.joints)
        carried[:, 1:] += along.flatten(1, 2)
        stacked = torch.cat([carried.flatten(2), every.flatten(2), carried.new_zeros(b, 16, 3)], 2)
        mixed = torch.bmm(self.weights.expand(b, 8, 16), stacked)[:, :5]
        blend, spread = mixed[..., 36:45].unflatten(2, (3, 3)), mixed[..., :36].unflatten(2, (3, _DIRS))
        tips_dirs = spread + _times(blend, self.tips)
        tip = _at(spread, amount) + (blend * unposed[:, :, None]).sum(-1) + root[:, None]
        points = torch.cat([x, tip[:, :, None]], 2)
        skinned = (world * unposed[:, :, None, None]).sum(-1) + root[:, None, None]
        skinned = (skinned + _at(carried[:, 1:], amount).unflatten(1, (5, 3))) * self.own_weights
        arm = skinned.flip(2).cumsum(2).flip(2) - self.own_share * x
        dirs = torch.cat([along, tips_dirs[:, :, None]], 2)[..., 1:11]
        jac = rotations.new_zeros(b, 21, 3, N_OWN_COLUMNS)
        rows = jac[:, 1:].unflatten(1, (5, 4))
        wrist_point = root[:, None]
        if self.offsets is not None:
            frames = torch.cat([rotations[:, :1], torch.cat([world, world[:, :, 2:]], 2).flatten(1, 2)], 1)
            turned = (frames * self.offsets[..., None, :]).sum(-1)
            added = turned * (1 + (betas * self.scale_dirs).sum(1))[:, None, None]
            wrist_point = wrist_point + added[:, :1]
            points = points + added[:, 1:].unflatten(1, (5, 4))
            arm = arm + added[:, 4::4, None]
            dirs = dirs + (turned[:, 1:, :, None] * self.scale_dirs).unflatten(1, (5, 4))
            jac[:, 0, :, 9:12] = _turn(rotations[:, 0], added[:, 0])
            jac[:, 0, :, 12:22] = turned[:, 0, :, None] * self.scale_dirs
        hung = (points[:, :, :3, None] - x[:, :, None]) * self.moves
        arms = torch.cat([hung, arm[:, :, None]], 2)
        arms = torch.cat([arms, (points - root[:, None, None])[:, :, :, None]], 3)
        # (B, finger, point, joint or wrist, coordinate, increment).
        moved = _turn(torch.cat([world @ turn, wrist], 2)[:, :, None], arms)
        by_blend = blend[:, :, None] @ (self._pose_dirs(local) @ turn)
        moved[:, :, 3, :3] += by_blend
        rows[..., :12].unflatten(-1, (4, 3)).copy_(moved.transpose(3, 4))
        rows[..., 12:22] = dirs
        jac[..., 22:] = torch.eye(3, dtype=jac.dtype, device=jac.device)
        return torch.cat([wrist_point, points.flatten(1, 2)], 1), jac

    def _pose_dirs(self, local: Tensor) -> Tensor:
        """(B, 5, 3, 3, 3) derivative of the unposed tips by their own joints' rotation increments."""
        # See `Kinematics._pose_dirs`. (B, finger, joint, column c of R, column k of the blend shapes, coordinate).
        rows, r = self.own_pose[:, :, :, None], local[..., None, None]
        by = rows[:, :, 0] * r[:, :, :, 0]
        for i in (1, 2):
            by = torch.addcmul(by, rows[:, :, i], r[:, :, :, i])
        columns = [by[:, :, :, c, k] - by[:, :, :, k, c] for c, k in ((2, 1), (0, 2), (1, 0))]
        return torch.stack(columns, -1)


def by_finger(x: Tensor) -> Tensor:
    """(B, 15, ...) of the finger joints in MANO's order to (B, 5, 3, ...), thumb to pinky."""
    fingers = x.unflatten(1, (5, 3))
    return torch.cat([fingers[:, 4:], fingers[:, :2], fingers[:, 3:4], fingers[:, 2:3]], 1)


def _affine(value: Tensor, dirs: Tensor) -> Tensor:
    """(n, 3) and (n, 3, 10) side by side with a zero behind."""
    return torch.cat([value[..., None], dirs, torch.zeros_like(value)[..., None]], -1)


def _at(affine: Tensor, amount: Tensor) -> Tensor:
    """Maps (..., 12) at amounts (B, 1, ..., 12), one and the betas: (B, ...)."""
    return (affine * amount).sum(-1)


def _times(g: Tensor, maps: Tensor) -> Tensor:
    """(B, ..., 3, 3) times (..., 3, 12). A plain sum of three: a product of small matrices is slower."""
    out = g[..., 0, None] * maps[..., None, 0, :]
    for i in (1, 2):
        out = torch.addcmul(out, g[..., i, None], maps[..., None, i, :])
    return out


def _turn(world: Tensor, arm: Tensor) -> Tensor:
    """d/dd of (G d) x arm at zero: (..., 3, 3), column e being the cross product of G's column e with the arm."""
    return torch.linalg.cross(*torch.broadcast_tensors(world, arm[..., None]), dim=-2)
