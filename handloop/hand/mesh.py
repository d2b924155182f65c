"""Linear blend skinning: a hand model and parameters to 778 vertices and 16 joints.

The joints are those of the posed skinning chain (smplx's, manopth's, HaMeR's definition); `regressed_joints` gives the
other one, which FreiHAND and METRO use.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from handloop.core.errors import InputError, check_shape
from handloop.core.joints import MANO_PARENTS
from handloop.core.rotations import so3_exp
from handloop.hand.model import N_BETAS, N_JOINTS, N_VERTICES, Hand

_FINGER_LEVELS = ((1, 4, 7, 10, 13), (2, 5, 8, 11, 14), (3, 6, 9, 12, 15))
"""MANO's finger joints from the knuckles outward: the chain needs three steps, not fifteen."""

_CHAIN_ORDER = (0, *(joint for level in _FINGER_LEVELS for joint in level))
_TO_MANO_ORDER = tuple(_CHAIN_ORDER.index(joint) for joint in range(N_JOINTS))

_CHUNK_CPU, _CHUNK_GPU = 256, 4096
"""Hands skinned at a time, whatever the batch: 256 stay near the cache (19 MB of blended transforms in float64);
a GPU wants more work per launch (310 MB)."""


class MeshLayer:
    """One hand model's constants as tensors of one dtype on one device, ready for skinning.

    Build it once and keep it, or call `skin`, which keeps the last few.
    """

    def __init__(self, hand: Hand, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> None:
        if not dtype.is_floating_point:
            raise InputError(f"a mesh of dtype {dtype} was asked for, expected a floating-point dtype.")

        def tensor(array: object) -> Tensor:
            return torch.as_tensor(array, dtype=torch.float64).to(device=device, dtype=dtype)

        # Tensors made in inference mode could never take part in a later backward pass.
        with torch.inference_mode(False), torch.no_grad():
            # Vertices run along the last axis (x of all, y of all, z of all): skinning then streams through memory,
            # eight times faster here than with a 3x3 product per vertex.
            self.template = tensor(hand.v_template).T.reshape(-1)
            # Shape and pose blend shapes are one matrix product: (145, 3 * 778).
            blend = torch.cat([tensor(hand.shapedirs), tensor(hand.posedirs)], 2)
            self.blend = blend.permute(2, 1, 0).reshape(N_BETAS + 135, 3 * N_VERTICES)
            self.weights = tensor(hand.weights).T.contiguous()
            self.joints_template = tensor(hand.joints_rest)
            self.joints_shape = tensor(hand.joints_shapedirs.reshape(N_JOINTS * 3, N_BETAS)).T.contiguous()
            self.eye = torch.eye(3, dtype=dtype, device=device)
        self.dtype = dtype
        self.device = torch.device(device)

    def skin(self, global_orient: Tensor, hand_pose: Tensor, betas: Tensor, transl: Tensor) -> tuple[Tensor, Tensor]:
        """Vertices (B, 778, 3) and skinning joints (B, 16, 3) in MANO's order, m. See `skin`."""
        check_shape("global_orient", tuple(global_orient.shape), (None, 3))
        check_shape("hand_pose", tuple(hand_pose.shape), (global_orient.shape[0], 45))
        pose = torch.cat([global_orient, hand_pose], 1).reshape(-1, N_JOINTS, 3)
        return self.skin_rotations(so3_exp(pose), betas, transl)

    def skin_rotations(self, rotations: Tensor, betas: Tensor, transl: Tensor) -> tuple[Tensor, Tensor]:
        """The same from rotation matrices (B, 16, 3, 3), wrist first, then the absolute finger rotations (HaMeR's).

        Raises:
            InputError: wrong shapes, or another dtype or device than the layer's.
        """
        n = rotations.shape[0]
        check_shape("rotations", tuple(rotations.shape), (n, N_JOINTS, 3, 3))
        check_shape("betas", tuple(betas.shape), (n, N_BETAS))
        check_shape("transl", tuple(transl.shape), (n, 3))
        for name, given in (("rotations", rotations), ("betas", betas), ("transl", transl)):
            if given.dtype != self.dtype or given.device.type != self.device.type:
                raise InputError(
                    f"{name} is {given.dtype} on {given.device}, the hand's mesh is {self.dtype} on {self.device}: "
                    "convert the parameters with HandParams.to()."
                )
        chunk = _CHUNK_CPU if self.device.type == "cpu" else _CHUNK_GPU
        if n <= chunk:
            return self._skin_chunk(rotations, betas, transl)
        parts = [
            self._skin_chunk(*part)
            for part in zip(*(torch.split(t, chunk) for t in (rotations, betas, transl)), strict=True)
        ]
        return torch.cat([vertices for vertices, _ in parts]), torch.cat([joints for _, joints in parts])

    def _skin_chunk(self, rotations: Tensor, betas: Tensor, transl: Tensor) -> tuple[Tensor, Tensor]:
        n = len(rotations)
        joints_rest = self.joints_template + (betas @ self.joints_shape).reshape(n, N_JOINTS, 3)
        turns, joints = self._chain(rotations, joints_rest)
        features = (rotations[:, 1:] - self.eye).flatten(1)
        rest = torch.addmm(self.template, torch.cat([betas, features], 1), self.blend).reshape(n, 3, N_VERTICES)
        # x -> turn (x - joint at rest) + posed joint, as one 3x4 transform per joint, blended per vertex.
        shift = joints - (turns @ joints_rest[..., None]).squeeze(-1)
        transforms = torch.cat([turns, shift[..., None]], -1).flatten(2)
        blended = (transforms.transpose(1, 2) @ self.weights).reshape(n, 3, 4, N_VERTICES)
        vertices = (blended[:, :, :3] * rest[:, None]).sum(2) + (blended[:, :, 3] + transl[..., None])
        return vertices.transpose(1, 2).contiguous(), joints + transl[:, None]

    def _chain(self, rotations: Tensor, joints_rest: Tensor) -> tuple[Tensor, Tensor]:
        """World rotations (B, 16, 3, 3) and posed joints (B, 16, 3), the wrist staying where it is at rest."""
        turns, joints = [rotations[:, :1]], [joints_rest[:, :1]]
        for level in _FINGER_LEVELS:
            parents = [MANO_PARENTS[joint] for joint in level]
            bone = joints_rest[:, level] - joints_rest[:, parents]
            joints.append(joints[-1] + (turns[-1] @ bone[..., None]).squeeze(-1))
            turns.append(turns[-1] @ rotations[:, level])
        return torch.cat(turns, 1)[:, _TO_MANO_ORDER], torch.cat(joints, 1)[:, _TO_MANO_ORDER]


@lru_cache(maxsize=8)
def mesh_layer(hand: Hand, dtype: torch.dtype, device: torch.device) -> MeshLayer:
    """The `MeshLayer` of a hand, built once per dtype and device; the last eight are kept."""
    return MeshLayer(hand, dtype, device)


def skin(hand: Hand, global_orient: Tensor, hand_pose: Tensor, betas: Tensor, transl: Tensor) -> tuple[Tensor, Tensor]:
    """Linear blend skinning as in MANO; differentiable, in the dtype and on the device of `hand_pose`.

    Args:
        hand: the model of the side the parameters belong to.
        global_orient: (B, 3) axis-angle of the wrist, rad.
        hand_pose: (B, 45) axis-angle, rad, flat mean (zero is the model's rest pose), MANO's joint order.
        betas: (B, 10).
        transl: (B, 3) m, added after the rotation about the wrist.

    Returns:
        Vertices (B, 778, 3) and posed skinning joints (B, 16, 3) in MANO's order, m.

    Raises:
        InputError: wrong shapes, or tensors of different dtypes or devices.
    """
    layer = mesh_layer(hand, hand_pose.dtype, hand_pose.device)
    return layer.skin(global_orient, hand_pose, betas, transl)


def regressed_joints(hand: Hand, vertices: Tensor) -> Tensor:
    """(B, 16, 3) joints regressed from posed vertices (B, 778, 3): FreiHAND's and METRO's definition.

    They lie 2 to 5 mm from the skinning joints on average; name the definition wherever they are written.
    """
    check_shape("vertices", tuple(vertices.shape), (None, N_VERTICES, 3))
    return torch.as_tensor(hand.j_regressor).to(vertices) @ vertices
