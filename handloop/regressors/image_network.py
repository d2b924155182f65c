"""The image regressor's network: a crop of a right hand to MANO parameters and a weak-perspective camera."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from handloop.core.camera import Camera, translation_from_weak_perspective, weak_perspective_from_translation
from handloop.core.errors import InputError
from handloop.core.rotations import matrix_from_6d, so3_exp
from handloop.hand.model import Hand
from handloop.regressors.backbones import BackboneOptions, build_backbone
from handloop.regressors.image_heads import AttentionHead, IterativeHead, Locator, moments
from handloop.regressors.lifting_head import LiftingHead, SeenHand, Turned, Upright

N_SD = 16 + 10 + 1 + 1
"""A standard deviation per rotation, per beta, for the wrist's bearing and for its log depth."""

_USUAL_SCALE = 12.0
"""s of a hand whose crop is 0.17 m wide, 1/m."""
_NEAREST_M = 0.02
"""A wrist nearer than this is taken to be there."""
_COLOUR_MEAN, _COLOUR_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageNetworkOptions:
    """What the network is made of; the default suits two CPU cores."""

    backbone: BackboneOptions = field(default_factory=BackboneOptions)
    head: Literal["iterative", "attention", "lifting"] = "iterative"
    """"iterative" feedback as in HMR and SPIN, "attention" as in HaMeR, or "lifting" of the points that it locates."""
    size: int = 96
    """Side of the crops, px."""
    width: int = 512
    """Of the head's layers; of the lifting head, the channels of its fine map."""
    rounds: int = 3
    """Corrections of the iterative head, or layers of the attention head; the lifting head has none."""
    pose: Literal["6d", "pca"] = "6d"
    """Fingers as 6D rotations (Zhou et al. 2019), or as leading principal components of the hand model's poses."""
    components: int = 30
    """How many, with "pca"."""
    upright: int = 64
    """Side of the turned crops that the lifting head works on, px."""
    heatmaps: bool = False
    """Takes 21 heat-maps of keypoints besides the colours."""
    margin: float = 1.3
    """Side of the crops it is shown over the longer side of the keypoints' box, which ends at the joints inside the
    fingertips: so that hands are about as large as those that it learned from. A rolled training crop holds its whole
    box and so is wider than one that does not roll, 1.27 times on average when it rolls all the way round."""

    def __post_init__(self) -> None:
        if self.head not in ("iterative", "attention", "lifting") or self.pose not in ("6d", "pca"):
            raise InputError(
                f"head {self.head!r} and pose {self.pose!r} were given, expected iterative, attention or lifting, and "
                "6d or pca."
            )
        if self.head == "lifting" and self.pose == "pca":
            raise InputError("the lifting head gives rotations; choose the pose 6d, not pca.")
        if not 1 <= self.margin <= 4:
            raise InputError(f"a margin of {self.margin} was given, expected 1 to 4 times the keypoints' box.")
        if min(self.size, self.upright) < 32 or self.width < 8 or self.rounds < 1 or not 1 <= self.components <= 45:
            raise InputError(
                f"crops of {self.size} px, turned ones of {self.upright}, a head {self.width} wide of {self.rounds} "
                f"rounds and {self.components} components were given, expected at least 32, 32, 8 and 1, and 1 to 45."
            )

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> ImageNetworkOptions:
        """From what `dataclasses.asdict` gave and JSON kept; raises TypeError or InputError for anything else."""
        backbone = data["backbone"]
        if not isinstance(backbone, dict):
            raise TypeError("the backbone is no table of entries")
        return cls(**{**data, "backbone": BackboneOptions(**backbone)})  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Regressed:
    """B right hands in the frames of the crops' cameras."""

    rotations: Tensor
    """(B, 16, 3, 3)."""
    coefficients: Tensor
    """(B, K) principal components of the fingers' pose; K = 0 with 6D rotations."""
    betas: Tensor
    """(B, 10)."""
    heading: Tensor
    """(B, 2) where the fingers point in the crop, 1 long where that is clear; (B, 0) for heads that do not turn it."""
    turn: Tensor
    """(B, 2, 2) from places in the crop to places in the maps, both in halves of their side, from their middles."""
    heat: Tensor
    """(B, 21, h, w) logits of where the network sees the points in these maps; h = w = 0 for heads that are not
    taught maps."""
    located: Tensor
    """(B, 21, 2) their means, in units of half the crop, from its middle."""
    located_sd: Tensor
    """(B, 21) their deviations per axis, in the same unit."""
    depths: Tensor
    """(B, 21) depths of the points relative to the middle finger's knuckle, in the same unit at the hand's distance;
    (B, 0) for heads that give none."""
    weak: Tensor
    """(B, 3) s, tx, ty: the wrist appears at s (tx, ty) in units of half the crop, from its middle; m."""
    log_sd: Tensor
    """(B, 28) logs of the standard deviations: 16 rotations (rad), 10 betas, bearing (rad), log depth."""

    def root(self, camera: Camera, size: int) -> Tensor:
        """(B, 3) m, the wrist in the frames of the crops' cameras, crops of `size` px."""
        middle = torch.full_like(self.weak[:, 1:], (size - 1) / 2)
        side = torch.full_like(self.weak[:, 0], float(size))
        focal, princpt = camera.focal.mean(1).to(self.weak), camera.princpt.to(self.weak)
        return translation_from_weak_perspective(self.weak, focal, middle, side, princpt)


class ImageNetwork(nn.Module):
    """Crops of right hands (left ones mirrored) to hands."""

    usual: Tensor
    """(16, 6) rotations that the answer starts from."""
    components: Tensor
    """(K, 45) principal components and `pose_mean` (45,) of the hand model; not part of the weights."""
    pose_mean: Tensor
    colour_mean: Tensor
    """(3, 1, 1)."""
    colour_sd: Tensor
    """(3, 1, 1)."""
    log_sd_scale: Tensor
    """(28,) what the calibration adds to the logs of the standard deviations; NaN before: no opinion."""

    def __init__(self, options: ImageNetworkOptions, hand: Hand) -> None:
        """`hand`: the right hand's model, for its principal components."""
        super().__init__()
        self.options = options
        k = options.components if options.pose == "pca" else 0
        sizes = (6, k or 90, 10, 3)
        side = options.upright if options.head == "lifting" else options.size
        self.backbone = build_backbone(options.backbone, 3 + 21 * options.heatmaps, side)
        channels = self.backbone.channels
        self.head: nn.Module
        if options.head == "lifting":
            self.head = LiftingHead(self.backbone.widths, options.width)
            self.upright = Upright(options.upright)
        else:
            self.locator = Locator(channels)
            if options.head == "iterative":
                self.head = IterativeHead(channels, sum(sizes), options.width, options.rounds)
            else:
                self.head = AttentionHead(channels, sizes, options.width, options.rounds)
            self.spread = nn.Sequential(nn.Linear(channels, 128), nn.GELU(approximate="tanh"), nn.Linear(128, N_SD))
        self.register_buffer("usual", torch.tensor([1.0, 0, 0, 0, 1.0, 0]).repeat(16, 1))
        self.register_buffer("log_sd_scale", torch.full((N_SD,), float("nan")))
        self.register_buffer("colour_mean", torch.tensor(_COLOUR_MEAN)[:, None, None], persistent=False)
        self.register_buffer("colour_sd", torch.tensor(_COLOUR_SD)[:, None, None], persistent=False)
        basis = torch.tensor(hand.hands_components[:k], dtype=torch.float32)
        self.register_buffer("components", basis, persistent=False)
        self.register_buffer("pose_mean", torch.tensor(hand.hands_mean, dtype=torch.float32), persistent=False)

    def forward(self, crops: Tensor, camera: Camera, heatmaps: Tensor | None = None) -> Regressed:
        """Regress.

        Args:
            crops: (B, 3, size, size) uint8, sRGB.
            camera: of the crops. Only the lifting head looks at it.
            heatmaps: (B, 21, size, size) in 0..1 (`heatmaps_of`), for a network that takes them.

        Raises:
            InputError: crops of another size, or heat-maps are missing or not wanted.
        """
        size = self.options.size
        if tuple(crops.shape[1:]) != (3, size, size) or (heatmaps is None) == self.options.heatmaps:
            raise InputError(
                f"crops of shape {tuple(crops.shape)} came {'without' if heatmaps is None else 'with'} heat-maps, this "
                f"network expects (N, 3, {size}, {size}) {'with' if self.options.heatmaps else 'without'}."
            )
        x = self._normalised(crops)
        if heatmaps is not None:
            x = torch.cat([x, heatmaps.to(x)], 1)
        if isinstance(self.head, LiftingHead):
            turned: Turned = self.upright(x)
            return self._lifted(self.head(self.backbone.pyramid(turned.crops), turned, camera, size), camera)
        features = self.backbone(x)
        located, located_sd = moments(self.locator(features))
        raw = self.head(features, located).float()
        # The deviations describe the error; what they learn must not pull on what makes it.
        log_sd = self.spread(features.detach().mean((2, 3))).float()
        with torch.autocast(raw.device.type, enabled=False):
            turns, coefficients, betas, weak = self._hand(raw)
        none, same = raw[:, :0], torch.eye(2).to(raw).expand(len(raw), 2, 2)
        no_maps = raw.new_zeros(len(raw), 21, 0, 0)
        return Regressed(turns, coefficients, betas, none, same, no_maps, located, located_sd, none, weak, log_sd)

    def turned(self, crops: Tensor) -> Turned:
        """The crops as the lifting head sees them; see `forward`."""
        turned: Turned = self.upright(self._normalised(crops))
        return turned

    def _normalised(self, crops: Tensor) -> Tensor:
        return (crops.to(self.usual) / 255 - self.colour_mean) / self.colour_sd

    def _lifted(self, seen: SeenHand, camera: Camera) -> Regressed:
        hand, size = seen.hand, self.options.size
        focal, princpt = camera.focal.mean(1).to(hand.root), camera.princpt.to(hand.root)
        middle = torch.full_like(princpt, (size - 1) / 2)
        root = torch.cat([hand.root[:, :2], hand.root[:, 2:].clamp(min=_NEAREST_M)], 1)
        weak = weak_perspective_from_translation(root, focal, middle, torch.full_like(focal, float(size)), princpt)
        return Regressed(
            hand.rotations, hand.betas[:, :0], hand.betas, seen.turned.heading, seen.turned.turn, seen.heat,
            seen.located, seen.located_sd, seen.depths, weak, hand.log_sd,
        )  # fmt: skip

    def _hand(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rotations, coefficients, betas and weak-perspective cameras of a head's numbers."""
        turn = matrix_from_6d(self.usual[:1] + raw[:, :6].unflatten(1, (1, 6)))
        k = len(self.components)
        if k:
            coefficients = raw[:, 6 : 6 + k]
            # The first coefficients of a pose spread over about 1 rad, and so do raw outputs.
            fingers = so3_exp((coefficients @ self.components + self.pose_mean).unflatten(1, (15, 3)))
        else:
            coefficients = raw[:, :0]
            fingers = matrix_from_6d(self.usual[1:] + raw[:, 6:96].unflatten(1, (15, 6)))
        scale = _USUAL_SCALE * raw[:, -3].clamp(-3, 3).exp()
        weak = torch.stack([scale, raw[:, -2] / scale, raw[:, -1] / scale], 1)
        return torch.cat([turn, fingers], 1), coefficients, raw[:, -13:-3], weak


def heatmaps_of(points: Tensor, conf: Tensor, size: int) -> Tensor:
    """(B, 21, size, size) Gaussians of height `conf` around points; a missing point gives an empty map.

    Args:
        points: (B, 21, 2) px of the crop; anything finite where `conf` is 0.
        conf: (B, 21).
        size: side of the crop, px; the deviation is a fortieth of it.
    """
    at = torch.arange(size, dtype=points.dtype, device=points.device)
    along = torch.exp(-0.5 * ((at - points[..., None]) / (size / 40)).square())
    return conf[..., None, None] * along[:, :, 1, :, None] * along[:, :, 0, None, :]
