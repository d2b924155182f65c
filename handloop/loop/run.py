"""The self-improving loop: a network and fits teach each other, from keypoints without 3D labels.

Each step (SPIN, Kolotouros et al. 2019, with a memory that cannot get worse):

1. The network proposes hands for a batch of keypoints (`train.LoopTraining`) or of pictures (`image_loop.ImageLoop`).
2. Each proposal is fitted with a few steps, and the fit kept where it beats the hand's best one so far.
3. The best fits are the labels of these hands.
4. The network takes a step.

Every few epochs the pose prior is learned anew from the fits. Between two checkpoints nothing depends on anything but
the last one, so that an interrupted run goes on to the same bits.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from handloop.core.errors import InputError
from handloop.core.layout import KeypointLayout
from handloop.core.params import HandParams
from handloop.core.proposal import Proposal
from handloop.core.results import write_text
from handloop.hand.kinematics import Kinematics
from handloop.hand.model import HandPair
from handloop.loop.batches import proposal_of, with_fits
from handloop.loop.cache import FitCache
from handloop.loop.cached_fits import CachedFits
from handloop.loop.checkpoint import check_same_run, load_checkpoint, save_checkpoint
from handloop.loop.config import LoopConfig, config_json
from handloop.loop.hand_data import HandData
from handloop.loop.held_out import HeldOut
from handloop.loop.learner import Learner
from handloop.loop.log import RunLog
from handloop.loop.memory import FitMemory
from handloop.loop.prior_step import learn_together, prior_of, prior_state
from handloop.loop.reshard import bring_home, join
from handloop.loop.schedule import Clock
from handloop.loop.supervise import Supervision
from handloop.priors.mixture import PosePriorModel
from handloop.priors.prior_file import load_prior, save_prior
from handloop.regressors.network import Lifted

CHECKPOINT = "checkpoint.pt"
_CHUNK = 1024
"""Hands fitted at a time where all are."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    step: int
    steps: int
    loss: float
    seconds: dict[str, float]
    """Of this step: "network" (forward, loss, backward), "fit" (fits and cache), "draw" (views and synthetic hands)."""


class LoopRun(ABC):
    """A run in a folder, which can be interrupted at any moment and goes on from its last checkpoint.

    Several processes make one run: each has the hands whose ids belong to it, their fits, and its part of what is
    drawn; gradients are summed, so that all have the same network. Every rank calls the same methods.
    """

    def __init__(
        self,
        folder: Path,
        data: HandData,
        pair: HandPair,
        config: LoopConfig,
        learner: Learner,
        layout: KeypointLayout | None = None,
        prior: PosePriorModel | None = None,
        memory: type[FitMemory] = FitMemory,
    ) -> None:
        """Start, or go on where the folder holds a checkpoint.

        Args:
            folder: made if missing, on a local disk; ranks of one machine share it, others have their own.
            data: hands with keypoints, the same on all ranks.
            pair: the hand model.
            config: how.
            learner: the network, as it starts.
            layout: what the keypoints' source means by its points; None for the model's own.
            prior: the pose prior to start with; None for the poses inside the hand model.
            memory: its kind; another one may offer fits to the cache in other terms.

        Raises:
            InputError: the folder belongs to another run, there is nothing to learn from, or the ranks have been given
                different things.
        """
        self.folder, self.data, self.pair, self.config, self.step = folder, data, pair, config, 0
        self.ranks, self.learner = learner.ranks, learner
        self.layout = KeypointLayout.identity() if layout is None else layout
        self.kinematics = Kinematics.from_hand(pair.right, torch.float32).with_offsets(self.layout.offsets)
        if config.batch > 0 and len(data.train) == 0:
            raise InputError("all hands are held out, there is none to learn from; give more, or set held_out to 0.")
        self.generator = torch.Generator().manual_seed(config.seed)
        self.prior_version = 0
        self.held_out: HeldOut
        self._own = self.ranks.own(data.keypoints.ids)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = self._checkpoint()
        bring_home(folder / "fits", self.ranks, checkpoint.get("step"))
        cache = FitCache.open(folder / "fits", self.ranks.rank, self.ranks.n)
        self.memory = memory(cache, pair, self.layout, prior, config.fit, _labels(data))
        self._first_prior = self.memory.prior_name()
        for what, text in self._names().items():
            self.ranks.agree(what, text, "give all processes the same files and options")
        if checkpoint:
            self._restore(checkpoint)
        else:
            self._start()
        self.log = RunLog(folder, self.step, self.ranks)

    @abstractmethod
    def _teach(self, step: int, clock: Clock) -> float:
        """Propose, fit, learn; returns the loss."""

    @abstractmethod
    def _propose(self, rows: Tensor) -> Proposal:
        """The averaged network's hands."""

    def train(self, progress: Callable[[Progress], None] | None = None) -> None:
        """Train to the end, and leave prior.npz, the fits and layout.json in the folder.

        The fits of all ranks are then in one shard, which is rank 0's; the other ranks have closed theirs.
        """
        config = self.config
        while self.step < config.steps:
            done = self._one_step()
            saving = self.step % config.save_every == 0 or self.step == config.steps
            if self.step % config.log_every == 0 or saving:
                self.log.write(self.step, {**self._state_of_things(), **(self._scores() if saving else {})})
            if saving:
                self.save()
            if progress is not None:
                progress(done)
        if self.ranks.n > 1:
            self.memory.cache.close()
            join(self.folder / "fits", self.ranks, self.step)
            if self.ranks.first:
                self.memory.cache = FitCache.open(self.folder / "fits")
        if not self.ranks.first:
            return
        save_prior(self.memory.prior, self.folder / "prior.npz")
        fits = list(self.memory.cache.batches())
        if fits:
            CachedFits.concatenate(fits).to_result(self.memory.models).save(self.folder)

    def close(self) -> None:
        """Close the cache of fits."""
        self.memory.cache.close()

    def _one_step(self) -> Progress:
        config = self.config
        step, clock = self.step + 1, Clock()
        if self.ranks.n > 1:
            # Of the step and the rank alone, so that no rank needs another's state to go on.
            self.generator.manual_seed(_seed(config.seed, step, self.ranks.rank))
        loss = self._teach(step, clock)
        clock.stop("network")
        self.step = step
        self._learn_prior_if_due()
        clock.stop("prior")
        self.log.add({"loss": loss, **{f"seconds_{k}": v for k, v in clock.seconds.items()}})
        return Progress(step, config.steps, loss, clock.seconds)

    def _labelled(self, rows: Tensor, bare: Supervision, out: Lifted, step: int) -> Supervision:
        """The batch's hands with the best that is known of each; `out` in their pictures' own frames."""
        config, data = self.config, self.data
        if config.mode == "off":
            return bare
        keypoints, camera = data.keypoints.select(rows), data.camera.select(rows)
        if config.mode == "in_loop":
            proposal = proposal_of(out, self.kinematics, keypoints.is_right, camera)
            epoch = data.epoch(step, config.batch)
            visit = self.memory.visit(keypoints, camera, proposal, step, epoch, f"step {step - 1}")
            fits = visit.fits
            rate = visit.accepted / visit.offered if visit.offered else math.nan
            # The log has the mean over the ranks; of these, the sum is wanted.
            self.log.add({"acceptance_rate": rate, "new_fits": float(visit.new * self.ranks.n)})
        else:
            fits = self.memory.cache.get(keypoints.ids)
        labelled = with_fits(data, rows, fits, self.kinematics, self.layout, config.trust)
        energy = fits.energy[fits.found & torch.isfinite(fits.energy)]
        used = float((labelled.params_weight > 0).double().mean())
        trusted = float(labelled.params_weight.mean())
        self.log.add({"energy": float(energy.mean()), "labels_used": used, "trust": trusted})
        return labelled

    def _learn_prior_if_due(self) -> None:
        config, every = self.config, self.config.prior.every
        if config.mode != "in_loop" or every == 0 or config.batch == 0:
            return
        before, now = (self.data.epoch(step, config.batch) for step in (self.step - 1, self.step))
        if now // every == before // every:
            return
        name = f"learned in {self.folder.name}, version {self.prior_version + 1}"
        prior, self.held_out, line = learn_together(self.memory, self.data, self.held_out, config, self.ranks, name)
        if prior is not None:
            self.prior_version += 1
            if self.ranks.first:
                self._write_prior(prior)
            self.memory.change_prior(prior, self.step, now)
        self.log.write(self.step, {**self._state_of_things(), **self._scores(), "prior_update": line})

    def _scores(self) -> dict[str, float]:
        return self.held_out.scores(self.memory, self.data, self._propose, self.ranks)

    def _start(self) -> None:
        if self.ranks.first:
            write_text(self.folder / "config.json", config_json(self.config))
            self.layout.save(self.folder / "layout.json")
            self._write_prior(self.memory.prior)
        self.memory.adopt(0)
        if self.config.mode == "static":
            self._fit_once()
        self.held_out = HeldOut.fitted(self.memory, self.data, self._propose, self.config.trust.max_energy, self.ranks)
        self.save()

    def _fit_once(self) -> None:
        """Fit all hands thoroughly, before the network learns anything."""
        train = self.data.train
        for rows in train[self._own[train]].split(_CHUNK):
            keypoints, camera = self.data.keypoints.select(rows), self.data.camera.select(rows)
            seeds = self.config.fit.static_seeds
            self.memory.fill(keypoints, camera, self._propose(rows), 0, 0, "static", "start", seeds)

    def _state_of_things(self) -> dict[str, Any]:
        """What a line of the log says besides the means."""
        config = self.config
        epoch = self.data.epoch(self.step, config.batch) if config.batch else 0
        fits = int(self.ranks.total([len(self.memory.cache)])[0])
        return {"epoch": epoch, "prior_version": self.prior_version, "fits": fits}

    def _names(self) -> dict[str, str]:
        """What must be the same for a run to go on, and on all ranks."""
        layout = repr((self.layout.offsets.tolist(), self.layout.mean_betas.tolist()))
        return {
            "configuration": config_json(self.config),
            "data set": self.data.digest(),
            "hand model": self.pair.right.digest,
            "layout": layout,
            "starting prior": self._first_prior,
        }

    def _write_prior(self, prior: PosePriorModel) -> None:
        self._prior_file().parent.mkdir(exist_ok=True)
        save_prior(prior, self._prior_file())

    def _prior_file(self) -> Path:
        return self.folder / "priors" / f"prior-{self.prior_version:04d}.npz"

    def save(self) -> None:
        """Write the checkpoint, then seal the cache: killed in between, the cache can still be taken back to it."""
        self.learner.check_same(self.step)
        if self.ranks.first:
            state = {
                **self._names(),
                **self.learner.state(),
                "step": self.step,
                "generator": self.generator.get_state(),
                "prior_version": self.prior_version,
                "held_out_rows": self.held_out.rows,
                "held_out_params": list(self.held_out.params.tensors()),
            }
            save_checkpoint(self.folder / CHECKPOINT, state)
        self.ranks.wait()
        self.memory.cache.checkpoint(self.step)

    def _checkpoint(self) -> dict[str, Any]:
        """Rank 0's checkpoint; empty before the first."""
        path = self.folder / CHECKPOINT
        return self.ranks.from_first(load_checkpoint(path) if self.ranks.first and path.is_file() else {})

    def _restore(self, state: dict[str, Any]) -> None:
        check_same_run(self.folder, state, self._names())
        self.step, self.prior_version = int(state["step"]), int(state["prior_version"])
        self.learner.restore(state)
        self.generator.set_state(state["generator"])
        self.held_out = HeldOut(state["held_out_rows"], HandParams(*state["held_out_params"]))
        if self.prior_version > 0:
            prior = prior_state(load_prior(self._prior_file())) if self.ranks.first else {}
            self.memory.set_prior(prior_of(self.ranks.from_first(prior)))
        self.memory.cache.rollback(self.step)


def _labels(data: HandData) -> dict[str, Tensor] | None:
    """Known 3D points by id."""
    if data.points_3d is None:
        return None
    return dict(zip(data.keypoints.ids, data.points_3d, strict=True))


def _seed(*numbers: int) -> int:
    digest = hashlib.blake2b(" ".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
