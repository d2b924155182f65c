"""A network's proposal as the start of a fit."""

from __future__ import annotations

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
    like = model.like
    sign = torch.where(proposal.is_right, 1.0, -1.0).double()
    mirror = torch.stack([sign, torch.ones_like(sign), torch.ones_like(sign)], 1)
    params = proposal.params.to(torch.float64, "cpu")
    betas = torch.where(torch.isfinite(params.betas), params.betas, model.shape_mean.double().cpu())
    matrices = params.rotation_matrices()
    root = params.transl + mirror * model.plain.root_offset(betas.to(model.plain.joints)).double()
    turn = matrices[:, 0]
    if proposal.camera is not None:
        turned, root = in_other_camera(turn, root, proposal.camera, camera)
        turn = torch.where(torch.isfinite(turned).all(2, keepdim=True).all(1, keepdim=True), turned, turn)
    rotations = torch.cat([turn[:, None], matrices[:, 1:]], 1) * mirror[:, None, :, None] * mirror[:, None, None, :]
    rotations, betas, root = rotations.to(like), betas.to(like), (root * mirror).to(like)
    posed = torch.isfinite(rotations).flatten(1).all(1)
    rotations = torch.where(posed[:, None, None, None], rotations, torch.eye(3).to(like))
    placed = torch.isfinite(root).all(1)
    if not bool(placed.all()):
        root = torch.where(placed[:, None], root, _place(model, rotations, betas, seen))
    usable = posed & torch.isfinite(root).all(1) & (root[:, 2] > _NEAREST_M)
    start = HandState(rotations, betas, root, like.new_zeros(len(root)))
    if bool(usable.all()):
        return start
    closed = closed_form_starts(model.kinematics, model.seeds[:1], seen.views())
    return start.where(usable, closed.select(torch.arange(0, 2 * len(root), 2, device=like.device)))


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
