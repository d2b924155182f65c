"""Batched matrix products whose rounding does not depend on a matrix's place in the batch."""

from __future__ import annotations

import torch
from torch import Tensor

# Numbers in a cache line of float64, and two lines' worth for float32.
_ALIGN = 8


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """(B, m, k) times (B, k, n) to (B, m, n).

    MKL chooses its inner loops by where each matrix starts in memory, and so rounds matrices of an odd number of
    entries differently by their place in the batch. Padded with zeros to multiples of 8, all start alike.
    """
    m, k, n = a.shape[1], a.shape[2], b.shape[2]
    if a.device.type != "cpu" or m * k * n < _MKL_FROM or all(size % _ALIGN == 0 for size in (m * k, k * n, m * n)):
        return torch.bmm(a, b)
    return torch.bmm(_padded(a, _up(m), _up(k)), _padded(b, _up(k), _up(n)))[:, :m, :n]


# Below this many multiplications torch uses a loop of its own (aten/native/LinearAlgebra.cpp, contraction_size).
_MKL_FROM = 400


def _up(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN if size > 1 else size


def _padded(x: Tensor, rows: int, columns: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, columns - x.shape[2], 0, rows - x.shape[1]))
