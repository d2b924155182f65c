"""The self-improving loop: a keypoint regressor and fits teach each other, from keypoints without 3D labels.

Each step of `LoopTraining._one_step` (SPIN, Kolotouros et al. 2019, with a memory that cannot get worse):

1. The network proposes hands for a batch of keypoints.
2. Each proposal is fitted with a few steps, and the fit kept where it beats the hand's best one so far.
3. The best fits are the labels of these hands, and of their views from elsewhere; synthetic hands join them.
4. The network takes a step.

Every few epochs the pose prior is learned anew from the fits. Between two checkpoints nothing depends on anything but
the last one, so that an interrupted run goes on to the same bits.
"""

from __future__ import annotations

import math
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
from handloop.loop.batches import joined, proposal_of, seen_from_elsewhere, with_fits, without_labels
from handloop.loop.cache import FitCache
from handloop.loop.cached_fits import CachedFits
from handloop.loop.checkpoint import load_checkpoint, save_checkpoint
from handloop.loop.config import LoopConfig, config_json
from handloop.loop.hand_data import HandData
from handloop.loop.held_out import HeldOut, fitted_hands
from handloop.loop.learn_prior import FittedHands, PriorUpdate, learn_prior
from handloop.loop.log import RunLog
from handloop.loop.memory import FitMemory
from handloop.loop.schedule import Clock, learning_rate
from handloop.loop.supervise import Supervision, deviations_loss, losses
from handloop.loop.train_lifter import calibrate_on, start_at_the_usual_hand
from handloop.losses.biomechanical import biomechanical_loss
from handloop.priors.biomechanical_limits import BiomechanicalLimits
from handloop.priors.mixture import PosePriorModel
from handloop.priors.prior_file import load_prior, save_prior
from handloop.regressors.lifter import Lifter
from handloop.regressors.network import Lifted, LifterNetwork
from handloop.synth.keypoints import KeypointSynth, SyntheticKeypoints

CHECKPOINT = "checkpoint.pt"
_CALIBRATION_HANDS = 4096
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


class LoopTraining:
    """A run in a folder, which can be interrupted at any moment and goes on from its last checkpoint."""

    def __init__(
        self,
        folder: Path,
        data: HandData,
        pair: HandPair,
        config: LoopConfig,
        lifter: Lifter | None = None,
        layout: KeypointLayout | None = None,
        prior: PosePriorModel | None = None,
        limits: BiomechanicalLimits | None = None,
        memory: type[FitMemory] = FitMemory,
    ) -> None:
        """Start, or go on where the folder holds a checkpoint.

        Args:
            folder: made if missing, on a local disk.
            data: hands with keypoints.
            pair: the hand model.
            config: how.
            lifter: the network to start with; None starts from nothing.
            layout: what the keypoints' source means by its points; None for the model's own.
            prior: the pose prior to start with; None for the poses inside the hand model.
            limits: for the biomechanical losses, if they are wanted; None takes the hand model's own.
            memory: its kind; another one may offer fits to the cache in other terms.

        Raises:
            InputError: the network belongs to another hand model, or the folder to another run.
        """
        self.folder, self.data, self.pair, self.config, self.step = folder, data, pair, config, 0
        self.layout = KeypointLayout.identity() if layout is None else layout
        self.synth = KeypointSynth.of(pair.right, config.synth)
        self.kinematics = Kinematics.from_hand(pair.right, torch.float32).with_offsets(self.layout.offsets)
        self.limits = limits
        if config.biomechanics is not None and limits is None:
            self.limits = BiomechanicalLimits.from_hand(pair.right)
        if config.batch > 0 and len(data.train) == 0:
            raise InputError("all hands are held out, there is none to learn from; give more, or set held_out to 0.")
        self.network = self._network(lifter)
        self.mean = torch.optim.swa_utils.AveragedModel(
            self.network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema)
        )
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=config.learning_rate, weight_decay=0.01)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.prior_version = 0
        self.held_out: HeldOut
        (folder / "priors").mkdir(parents=True, exist_ok=True)
        cache = FitCache.open(folder / "fits")
        self.memory = memory(cache, pair, self.layout, prior, config.fit, _labels(data))
        self._first_prior = self.memory.prior_name()
        self._start_or_go_on()
        self.log = RunLog(folder, self.step)

    def run(self, progress: Callable[[Progress], None] | None = None) -> Lifter:
        """Train to the end, calibrate, and leave lifter.safetensors, prior.npz and layout.json in the folder."""
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
        return self._finish()

    def close(self) -> None:
        """Close the cache of fits."""
        self.memory.cache.close()

    def _one_step(self) -> Progress:
        config = self.config
        step, clock = self.step + 1, Clock()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(step, config)
        outs: list[Lifted] = []
        parts: list[Supervision] = []
        if config.batch > 0:
            rows = self.data.rows(step, config.batch, config.seed)
            bare = without_labels(self.data, rows, self.layout)
            outs.append(self._forward(bare.hands))
            clock.stop("network")
            parts.append(self._labelled(rows, bare, outs[0], step))
            clock.stop("fit")
        parts += self._drawn(parts)
        clock.stop("draw")
        if len(parts) > len(outs):
            outs.append(self._forward(joined(parts[len(outs) :]).hands))
        loss = self._loss(outs, joined(parts))
        if not bool(torch.isfinite(loss)):
            raise InputError(
                f"the loss of step {step} is not finite; lower learning_rate ({config.learning_rate:g}) and start anew."
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.mean.update_parameters(self.network)
        clock.stop("network")
        self.step = step
        self._learn_prior_if_due()
        clock.stop("prior")
        self.log.add({"loss": float(loss.detach()), **{f"seconds_{k}": v for k, v in clock.seconds.items()}})
        return Progress(step, config.steps, float(loss.detach()), clock.seconds)

    def _forward(self, hands: SyntheticKeypoints) -> Lifted:
        out: Lifted = self.network(hands.rays, hands.conf, hands.offsets, hands.mean_betas)
        return out

    def _labelled(self, rows: Tensor, bare: Supervision, out: Lifted, step: int) -> Supervision:
        """The batch's hands with the best that is known of each."""
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
            self.log.add({"acceptance_rate": rate, "new_fits": float(visit.new)})
        else:
            fits = self.memory.cache.get(keypoints.ids)
        labelled = with_fits(data, rows, fits, self.kinematics, self.layout, config.trust)
        energy = fits.energy[fits.found & torch.isfinite(fits.energy)]
        used = float((labelled.params_weight > 0).double().mean())
        trusted = float(labelled.params_weight.mean())
        self.log.add({"energy": float(energy.mean()), "labels_used": used, "trust": trusted})
        return labelled

    def _drawn(self, parts: list[Supervision]) -> list[Supervision]:
        """Views of the labelled hands, and synthetic ones."""
        config, out = self.config, []
        if parts and config.mode != "off":
            out += self._seen_from_elsewhere(parts[0], config.views, self.generator)
        if config.synthetic > 0:
            out.append(Supervision.of_exact(self.synth.draw(config.synthetic, self.generator)))
        return out

    def _seen_from_elsewhere(self, labelled: Supervision, n: int, g: torch.Generator) -> list[Supervision]:
        views = seen_from_elsewhere(labelled, self.synth, self.memory.prior, n, self.config.view, g)
        return [] if views is None else [views]

    def _loss(self, outs: list[Lifted], true: Supervision) -> Tensor:
        """Mean over all hands, however they came to their labels."""
        w = self.config.weights
        out = Lifted(*(torch.cat([getattr(o, name) for o in outs]) for name in Lifted.__dataclass_fields__))
        points = self.kinematics.with_offsets(true.hands.offsets).points(out.rotations, out.betas, out.root)
        parts = losses(out, points, true, w)
        loss = parts.total().mean()
        at = true.exact.nonzero()[:, 0]
        if len(at):
            exact = SyntheticKeypoints(*(value[at] for value in vars(true.hands).values()))
            seen = Lifted(*(value[at] for value in vars(out).values()))
            loss = loss + w.deviations * deviations_loss(seen, exact).mean()
        if self.config.biomechanics is not None and self.limits is not None:
            plain = self.kinematics.with_offsets(None).points(out.rotations, out.betas, out.root)
            loss = loss + biomechanical_loss(plain, self.limits, weights=self.config.biomechanics).mean()
        self.log.add({f"loss_{name}": value for name, value in parts.means().items()})
        return loss

    def _learn_prior_if_due(self) -> None:
        config, every = self.config, self.config.prior.every
        if config.mode != "in_loop" or every == 0 or config.batch == 0:
            return
        before, now = (self.data.epoch(step, config.batch) for step in (self.step - 1, self.step))
        if now // every == before // every:
            return
        name = f"learned in {self.folder.name}, version {self.prior_version + 1}"
        recipe = self.memory.recipe(config.fit.refine_steps)
        update = learn_prior(
            self.memory.models, recipe, self._fitted_train(), self.held_out.hands(self.data), config.prior, name
        )
        self.held_out = HeldOut(self.held_out.rows, update.held_out.params)
        if update.accepted:
            self.prior_version += 1
            save_prior(update.prior, self._prior_file())
            self.memory.change_prior(update.prior, self.step, now)
        self.log.write(self.step, {**self._state_of_things(), **self._scores(), "prior_update": _as_json(update)})

    def _scores(self) -> dict[str, float]:
        return self.held_out.scores(self.memory, self.data, self._propose)

    def _fitted_train(self) -> FittedHands:
        """Training hands with a usable fit, evenly drawn, as many as a prior is learned from."""
        config, train = self.config, self.data.train
        few = torch.linspace(0, len(train) - 1, min(len(train), config.prior.hands)).round().long()
        rows = train[few]
        fits = self.memory.cache.get([self.data.keypoints.ids[i] for i in rows.tolist()])
        good = fits.found & (fits.energy <= config.trust.max_energy)
        return fitted_hands(self.data, rows[good], fits.params.select(good))

    def _start_or_go_on(self) -> None:
        path = self.folder / CHECKPOINT
        if path.is_file():
            self._restore(load_checkpoint(path, self._names()))
            return
        write_text(self.folder / "config.json", config_json(self.config))
        self.layout.save(self.folder / "layout.json")
        save_prior(self.memory.prior, self._prior_file())
        self.memory.adopt(0)
        if self.config.mode == "static":
            self._fit_once()
        self.held_out = HeldOut.fitted(self.memory, self.data, self._propose, self.config.trust.max_energy)
        self.save()

    def _fit_once(self) -> None:
        """Fit all hands thoroughly, before the network learns anything."""
        for rows in self.data.train.split(_CHUNK):
            keypoints, camera = self.data.keypoints.select(rows), self.data.camera.select(rows)
            seeds = self.config.fit.static_seeds
            self.memory.fill(keypoints, camera, self._propose(rows), 0, 0, "static", "start", seeds)

    def _propose(self, rows: Tensor) -> Proposal:
        """The averaged network's hands."""
        bare = without_labels(self.data, rows, self.layout).hands
        with torch.no_grad():
            out = self.mean.module(bare.rays, bare.conf, bare.offsets, bare.mean_betas)
        return proposal_of(out, self.kinematics, self.data.keypoints.is_right[rows], self.data.camera.select(rows))

    def _state_of_things(self) -> dict[str, Any]:
        """What a line of the log says besides the means."""
        config = self.config
        epoch = self.data.epoch(self.step, config.batch) if config.batch else 0
        return {"epoch": epoch, "prior_version": self.prior_version, "fits": len(self.memory.cache)}

    def _names(self) -> dict[str, str]:
        """What must be the same for a run to go on."""
        layout = repr((self.layout.offsets.tolist(), self.layout.mean_betas.tolist()))
        return {
            "configuration": config_json(self.config),
            "data set": self.data.digest(),
            "hand model": self.pair.right.digest,
            "layout": layout,
            "starting prior": self._first_prior,
        }

    def _prior_file(self) -> Path:
        return self.folder / "priors" / f"prior-{self.prior_version:04d}.npz"

    def save(self) -> None:
        """Write the checkpoint, then seal the cache: killed in between, the cache can still be taken back to it."""
        state = {
            **self._names(),
            "step": self.step,
            "network": self.network.state_dict(),
            "mean": self.mean.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "prior_version": self.prior_version,
            "held_out_rows": self.held_out.rows,
            "held_out_params": list(self.held_out.params.tensors()),
        }
        save_checkpoint(self.folder / CHECKPOINT, state)
        self.memory.cache.checkpoint(self.step)

    def _restore(self, state: dict[str, Any]) -> None:
        self.step, self.prior_version = int(state["step"]), int(state["prior_version"])
        self.network.load_state_dict(state["network"])
        self.mean.load_state_dict(state["mean"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        self.held_out = HeldOut(state["held_out_rows"], HandParams(*state["held_out_params"]))
        if self.prior_version > 0:
            self.memory.set_prior(load_prior(self._prior_file()))
        self.memory.cache.rollback(self.step)

    def _finish(self) -> Lifter:
        network = LifterNetwork(self.network.size)
        network.load_state_dict(self.mean.module.state_dict())
        calibrate_on(network, self._for_calibration())
        lifter = Lifter.of(network, self.pair.right)
        lifter.save(self.folder / "lifter.safetensors")
        save_prior(self.memory.prior, self.folder / "prior.npz")
        fits = list(self.memory.cache.batches())
        if fits:
            CachedFits.concatenate(fits).to_result(self.memory.models).save(self.folder)
        return lifter

    def _for_calibration(self) -> SyntheticKeypoints:
        """Synthetic hands, and as many views of fitted ones where there are any."""
        g = torch.Generator().manual_seed(self.config.seed)
        parts = [Supervision.of_exact(self.synth.draw(_CALIBRATION_HANDS, g))]
        if self.config.mode != "off":
            some = torch.linspace(0, len(self.data.train) - 1, min(_CHUNK, len(self.data.train))).round().long()
            rows = self.data.train[some]
            fits = self.memory.cache.get([self.data.keypoints.ids[i] for i in rows.tolist()])
            labelled = with_fits(self.data, rows, fits, self.kinematics, self.layout, self.config.trust)
            parts += self._seen_from_elsewhere(labelled, _CALIBRATION_HANDS, g)
        return joined(parts).hands

    def _network(self, lifter: Lifter | None) -> LifterNetwork:
        """A network to train: a copy of the given one, or a new one that answers with the usual hand."""
        if lifter is not None:
            lifter.check_model(self.pair.right)
            network = LifterNetwork(lifter.network.size)
            network.load_state_dict(lifter.network.state_dict())
            return network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            network = LifterNetwork(self.config.size)
        start_at_the_usual_hand(network, self.synth)
        return network


def _labels(data: HandData) -> dict[str, Tensor] | None:
    """Known 3D points by id."""
    if data.points_3d is None:
        return None
    return dict(zip(data.keypoints.ids, data.points_3d, strict=True))


def _as_json(update: PriorUpdate) -> dict[str, Any]:
    return {
        "accepted": update.accepted,
        "gain_nats": round(update.gain, 4),
        "gain_error": round(update.gain_error, 4) if math.isfinite(update.gain_error) else None,
        "moved_deg": round(update.moved_deg, 4),
        "reason": update.reason,
    }
