"""Robust kernels against their formulas, and what robustness means."""

from __future__ import annotations

import math

import pytest
import torch

from handloop.core.terms import Cauchy, GemanMcClure, Huber, Kernel, residual

F64 = torch.float64
KERNELS = [kind(c) for kind in (GemanMcClure, Huber, Cauchy) for c in (0.5, 3.0, 4.0)]
S = [0.0, 1e-12, 0.01, 0.2, 1.0, 8.9, 9.0, 9.1, 16.0, 50.0, 1e4, 1e8]


def rho(kernel: Kernel, s: float) -> float:
    """The published formulas in plain python."""
    c = kernel.c  # type: ignore[attr-defined]
    if isinstance(kernel, GemanMcClure):
        return c * c * s / (c * c + s)
    if isinstance(kernel, Huber):
        return s if s <= c * c else 2 * c * math.sqrt(s) - c * c
    return c * c * math.log1p(s / (c * c))


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_rho_is_the_published_formula(kernel: Kernel) -> None:
    expected = torch.tensor([rho(kernel, s) for s in S], dtype=F64)
    torch.testing.assert_close(kernel.rho(torch.tensor(S, dtype=F64)), expected, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_weight_is_the_derivative_of_rho(kernel: Kernel) -> None:
    s = torch.tensor(S, dtype=F64, requires_grad=True)
    (by_autograd,) = torch.autograd.grad(kernel.rho(s).sum(), s)
    weight = kernel.weight(s.detach())
    torch.testing.assert_close(weight, by_autograd, rtol=1e-9, atol=1e-20)
    for i, x in enumerate(S):
        h = 1e-5 * max(x, 1e-3)
        if x >= h and abs(x - kernel.c**2) > 2 * h:  # type: ignore[attr-defined]
            numeric = (rho(kernel, x + h) - rho(kernel, x - h)) / (2 * h)
            # At c = 0.5 and s = 1e8 the differences of Geman-McClure drown in rounding.
            assert float(weight[i]) == pytest.approx(numeric, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_quadratic_near_zero_and_monotone(kernel: Kernel) -> None:
    tiny = torch.tensor([0.0, 1e-9], dtype=F64)
    torch.testing.assert_close(kernel.rho(tiny), tiny, rtol=1e-7, atol=0.0)
    torch.testing.assert_close(kernel.weight(tiny), torch.ones(2, dtype=F64), rtol=1e-7, atol=0.0)
    s = torch.logspace(-6, 8, 500, dtype=F64)
    assert bool((kernel.rho(s).diff() >= 0).all()) and bool((kernel.weight(s).diff() <= 0).all())
    assert bool((kernel.rho(s) <= s * (1 + 1e-12)).all())


def test_limits_at_infinity() -> None:
    far = torch.tensor([1e12, 1e100, 1e300], dtype=F64)
    torch.testing.assert_close(GemanMcClure(4.0).rho(far), torch.full((3,), 16.0, dtype=F64))
    for kernel in KERNELS:
        assert bool(torch.isfinite(kernel.rho(far)).all()) and bool(torch.isfinite(kernel.weight(far)).all())
        assert float(kernel.weight(far).max()) < 1e-5
    # The pull of a far residual r on the fit is r * weight(r^2): it fades, is constant, or fades as 1/r.
    assert float(far[0].sqrt() * GemanMcClure(4.0).weight(far[:1])) < 1e-9
    assert float(far[0].sqrt() * Huber(4.0).weight(far[:1])) == pytest.approx(4.0)
    assert float(far[0].sqrt() * Cauchy(4.0).weight(far[:1])) == pytest.approx(16.0 / 1e6, rel=1e-6)


def test_one_outlier_costs_at_most_half_c_squared() -> None:
    groups = torch.zeros(4, 21, 2, dtype=F64)
    groups[:, 3, 0] = torch.tensor([0.0, 5.0, 1e3, 1e9], dtype=F64)
    energy = residual(groups, None, GemanMcClure(4.0)).energy
    assert bool((energy <= 8.0).all()) and float(energy[3]) == pytest.approx(8.0)


@pytest.mark.parametrize("kernel", [None, *KERNELS[:3]], ids=str)
def test_residual_weights_groups_not_entries(kernel: Kernel | None) -> None:
    """The kernel acts on a group's norm; value and Jacobian carry the root of its weight (IRLS)."""
    g = torch.Generator().manual_seed(0)
    groups = 3 * torch.randn(5, 4, 2, dtype=F64, generator=g)
    jac = torch.randn(5, 4, 2, 6, dtype=F64, generator=g)
    out = residual(groups, jac, kernel, slice(2, 8))
    assert out.columns == slice(2, 8) and out.jacobian is not None
    for b in range(5):
        energy = 0.0
        for k in range(4):
            sq = float(groups[b, k, 0] ** 2 + groups[b, k, 1] ** 2)
            energy += 0.5 * (sq if kernel is None else rho(kernel, sq))
            w = 1.0 if kernel is None else float(kernel.weight(torch.tensor([sq], dtype=F64)))
            at = slice(2 * k, 2 * k + 2)
            torch.testing.assert_close(out.value[b, at], groups[b, k] * math.sqrt(w), rtol=1e-12, atol=0.0)
            torch.testing.assert_close(out.jacobian[b, at], jac[b, k] * math.sqrt(w), rtol=1e-12, atol=0.0)
        assert float(out.energy[b]) == pytest.approx(energy, rel=1e-12)
    # J^T r is the true gradient of the energy: d/dx 1/2 rho(r^2) = weight r dr/dx.
    x = torch.zeros(5, 6, dtype=F64, requires_grad=True)
    moved = groups + (jac @ x[:, None, :, None])[..., 0]
    sq = moved.square().sum(-1)
    (gradient,) = torch.autograd.grad(0.5 * (sq if kernel is None else kernel.rho(sq)).sum(), x)
    torch.testing.assert_close((out.jacobian.mT @ out.value[..., None])[..., 0], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_row_does_not_depend_on_its_batch(kernel: Kernel, dtype: torch.dtype) -> None:
    s = torch.logspace(-3, 5, 101, dtype=dtype)
    for at in (torch.tensor([0]), torch.tensor([100, 3]), torch.arange(37, 99)):
        assert torch.equal(kernel.rho(s[at]), kernel.rho(s)[at])
        assert torch.equal(kernel.weight(s[at]), kernel.weight(s)[at])
