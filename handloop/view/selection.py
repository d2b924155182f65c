"""Rows of a result as plain arrays: the one place where drawings and mesh files get their vertices from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from handloop.core.errors import InputError
from handloop.core.results import FitResult

CHUNK = 256
"""Hands whose vertices are computed at once: 5 MB, whatever the length of the result."""


def check_rows(result: FitResult, indices: Sequence[int] | None) -> list[int]:
    """The rows asked for, all where None.

    Raises:
        InputError: a row that the result does not have.
    """
    rows = list(range(len(result))) if indices is None else [int(i) for i in indices]
    wrong = next((i for i in rows if not 0 <= i < len(result)), None)
    if wrong is not None:
        raise InputError(f"hand {wrong} was asked for, expected rows 0 to {len(result) - 1} of the result.")
    return rows


def vertices_of(result: FitResult, rows: Sequence[int]) -> np.ndarray:
    """(M, V, 3) float64 vertices in m, camera frame, of the rows given; NaN where there is no fit."""
    done = result.fitted().cpu()
    for tensor in result.params.tensors():
        done = done & torch.isfinite(tensor).all(1).cpu()
    usable = [k for k, row in enumerate(rows) if bool(done[row])]
    parts: list[np.ndarray] = []
    for start in range(0, len(usable), CHUNK):
        at = torch.tensor([rows[k] for k in usable[start : start + CHUNK]])
        params = result.params.select(at.to(result.params.transl.device))
        found = result.hand.vertices(params, result.keypoints.is_right[at])
        parts.append(found.detach().cpu().double().numpy())
    n_vertices = parts[0].shape[1] if parts else 0
    out = np.full((len(rows), n_vertices, 3), np.nan)
    if parts:
        out[usable] = np.concatenate(parts)
    return out
