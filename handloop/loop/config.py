"""What a training loop can be told: frozen dataclasses, presets by name, and files of them (JSON or TOML)."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from handloop.core.augmentation import AugmentOptions
from handloop.core.errors import FileFormatError, InputError
from handloop.loop.supervise import LossWeights
from handloop.losses.biomechanical import BiomechanicalWeights
from handloop.regressors.image_network import ImageNetworkOptions
from handloop.regressors.network import NetworkSize
from handloop.synth.keypoints import SynthOptions

Mode = Literal["in_loop", "static", "off"]
Precision = Literal["fp32", "bf16"]

_AUGMENT = AugmentOptions(rotation_deg=180, scale=0.2, shift=0.05, flip="to-right", occlusion=0.2)
"""Hands seen from a head turn every way in the picture."""


@dataclass(frozen=True)
class FitOptions:
    """The fits inside the loop."""

    steps: int = 4
    """Steps of each fit that starts from the network or goes on from the cache. With a fitting start and prior, four
    steps are as good as fifteen."""
    rest: int = 4
    """A converged fit that has stood for this many epochs is challenged in one epoch of as many only, which saves most
    of the time of fitting and misses next to nothing; 1 challenges each fit whenever it comes."""
    first_seeds: int = 2
    """Closed-form starts besides the network's for a hand without a fit; 0 trusts the network alone."""
    static_seeds: int = 4
    """Closed-form starts of the fits made once before, in the mode static."""
    refine_steps: int = 10
    """Steps that every cached fit gets when the prior has changed, and every held-out fit that judges one."""
    noise_px: float = 3.0
    """As in `Recipe`."""

    def __post_init__(self) -> None:
        if min(self.steps, self.rest, self.static_seeds, self.refine_steps) < 1 or self.first_seeds < 0:
            raise InputError(
                "steps, rest and static seeds of the loop's fits must be 1 or more, first_seeds 0 or more."
            )


@dataclass(frozen=True)
class PriorOptions:
    """Re-estimation of the pose prior from the fits (expectation maximisation)."""

    every: int = 5
    """Epochs between two attempts; 0 keeps the prior."""
    rounds: int = 4
    """Rounds of refitting and re-estimating in each."""
    hands: int = 2000
    """Fits learned from at most, drawn evenly."""
    uncertain: int = 300
    """Of these, hands whose posterior covariances make the mean one."""
    drop: float = 0.05
    """Share of the fits left out, those of the highest energy."""
    floor_deg: float = 1.5
    """Scatter added to every direction. Half of what a prior from known poses gets: the posterior covariance stands for
    much of what fits cannot pin down."""

    def __post_init__(self) -> None:
        if self.every < 0 or self.rounds < 1 or self.hands < 1 or self.uncertain < 1 or not 0 <= self.drop < 0.5:
            raise InputError(
                "a prior is re-estimated every 0 or more epochs, in 1 or more rounds, from 1 or more hands."
            )


@dataclass(frozen=True)
class TrustOptions:
    """How much a fit counts as a label."""

    max_energy: float = 80.0
    """A fit of more energy (half squared sigmas) is no label: then only the keypoints count, as in SPIN. 42 coordinates
    met as well as the noise level says have 18 on average."""
    max_beta: float = 3.0
    """A shape further out is replaced by the source's mean shape, as in SPIN."""
    error_mm: float = 12.0
    """A fit with this expected error counts half."""
    relative_depth: float = 0.1
    """A depth with this relative deviation counts half."""


@dataclass(frozen=True)
class ViewOptions:
    """Fits seen from elsewhere: exact labels for keypoints made of them."""

    near: float = 0.5
    """Share of the views near the hand's own; the others come from anywhere."""
    near_deg: float = 30.0
    """Standard deviation of the near ones' turn, about each axis."""
    redrawn: float = 0.5
    """Share of the views whose fingers are drawn from the pose prior as the run has learned it, in place of the fit's:
    the network sees more poses than the hands it learns from show."""
    reshaped: float = 0.8
    """Share of the views whose shape is drawn anew, whatever their fingers: few people give many hands, and the network
    is to know others."""
    own_errors: float = 0.75
    """Share of the views whose keypoints err as their source does: by as much as its fits miss them, with its
    confidences and missing points. The others err as in `synth.noise`."""


@dataclass(frozen=True)
class ImageOptions:
    """A network that looks at pictures."""

    network: ImageNetworkOptions = field(default_factory=ImageNetworkOptions)
    """Of a network that starts from nothing; given weights have their own."""
    augment: AugmentOptions = _AUGMENT
    """Of the crops that the network sees. The fits see the pictures as they are."""
    located: float = 5.0
    """What an error costs of the points that the network sees in the crop before it thinks of a hand, in halves of the
    crop."""
    heat: float = 0.3
    """Of the maps that these points come from, in a head that is taught them (`ImageLossWeights`)."""
    heading: float = 1.0
    """Of the direction of the fingers in the crop, from a head that turns crops by it."""
    depths: float = 2.0
    """Of the points' depths against those of fits and labels, in halves of the crop, from a head that gives them."""
    usual_betas: float = 0.01
    """Per squared beta of hands without a fit or another label: pulls to the mean shape."""

    def __post_init__(self) -> None:
        if self.augment.flip != "to-right":
            raise InputError(f"flip is {self.augment.flip!r}; the network knows right hands only, expected to-right.")
        if min(self.located, self.heat, self.heading, self.depths, self.usual_betas) < 0:
            raise InputError("located, heat, heading, depths or usual_betas is negative, expected 0 or more.")


@dataclass(frozen=True)
class LoopConfig:
    """One run. Everything is counted in steps, so that an interruption changes nothing."""

    mode: Mode = "in_loop"
    """in_loop fits from the network's proposals while it learns; static fits once before; off uses keypoints only."""
    steps: int = 3000
    batch: int = 128
    """Hands with keypoints per step, of all processes together; 0 trains on synthetic hands alone."""
    views: int = 256
    """Views of fitted hands per step, likewise."""
    synthetic: int = 64
    """Synthetic hands per step, likewise."""
    accumulate: int = 1
    """Parts that the hands of a step go through the network in, one after the other: less memory for the same step.
    Above 1, the proposals take a pass of their own."""
    precision: Precision = "fp32"
    """Of the products in the network's layers while it learns; all that is geometry stays at 32 bits."""
    learning_rate: float = 1e-3
    """The highest."""
    rising: float = 0.05
    """Share of the steps in which it rises; then it falls with the cosine to a hundredth."""
    ema: float = 0.99
    """Decay of the averaged weights, which are the ones that are kept."""
    held_out: float = 0.1
    """Share of the hands that nothing learns from: they judge priors and show the error of reprojection."""
    log_every: int = 25
    """Steps between two lines of the log."""
    save_every: int = 100
    """Steps between two checkpoints."""
    seed: int = 20261121
    """Of the order of the hands and of all that is drawn."""
    size: NetworkSize = field(default_factory=NetworkSize)
    """Of a network that starts from nothing; given weights have their own."""
    fit: FitOptions = field(default_factory=FitOptions)
    prior: PriorOptions = field(default_factory=PriorOptions)
    trust: TrustOptions = field(default_factory=TrustOptions)
    view: ViewOptions = field(default_factory=ViewOptions)
    weights: LossWeights = field(default_factory=LossWeights)
    biomechanics: BiomechanicalWeights | None = None
    """Weights of the losses of Spurr et al. on the predicted hands; None without them, needs limits otherwise."""
    synth: SynthOptions = field(default_factory=SynthOptions)
    image: ImageOptions | None = None
    """Trains a network that looks at the hands' pictures; None trains one that takes the keypoints themselves."""

    def __post_init__(self) -> None:
        if self.mode not in ("in_loop", "static", "off"):
            raise InputError(f"the mode {self.mode!r} was given, expected in_loop, static or off.")
        if self.steps < 1 or min(self.batch, self.views, self.synthetic) < 0 or self.batch + self.synthetic < 1:
            raise InputError(
                f"{self.steps} steps of {self.batch} hands, {self.views} views and {self.synthetic} synthetic hands "
                "were asked for, expected at least 1 step of 1 hand."
            )
        if self.accumulate < 1 or self.precision not in ("fp32", "bf16"):
            raise InputError(
                f"accumulate {self.accumulate} and the precision {self.precision!r} were given, expected 1 or more and "
                "fp32 or bf16."
            )
        if self.image is not None and (self.views or self.synthetic or self.batch < 2 or self.accumulate > 1):
            raise InputError(
                f"{self.batch} pictures in {self.accumulate} parts, {self.views} views and {self.synthetic} synthetic "
                "hands per step were asked for; with pictures, expected 2 or more of these in one part, and 0 of the "
                "others, which are keypoints alone."
            )
        if self.log_every < 1 or self.save_every < 1:
            raise InputError("log_every and save_every are steps, expected 1 or more.")
        if not 0 <= self.held_out <= 0.5 or not 0 < self.ema < 1:
            raise InputError("held_out must lie in 0 to 0.5 and ema between 0 and 1.")


PRESETS: dict[str, LoopConfig] = {
    "lifter-loop": LoopConfig(),
    "lifter-synthetic": LoopConfig(mode="off", batch=0, views=0, synthetic=448),
    "image-loop": LoopConfig(
        steps=10_000,
        batch=64,
        views=0,
        synthetic=0,
        ema=0.998,
        save_every=500,
        image=ImageOptions(network=ImageNetworkOptions(head="lifting", width=64)),
    ),
}
"""Configurations by name: the self-improving loop on keypoints, the same training on synthetic hands alone, the loop
on pictures."""
_SECTIONS: dict[str, type] = {"biomechanics": BiomechanicalWeights, "image": ImageOptions}
"""Settings that may be missing: what they are made of where a file gives some of theirs."""


def read_config(name: str | Path) -> LoopConfig:
    """A preset by name, or a JSON or TOML file of what differs from `lifter-loop` (or from the preset it names).

    Raises:
        InputError: no such preset or file, or an unknown key.
        FileFormatError: not JSON or TOML, or a value of another type.
    """
    if str(name) in PRESETS:
        return PRESETS[str(name)]
    path = Path(name)
    if path.suffix not in (".json", ".toml"):
        raise InputError(f"{name} is neither a .json or .toml file nor a preset ({', '.join(PRESETS)}).")
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise FileFormatError(f"{path}: not {path.suffix[1:].upper()} ({error}).") from error
    if not isinstance(data, dict):
        raise FileFormatError(f"{path}: expected an object of settings.")
    base = data.pop("preset", "lifter-loop")
    if base not in PRESETS:
        raise InputError(f"{path}: the preset {base!r} is unknown, expected {', '.join(PRESETS)}.")
    made = _merged(PRESETS[base], data, str(path))
    assert isinstance(made, LoopConfig)
    return made


def config_json(config: LoopConfig) -> str:
    """All settings, in the form that `read_config` takes."""
    return json.dumps(asdict(config), indent=1) + "\n"


def _merged(base: Any, data: Mapping[str, Any], where: str) -> Any:
    """A dataclass with some fields replaced, nested ones likewise."""
    known = {f.name: f for f in fields(base)}
    hints = get_type_hints(type(base))
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in known:
            raise InputError(f"{where}: {key!r} is no setting, expected any of {', '.join(known)}.")
        present, place = getattr(base, key), f"{where}: {key}"
        if key in _SECTIONS and isinstance(value, dict):
            present = present or _SECTIONS[key]()
        if is_dataclass(present) and isinstance(value, dict):
            values[key] = _merged(present, value, place)
        else:
            values[key] = _checked(present, value, place, hints[key])
    return type(base)(**{**{name: getattr(base, name) for name in known}, **values})


def _checked(present: Any, value: Any, place: str, hint: Any) -> Any:
    """A value of the kind of the present one; whole numbers may stand for others, lists for tuples."""
    if value is None and type(None) in getattr(hint, "__args__", ()):
        return None
    if isinstance(present, tuple) and isinstance(value, list) and len(value) == len(present):
        return tuple(_checked(a, b, place, None) for a, b in zip(present, value, strict=True))
    if isinstance(present, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(present):
        raise FileFormatError(f"{place} is {value!r}, expected something like {present!r}.")
    return value
