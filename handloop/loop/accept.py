"""Which of two fits of the same hand is kept: one pure function, on the whole energy, behind a plausibility gate.

| held        | offered                 | energy                    | decision    |
|-------------|-------------------------|---------------------------|-------------|
| anything    | failed or not finite    | any                       | NOT_USABLE  |
| anything    | beaten within its batch | any                       | DUPLICATE   |
| nothing     | plausible               | any                       | NEW         |
| nothing     | implausible             | any                       | FILLED      |
| implausible | plausible               | any                       | REPAIRED    |
| plausible   | plausible               | lower by at least margin  | IMPROVED    |
| plausible   | plausible               | otherwise                 | NO_BETTER   |
| anything    | implausible             | any                       | IMPLAUSIBLE |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from handloop.core.errors import InputError, ScoreError, check_shape


class Decision(IntEnum):
    """What became of an offered fit; `DECISION_HELP` says it in words."""

    NEW = 0
    FILLED = 1
    IMPROVED = 2
    REPAIRED = 3
    NO_BETTER = 4
    IMPLAUSIBLE = 5
    NOT_USABLE = 6
    DUPLICATE = 7


DECISION_HELP: dict[Decision, str] = {
    Decision.NEW: "stored: the first fit of this hand.",
    Decision.FILLED: "stored, marked implausible: something speaks against it, but there was no fit of this hand yet.",
    Decision.IMPROVED: "stored: its energy is lower than the held fit's.",
    Decision.REPAIRED: "stored: nothing speaks against it, while the held fit was implausible.",
    Decision.NO_BETTER: "rejected: its energy is not lower than the held fit's by the margin.",
    Decision.IMPLAUSIBLE: "rejected: something speaks against it, and there is a fit of this hand already.",
    Decision.NOT_USABLE: "rejected: the fit failed or holds a value that is not finite.",
    Decision.DUPLICATE: "rejected: another row of the same batch is a better fit of this hand.",
}
"""What each decision means."""

ACCEPTED = (Decision.NEW, Decision.FILLED, Decision.IMPROVED, Decision.REPAIRED)


@dataclass(frozen=True)
class AcceptRules:
    """When an offered fit replaces a held one."""

    margin: float = 0.01
    """Energy by which it must be lower, half squared sigmas: ten times what the solver stops at, so that rounding and
    unfinished last steps do not rewrite the cache."""

    def __post_init__(self) -> None:
        if not 0 <= self.margin < float("inf"):
            raise InputError(f"the margin is {self.margin}, expected a number of at least 0, in half squared sigmas.")


@dataclass(frozen=True, eq=False)
class Standing:
    """What counts for the decision, of N held or N offered fits."""

    valid: Tensor
    """(N,) bool. Held: there is a fit. Offered: it did not fail, and all of it is finite."""
    plausible: Tensor
    """(N,) bool, nothing speaks against it."""
    energy: Tensor
    """(N,) float64, the whole energy, half squared sigmas; NaN where not valid."""
    score_version: Tensor
    """(N,) int64, what the energy was computed under."""

    def __post_init__(self) -> None:
        n = self.valid.shape[0]
        for name in ("plausible", "energy", "score_version"):
            check_shape(name, tuple(getattr(self, name).shape), (n,))


@dataclass(frozen=True, eq=False)
class Acceptance:
    """What became of each fit of a batch."""

    ids: tuple[str, ...]
    """N samples."""
    decision: Tensor
    """(N,) int64, see `Decision`."""

    def accepted(self) -> Tensor:
        """(N,) bool, rows that were stored."""
        return torch.isin(self.decision, torch.tensor(ACCEPTED))

    def counts(self) -> dict[Decision, int]:
        """How often each decision was taken."""
        return {decision: int((self.decision == decision).sum()) for decision in Decision}

    def rate(self) -> float:
        """Share of the rows that were stored; NaN for an empty batch."""
        return float(self.accepted().double().mean())

    def reasons(self) -> tuple[str, ...]:
        """N sentences."""
        return tuple(DECISION_HELP[Decision(code)] for code in self.decision.tolist())


def accept(ids: Sequence[str], held: Standing, offered: Standing, rules: AcceptRules) -> Acceptance:
    """Decide row by row; see the table above.

    Args:
        ids: N samples; of several rows with one id the best usable one is weighed against the held fit.
        held: what the cache holds for each row's id.
        offered: the new fits.
        rules: the margin.

    Raises:
        ScoreError: a held and an offered energy, or two offered ones of one id, have different score versions.
    """
    n = len(ids)
    check_shape("held", tuple(held.valid.shape), (n,))
    check_shape("offered", tuple(offered.valid.shape), (n,))
    usable = offered.valid & torch.isfinite(offered.energy)
    both = usable & held.valid
    _same_score(ids, both, held.score_version, offered.score_version)
    chosen = _best_of_each(ids, usable, offered)
    better = (offered.energy < held.energy) & (offered.energy <= held.energy - rules.margin)
    empty = ~held.valid
    # Later lines overrule earlier ones.
    decision = torch.full((n,), int(Decision.IMPLAUSIBLE))
    for mask, code in (
        (offered.plausible, Decision.NO_BETTER),
        (offered.plausible & better, Decision.IMPROVED),
        (offered.plausible & ~held.plausible, Decision.REPAIRED),
        (empty & ~offered.plausible, Decision.FILLED),
        (empty & offered.plausible, Decision.NEW),
        (~chosen, Decision.DUPLICATE),
        (~usable, Decision.NOT_USABLE),
    ):
        decision[mask] = int(code)
    return Acceptance(tuple(ids), decision)


def _best_of_each(ids: Sequence[str], usable: Tensor, offered: Standing) -> Tensor:
    """(N,) bool: the usable row of each id that is plausible if any is, of lowest energy, and first among equals."""
    best: dict[str, int] = {}
    plausible, energy, version = offered.plausible.tolist(), offered.energy.tolist(), offered.score_version.tolist()
    for row in usable.nonzero()[:, 0].tolist():
        other = best.setdefault(ids[row], row)
        if version[row] != version[other]:
            raise _different(ids[row], version[other], version[row])
        if (not plausible[row], energy[row]) < (not plausible[other], energy[other]):
            best[ids[row]] = row
    chosen = torch.zeros(len(ids), dtype=torch.bool)
    chosen[list(best.values())] = True
    return chosen


def _same_score(ids: Sequence[str], both: Tensor, held: Tensor, offered: Tensor) -> None:
    differ = (both & (held != offered)).nonzero()[:, 0].tolist()
    if differ:
        row = differ[0]
        raise _different(ids[row], int(held[row]), int(offered[row]))


def _different(name: str, one: int, other: int) -> ScoreError:
    return ScoreError(
        f"two energies of {name!r} have score versions {one} and {other} and cannot be compared; "
        "re-score the cache (FitCache.rescore) whenever prior, layout or noise change."
    )
