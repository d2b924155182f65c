"""The lifter of a run and how it learns: from hands with labels to gradients, in one pass or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from handloop.hand.model import HandPair
from handloop.loop.batches import joined
from handloop.loop.config import LoopConfig
from handloop.loop.learner import Learner
from handloop.loop.loop_loss import Counts
from handloop.loop.ranks import Ranks
from handloop.loop.supervise import Supervision
from handloop.loop.train_lifter import start_at_the_usual_hand
from handloop.priors.biomechanical_limits import BiomechanicalLimits
from handloop.regressors.lifter import Lifter
from handloop.regressors.network import Lifted, LifterNetwork
from handloop.synth.keypoints import KeypointSynth, SyntheticKeypoints


class LifterLearner(Learner):
    """A lifter in training."""

    network: LifterNetwork

    def __init__(
        self,
        pair: HandPair,
        config: LoopConfig,
        synth: KeypointSynth,
        lifter: Lifter | None,
        limits: BiomechanicalLimits | None,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        """Start.

        Args:
            pair, config, lifter, limits, ranks, device: see `LoopTraining`.
            synth: what a network that starts from nothing answers with.
        """
        super().__init__(_network(lifter, pair, config, synth), pair, config, limits, ranks, device)

    def look(self, hands: SyntheticKeypoints) -> Lifted:
        """The network's answer. With accumulation gradients are those of a later pass, and this one keeps nothing."""
        with torch.set_grad_enabled(self.config.accumulate == 1):
            return self._forward(hands)

    def averaged(self, hands: SyntheticKeypoints) -> Lifted:
        """The averaged network's answer."""
        with torch.no_grad():
            out: Lifted = self.mean.module(*self._input(hands))
        return out

    def step(
        self, step: int, parts: list[Supervision], seen: list[Lifted], note: Callable[[dict[str, float]], None]
    ) -> float:
        """Take a step; returns the loss, which is the mean over the hands of all ranks.

        Args:
            step: counted from 1.
            parts: this rank's hands with what is known of them.
            seen: the network's answers to the first parts, as `look` gave them.
            note: takes the parts' means for the log.

        Raises:
            InputError: the loss is not finite; nothing has changed.
        """
        true = joined(parts) if parts else None
        exact = 0 if true is None else int(true.exact.sum())
        counts = Counts(*self.ranks.total([0 if true is None else len(true), exact]))
        self.optimiser.zero_grad(set_to_none=True)
        value = torch.zeros((), device=self.device)
        for some, out in self._passes(true, parts[len(seen) :], seen):
            loss, means = self.loss.of_part(out, some, counts)
            loss.backward()
            value += loss.detach()
            note(means)
        return self.descend(step, value)

    def _passes(
        self, true: Supervision | None, unseen: list[Supervision], seen: list[Lifted]
    ) -> Iterator[tuple[Supervision, Lifted]]:
        """Hands and the network's answers to them, with gradients."""
        if true is None:
            return
        if self.config.accumulate == 1:
            outs = seen + ([self._forward(joined(unseen).hands)] if unseen else [])
            yield true, Lifted(*(torch.cat([getattr(o, name) for o in outs]) for name in Lifted.__dataclass_fields__))
            return
        for rows in torch.arange(len(true)).chunk(self.config.accumulate):
            some = true.select(rows)
            yield some, self._forward(some.hands)

    def _forward(self, hands: SyntheticKeypoints) -> Lifted:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            out: Lifted = self.network(*self._input(hands))
        return out

    def _input(self, hands: SyntheticKeypoints) -> Iterator[Tensor]:
        return (value.to(self.device) for value in (hands.rays, hands.conf, hands.offsets, hands.mean_betas))

    def result(self) -> LifterNetwork:
        """The averaged network alone, on the CPU."""
        network = LifterNetwork(self.network.size)
        network.load_state_dict(self.mean.module.state_dict())
        return network


def _network(lifter: Lifter | None, pair: HandPair, config: LoopConfig, synth: KeypointSynth) -> LifterNetwork:
    """A network to train: a copy of the given one, or a new one that answers with the usual hand."""
    if lifter is not None:
        lifter.check_model(pair.right)
        network = LifterNetwork(lifter.network.size)
        network.load_state_dict(lifter.network.state_dict())
        return network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = LifterNetwork(config.size)
    start_at_the_usual_hand(network, synth)
    return network
