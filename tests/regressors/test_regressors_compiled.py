"""The compiled lifter: torch's answers, each hand's the same to the bit in any company."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from handloop.compiler import compiled
from handloop.hand.load import embedded_hand
from handloop.regressors import lifter_kernel
from handloop.regressors.base import KeypointBatch
from handloop.regressors.compiled_lifter import CompiledLifter
from handloop.regressors.lifter import Lifter
from handloop.regressors.network import LifterNetwork, NetworkSize
from handloop.regressors.view import HandView

look, median = (compiled(part.py_func) for part in (lifter_kernel.look, lifter_kernel.median))


@pytest.fixture(scope="module")
def shipped() -> Lifter:
    return Lifter.shipped()


def seen(n: int) -> tuple[Tensor, Tensor]:
    """Rays and confidences with missing, stray and infinite points, and hands with few points or none."""
    g = torch.Generator().manual_seed(3)
    rays = torch.randn(n, 1, 2, generator=g).double() * 0.3 + 0.1 * torch.randn(n, 21, 2, generator=g).double()
    conf = torch.rand(n, 21, generator=g).double() * (torch.rand(n, 21, generator=g) > 0.2)
    rays[::5, 3] *= 100
    rays[1::7, 8] = float("inf")
    for row, kept in zip(range(2, n, 9), (0, 1, 2, 3) * n, strict=False):
        conf[row, kept:] = 0
    return rays, conf


def source(seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return 0.01 * torch.randn(21, 3, generator=g).double(), 0.5 * torch.randn(10, generator=g).double()


@pytest.mark.parametrize("size", [None, NetworkSize(32, 2), NetworkSize(45, 1)])
def test_it_answers_as_torch_does(shipped: Lifter, size: NetworkSize | None) -> None:
    network = shipped.network
    if size is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            network = LifterNetwork(size).eval()
        network.log_sd_scale += torch.linspace(-1, 1, 28)
        network.usual += torch.linspace(-0.3, 0.3, 96)
        for norm in (network.norm, *(block.norm for block in network.blocks)):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
            torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
    (rays, conf), (offsets, betas) = seen(200), source(1)
    network = network.double()
    with torch.inference_mode():
        out = network(rays, conf, offsets.expand(200, 21, 3), betas.expand(200, 10))
    found = CompiledLifter.of(network).lift(rays, conf, offsets, betas)
    network.float()
    for ours, theirs in zip(found, (out.rotations, out.betas, out.root, out.log_sd.exp()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_company_changes_no_bit(shipped: Lifter) -> None:
    (rays, conf), given = seen(1000), source(2)
    lift = shipped.compiled.lift
    everything = lift(rays, conf, *given)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    parts = [order, *(torch.arange(first, first + n) for first, n in ((0, 2), (5, 2), (3, 33), (960, 40), (31, 65)))]
    for rows in (*parts, *(torch.tensor([i]) for i in range(0, 1000, 37))):
        some = lift(rays[rows], conf[rows], *given)
        assert all(torch.equal(a[rows], b) for a, b in zip(everything, some, strict=True))


def test_proposals_do_not_depend_on_company_either(
    shipped: Lifter, batch_of: Callable[..., KeypointBatch], some_points: Callable[..., Tensor]
) -> None:
    points, right = some_points(200), torch.arange(200) % 3 > 0
    pair = shipped.for_pair(embedded_hand())

    def proposed(rows: Tensor) -> list[Tensor]:
        p = pair.propose(batch_of(points[rows], right[rows]))
        return [*p.params.tensors(), p.rotations_sd, p.betas_sd, p.bearing_sd, p.log_depth_sd]

    everything = proposed(torch.arange(200))
    for rows in (torch.arange(199, -1, -1), torch.arange(33), torch.tensor([7]), torch.tensor([198, 3])):
        assert all(torch.equal(a[rows], b) for a, b in zip(everything, proposed(rows), strict=True))


def test_threads_change_nothing(shipped: Lifter) -> None:
    (rays, conf), given, before = seen(100), source(2), torch.get_num_threads()
    alone = shipped.compiled.lift(rays, conf, *given)
    try:
        torch.set_num_threads(3)
        shared = shipped.compiled.lift(rays, conf, *given)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_the_view_is_that_of_the_training() -> None:
    rays, conf = seen(120)
    view = HandView.of(rays, conf)
    for i in range(120):
        x, turn = np.zeros(144, np.float32), np.zeros(9)
        scale = look(rays[i].numpy().ravel(), conf[i].numpy(), x, turn, np.zeros(72))
        assert scale == pytest.approx(float(view.scale[i]), rel=1e-9)
        # HandView rounds its weights to float32.
        np.testing.assert_allclose(turn, view.turn[i].numpy().ravel(), atol=1e-6)
        np.testing.assert_allclose(x[:42], view.points[i].numpy().ravel(), atol=1e-6)
        np.testing.assert_allclose(x[42:63], view.seen[i].numpy(), atol=1e-7)


def test_the_median_is_the_lower_one() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 20, 21):
        values = rng.normal(size=21)
        expected = np.sort(values[:n])[(n - 1) // 2]
        assert median(values.copy(), n) == expected
    assert np.isnan(median(np.zeros(3), 0))
