"""Small constant tables on a device, copied there once: an index by a list copies it each time, and waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def index(ids: Sequence[int], device: torch.device) -> Tensor:
    """An integer index."""
    return _table(tuple(ids), torch.int64, device)


def matrix(rows: Sequence[Sequence[float]], like: Tensor) -> Tensor:
    """A matrix of numbers in the dtype and on the device of `like`."""
    flat = _table(tuple(value for row in rows for value in row), like.dtype, like.device)
    return flat.unflatten(0, (len(rows), -1))


@lru_cache(maxsize=256)
def _table(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    # Tables outlive the call: one made in inference mode could not take part in automatic differentiation later.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
