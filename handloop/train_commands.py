"""The commands that train, and that look after a training's cache: each a dataclass whose fields are its flags.

Only light imports: `handloop --help` must not wait for torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class CacheInfo:
    """Show what is in a cache: fits, scores, steps, origins, doubts."""

    cache: Annotated[Path, tyro.conf.Positional]
    """Folder of the cache, or one of its shards."""


@dataclass(frozen=True)
class CacheExport:
    """Write the fits as results.npz and summary.json, as `handloop fit` does."""

    cache: Annotated[Path, tyro.conf.Positional]
    """Folder of the cache, or one of its shards."""
    out: Path
    """Folder for the results; made if missing."""
    plausible_only: bool = False
    """Leave out fits that something speaks against."""


@dataclass(frozen=True)
class CacheImport:
    """Fill a new cache with fits made beforehand, so that a training starts from them."""

    results: Annotated[Path, tyro.conf.Positional]
    """results.npz, or the folder that holds it."""
    cache: Path
    """Folder of the cache, on a local disk; made if missing."""
    ranks: int = 1
    """Shards of a new cache: as many as the training has processes."""
    start: str = "static"
    """What the fits are to be called in the cache."""


@dataclass(frozen=True)
class CacheMerge:
    """Join caches, or hand the samples of one out to another number of ranks."""

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of caches, or single shards."""
    out: Path
    """Folder for the new cache, on a local disk; must hold none."""
    ranks: int = 1
    """Shards of the new cache: as many as the training has processes."""


@dataclass(frozen=True)
class CacheVerify:
    """Read all of a cache and check every row; status 1 where something is damaged."""

    cache: Annotated[Path, tyro.conf.Positional]
    """Folder of the cache, or one of its shards."""


@dataclass(frozen=True)
class CacheCommand:
    """Look after the memory of a training: the best fit of every sample."""

    action: Annotated[
        Annotated[CacheInfo, tyro.conf.subcommand("info")]
        | Annotated[CacheExport, tyro.conf.subcommand("export")]
        | Annotated[CacheImport, tyro.conf.subcommand("import")]
        | Annotated[CacheMerge, tyro.conf.subcommand("merge")]
        | Annotated[CacheVerify, tyro.conf.subcommand("verify")],
        tyro.conf.arg(name=""),
    ]
    """What to do."""


@dataclass(frozen=True)
class TrainLifter:
    """Train the keypoint lifter on synthetic hands alone, for a hand model of your own."""

    out: Path
    """Weights to write, ending in .safetensors; a description lands beside them."""
    mano: str | None = None
    """MANO file or folder to train for. Without it: what HANDLOOP_MANO names, or the embedded hand."""
    steps: int = 2400
    """Steps of the training; the default takes under 20 minutes on two CPU cores."""
    batch: int = 2048
    """Synthetic hands per step."""
    width: int = 448
    """Width of the network's layers."""
    blocks: int = 3
    """Its residual blocks, of two layers each."""
    seed: int = 20261121
    """Of the weights' start and of the hands: the same seed gives the same weights on the same machine."""
    half: bool = False
    """Write 16-bit weights: half the size."""
    resume: bool = False
    """Go on with an interrupted training of the same name and settings."""


@dataclass(frozen=True)
class TrainLoop:
    """Let a network and the fits of your keypoints improve each other, without 3D labels (docs/training.md)."""

    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Keypoint files or folders of them, as for `fit`. True joints in them (joints_3d of an npz) are used. To train on
    pictures (--config image-loop): such files with their pictures, folders of data sets or of `handloop synth`."""
    out: Path
    """Folder of the run, on a local disk; made if missing."""
    config: str = "lifter-loop"
    """A preset (lifter-loop, lifter-synthetic, image-loop), or a JSON or TOML file of what differs from one."""
    mode: Literal["in_loop", "static", "off"] | None = None
    """in_loop fits while it learns, static once before, off never. Without it: what the configuration says."""
    steps: int | None = None
    """Steps of the training, in place of the configuration's."""
    batch: int | None = None
    """Hands per step, in place of the configuration's."""
    seed: int | None = None
    """In place of the configuration's."""
    mano: str | None = None
    """MANO file or folder. Without it: what HANDLOOP_MANO names, or the embedded hand."""
    camera: Path | None = None
    """Camera file with K and perhaps distortion (JSON, YAML, npz), for all hands."""
    hand: Literal["right", "left"] | None = None
    """Side of every hand, where the files do not say or are wrong."""
    layout: Path | None = None
    """What the source means by its points, as learned by `handloop layout`; without it, the model's own points."""
    learn_layout: bool = False
    """Learn that from these keypoints first; they must show many people, poses and views (see `handloop layout`)."""
    prior: Path | None = None
    """Pose prior to start with, as learned by `handloop prior`; without it, the poses inside the hand model."""
    weights: Path | None = None
    """Network to start with; without it, the package's own lifter, which knows the embedded hand, or for pictures one
    that knows nothing."""
    fresh: bool = False
    """Start with a network that knows nothing, in place of a lifter."""
    limits: Path | None = None
    """Limits of `handloop limits` for the biomechanical losses, where the configuration asks for these."""
    device: str = "cpu"
    """Where the network is: auto, cpu, cuda. The fits are made on the CPU; a GPU pays with large batches."""
    images: Path | None = None
    """For pictures: their folder, for keypoint files that lie elsewhere."""
    split: str | None = None
    """For pictures: only this part of the data sets."""
    workers: int = 1
    """For pictures: processes that prepare them; 0 for none besides the training. The result does not depend on it."""
    resume: bool = False
    """Go on with an interrupted run of the same data and settings."""


@dataclass(frozen=True)
class TrainImage:
    """Train an image regressor on pictures with labels; docs/pictures.md explains the kinds."""

    pictures: Annotated[str, tyro.conf.Positional]
    """Folder that `handloop synth` wrote, or of a picture data set; or the word synth, to render on the fly."""
    out: Path
    """Weights to write, ending in .safetensors; a description and a log (.jsonl) land beside them."""
    preset: Literal["small", "spin", "hamer", "boukhayma"] = "small"
    """Network, losses and rates: small suits a CPU; spin, hamer and boukhayma need transformers and want a GPU."""
    backbone: str | None = None
    """Another backbone: small, resnet18, resnet50, convnext, vit, dinov2 with random weights, or with their own ones a
    folder or name on the hub, as transformers saves them."""
    size: int | None = None
    """Side of the crops, px; without it, the preset's."""
    split: str | None = None
    """Only this part of a data set."""
    mano: str | None = None
    """MANO file or folder to train for. Without it: what HANDLOOP_MANO names, or the embedded hand."""
    steps: int | None = None
    """Steps of the training; without it, the preset's."""
    batch: int | None = None
    """Pictures per step; without it, the preset's."""
    learning_rate: float | None = None
    """The highest of the cycle; without it, the preset's."""
    held_out: int = 256
    """Hands that are not trained on: they measure the progress and calibrate the deviations."""
    measure_every: int = 500
    """Steps between two measurements on them, and between two checkpoints."""
    rendered_size: int = 128
    """Width and height of pictures rendered on the fly, px."""
    backgrounds: Path | None = None
    """Folder of pictures to cut the backgrounds of rendered pictures from."""
    workers: int = 1
    """Processes that prepare pictures; 0 for none besides the training. The result does not depend on it."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the network's products; auto is 16 bits on a GPU. On a CPU that has them, bf16 saves a third of the time."""
    seed: int = 20261121
    """Of the weights' start, the order of the pictures and their changes."""
    resume: bool = False
    """Go on with an interrupted training of the same name and settings."""


@dataclass(frozen=True)
class TrainCommand:
    """Train networks: the keypoint lifter, alone or in the self-improving loop, or an image regressor."""

    action: Annotated[
        Annotated[TrainLifter, tyro.conf.subcommand("lifter")]
        | Annotated[TrainLoop, tyro.conf.subcommand("loop")]
        | Annotated[TrainImage, tyro.conf.subcommand("image")],
        tyro.conf.arg(name=""),
    ]
    """What to train, and how."""


def checkpoint_of(command: TrainLifter | TrainLoop | TrainImage) -> Path:
    """Where a training keeps what it needs to go on."""
    if isinstance(command, TrainLoop):
        return command.out / "checkpoint.pt"
    return command.out.with_name(command.out.name + ".checkpoint")
