"""How good an image regressor is on hands that it was not trained on, and what its deviations are worth there."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.evaluation.alignment import similarity
from handloop.loop.image_losses import errors_of
from handloop.loop.picture_batches import PictureBatches, TrainingBatch
from handloop.losses.deviations import in_deviations
from handloop.regressors.image_network import N_SD, ImageNetwork, Regressed, heatmaps_of

_LEAST_CALIBRATION = 100
"""Hands from which a scale of the deviations can be told."""


@dataclass(frozen=True)
class Measured:
    """How good a network is on hands it was not trained on."""

    step: int
    hands: int
    pa_mm: float
    """Mean error of the points after similarity alignment."""
    root_mm: float
    """The same relative to the wrist."""


def regress(network: ImageNetwork, batch: TrainingBatch) -> Regressed:
    """The network's answer to a batch, with heat-maps where it takes them."""
    size = network.options.size
    maps = heatmaps_of(batch.shown, batch.shown_conf, size) if network.options.heatmaps else None
    answer: Regressed = network(batch.crops, batch.camera(), maps)
    return answer


def measure(network: ImageNetwork, batches: PictureBatches, step: int = 0) -> Measured:
    """A network on the hands that are held out and whose joints are all known; NaN where there are none."""
    aligned, shifted = [], []
    for batch in batches.held_out():
        whole = (batch.joints_weight > 0).all(1)
        with torch.inference_mode():
            out = regress(network, batch.to(network.usual.device))
        rotations, betas = out.rotations.double().cpu()[whole], out.betas.double().cpu()[whole]
        points = batches.right.points(rotations, betas, torch.zeros_like(betas[:, :3]))
        truth = batch.joints[whole].double()
        aligned.append((similarity(points, truth).apply(points) - truth).norm(dim=2).mean(1))
        shifted.append(((points - points[:, :1]) - (truth - truth[:, :1])).norm(dim=2).mean(1))
    pa, root = torch.cat(aligned), torch.cat(shifted)
    return Measured(step, len(pa), 1000 * float(pa.mean()), 1000 * float(root.mean()))


def calibrate(network: ImageNetwork, held_out: Iterable[TrainingBatch]) -> None:
    """Scale each standard deviation so that 68.3 % of the errors on the hands held out lie within it.

    With too few such hands, or where the deviations were not trained, the network has no opinion (NaN).
    """
    found: list[list[Tensor]] = [[] for _ in range(N_SD)]
    for batch in held_out:
        there = batch.to(network.usual.device)
        with torch.inference_mode():
            out = regress(network, there)
            errors = errors_of(out, out.root(there.camera(), network.options.size), there)
        valid = there.has_params & there.has_root
        for group, error in enumerate(in_deviations(errors, out.log_sd)):
            found[group].append(error[valid].abs().flatten().cpu())
    if sum(map(len, found[10])) // 3 < _LEAST_CALIBRATION:
        return
    one_sigma = math.erf(math.sqrt(0.5))
    scale = torch.stack([torch.cat(errors).quantile(one_sigma) for errors in found])
    network.log_sd_scale.copy_(scale.clamp(min=1e-3).log())
