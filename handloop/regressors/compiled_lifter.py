"""A lifter's network ready for the compiled kernel: weights laid out, hands shared out among threads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from handloop.compiler import ensure_compiled, share_out
from handloop.regressors.lifter_kernel import LANES, N_HIDDEN, ROWS, Weights, lift_range
from handloop.regressors.network import N_INPUT, N_SD, LifterNetwork

_BLOCK = 32
"""Hands that go through a layer together: the weights are read once for all of them, and they stay in the cache."""


@dataclass(frozen=True, eq=False)
class CompiledLifter:
    """`LifterNetwork` on the CPU: a hand's result never depends, to the bit, on the others lifted with it."""

    weights: Weights

    @classmethod
    def of(cls, network: LifterNetwork) -> CompiledLifter:
        """Lay out a network's weights."""
        width, blocks = network.size.width, list(network.blocks)
        padded, n_input = _up(width, LANES), _up(N_INPUT, LANES)
        state = {name: t.detach().double().cpu().numpy() for name, t in network.state_dict().items()}
        start = np.zeros(len(state["mean.bias"]))
        start[:96] = state["usual"]
        names = [f"blocks.{i}" for i in range(len(blocks))]
        norms = [*(f"{name}.norm" for name in names), "norm"]

        def matrix(*layers: str, rows: int = padded, columns: int = padded) -> np.ndarray:
            return _packed([state[f"{layer}.weight"] for layer in layers], rows, columns)

        def vector(*keys: str, size: int = padded) -> np.ndarray:
            return _packed([state[key][None] for key in keys], 1, size)

        n_mean, n_sd = _up(len(start), ROWS), _up(N_SD, ROWS)
        return cls(
            Weights(
                width=width,
                padded=padded,
                n_input=n_input,
                blocks=len(blocks),
                enter=matrix("enter", columns=n_input),
                enter_bias=vector("enter.bias"),
                scale=vector(*(f"{name}.weight" for name in norms)),
                shift=vector(*(f"{name}.bias" for name in norms)),
                up=matrix(*(f"{name}.up" for name in names)),
                up_bias=vector(*(f"{name}.up.bias" for name in names)),
                down=matrix(*(f"{name}.down" for name in names)),
                down_bias=vector(*(f"{name}.down.bias" for name in names)),
                mean=matrix("mean", rows=n_mean),
                mean_bias=_packed([(state["mean.bias"] + start)[None]], 1, n_mean),
                hidden=matrix("spread.0", rows=N_HIDDEN),
                hidden_bias=vector("spread.0.bias", size=N_HIDDEN),
                sd=matrix("spread.2", rows=n_sd, columns=N_HIDDEN),
                sd_bias=_packed([(state["spread.2.bias"] + state["log_sd_scale"])[None]], 1, n_sd),
            )
        )

    def lift(
        self, rays: Tensor, conf: Tensor, offsets: Tensor, mean_betas: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Lift right hands.

        Args:
            rays: (B, 21, 2) x/z, y/z.
            conf: (B, 21), 0 for missing points.
            offsets: (21, 3) m, the source's.
            mean_betas: (10,), the source's.

        Returns:
            Rotations (B, 16, 3, 3), betas (B, 10), wrists (B, 3) m, and deviations (B, 28) in `LifterNetwork`'s order.
        """
        ensure_compiled()
        n = len(rays)
        given = _array(rays.reshape(n, 42)), _array(conf), _array(torch.cat([offsets.flatten(), mean_betas]))
        out = [np.empty((n, size)) for size in (144, 10, 3, N_SD)]
        stride = max(self.weights.padded, self.weights.n_input, N_HIDDEN)

        def work(first: int, last: int) -> None:
            hands = last - first
            narrow, wide = np.zeros(3 * hands * stride, np.float32), np.zeros(10 * hands + 72)
            lift_range(self.weights, *given, *out, narrow, wide, first, last)

        share_out(work, n, _BLOCK)
        rotations, betas, root, sd = (torch.from_numpy(array) for array in out)
        return rotations.reshape(n, 16, 3, 3), betas, root, sd


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _packed(parts: list[np.ndarray], rows: int, columns: int) -> np.ndarray:
    """Flat float32 of matrices, each padded with zeros to (rows, columns)."""
    return np.concatenate(
        [np.pad(part, ((0, rows - part.shape[0]), (0, columns - part.shape[1]))).ravel() for part in parts]
    ).astype(np.float32)


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.numpy(force=True), dtype=np.float64)
