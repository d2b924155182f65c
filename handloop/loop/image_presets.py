"""Kinds of image regressors and how each is trained."""

from __future__ import annotations

from dataclasses import replace

from handloop.core.augmentation import AugmentOptions
from handloop.loop.image_losses import ImageLossWeights
from handloop.loop.train_image import ImageTrainOptions
from handloop.regressors.backbones import NAMED, BackboneOptions
from handloop.regressors.image_network import ImageNetworkOptions

_SPIN = ImageTrainOptions(
    steps=100_000,
    batch=64,
    learning_rate=2e-4,
    network=ImageNetworkOptions(NAMED["resnet50"], size=224, width=1024),
    augment=AugmentOptions(scale=0.25, flip="to-right", occlusion=0.2),
)

PRESETS: dict[str, ImageTrainOptions] = {
    "small": ImageTrainOptions(
        steps=4_000,
        batch=192,
        learning_rate=2e-3,
        kernel_rate=0.05,
        looks=2,
        heading_first=0.18,
        ema=0.996,
        rising=0.05,
        network=ImageNetworkOptions(BackboneOptions(width=40, stages=3), "lifting", width=64, upright=72, margin=1.5),
        weights=ImageLossWeights(fingers=3.0, heat=1.0, located=3.0),
        # Rendered hands turn every way in the picture, and so do hands seen from a head.
        augment=AugmentOptions(rotation_deg=180, scale=0.12, shift=0.04, flip="to-right", occlusion=0.1),
    ),
    "spin": _SPIN,
    "hamer": replace(
        _SPIN,
        learning_rate=1e-4,
        network=ImageNetworkOptions(NAMED["vit"], "attention", size=224, width=512, rounds=6),
    ),
    "boukhayma": replace(
        _SPIN,
        network=ImageNetworkOptions(NAMED["resnet50"], size=224, width=1024, rounds=1, pose="pca", heatmaps=True),
        weights=ImageLossWeights(
            points=1.0, squared=True, fingers=0, log_depth=0, mask=1.0, usual_pose=0.01, usual_betas=0.1
        ),
    ),
}
"""small: half an hour on two cores of a CPU; spin: ResNet-50 with iterative feedback; hamer: a vision transformer with
an attention decoder; boukhayma: ResNet-50 with heat-maps, principal components and a mask loss. The last three want a
GPU."""


def with_network(options: ImageTrainOptions, backbone: BackboneOptions | None, size: int | None) -> ImageTrainOptions:
    """A preset with another backbone or size of the crops."""
    network = options.network
    if backbone is not None:
        network = replace(network, backbone=backbone)
    if size is not None:
        network = replace(network, size=size)
    return replace(options, network=network)
