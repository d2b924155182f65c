"""Networks from a picture to a map of features: a small built-in residual network, and those of transformers.

Every backbone takes (B, C, H, W) and gives (B, channels, h, w), or such maps of several sizes. The first three input
channels are colours, normalised as for ImageNet; further ones (heat-maps) are taken as they are.
"""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from handloop.core.errors import InputError

Family = Literal["small", "resnet", "convnext", "vit", "dinov2"]
FAMILIES = ("small", "resnet", "convnext", "vit", "dinov2")


@dataclass(frozen=True)
class BackboneOptions:
    """Which network, and how large."""

    family: Family = "small"
    """"small" is built in; the others are transformers' (extra `image`)."""
    width: int = 32
    """Channels of the built-in network's first stage, 64 as in ResNet-18; each later stage has twice as many."""
    stages: int = 4
    """Of the built-in network, each with maps half as wide as those of the one before, the first a quarter of the
    picture. Of small pictures the fourth sees next to nothing."""
    config: Mapping[str, object] = field(default_factory=dict)
    """Entries of transformers' configuration of this family that differ from its defaults."""

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise InputError(f"the backbone {self.family!r} is unknown, expected one of {', '.join(FAMILIES)}.")
        if self.width < 1:
            raise InputError(f"a backbone {self.width} channels wide was asked for, expected at least 1.")
        if not 1 <= self.stages <= 6:
            raise InputError(f"a backbone of {self.stages} stages was asked for, expected 1 to 6.")


RESNET18 = BackboneOptions(
    "resnet", config={"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
)
RESNET50 = BackboneOptions("resnet")
NAMED = {
    "small": BackboneOptions(),
    "resnet18": RESNET18,
    "resnet50": RESNET50,
    "convnext": BackboneOptions("convnext"),
    "vit": BackboneOptions("vit"),
    "dinov2": BackboneOptions(
        "dinov2", config={"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "patch_size": 14}
    ),
}
"""Backbones by a short name, with random weights: ConvNeXt-T, ViT-B/16, DINOv2-S/14."""

_NOT_THE_NETWORK = {
    *("model_type", "num_channels", "architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path"),
    *("id2label", "label2id", "auto_map"),
}
"""Entries of a configuration that say what it was trained for and where, or that a hand's network sets itself."""


class Backbone(nn.Module, ABC):
    """A picture to features."""

    channels: int
    """Of the features."""
    widths: tuple[int, ...]
    """Channels of the maps of `pyramid`."""

    @abstractmethod
    def pyramid(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) to maps of features, the finest first, each half as wide as the one before; the last is that of
        `forward`. A transformer has one."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, channels, h, w)."""
        return self.pyramid(x)[-1]


def build_backbone(options: BackboneOptions, inputs: int, size: int) -> Backbone:
    """A backbone with random weights.

    Args:
        options: which one.
        inputs: channels of its input.
        size: side of the pictures, px.

    Raises:
        InputError: transformers is needed and missing, or it refuses the configuration.
    """
    if options.family == "small":
        return SmallResNet(options.width, inputs, options.stages)
    return TransformersBackbone(options, inputs, size)


def pretrained_backbone(source: str | os.PathLike[str]) -> tuple[BackboneOptions, dict[str, Tensor]]:
    """Options and weights of a backbone in a local folder or on the hub, as transformers saves them.

    Args:
        source: a folder with config.json and model.safetensors, or a name such as "microsoft/resnet-50".

    Raises:
        InputError: it cannot be read, or is of another family.
    """
    transformers = _transformers()
    name = os.fspath(source)
    try:
        # Only safetensors: other files of weights can run code when they are opened.
        model = transformers.AutoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        where = "the folder" if Path(name).is_dir() else "neither a folder nor a name on the hub that can be read:"
        raise InputError(f"{where} {name} holds no backbone's config.json and model.safetensors.") from error
    family = str(model.config.model_type)
    if family not in FAMILIES[1:]:
        raise InputError(f"{name} is a {family!r} network, expected one of {', '.join(FAMILIES[1:])}.")
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in _NOT_THE_NETWORK}
    if family in ("vit", "dinov2"):
        # Also where it is transformers' default: the position embeddings have this size.
        config["image_size"] = model.config.image_size
    return BackboneOptions(family, config=config), dict(model.state_dict())  # type: ignore[arg-type]


def load_pretrained(backbone: Backbone, weights: Mapping[str, Tensor]) -> None:
    """Copy weights made for three colours; the weights of further input channels become zero.

    Raises:
        InputError: they do not fit.
    """
    if not isinstance(backbone, TransformersBackbone):
        raise InputError("the built-in backbone has no weights to start from.")
    own = backbone.model.state_dict()
    taken = {}
    for name, tensor in weights.items():
        if name in own and tensor.ndim == 4 and tensor.shape[1] == 3 < own[name].shape[1]:
            tensor = torch.cat(
                [tensor, tensor.new_zeros(own[name].shape[0], own[name].shape[1] - 3, *tensor.shape[2:])], 1
            )
        taken[name] = tensor
    missing, _ = backbone.model.load_state_dict(taken, strict=False)
    if missing:
        raise InputError(f"the backbone's weights lack {missing[0]!r} and {len(missing) - 1} others.")


class SmallResNet(Backbone):
    """ResNet-18 (He et al. 2016) with a width and a number of stages of choice."""

    def __init__(self, width: int, inputs: int, stages: int = 4, large_entry: bool = False) -> None:
        """Untrained.

        Args:
            width: channels of the first stage.
            inputs: channels of the pictures.
            stages: each with maps half as wide as those of the one before.
            large_entry: a convolution of 7 x 7 and a maximum, as in ResNet-18, in place of two small convolutions (He
                et al. 2019), which see fingers a few pixels wide better and how a hand as a whole lies worse.
        """
        super().__init__()
        self.enter = _large_entry(inputs, width) if large_entry else _small_entry(inputs, width)
        sizes = [width, *(width * 2**stage for stage in range(stages))]
        blocks = []
        for before, after in pairwise(sizes):
            blocks += [_Block(before, after, 1 if before == after else 2), _Block(after, after, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.channels, self.widths = sizes[-1], tuple(sizes[1:])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """See `Backbone.pyramid`; h = H / 4 in the first stage, half as much in each further one."""
        x = self.enter(x.contiguous(memory_format=torch.channels_last))
        maps = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number % 2:
                maps.append(x)
        return maps


def _small_entry(inputs: int, width: int) -> nn.Sequential:
    half = max(1, width // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, half, 3, 2, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(),
        nn.Conv2d(half, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
    )  # fmt: skip


def _large_entry(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    )


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after))
        self.short: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.short = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.short(x))


class TransformersBackbone(Backbone):
    """A network of transformers, built from its configuration alone."""

    def __init__(self, options: BackboneOptions, inputs: int, size: int) -> None:
        super().__init__()
        transformers = _transformers()
        given = dict(copy.deepcopy(dict(options.config)), num_channels=inputs)
        if options.family in ("vit", "dinov2"):
            # Position embeddings learned for another size are interpolated.
            given.setdefault("image_size", size)
        try:
            config = transformers.AutoConfig.for_model(options.family, **given)
            self.model = transformers.AutoModel.from_config(config, trust_remote_code=False)
        except Exception as error:  # It checks configurations with errors of its own.
            raise InputError(f"transformers refuses this configuration of {options.family!r}: {error}") from error
        tokens = options.family in ("vit", "dinov2")
        self.widths = (int(config.hidden_size),) if tokens else tuple(map(int, config.hidden_sizes))
        self.channels = self.widths[-1]
        self.patch = int(config.patch_size) if tokens else 0
        self.resized = options.family == "vit" and config.image_size != size

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """See `Backbone.pyramid`."""
        if not self.patch:
            # The first hidden state is the embedding, as wide as the first stage's.
            return list(self.model(x, output_hidden_states=True).hidden_states[-len(self.widths) :])
        out: Tensor = (
            self.model(x, interpolate_pos_encoding=True) if self.resized else self.model(x)
        ).last_hidden_state
        # The class token comes first.
        h, w = x.shape[2] // self.patch, x.shape[3] // self.patch
        return [out[:, -h * w :].transpose(1, 2).unflatten(2, (h, w))]


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            'this backbone needs the package transformers: pip install transformers; the backbone "small" does without.'
        ) from error
    return transformers
