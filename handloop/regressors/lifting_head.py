"""From a picture's features to a hand by way of its points: located as heat-maps, then lifted.

Heat-maps get a label at every cell of every picture and learn from tens of thousands of pictures, where rotations from
averaged features take millions. The keypoint lifter, which knows how points and poses belong together, makes a hand of
them (Martinez et al. 2017); what the features say at the points, their depths above all (2.5D, Iqbal et al. 2018),
reaches it as a correction that starts at zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from handloop.core.camera import Camera
from handloop.regressors.backbones import SmallResNet
from handloop.regressors.image_heads import confidence, middles, moments
from handloop.regressors.network import Lifted, LifterNetwork, NetworkSize
from handloop.regressors.view import upward

_PER_POINT = 16
"""Numbers that the features at a point are condensed to."""
_PLACES = 16
"""Cells of what is learned of places, along a side."""
_WIDER = 0.85
"""Side of the turned crop over that of the crop, whose margin a turned hand needs less: larger hands are worth more
than the last tips of those that lie across the corners."""


@dataclass(frozen=True, eq=False)
class SeenHand:
    """What the lifting head makes of a picture."""

    turned: Turned
    """What it looked at."""
    heat: Tensor
    """(B, 21, h, w) logits of where each point is in the turned crops."""
    located: Tensor
    """(B, 21, 2) their means in the crops, in halves of their side, from their middle."""
    located_sd: Tensor
    """(B, 21) deviations per axis, in the same unit."""
    depths: Tensor
    """(B, 21) relative to the middle finger's knuckle, in the same unit at the hand's distance."""
    hand: Lifted
    """In the frames of the crops' cameras."""


@dataclass(frozen=True, eq=False)
class Turned:
    """Crops with the fingers up."""

    crops: Tensor
    """(B, C, s, s)."""
    heading: Tensor
    """(B, 2) where the fingers point in the crops that came in; shorter than 1 where that is unclear."""
    turn: Tensor
    """(B, 2, 2) from places in the crops that came in to places in these, both in halves of their sides, from their
    middles."""


class Upright(nn.Module):
    """Turns a crop so that the fingers point up, as landmark networks of phones do (Zhang et al. 2020).

    A hand looks different at every angle in the picture, and a network has to learn each; where the fingers point is
    learned first and fast.
    """

    def __init__(self, size: int) -> None:
        """`size`: side of the turned crops, px."""
        super().__init__()
        self.size = size
        self.backbone = SmallResNet(16, 3, large_entry=True)
        self.heading = nn.Linear(self.backbone.channels, 2)

    def forward(self, x: Tensor) -> Turned:
        """(B, C, S, S), colours first."""
        features = self.backbone(nn.functional.avg_pool2d(x[:, :3], 2))
        heading = self.heading(features.mean((2, 3))).float()
        with torch.autocast(x.device.type, enabled=False):
            clear = heading.detach()
            clear = clear + 1e-6 * torch.tensor([0.0, -1.0]).to(clear)
            turn = upward(nn.functional.normalize(clear, dim=1)) / _WIDER
            down, across = torch.meshgrid(*(middles(self.size).to(x),) * 2, indexing="ij")
            grid = torch.stack([across, down], 2) @ (_WIDER**2 * turn)[:, None]
            crops = nn.functional.grid_sample(x, grid, align_corners=False)
        return Turned(crops, heading, turn)


class Pyramid(nn.Module):
    """Features of all sizes in one fine map (feature pyramid, Lin et al. 2017)."""

    def __init__(self, widths: tuple[int, ...], width: int) -> None:
        """`widths`: channels of the maps that come in; `width`: of the one that goes out."""
        super().__init__()
        self.sides = nn.ModuleList(nn.Conv2d(each, width, 1) for each in widths)
        # In turned crops each finger has its usual place.
        self.place = nn.Parameter(torch.zeros(1, width, _PLACES, _PLACES))
        self.mix = nn.Sequential()
        for _ in range(2):
            self.mix.extend([nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()])

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps, the finest first, to (B, width, h, w) of the finest."""
        x: Tensor = self.sides[-1](maps[-1])
        for side, finer in zip(reversed(self.sides[:-1]), reversed(maps[:-1]), strict=True):
            x = side(finer) + nn.functional.interpolate(x, size=finer.shape[2:], mode="nearest")
        place = nn.functional.interpolate(self.place, size=x.shape[2:], mode="bilinear")
        out: Tensor = self.mix(x + place.to(x))
        return out


class LiftingHead(nn.Module):
    """Heat-maps of the points, features at the points, and a keypoint lifter."""

    def __init__(self, widths: tuple[int, ...], width: int) -> None:
        """`widths`: channels of the backbone's maps; `width`: of the fine map."""
        super().__init__()
        self.pyramid = Pyramid(widths, width)
        # One coarse map, a transformer's, has its cells divided.
        self.finer = 1 if len(widths) > 1 else 4
        self.maps = nn.Conv2d(width, 21 * self.finer**2, 1)
        self.condense = nn.Parameter(torch.randn(21, width, _PER_POINT) / width**0.5)
        self.depth = nn.Parameter(torch.zeros(21, _PER_POINT))
        self.lifter = LifterNetwork(NetworkSize())
        given = 21 * (_PER_POINT + 2 + 1 + 1) + widths[-1]
        self.hint = nn.Sequential(nn.Linear(given, 256), nn.GELU(approximate="tanh"))
        self.enter = nn.Linear(256, self.lifter.size.width)
        # Untrained, it is the lifter.
        nn.init.zeros_(self.enter.weight)
        nn.init.zeros_(self.enter.bias)

    def forward(self, maps: list[Tensor], turned: Turned, camera: Camera, size: int) -> SeenHand:
        """Locate and lift.

        Args:
            maps: the backbone's, of the turned crops.
            turned: these.
            camera: of the crops before they were turned.
            size: their side, px.
        """
        fine = self.pyramid(maps)
        heat = self.maps(fine)
        if self.finer > 1:
            heat = nn.functional.pixel_shuffle(heat, self.finer)
            fine = nn.functional.interpolate(fine, scale_factor=self.finer, mode="nearest")
        with torch.autocast(fine.device.type, enabled=False):
            heat = heat.float()
            found, sd = moments(heat)
            located, sd = _WIDER**2 * found @ turned.turn, _WIDER * sd
            # Where the points are is what the labels in the picture say, whatever would suit the hand.
            places, spread = located.detach(), sd.detach()
            share = heat.detach().flatten(2).softmax(2)
            at = share @ fine.float().flatten(2).mT
            parts = nn.functional.gelu(torch.einsum("bpc,pcd->bpd", at, self.condense), approximate="tanh")
            depths = (parts * self.depth).sum(2)
            # The features learn from places and depths, which say where they went wrong; a pose's loss does not.
            whole = maps[-1].detach().float().mean((2, 3))
            given = [parts.detach().flatten(1), places.flatten(1), spread.log(), depths.detach(), whole]
            hint = self.enter(self.hint(torch.cat(given, 1)))
            px = (size * (places + 1) - 1) / 2
            focal, princpt = camera.focal.to(px), camera.princpt.to(px)
            rays = (px - princpt[:, None]) / focal[:, None]
            none = rays.new_zeros(len(rays), 21, 3)
            hand = self.lifter(rays, confidence(spread), none, none[:, :10, 0], hint)
        return SeenHand(turned, heat, located, sd, depths, hand)
