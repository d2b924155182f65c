"""How many fits a second the cache reads and writes: random numbers, batches of 4096, one process.

    python -m benchmarks.cache --hands 65536 --folder bench-cache

Targets: 50,000 rows read and 20,000 written a second on one core. The folder must be on the disk that is measured.
Processor time is printed beside the clock's, because a busy machine slows the latter only.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from handloop.core.params import HandParams
from handloop.loop.cache import BATCH, FitCache
from handloop.loop.cached_fits import CachedFits, Origin

TERMS = ("reprojection", "pose_prior", "limits", "shape", "size", "focal", "points_3d")


def fits_of(ids: tuple[str, ...], energy: float, seed: int) -> CachedFits:
    """Random fits, all plausible."""
    n = len(ids)
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(n, *shape, dtype=torch.float64, generator=g)

    def same(value: float) -> Tensor:
        return torch.full((n,), value, dtype=torch.float64)

    zeros, ones = torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.bool)
    points = torch.ones(n, 21, 3, dtype=torch.float64)
    return CachedFits(
        *(ids, ones, ones, HandParams(normal(3), normal(45), normal(10), normal(3))),
        *(normal(2), normal(2), None, ones, normal(2), points, normal(21, 3), normal(21, 3), normal(21, 3)),
        *(normal(), normal(), normal(), normal(), ("distance along the viewing ray, then tilt of the palm",) * n),
        *(zeros, ones, ("",) * n, same(energy), {name: same(energy / 7) for name in TERMS}),
        *(zeros, zeros, zeros, zeros, zeros, (None,) * n, ("data/source.json",) * n, ("data/picture.jpg",) * n, zeros),
        {},
    )


def measure(name: str, n: int, work: Callable[[], None]) -> None:
    """Run and print rows per second."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    print(f"{name:<34} {n / processor:10,.0f} rows/s of processor time, {n / clock:10,.0f} by the clock")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hands", type=int, default=65536)
    parser.add_argument("--folder", type=Path, default=Path("bench-cache"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    n = max(1, options.hands // BATCH) * BATCH
    names = [f"{i // 1000:04d}/{i:08d}:right" for i in range(n)]
    batches = [tuple(names[i : i + BATCH]) for i in range(0, n, BATCH)]
    mixed = np.random.default_rng(0).permutation(names).tolist()
    first, better = fits_of(batches[0], 20.0, 0), fits_of(batches[0], 10.0, 1)
    origin = Origin("search")
    with FitCache.open(options.folder) as cache:

        def put(fits: CachedFits, step: int) -> None:
            for ids in batches:
                cache.put(ids, replace(fits, ids=ids), origin, step, 0)

        def get() -> None:
            for i in range(0, n, BATCH):
                cache.get(mixed[i : i + BATCH])

        measure("write, new", n, lambda: put(first, 1))
        measure("write, better (old version kept)", n, lambda: put(better, 2))
        measure("weigh and reject", n, lambda: put(first, 3))
        measure("read, random order", n, get)
        measure("go back to step 1", n, lambda: print(cache.rollback(1), "rows changed"))
        size = cache.path.stat().st_size
    print(f"{size / n:,.0f} bytes per hand with one older version each")
    shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
