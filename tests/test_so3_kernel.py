"""The compiled rotations against scipy's, and functions that only compiled code calls."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from handloop import so3_kernel
from handloop.so3_kernel import rotation_matrices, rotation_vectors


def vectors() -> np.ndarray:
    """(3000, 3) axis-angles: usual ones, next to zero, next to half a turn, and zero itself."""
    g = np.random.default_rng(0)
    axes = g.standard_normal((3000, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = np.concatenate(
        [g.uniform(0, np.pi, 1000), 10 ** g.uniform(-12, -1, 1000), np.pi - g.uniform(1e-6, 0.1, 1000)]
    )
    angles[0] = 0.0
    return angles[:, None] * axes


def test_matrices_are_scipys() -> None:
    given = vectors()
    found = rotation_matrices(given.reshape(30, 100, 3)).reshape(-1, 3, 3)
    np.testing.assert_allclose(found, Rotation.from_rotvec(given).as_matrix(), rtol=0, atol=3e-15)


def test_vectors_come_back_to_rounding() -> None:
    given = vectors()
    found = rotation_vectors(Rotation.from_rotvec(given).as_matrix())
    np.testing.assert_allclose(found, given, rtol=1e-9, atol=3e-15)


def test_what_is_not_finite_stays_so_and_spoils_no_other() -> None:
    matrices = rotation_matrices(vectors()[:3])
    alone = rotation_vectors(matrices[2:])
    matrices[1, 0, 2] = matrices[0] = np.nan
    found = rotation_vectors(matrices)
    assert np.isnan(found[0]).all() and np.isnan(found[1]).any()
    assert np.array_equal(found[2:], alone)


def test_parts_cannot_be_called_from_python() -> None:
    with pytest.raises(TypeError):
        so3_kernel.so3_log(np.eye(3).ravel(), 0, np.zeros(3), 0)
