"""Which explored starts are finished: the best, and always both depth flips."""

from __future__ import annotations

import math

import numpy as np
import torch

from handloop.core.rotations import so3_exp
from handloop.core.terms import HandState
from handloop.fitting.fit import pick_finalists, start_flips

F64 = torch.float64


def turned(*angles: float) -> HandState:
    """Hands turned about x by so many degrees."""
    w = torch.zeros(len(angles), 16, 3, dtype=F64)
    w[:, 0, 0] = torch.tensor([math.radians(a) for a in angles])
    zeros = torch.zeros(len(angles), 10, dtype=F64)
    return HandState(so3_exp(w), zeros, zeros[:, :3], zeros[:, 0])


def test_flips_alternate_and_a_proposal_has_that_of_the_nearer_palm() -> None:
    assert start_flips(turned(40, -40, 42, -38), 2).tolist() == [[0, 1], [0, 1]]
    flips = start_flips(turned(*(40, -40, 42, -38, 25), *(40, -40, 42, -38, -10)), 5)
    assert flips.tolist() == [[0, 1, 0, 1, 0], [0, 1, 0, 1, 1]]
    assert start_flips(turned(40, -40, -170), 3).tolist() == [[0, 1, 1]]


def test_the_best_are_finished_and_one_of_each_flip() -> None:
    energy = np.array([[1.0, 9.0, 2.0, 8.0, 3.0]])
    first, second = np.array([[0, 1, 0, 1, 0]]), np.array([[0, 1, 0, 1, 1]])
    assert pick_finalists(energy, first, 1).tolist() == [[0]]
    # All of one flip: the last gives way to the other flip's best.
    assert pick_finalists(energy, first, 3).tolist() == [[0, 2, 3]]
    # The proposal is of the other flip already.
    assert pick_finalists(energy, second, 3).tolist() == [[0, 2, 4]]
    assert pick_finalists(energy, second, 2).tolist() == [[0, 4]]
    assert pick_finalists(energy, first, 5).tolist() == [[0, 2, 4, 3, 1]]
