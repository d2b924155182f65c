"""Smooth three-dimensional noise that repeats."""

from __future__ import annotations

import numpy as np

_PERIOD = 32
"""Cells after which the noise repeats: more than a hand has at any scale used here but the finest."""


class Noise:
    """Value noise: random numbers on a cubic lattice, smoothly interpolated; mean 0, about -1..1."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._lattice = generator.uniform(-1, 1, (_PERIOD,) * 3).astype(np.float32)

    def at(self, points: np.ndarray, cell: float) -> np.ndarray:
        """(n,) values at points (n, 3) for lattice cells of length `cell` in the same unit."""
        scaled = points / cell
        base = np.floor(scaled)
        t = (scaled - base).astype(np.float32)
        t = t * t * (3 - 2 * t)
        corner = base.astype(np.int64)
        total = np.zeros(len(points), np.float32)
        for dx in (0, 1):
            for dy in (0, 1):
                for dz in (0, 1):
                    ids = (corner + [dx, dy, dz]) % _PERIOD
                    weight = np.ones(len(points), np.float32)
                    for axis, d in enumerate((dx, dy, dz)):
                        weight *= t[:, axis] if d else 1 - t[:, axis]
                    total += weight * self._lattice[ids[:, 0], ids[:, 1], ids[:, 2]]
        return total
