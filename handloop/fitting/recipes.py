"""`Recipe`: which terms a fit uses, from which starts, for how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from handloop.core.errors import InputError
from handloop.core.joint_noise import JOINT_NOISE
from handloop.core.terms import KERNELS, Term
from handloop.fitting.baseline_smplify import SmplifyOptions
from handloop.fitting.baseline_spin import SpinOptions
from handloop.fitting.solver import SolverOptions


@dataclass(frozen=True)
class Recipe:
    """The settings of a fit. The defaults are the standard recipe."""

    name: str = "default"
    """Written into every result."""
    noise_px: float = 2.25
    """Standard deviation of a keypoint, px at a hand box of 224 px; scaled with each hand's box. Covers the detector's
    error and the model's (benchmarks/accuracy.py)."""
    noise_mm: float = 3.0
    """Standard deviation of a 3D point where some are given, mm."""
    robust: float = 8.0
    """Scale of the robust kernel, sigmas: 18 px at a 224-px box."""
    kernel: Literal["geman_mcclure", "huber", "cauchy"] = "geman_mcclure"
    """What a far point costs: no more than a bound (geman_mcclure), its logarithm (cauchy), its distance (huber)."""
    joint_noise: str | tuple[float, ...] = "uniform"
    """Each point's noise relative to `noise_px`: a name in `core.joint_noise.JOINT_NOISE`, or 21 numbers."""
    limits_sigma_deg: float = 4.0
    """How soft the joint limits are."""
    coupling_sigma_deg: float | None = None
    """How closely each DIP follows its PIP (`FlexionCoupling`), 10 is reasonable; None for not at all."""
    spread: bool = False
    """Whether the range of a knuckle's abduction closes as it flexes (`Spread`), as soft as the limits."""
    hyperextension: float | None = None
    """Weight of SMPLify's term against hinges bent backwards (`HingeExtension`), published as 4.48; None for no such
    term."""
    shape_sigma: float = 1.0
    """Standard deviation of each beta; the models' betas are in population standard deviations."""
    length_sigma_mm: float = 1.0
    """How well a given hand length is known."""
    focal_sigma: float | None = None
    """None: an assumed focal length is kept. A number: it is a free parameter with this relative deviation."""
    seeds: int = 4
    """Poses to start from; each is tried with both depth flips of the palm. Beside a proposal, half as many do. 0 takes
    a proposal as the only start."""
    lifter: bool = True
    """Let the package's keypoint lifter propose one more start where there is none from the caller and the hand is the
    one it knows, the embedded hand. Published methods, fits of 3D points alone and recipes that fix parameters at their
    start never use it."""
    keep_proposal: bool = False
    """A hand with too few points for a fit keeps what was proposed for it, as a prediction: for networks that look at
    pictures."""
    explore_steps: int = 4
    """Steps given to every start beside a proposal; twice as many where there is none."""
    finalists: int = 3
    """How many starts are taken to convergence."""
    solver: SolverOptions = field(default_factory=SolverOptions)
    """Stopping rules for the finalists."""
    baseline: SpinOptions | SmplifyOptions | None = None
    """A classic method in place of the standard search and solver; energies and posterior stay the standard terms', so
    that results can be compared."""
    posterior: bool = True
    """Compute how far each fit can be trusted: about 0.1 ms per hand."""
    self_penetration: float | None = None
    """None: fingers may pass through each other. A number: what two spheres of the hand in one place cost, in half
    squared sigmas (see `fitting.self_penetration`)."""
    fixed: tuple[str, ...] = ()
    """Parameter groups that stay at their start: any of "pose", "orient", "betas", "root"."""
    extra_terms: tuple[Term, ...] = ()
    """Further terms of the caller's, with one row per hand in the order of the keypoints."""

    def __post_init__(self) -> None:
        positive = {
            "noise_px": self.noise_px,
            "noise_mm": self.noise_mm,
            "robust": self.robust,
            "limits_sigma_deg": self.limits_sigma_deg,
            "shape_sigma": self.shape_sigma,
            "length_sigma_mm": self.length_sigma_mm,
            "coupling_sigma_deg": 1.0 if self.coupling_sigma_deg is None else self.coupling_sigma_deg,
            "hyperextension": 1.0 if self.hyperextension is None else self.hyperextension,
        }
        for name, value in positive.items():
            if not value > 0:
                raise InputError(f"{name} is {value}, expected a positive number.")
        if self.self_penetration is not None and not 0 < self.self_penetration < float("inf"):
            raise InputError(
                f"self_penetration is {self.self_penetration}, expected a positive number, or None to leave it out."
            )
        if isinstance(self.joint_noise, str) and self.joint_noise not in JOINT_NOISE:
            raise InputError(f"joint_noise names {self.joint_noise!r}, expected one of {', '.join(JOINT_NOISE)}.")
        if len(self.noise_ratios()) != 21 or not all(v > 0 for v in self.noise_ratios()):
            raise InputError("joint_noise must be 21 positive numbers in OpenPose order.")
        if self.kernel not in KERNELS:
            raise InputError(f"the kernel {self.kernel!r} is unknown, expected one of {', '.join(KERNELS)}.")
        if not 0 <= self.seeds <= 6:
            raise InputError(f"seeds is {self.seeds}, expected 0 (a proposal alone) to 6.")
        unknown = set(self.fixed) - {"pose", "orient", "betas", "root"}
        if unknown:
            raise InputError(f"fixed names {sorted(unknown)}, expected any of pose, orient, betas, root.")

    def noise_ratios(self) -> tuple[float, ...]:
        """The 21 numbers of `joint_noise`."""
        return JOINT_NOISE[self.joint_noise] if isinstance(self.joint_noise, str) else self.joint_noise

    def wants_lifter(self) -> bool:
        """Whether the package's lifter has a place in this fit."""
        return self.lifter and self.baseline is None and not self.fixed

    def seeds_beside(self, proposal: bool) -> int:
        """How many of `seeds` are used, with or without a proposal."""
        return self.seeds if self.seeds == 0 or not proposal else max(1, self.seeds // 2)

    def energy_settings(self) -> str:
        """What decides energies besides noise level, prior and layout: they compare only where it is equal."""
        ratios = self.joint_noise if isinstance(self.joint_noise, str) else ",".join(f"{v:g}" for v in self.joint_noise)
        numbers = {
            self.kernel: self.robust,
            "noise_mm": self.noise_mm,
            "limits_sigma_deg": self.limits_sigma_deg,
            "shape_sigma": self.shape_sigma,
            "length_sigma_mm": self.length_sigma_mm,
            "focal_sigma": self.focal_sigma,
            "coupling_sigma_deg": self.coupling_sigma_deg,
            "hyperextension": self.hyperextension,
            "self_penetration": self.self_penetration,
        }
        said = [f"{name} {value:g}" for name, value in numbers.items() if value is not None]
        return ", ".join([*said, *(["spread"] if self.spread else []), f"joint_noise {ratios}"])

    def optional_terms(self) -> tuple[str, ...]:
        """Names of the settings that add anatomical terms to the standard ones."""
        asked = {
            "coupling_sigma_deg": self.coupling_sigma_deg is not None,
            "spread": self.spread,
            "hyperextension": self.hyperextension is not None,
            "self_penetration": self.self_penetration is not None,
        }
        return tuple(name for name, there in asked.items() if there)


RECIPES: dict[str, Recipe] = {
    "default": Recipe(),
    "fast": Recipe(name="fast", seeds=2, explore_steps=3, finalists=1, solver=SolverOptions(15, 1e-3)),
    "spin": Recipe(name="spin", baseline=SpinOptions()),
    "smplify": Recipe(name="smplify", baseline=SmplifyOptions()),
    "careful": Recipe(name="careful", seeds=6, explore_steps=8, finalists=6, solver=SolverOptions(60, 1e-6)),
}
"""Recipes by name. "spin" and "smplify" are published methods, for comparison."""
