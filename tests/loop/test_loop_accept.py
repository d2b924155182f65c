"""The truth table of acceptance, each branch by hand."""

from __future__ import annotations

import itertools

import pytest
import torch

from handloop.core.errors import InputError, ScoreError
from handloop.loop.accept import ACCEPTED, DECISION_HELP, Acceptance, AcceptRules, Decision, Standing, accept

NAN = float("nan")
D = Decision


def standing(*rows: tuple[bool, bool, float], version: int = 0) -> Standing:
    valid, plausible, energy = zip(*rows, strict=True) if rows else ((), (), ())
    return Standing(
        torch.tensor(valid, dtype=torch.bool),
        torch.tensor(plausible, dtype=torch.bool),
        torch.tensor(energy, dtype=torch.float64),
        torch.full((len(rows),), version),
    )


NOTHING = (False, False, NAN)
GOOD, ODD = (True, True, 10.0), (True, False, 10.0)

TABLE = [
    (NOTHING, (True, True, 50.0), D.NEW),
    (NOTHING, (True, False, 50.0), D.FILLED),
    (NOTHING, (False, True, 1.0), D.NOT_USABLE),
    (NOTHING, (True, True, NAN), D.NOT_USABLE),
    (NOTHING, (True, True, float("inf")), D.NOT_USABLE),
    (GOOD, (True, True, 9.0), D.IMPROVED),
    (GOOD, (True, True, 9.5), D.IMPROVED),  # The margin of 0.5 exactly.
    (GOOD, (True, True, 9.75), D.NO_BETTER),
    (GOOD, (True, True, 10.0), D.NO_BETTER),
    (GOOD, (True, True, 11.0), D.NO_BETTER),
    (GOOD, (True, False, 1.0), D.IMPLAUSIBLE),
    (GOOD, (False, True, 1.0), D.NOT_USABLE),
    (GOOD, (True, True, NAN), D.NOT_USABLE),
    (ODD, (True, True, 9.0), D.REPAIRED),
    (ODD, (True, True, 99.0), D.REPAIRED),
    (ODD, (True, False, 1.0), D.IMPLAUSIBLE),
    (ODD, (False, False, 1.0), D.NOT_USABLE),
    ((True, False, float("inf")), (True, True, 99.0), D.REPAIRED),
]


@pytest.mark.parametrize(("held", "offered", "expected"), TABLE)
def test_each_branch(held: tuple[bool, bool, float], offered: tuple[bool, bool, float], expected: Decision) -> None:
    found = accept(["a"], standing(held), standing(offered), AcceptRules(margin=0.5))
    assert found.decision.tolist() == [expected]
    assert bool(found.accepted()[0]) == (expected in ACCEPTED)
    assert found.reasons() == (DECISION_HELP[expected],)


def test_a_batch_decides_as_its_rows_do() -> None:
    held, offered, expected = zip(*TABLE, strict=True)
    ids = [f"{i}" for i in range(len(TABLE))]
    found = accept(ids, standing(*held), standing(*offered), AcceptRules(0.5))
    assert found.decision.tolist() == list(expected)
    assert found.counts()[D.IMPROVED] == 2 and sum(found.counts().values()) == len(TABLE)
    assert found.rate() == sum(code in ACCEPTED for code in expected) / len(TABLE)


def test_the_table_covers_every_decision_but_duplicates() -> None:
    assert {code for _, _, code in TABLE} == set(Decision) - {D.DUPLICATE}
    assert set(DECISION_HELP) == set(Decision)


def test_without_margin_only_a_lower_energy_counts() -> None:
    rules = AcceptRules(margin=0.0)
    found = accept(["a", "b"], standing(GOOD, GOOD), standing((True, True, 10.0), (True, True, 9.999999)), rules)
    assert found.decision.tolist() == [D.NO_BETTER, D.IMPROVED]


def test_of_duplicates_the_best_is_weighed_in_any_order() -> None:
    rows = {
        "worse": (True, True, 9.0),
        "best": (True, True, 5.0),
        "odd": (True, False, 1.0),
        "failed": (False, True, 0.0),
        "nan": (True, True, NAN),
    }
    expected = {
        "worse": D.DUPLICATE,
        "best": D.IMPROVED,
        "odd": D.DUPLICATE,
        "failed": D.NOT_USABLE,
        "nan": D.NOT_USABLE,
    }
    for order in itertools.permutations(rows):
        found = accept(["x"] * 5, standing(*[GOOD] * 5), standing(*(rows[k] for k in order)), AcceptRules())
        assert dict(zip(order, found.decision.tolist(), strict=True)) == expected


def test_equal_duplicates_keep_the_first_and_implausible_ones_fill_once() -> None:
    found = accept(["x", "x", "y"], standing(*[NOTHING] * 3), standing(ODD, ODD, GOOD), AcceptRules())
    assert found.decision.tolist() == [D.FILLED, D.DUPLICATE, D.NEW]


def test_inputs_are_no_outputs() -> None:
    held, offered = standing(GOOD), standing((True, True, 1.0))
    accept(["a"], held, offered, AcceptRules())
    assert held.energy.tolist() == [10.0] and offered.energy.tolist() == [1.0] and held.valid.tolist() == [True]


def test_energies_of_different_scores_are_never_compared() -> None:
    with pytest.raises(ScoreError, match=r"'b' have score versions 1 and 2 .* re-score the cache"):
        accept(["b"], standing(GOOD, version=1), standing(GOOD, version=2), AcceptRules())
    # Nothing is compared where nothing is held or the offer failed.
    accept(["b"], standing(NOTHING, version=1), standing(GOOD, version=2), AcceptRules())
    accept(["b"], standing(GOOD, version=1), standing((False, True, 1.0), version=2), AcceptRules())
    mixed = standing(GOOD, GOOD)
    mixed.score_version[1] = 3
    with pytest.raises(ScoreError, match="versions 0 and 3"):
        accept(["b", "b"], standing(NOTHING, NOTHING), mixed, AcceptRules())


def test_an_empty_batch() -> None:
    found = accept([], standing(), standing(), AcceptRules())
    assert len(found.decision) == 0 and sum(found.counts().values()) == 0 and isinstance(found, Acceptance)


def test_errors() -> None:
    for margin in (-0.1, NAN, float("inf")):
        with pytest.raises(InputError, match="margin"):
            AcceptRules(margin)
    with pytest.raises(InputError, match=r"held has shape \(1,\), expected \(2\)"):
        accept(["a", "b"], standing(GOOD), standing(GOOD, GOOD), AcceptRules())
    with pytest.raises(InputError, match="energy has shape"):
        Standing(torch.ones(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool), torch.ones(3), torch.zeros(2))
