"""The fits of a loop: made from proposals, kept where they are the best, judged anew when the prior changes."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.keypoints import Keypoints
from handloop.core.layout import KeypointLayout
from handloop.core.params import HandParams
from handloop.core.proposal import Proposal
from handloop.core.results import FitResult, Status
from handloop.fitting.fit import fit_keypoints
from handloop.fitting.problem import FitModel, HandModels
from handloop.fitting.recipes import Recipe
from handloop.fitting.solver import SolverOptions
from handloop.fitting.starts import seed_poses
from handloop.hand.model import HandPair
from handloop.loop.cache import FitCache
from handloop.loop.cached_fits import PER_ROW_TEXTS, CachedFits, Origin
from handloop.loop.config import FitOptions
from handloop.priors.mixture import PosePriorModel


@dataclass(frozen=True, eq=False)
class Visit:
    """What came of offering fits of some hands."""

    fits: CachedFits
    """The best fits of these hands now; `found` is False where none is usable."""
    offered: int
    """Fits from proposals of hands that had one."""
    accepted: int
    """Of these, how many took its place."""
    new: int
    """Hands that had none and have one now."""


class FitMemory:
    """The best fit of each hand, under one prior at a time."""

    def __init__(
        self,
        cache: FitCache,
        pair: HandPair,
        layout: KeypointLayout,
        prior: PosePriorModel | None,
        options: FitOptions | None = None,
        labels: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Over an open cache.

        Args:
            cache: its fits, if it has any, must be of the same hand model; call `adopt` before the first visit.
            pair: what to fit.
            layout: what the keypoints' source means by its points.
            prior: which poses are likely; None for the poses inside the hand model.
            options: how to fit; None for the defaults.
            labels: (21, 4) known 3D points by id, see `HandData`.
        """
        self.cache, self.options, self.labels = cache, options or FitOptions(), labels
        self.models = HandModels.of(pair, layout=layout, pose_prior=prior)
        self._layout_digest = _digest(layout.offsets, layout.mean_betas)

    @property
    def prior(self) -> PosePriorModel:
        """The one that energies are computed under."""
        return self.models.right.pose_prior

    def recipe(self, steps: int, seeds: int = 0) -> Recipe:
        """How fits are made here: a few steps from one start, or from some closed-form ones, too."""
        solver = SolverOptions(steps, 1e-3)
        return Recipe(
            name=f"loop, {steps} steps",
            noise_px=self.options.noise_px,
            seeds=seeds,
            explore_steps=3,
            finalists=2,
            # A search without a fitting start takes more steps than going on from one.
            solver=solver if seeds == 0 else replace(solver, max_steps=steps + 10),
        )

    def adopt(self, step: int) -> None:
        """Score what is in the cache under the present prior, noise and layout, and by the loop's own judgement."""
        self.cache.rescore(self._scored, self._score_name(), step)

    def visit(
        self, keypoints: Keypoints, camera: Camera, proposal: Proposal | None, step: int, epoch: int, weights: str = ""
    ) -> Visit:
        """Fit hands from proposals and from their cached fits, and remember what is best.

        A hand with a fit is fitted from its proposal, with a few steps, unless its fit rests (`FitOptions.rest`); a
        cached fit that was still improving gets as many more. One without a fit starts from closed-form poses as well.

        Args:
            keypoints: B hands in the original picture's pixels; an id may occur twice.
            camera: B cameras.
            proposal: B hands in their order; None starts from closed-form poses alone.
            step, epoch: of the training.
            weights: names the network, for the record.
        """
        new = self.fill(keypoints, camera, proposal, step, epoch, "regressor", weights)
        held = self.cache.get(keypoints.ids)
        # A fit that is of this step already was made from this very proposal.
        again = held.found & (held.found_step < step) & self._due(held, epoch)
        offered = accepted = 0
        if proposal is not None and bool(again.any()):
            start = proposal.select(again)
            result = self.fit(keypoints.select(again), camera.select(again), start, self.options.steps)
            fits = self._as_rows(result, step)
            offered, accepted = len(fits), self._put(fits, "regressor", step, epoch, weights)
        unfinished = again & (held.status == Status.MAX_STEPS)
        if bool(unfinished.any()):
            self._go_on(held.select(unfinished), self.options.steps, step, epoch)
        return Visit(self.cache.get(keypoints.ids), offered, accepted, new)

    def fill(
        self,
        keypoints: Keypoints,
        camera: Camera,
        proposal: Proposal | None,
        step: int,
        epoch: int,
        start: str,
        weights: str = "",
        seeds: int | None = None,
    ) -> int:
        """Fit the hands that have no fit, from closed-form poses and from proposals; returns how many have one now.

        Arguments as of `visit`; `start` is what the fits are called, `seeds` another number of closed-form poses than
        the options'.
        """
        lacking = ~self.cache.get(keypoints.ids).found
        if not bool(lacking.any()):
            return 0
        many = self.options.first_seeds if seeds is None else seeds
        given = None if proposal is None else proposal.select(lacking)
        many = max(many, 1) if given is None else many
        result = self.fit(keypoints.select(lacking), camera.select(lacking), given, self.options.steps, many)
        fits = self._as_rows(result, step)
        # By the judgement of fits from one start, which know of no other solution: no fit may seem better for having
        # looked around less.
        judged = self._scored(fits)
        return self._put(replace(fits, plausible=judged.plausible, doubts=judged.doubts), start, step, epoch, weights)

    def _due(self, held: CachedFits, epoch: int) -> Tensor:
        """(B,) bool, fits to challenge in this epoch: all but those that have proved themselves and rest."""
        rest = self.options.rest
        due = [
            origin is None or epoch - origin.epoch < rest or (zlib.crc32(name.encode()) + epoch) % rest == 0
            for name, origin in zip(held.ids, held.origin, strict=True)
        ]
        return torch.tensor(due, dtype=torch.bool) | (held.status == Status.MAX_STEPS)

    def change_prior(self, prior: PosePriorModel, step: int, epoch: int) -> None:
        """From now on energies are those under another prior: every fit is scored under it, then refined."""
        self.set_prior(prior)
        self.adopt(step)
        for fits in self.cache.batches():
            self._go_on(fits, self.options.refine_steps, step, epoch)

    def set_prior(self, prior: PosePriorModel) -> None:
        """The prior alone, of a cache that is scored under it already."""
        self.models = with_prior(self.models, prior)

    def fit(
        self, keypoints: Keypoints, camera: Camera, start: Proposal | None, steps: int, seeds: int = 0
    ) -> FitResult:
        """Fit without remembering."""
        start = None if start is None else replace(start, ids=None)
        recipe = self.recipe(steps, seeds)
        return fit_keypoints(
            self.models, keypoints, camera, recipe, points_3d=self._labels_of(keypoints.ids), proposal=start
        )

    def offered(self, result: FitResult) -> FitResult:
        """What is offered to the cache of a fit; all of it."""
        return result

    def _go_on(self, fits: CachedFits, steps: int, step: int, epoch: int) -> None:
        self._put(self._as_rows(self._refit(fits, steps), step), "cached", step, epoch, "")

    def _refit(self, fits: CachedFits, steps: int) -> FitResult:
        return self.fit(fits.keypoints(), fits.camera(), start_at(fits.params, fits.is_right), steps)

    def _as_rows(self, result: FitResult, step: int) -> CachedFits:
        ids = result.keypoints.ids
        return CachedFits.from_result(self.offered(result), ids, Origin(""), step, self.cache.score_version)

    def _put(self, fits: CachedFits, start: str, step: int, epoch: int, weights: str) -> int:
        """Offer fits to the cache; returns how many it took."""
        origin = Origin(start, weights=weights, prior=self.prior_name(), layout=self._layout_digest, epoch=epoch)
        return int(self.cache.put(fits.ids, fits, origin, step, self.cache.score_version).accepted().sum())

    def _scored(self, fits: CachedFits) -> CachedFits:
        """The same fits with the energies, doubts and deviations that they have under the present prior."""
        result = self.offered(self._refit(fits, 0))
        texts = {key: text for key, text in result.provenance.items() if key not in PER_ROW_TEXTS}
        return replace(
            fits,
            energy=result.energy,
            energy_terms=dict(result.energy_terms),
            plausible=result.plausible,
            doubts=result.doubts,
            keypoints_3d=result.keypoints_3d,
            keypoints_3d_sd=result.keypoints_3d_sd,
            depth_sd=result.depth_sd,
            expected_error_mm=result.expected_error_mm,
            rms_px=result.rms_px,
            weakest=result.weakest,
            conventions=texts,
        )

    def _labels_of(self, ids: tuple[str, ...]) -> Tensor | None:
        if self.labels is None:
            return None
        none = torch.zeros(21, 4, dtype=torch.float64)
        return torch.stack([self.labels.get(name, none) for name in ids]) if ids else none[None][:0]

    def prior_name(self) -> str:
        """Hash of the prior."""
        prior = self.prior
        return _digest(prior.means, prior.precision_factors, prior.offsets)

    def _score_name(self) -> str:
        recipe = self.recipe(0)
        settings = f"noise {recipe.noise_px:g} px, {recipe.energy_settings()}"
        return f"prior {self.prior_name()}, layout {self._layout_digest}, {settings}"


def start_at(params: HandParams, is_right: Tensor) -> Proposal:
    """Hands in the frame of their keypoints' own cameras, as a start."""
    return Proposal.without_opinion(params, is_right, None)


def with_prior(models: HandModels, prior: PosePriorModel) -> HandModels:
    """The same models under another pose prior."""

    def changed(model: FitModel) -> FitModel:
        like = model.like
        seeds = seed_poses(model.limits, prior.mean).to(like)
        return replace(model, pose_prior=prior.to(like), seeds=seeds)

    right = changed(models.right)
    return replace(models, right=right, left=right if models.left is models.right else changed(models.left))


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(np.ascontiguousarray(tensor.double().cpu().numpy()).tobytes())
    return digest.hexdigest()[:12]
