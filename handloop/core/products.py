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


def padded_shared(matrix: Tensor) -> Tensor:
    """A (k, n) matrix for `shared_product`, padded with zeros so that every vector starts alike in memory."""
    k, n = matrix.shape
    return torch.nn.functional.pad(matrix, (0, _up(n) - n, 0, _up(k) - k))


def shared_product(x: Tensor, matrix: Tensor) -> Tensor:
    """(B, k) vectors times one matrix of `padded_shared`, (B, n) and zeros behind.

    On a CPU as a batch of small products: one large one rounds a row by how many there are.
    """
    x = torch.nn.functional.pad(x, (0, matrix.shape[0] - x.shape[1]))
    if x.device.type != "cpu":
        return x @ matrix
    # A lone product takes another code path than a batch.
    rows = torch.cat([x, x]) if len(x) == 1 else x
    return torch.bmm(rows[:, None], matrix.expand(len(rows), *matrix.shape))[: len(x), 0]


# Below this many multiplications torch uses a loop of its own (aten/native/LinearAlgebra.cpp, contraction_size).
_MKL_FROM = 400


def _up(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN if size > 1 else size


def _padded(x: Tensor, rows: int, columns: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, columns - x.shape[2], 0, rows - x.shape[1]))
