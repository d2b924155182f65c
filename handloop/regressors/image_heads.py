"""From a picture's features to a hand: iterative feedback, or queries that look at the features.

A head gives residuals on a usual hand, as one vector per hand (B, outputs); `image_network.ImageNetwork` says what its
entries mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

TAUGHT_SD = 1.0
"""Deviation of the Gaussian that a map of likelihood is taught, in its cells."""
_TRUSTED_SD = 0.05
"""A point located with this deviation, in halves of the crop, has the confidence 1 / sqrt(2)."""
QUERIES = 18
"""One for each of the 16 joints, one for the shape, one for the camera."""


class Locator(nn.Module):
    """Where the 21 points are in the picture, as maps of likelihood.

    It is trained on 2D points, learns fast, and its means (`moments`; integral regression, Sun et al. 2018) tell the
    heads what averaged features lose: places.
    """

    _FINER = 4
    """Cells of the maps along each side of a cell of the features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, 21 * self._FINER**2, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, h, w) to logits (B, 21, 4 h, 4 w) of where each point is."""
        return nn.functional.pixel_shuffle(self.maps(features), self._FINER).float()


def moments(heat: Tensor) -> tuple[Tensor, Tensor]:
    """Means and deviations of likelihoods.

    Args:
        heat: (B, 21, h, w) logits; the map covers the picture.

    Returns:
        (B, 21, 2) x, y in units of half the picture, from its middle, and (B, 21) deviations per axis in the same unit,
        less the width that a map is taught for a point whose place is certain.
    """
    h, w = heat.shape[2:]
    share = heat.flatten(2).softmax(2).unflatten(2, (h, w))
    x, y = middles(w).to(heat), middles(h).to(heat)
    across, down = share.sum(2), share.sum(3)
    mean = torch.stack([across @ x, down @ y], 2)
    square = across @ x.square() + down @ y.square() - mean.square().sum(2)
    cell = 2 / max(h, w)
    least = (0.1 * cell) ** 2
    return mean, (square / 2 - (TAUGHT_SD * cell) ** 2).clamp(min=least).sqrt()


def confidence(sd: Tensor) -> Tensor:
    """Confidences 0..1 of points located with deviations `sd`, in halves of the crop; as a detector's, they are in
    inverse proportion to the deviations where these are large."""
    return (1 + (sd / _TRUSTED_SD).square()).rsqrt()


def middles(n: int) -> Tensor:
    """(n,) middles of a map's cells in units of half the picture, from its middle."""
    return (2 * torch.arange(n) + 1) / n - 1


class IterativeHead(nn.Module):
    """Corrects its own estimate a few times (HMR, Kanazawa et al. 2018; SPIN).

    Each round sees the averaged features, the located points and the estimate so far.
    """

    def __init__(self, channels: int, outputs: int, width: int, rounds: int) -> None:
        super().__init__()
        self.rounds = rounds
        self.outputs = outputs
        self.hidden = nn.Sequential(
            nn.Linear(channels + 42 + outputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.step = nn.Linear(width, outputs)
        # Untrained, the answer is the usual hand.
        nn.init.xavier_uniform_(self.step.weight, gain=0.01)
        nn.init.zeros_(self.step.bias)

    def forward(self, features: Tensor, located: Tensor) -> Tensor:
        """(B, channels, h, w) and (B, 21, 2) to (B, outputs)."""
        pooled = torch.cat([features.mean((2, 3)), located.flatten(1).to(features)], 1)
        estimate = pooled.new_zeros(len(pooled), self.outputs)
        for _ in range(self.rounds):
            estimate = estimate + self.step(self.hidden(torch.cat([pooled, estimate], 1)))
        return estimate


class AttentionHead(nn.Module):
    """A transformer decoder whose learned queries attend to the features (HaMeR, Pavlakos et al. 2024).

    HaMeR has one query for the whole hand; here joints, shape and camera have their own.
    """

    def __init__(self, channels: int, sizes: tuple[int, ...], width: int, layers: int) -> None:
        """`sizes`: entries of the wrist, all fingers, shape and camera."""
        super().__init__()
        self.enter = nn.Linear(channels, width)
        self.places = nn.Linear(42, width)
        self.queries = nn.Parameter(0.02 * torch.randn(QUERIES, width))
        heads = next(n for n in (8, 4, 2, 1) if width % n == 0)
        layer = nn.TransformerDecoderLayer(
            width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, layers, norm=nn.LayerNorm(width))
        wrist, fingers, shape, camera = sizes
        self.wrist = nn.Linear(width, wrist)
        self.fingers = nn.Linear(15 * width, fingers)
        self.shape = nn.Linear(width, shape)
        self.camera = nn.Linear(width, camera)
        for out in (self.wrist, self.fingers, self.shape, self.camera):
            nn.init.xavier_uniform_(out.weight, gain=0.01)
            nn.init.zeros_(out.bias)

    def forward(self, features: Tensor, located: Tensor) -> Tensor:
        """(B, channels, h, w) and (B, 21, 2) to (B, sum of sizes)."""
        b, _, h, w = features.shape
        memory = self.enter(features.flatten(2).transpose(1, 2))
        memory = memory + place_codes(h, w, memory.shape[2]).to(memory)
        memory = torch.cat([memory, self.places(located.flatten(1).to(features))[:, None]], 1)
        tokens = self.decoder(self.queries.expand(b, -1, -1), memory)
        parts = [
            self.wrist(tokens[:, 0]),
            self.fingers(tokens[:, 1:16].flatten(1)),
            self.shape(tokens[:, 16]),
            self.camera(tokens[:, 17]),
        ]
        return torch.cat(parts, 1)


def place_codes(h: int, w: int, width: int) -> Tensor:
    """(h w, width) sines and cosines of the rows' and the columns' numbers (Vaswani et al. 2017, in two dimensions)."""
    quarter = -(-width // 4)
    rates = torch.exp(-math.log(100.0) * torch.arange(quarter) / quarter)
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    angles = [axis.flatten()[:, None] * rates for axis in (y, x)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], 1)[:, :width]
