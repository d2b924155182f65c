"""Losses on a network's MANO parameters and on the deviations it claims for them.

Every function returns one value per hand (B,); hands without a label (`valid` False) give 0 and no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from handloop.core.rotations import so3_log


def rotation_loss(predicted: Tensor, true: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over joints of |R - R*|_F^2 / 2 = 2 (1 - cos angle), which is the squared angle where it is small.

    Args:
        predicted, true: (B, J, 3, 3).
        valid: (B,) bool, hands with a label; None for all.
    """
    return _kept(0.5 * (predicted - true).square().sum((2, 3)).mean(1), valid)


def betas_loss(predicted: Tensor, true: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean squared difference of the shape coefficients (B, 10)."""
    return _kept((predicted - true).square().mean(1), valid)


def log_depth_loss(predicted: Tensor, true: Tensor, valid: Tensor | None = None) -> Tensor:
    """Absolute difference of log depths (B,): a relative error, the same near and far."""
    return _kept((predicted - true).abs(), valid)


def rotation_error(predicted: Tensor, true: Tensor) -> Tensor:
    """(B, J, 3) rad, axis-angle of R^T R*: what the rotations' deviations are deviations of."""
    return so3_log(predicted.mT @ true)


def gaussian_nll(error: Tensor, log_sd: Tensor, valid: Tensor | None = None) -> Tensor:
    """(B,) mean over groups of the negative log likelihood per component of errors (B, G, D) with deviations (B, G).

    1/2 (e / sd)^2 + log sd without its constant: least where sd^2 is the mean square error (Nix and Weigend 1994).
    """
    each = 0.5 * error.square().mean(2) * (-2 * log_sd).exp() + log_sd
    return _kept(each.mean(1), valid)


def _kept(loss: Tensor, valid: Tensor | None) -> Tensor:
    return loss if valid is None else torch.where(valid, loss, torch.zeros_like(loss))
