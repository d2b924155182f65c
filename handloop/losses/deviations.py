"""The standard deviations that a network claims for its hand, and the errors that they are deviations of.

A hand has 28 of them: 16 rotations (rad), 10 betas, the wrist's bearing (rad), its log depth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from handloop.losses.parameters import gaussian_nll, rotation_error

_NEAREST_M = 0.02
"""True wrists nearer than this, which are labels that do not count, are taken to be there."""

Groups = tuple[Tensor, Tensor, Tensor, Tensor]


def by_group(log_sd: Tensor) -> Groups:
    """(B, 28) to rotations (B, 16), betas (B, 10), bearing (B, 1) and log depth (B, 1)."""
    return log_sd[:, :16], log_sd[:, 16:26], log_sd[:, 26:27], log_sd[:, 27:28]


def hand_errors(
    rotations: Tensor, betas: Tensor, root: Tensor, true_rotations: Tensor, true_betas: Tensor, true_root: Tensor
) -> Groups:
    """Errors (B, groups, components) of rotations, betas, bearing and log depth.

    Args:
        rotations, true_rotations: (B, 16, 3, 3).
        betas, true_betas: (B, 10).
        root, true_root: (B, 3) m, the wrist in front of the camera.
    """
    ours, theirs = (torch.nn.functional.normalize(at, dim=1) for at in (root, true_root))
    # The small angle between two directions, as two components across the line of sight.
    across = torch.linalg.cross(ours, theirs)
    down = torch.tensor([0.0, 1.0, 0.0]).to(ours).expand_as(ours)
    first = torch.nn.functional.normalize(torch.linalg.cross(theirs, down), dim=1)
    second = torch.linalg.cross(theirs, first)
    bearing = torch.stack([(across * first).sum(1), (across * second).sum(1)], 1)[:, None]
    depth = true_root[:, 2].clamp(min=_NEAREST_M).log() - root[:, 2].log()
    return rotation_error(rotations, true_rotations), (true_betas - betas)[..., None], bearing, depth[:, None, None]


def deviations_nll(errors: Groups, log_sd: Tensor, valid: Tensor | None = None) -> Tensor:
    """(B,) negative log likelihood of errors under the claimed deviations, each group's mean added up.

    Args:
        errors: of `hand_errors`.
        log_sd: (B, 28).
        valid: (B,) bool, hands with labels; others give 0. None for all.
    """
    each = [gaussian_nll(error, s, valid) for error, s in zip(errors, by_group(log_sd), strict=True)]
    return torch.stack(each).sum(0)


def in_deviations(errors: Groups, log_sd: Tensor) -> list[Tensor]:
    """28 tensors (B, D): errors of `hand_errors` in units of their claimed deviations."""
    scaled = [error / s.exp()[..., None] for error, s in zip(errors, by_group(log_sd), strict=True)]
    return [part for each in scaled for part in each.unbind(1)]
