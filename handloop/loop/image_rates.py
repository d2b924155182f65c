"""How fast the parts of an image regressor learn, and when."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor

from handloop.regressors.image_network import ImageNetwork

_ADAPTED = 0.3
"""Learning rate of what is adapted rather than learned, over that of the rest."""
_KERNELS = ("backbone.", "upright.backbone.", "head.pyramid.")
"""Where the kernels are that take orthogonalised steps."""


def groups_of(
    network: ImageNetwork, weight_decay: float, alone: int, steps: int, rising: float, kernels: float = 0.0
) -> tuple[list[dict[str, object]], list[Callable[[int], float]]]:
    """Groups of weights, and the course of the learning rate of each.

    Matrices decay; norms, biases and queries do not. A lifter is adapted rather than learned. The direction rests after
    the steps that it has for itself, and is adapted too where it has none.

    Args:
        network: whose weights.
        weight_decay: of matrices.
        alone: steps at the beginning in which only the direction of the fingers is learned.
        steps: in all.
        rising: share of the steps of a cycle in which the rate rises.
        kernels: highest rate of the kernels of convolutions, whose steps are then orthogonalised; 0 leaves them with
            the other matrices.
    """
    main = partial(_cycle, first=alone, last=steps, rising=rising)
    early = partial(_cycle, first=0, last=alone, rising=rising)
    courses: dict[str, Callable[[int], float]] = {
        "upright.": (lambda step: early(step) * (step < alone)) if alone else (lambda step: _ADAPTED * main(step)),
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
        turned = [name for name, p in own.items() if kernels and _is_kernel(name, p)]
        rest = [p for name, p in own.items() if name not in turned]
        for some, given in (
            ([own[name] for name in turned], {"orthogonal": True, "lr": kernels, "weight_decay": weight_decay}),
            ([p for p in rest if p.ndim > 1], {"weight_decay": weight_decay}),
            ([p for p in rest if p.ndim <= 1], {"weight_decay": 0.0}),
        ):
            if some:
                groups.append({"params": some, **given})
                rates.append(course)
    return groups, rates


def _is_kernel(name: str, p: Tensor) -> bool:
    """Whether it mixes channels of features; a filter of each channel for itself and one of colours are no matrices of
    their kind."""
    return name.startswith(_KERNELS) and p.ndim == 4 and p.shape[1] > 4


def _cycle(step: int, first: int, last: int, rising: float) -> float:
    """The learning rate as a share of the highest: one cycle (Smith 2018) between two steps, low before and after."""
    done = min(max((step - first) / max(last - first, 1), 0.0), 1.0)
    if done < rising:
        return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * done / rising))
    return 1e-4 + 0.5 * (1 + math.cos(math.pi * (done - rising) / (1 - rising)))
