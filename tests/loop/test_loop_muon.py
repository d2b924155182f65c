"""Orthogonalised steps for kernels, AdamW for the rest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from handloop.loop.muon import Muon, orthogonalised


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_singular_values_become_alike(shape: tuple[int, int]) -> None:
    """The singular vectors stay, as numpy's decomposition tells; a spectrum from 1 to 1/30 becomes 0.65 to 1.25."""
    u, _, v = torch.linalg.svd(drawn(*shape), full_matrices=False)
    spectrum = torch.linspace(1, 1 / 30, min(shape))
    out = orthogonalised(u @ spectrum.diag() @ v).float()
    turned = u.mT @ out @ v.mT
    assert float(turned.diag().min()) > 0.65 and float(turned.diag().max()) < 1.25
    assert float((turned - turned.diag().diag()).abs().max()) < 0.05
    assert out.shape == shape


def test_a_step_by_hand() -> None:
    """A gradient whose singular values are all alike is orthogonal already, whatever its size."""
    for size, tall in ((1e-3, 1.0), (50.0, 1.0), (1.0, 2.0)):
        rows = 4 if tall == 1 else 16
        q = torch.linalg.qr(drawn(rows, 4))[0].reshape(rows, 4, 1, 1)
        p = nn.Parameter(torch.full((rows, 4, 1, 1), 2.0))
        optimiser = Muon([{"params": [p], "orthogonal": True, "lr": 0.1, "weight_decay": 0.01}], 1.0)
        p.grad = size * q
        optimiser.step()
        step = (p.detach() - 2.0 * (1 - 0.1 * 0.01)) / (-0.1 * tall)
        # The polynomial takes 1 to within 0.68 and 1.13, alike for all.
        scale = float((step * q).sum() / q.square().sum())
        assert 0.65 < scale < 1.2
        assert float((step / scale - q).abs().max()) < 0.08
        assert p.grad is None


def test_momentum_looks_ahead() -> None:
    """Nesterov: the second step follows 0.0025 g1 ... of the mean and the new gradient, as a hand calculation says."""
    a, b = (torch.linalg.qr(drawn(6, 6, seed=seed))[0] for seed in (1, 2))
    p = nn.Parameter(torch.zeros(6, 6))
    optimiser = Muon([{"params": [p], "orthogonal": True, "lr": 1.0, "weight_decay": 0.0}], 1.0, momentum=0.9)
    for gradient in (a, b):
        before = p.detach().clone()
        p.grad = gradient.clone()
        optimiser.step()
    mean = 0.9 * (0.1 * a) + 0.1 * b
    expected = orthogonalised(0.1 * b + 0.9 * mean).float()
    assert torch.allclose(before - p.detach(), expected, atol=0.05)


def test_the_others_take_adamw_steps_and_missing_gradients_none() -> None:
    theirs, ours, kernel, unused = (nn.Parameter(drawn(3, 5)) for _ in range(4))
    reference = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1)
    optimiser = Muon(
        [{"params": [ours], "weight_decay": 0.1}, {"params": [kernel, unused], "orthogonal": True, "lr": 0.1}], 1e-2
    )
    for seed in range(5):
        theirs.grad, ours.grad, kernel.grad = drawn(3, 5, seed=seed), drawn(3, 5, seed=seed), torch.zeros(3, 5)
        reference.step()
        optimiser.step()
    assert torch.allclose(theirs, ours, atol=1e-7)
    assert torch.equal(unused, drawn(3, 5))
    assert torch.isfinite(kernel).all(), "a gradient of zeros"


def test_a_state_carries_over() -> None:
    def made() -> tuple[nn.Parameter, nn.Parameter, Muon]:
        kernel, other = nn.Parameter(drawn(4, 6, 3, 3)), nn.Parameter(drawn(4))
        return kernel, other, Muon([{"params": [kernel], "orthogonal": True, "lr": 0.1}, {"params": [other]}], 1e-2)

    def go(kernel: nn.Parameter, other: nn.Parameter, optimiser: Muon, seeds: range) -> None:
        for seed in seeds:
            kernel.grad, other.grad = drawn(4, 6, 3, 3, seed=seed), drawn(4, seed=seed)
            optimiser.step()

    whole, first, second = made(), made(), made()
    go(*whole, range(6))
    go(*first, range(3))
    second[2].load_state_dict(first[2].state_dict())
    with torch.no_grad():
        second[0].copy_(first[0])
        second[1].copy_(first[1])
    go(*second, range(3, 6))
    assert torch.equal(whole[0], second[0]) and torch.equal(whole[1], second[1])
