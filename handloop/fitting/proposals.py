"""A network's proposal as the start of a fit."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.proposal import Proposal, in_other_camera
from handloop.core.terms import HandState
from handloop.fitting.observe import Observations
from handloop.fitting.problem import FitModel
from handloop.fitting.starts import closed_form_starts

_NEAREST_M = 0.05
"""A wrist nearer than this cannot be in front of the camera with the rest of the hand."""


def proposal_starts(model: FitModel, proposal: Proposal, camera: Camera, seen: Observations) -> HandState:
    """One start per hand, in the right-hand canonical frame of the fit's own cameras.

    Betas without an opinion are the source's mean; a hand without a place is put where its points meet the keypoints
    best; one without a pose, or behind the camera, starts from the closed form instead.

    Args:
        model: of these hands' side.
        proposal: B hands, those of `seen`.
        camera: B cameras to fit with.
        seen: the keypoints.
    """
    from handloop.so3_kernel import rotation_matrices

    like, params = model.like, proposal.params.to(torch.float64, "cpu")
    # In numpy, which takes a third of torch's time for a few numbers: a single hand is mostly such.
    sign = np.ones((len(params), 3))
    sign[:, 0] = np.where(proposal.is_right.numpy(), 1.0, -1.0)
    mean = model.shape_mean.numpy(force=True).astype(np.float64)
    betas = torch.from_numpy(np.where(np.isfinite(params.betas.numpy()), params.betas.numpy(), mean))
    matrices = rotation_matrices(torch.cat([params.global_orient, params.hand_pose], 1).numpy().reshape(-1, 16, 3))
    root = params.transl.numpy() + sign * model.plain.root_offset(betas.to(model.plain.joints)).numpy()
    if proposal.camera is not None:
        turn = torch.from_numpy(matrices[:, 0])
        turned, moved = in_other_camera(turn, torch.from_numpy(root), proposal.camera, camera)
        sound = torch.isfinite(turned).all(2, keepdim=True).all(1, keepdim=True)
        matrices[:, 0], root = torch.where(sound, turned, turn).numpy(), moved.numpy()
    matrices *= sign[:, None, :, None] * sign[:, None, None, :]
    root = root * sign
    posed = np.isfinite(matrices).all((1, 2, 3))
    matrices[~posed] = np.eye(3)
    rotations, betas, placed_at = torch.from_numpy(matrices).to(like), betas.to(like), torch.from_numpy(root).to(like)
    placed = np.isfinite(root).all(1)
    if not placed.all():
        somewhere = _place(model, rotations, betas, seen)
        placed_at = torch.where(torch.from_numpy(placed).to(like.device)[:, None], placed_at, somewhere)
        root = placed_at.numpy(force=True)
    fine = posed & np.isfinite(root).all(1) & (root[:, 2] > _NEAREST_M)
    start = HandState(rotations, betas, placed_at, like.new_zeros(len(root)))
    if fine.all():
        return start
    usable = torch.from_numpy(fine).to(like.device)
    closed = closed_form_starts(model.kinematics, model.seeds[:1], seen.views())
    return start.where(usable, closed.select(torch.arange(0, 2 * len(start), 2, device=like.device)))


def with_one_more(starts: HandState, per_hand: int, more: HandState) -> HandState:
    """(B * per_hand) starts, hands outermost, each hand's followed by one more of `more` (B)."""
    b = len(more)

    def join(many: Tensor, one: Tensor) -> Tensor:
        return torch.cat([many.unflatten(0, (b, per_hand)), one[:, None]], 1).flatten(0, 1)

    return HandState(
        join(starts.rotations, more.rotations),
        join(starts.betas, more.betas),
        join(starts.root, more.root),
        join(starts.log_focal, more.log_focal),
    )


def _place(model: FitModel, rotations: Tensor, betas: Tensor, seen: Observations) -> Tensor:
    """(B, 3) wrists that bring posed hands to their keypoints: x + t_x = u (z + t_z), linear in t, least squares."""
    points = model.kinematics.points(rotations, betas, betas.new_zeros(len(betas), 3))
    views = seen.views()
    w, zero, one = views.weight, torch.zeros_like(views.weight), torch.ones_like(views.weight)
    u, v = views.rays.unbind(2)
    rows = torch.cat([torch.stack([one, zero, -u], 2), torch.stack([zero, one, -v], 2)], 1)
    target = torch.cat([u * points[..., 2] - points[..., 0], v * points[..., 2] - points[..., 1]], 1)
    weighted = rows * torch.cat([w, w], 1)[..., None]
    gram = weighted.mT @ rows
    scale = torch.diagonal(gram, dim1=1, dim2=2).sum(1)[:, None, None] + 1e-9
    eye = torch.eye(3, dtype=gram.dtype, device=gram.device)
    solution: Tensor = torch.linalg.solve(gram + 1e-9 * scale * eye, weighted.mT @ target[..., None])
    return solution[..., 0]
