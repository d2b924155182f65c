"""How fast the parts of an image regressor learn, and when."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from handloop.regressors.image_network import ImageNetwork

_ADAPTED = 0.3
"""Learning rate of what is adapted rather than learned, over that of the rest."""


def groups_of(
    network: ImageNetwork, weight_decay: float, alone: int, steps: int, rising: float
) -> tuple[list[dict[str, object]], list[Callable[[int], float]]]:
    """Groups of weights, and the course of the learning rate of each.

    Matrices decay; norms, biases and queries do not. A lifter is adapted rather than learned, and so is the direction
    after the steps that it has for itself.

    Args:
        network: whose weights.
        weight_decay: of matrices.
        alone: steps at the beginning in which only the direction of the fingers is learned.
        steps: in all.
        rising: share of the steps of a cycle in which the rate rises.
    """
    main = partial(_cycle, first=alone, last=steps, rising=rising)
    early = partial(_cycle, first=0, last=alone, rising=rising)
    courses: dict[str, Callable[[int], float]] = {
        "upright.": lambda step: early(step) if step < alone else _ADAPTED * main(step),
        "head.lifter.": lambda step: _ADAPTED * main(step),
        "": main,
    }
    groups: list[dict[str, object]] = []
    rates: list[Callable[[int], float]] = []
    for prefix, course in courses.items():
        own = {
            name: p
            for name, p in network.named_parameters()
            if next(known for known in courses if name.startswith(known)) == prefix
        }
        for large in (True, False):
            some = [p for p in own.values() if (p.ndim > 1) == large]
            if some:
                groups.append({"params": some, "weight_decay": weight_decay * large})
                rates.append(course)
    return groups, rates


def _cycle(step: int, first: int, last: int, rising: float) -> float:
    """The learning rate as a share of the highest: one cycle (Smith 2018) between two steps, low before and after."""
    done = min(max((step - first) / max(last - first, 1), 0.0), 1.0)
    if done < rising:
        return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * done / rising))
    return 1e-4 + 0.5 * (1 + math.cos(math.pi * (done - rising) / (1 - rising)))
