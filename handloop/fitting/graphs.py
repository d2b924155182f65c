"""A block of steps as one CUDA graph: with few hands a GPU has done a step's kernels before Python has sent them."""

from __future__ import annotations

from collections.abc import Callable

import torch

MOST_ROWS = 4096
"""Starts up to which a solve is captured. A step is some 450 kernels, of about 5 us each to send; with more starts
than this they take longer than that to run, and dropping the hands that are done saves more."""


def pays(device: torch.device, rows: int) -> bool:
    """Whether to capture a solve from so many starts."""
    return device.type == "cuda" and rows <= MOST_ROWS


def capture(block: Callable[[], None]) -> Callable[[], None]:
    """Run a block of work in place, and give back what runs it again: as a graph, or where that fails as it is.

    Args:
        block: reads and writes the same memory each time, and never asks the device for a number.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        block()  # Libraries and tables set themselves up at the first call, which a capture could not take.
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads, a data loader's for example, may go on using the device.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            block()
    except RuntimeError:
        return block

    def again(kept: Callable[[], None] = block) -> None:
        """`kept` keeps alive what the graph reads and writes."""
        graph.replay()

    return again
