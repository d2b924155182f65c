"""Constant tables and products with one shared matrix."""

from __future__ import annotations

import pytest
import torch

from handloop.core.products import padded_shared, shared_product
from handloop.core.rotations import right_jacobian, shortened, so3_exp, so3_exp_and_turn
from handloop.core.tables import index, matrix

F64 = torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_shared_products_do_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    x, table = torch.randn(9, 135, generator=g).to(dtype), torch.randn(135, 15, generator=g).to(dtype)
    padded = padded_shared(table)
    whole = shared_product(x, padded)
    torch.testing.assert_close(whole[:, :15], x @ table, rtol=1e-4, atol=1e-4)
    assert padded.shape == (136, 16) and bool((whole[:, 15:] == 0).all())
    for at in (torch.tensor([4]), torch.arange(8, -1, -1), torch.tensor([2, 2, 7])):
        assert torch.equal(shared_product(x[at], padded), whole[at])


def test_tables_are_made_once_and_take_part_in_differentiation() -> None:
    cpu = torch.device("cpu")
    with torch.inference_mode():
        made = index([2, 0], cpu)
        numbers = matrix([[1.0, 2.0], [3.0, 4.0]], torch.zeros(1))
    assert made is index((2, 0), cpu) and not made.is_inference() and not numbers.is_inference()
    assert numbers.tolist() == [[1.0, 2.0], [3.0, 4.0]] and numbers.dtype == torch.float32
    x = torch.arange(3.0, requires_grad=True)
    x[made].sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-5, 1e-2, 0.3, 1.0, 3.1, 9.0, 40.0])
def test_exponential_and_jacobian_at_once(size: float) -> None:
    w = size * torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(1)).double())
    rotation, turn = so3_exp_and_turn(w)
    torch.testing.assert_close(rotation, so3_exp(w), rtol=0.0, atol=2e-15)
    torch.testing.assert_close(turn, right_jacobian(w), rtol=0.0, atol=1e-14)
    short = shortened(w)
    assert float(short.norm(dim=1).max()) <= torch.pi + 1e-12
    torch.testing.assert_close(so3_exp(short), rotation, rtol=0.0, atol=1e-13)
    if size < torch.pi:
        assert torch.equal(short, w)
    small, _ = so3_exp_and_turn(w.float())
    torch.testing.assert_close(small.double(), so3_exp(w.float().double()), rtol=0.0, atol=1e-6 + 1e-7 * size)
