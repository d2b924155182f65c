"""How fast is the tensor engine on a GPU?

    python -m benchmarks.gpu          needs CUDA; some minutes, prints a Markdown table
    python -m benchmarks.gpu --cpu    the same code on the CPU with a handful of hands, to see that it runs

All methods start from the same closed-form state of the same synthetic hands, one start each. Times are by the wall
with the device waited for, after one run to warm up; the compiled engine uses all cores of the same machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor

from benchmarks import speed_service
from benchmarks.speed_clock import forget_peak, peak_mb
from benchmarks.speed_methods import RECIPE, Problem, fused
from handloop.core.terms import HandState
from handloop.fitting import graphs, steps
from handloop.fitting.baselines import SpinOptions, fit_baseline
from handloop.fitting.engines import TensorEngine, free_parameters, standard_terms
from handloop.fitting.fit import hands_within
from handloop.fitting.observe import Observations
from handloop.fitting.problem import FitModel

HEAD = (
    "| method | device | hands | hands/s | over compiled | over spin | in Cholesky | peak MB | median energy |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Sizes:
    """How many hands."""

    small: int
    """All methods."""
    large: int
    """The tensor engine alone, in chunks."""


FULL, TINY = Sizes(4096, 262_144), Sizes(8, 24)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    method: str
    device: str
    hands: int
    per_second: float
    cholesky: float | None
    """Share of the time."""
    peak_mb: float | None
    energy: float
    """Median."""

    def line(self, compiled: float, spin: float) -> str:
        """Markdown, with ratios to other rows' hands/s."""
        share = "" if self.cholesky is None else f"{100 * self.cholesky:.1f} %"
        peak = "" if self.peak_mb is None else f"{self.peak_mb:,.0f}"
        ratios = f"{self.per_second / compiled:.3g} | {self.per_second / spin:.3g}"
        return (
            f"| {self.method} | {self.device} | {self.hands:,} | {self.per_second:,.4g} | {ratios} | {share} | {peak} "
            f"| {self.energy:.3f} |"
        )


@dataclass(frozen=True, eq=False)
class OnDevice:
    """Hands where they are fitted, in float32."""

    model: FitModel
    seen: Observations
    start: HandState

    @classmethod
    def of(cls, problem: Problem, device: torch.device) -> OnDevice:
        """A copy of a problem's hands."""
        model = FitModel.of(problem.model.hand, torch.float32, device)
        like = model.like
        seen = Observations(*(t.to(like) for t in vars(problem.seen).values()))
        return cls(model, seen, HandState(*(t.to(like) for t in vars(problem.start).values())))

    def solve(self, n: int) -> Tensor:
        """(n,) energies of the tensor engine, hands over again where there are not so many."""
        model, free = self.model, free_parameters(RECIPE, self.model.like.device)
        energies = []
        for at in (torch.arange(n) % len(self.start)).split(_chunk(model.like.device)):
            rows = at.to(model.like.device)
            engine = TensorEngine(model.kinematics, standard_terms(model, self.seen.select(rows), RECIPE), free)
            every = torch.arange(len(rows), device=rows.device)
            energies.append(engine.solve(self.start.select(rows), every, RECIPE.solver).energy)
        return torch.cat(energies)

    def spin(self) -> Tensor:
        """(B,) standard energies where the published SPIN ends."""
        model = self.model
        done = fit_baseline(model, self.seen, SpinOptions(), self.start, 1, model.hand)
        free = free_parameters(RECIPE, model.like.device)
        engine = TensorEngine(model.kinematics, standard_terms(model, self.seen, RECIPE), free)
        return torch.stack(list(engine.finish(done.state, posterior=False).terms.values())).sum(0)


def _chunk(device: torch.device) -> int:
    """Hands at a time, as `handloop.fit` would take them for one start each."""
    if device.type != "cuda":
        return 16
    return 3 * hands_within(0.5 * torch.cuda.mem_get_info(device)[0], speed_service.ONE_START, 4)


class Stopwatch:
    """Adds up the time of the calls of a function, by the device's own clock where it has one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._taken: list[Callable[[], float]] = []

    def around(self, function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        """The same function, timed."""

        def timed(a: Tensor, b: Tensor) -> Tensor:
            if self.device.type != "cuda":
                began = time.perf_counter()
                out = function(a, b)
                taken = time.perf_counter() - began
                self._taken.append(lambda: taken)
                return out
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            out = function(a, b)
            last.record()
            self._taken.append(lambda: 1e-3 * float(first.elapsed_time(last)))
            return out

        return timed

    def seconds(self) -> float:
        """So far; call it when the device is idle."""
        return sum(taken() for taken in self._taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(device: torch.device, call: Callable[[], Tensor]) -> tuple[float, float]:
    """Seconds of a call after one to warm up, and the median of what it returns."""
    call()
    _wait(device)
    began = time.perf_counter()
    value = call()
    _wait(device)
    return time.perf_counter() - began, float(value.median())


def measure(device: torch.device, sizes: Sizes) -> list[Row]:
    """All rows; the compiled engine and SPIN are the last two."""
    embedded = speed_service.embedded()
    problem = Problem.of(embedded.right, *speed_service.synthetic(embedded, sizes.small))
    there = OnDevice.of(problem, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    rows = []
    for method, n, most_rows in (
        ("tensor, float32", sizes.small, graphs.MOST_ROWS),
        ("tensor, float32, no graph", sizes.small, 0),
        ("tensor, float32", sizes.large, graphs.MOST_ROWS),
    ):
        with mock.patch.object(graphs, "MOST_ROWS", most_rows):
            _forget(device)
            seconds, energy = _timed(device, lambda n=n: there.solve(n))
            peak = _peak(device)
        rows.append(Row(method, name, n, n / seconds, _cholesky(device, there, n), peak, energy))
    engine = fused(problem.model, problem.seen)
    every = torch.arange(len(problem))
    cpu = torch.device("cpu")
    seconds, energy = _timed(cpu, lambda: engine.solve(problem.start, every, RECIPE.solver).energy)
    rows.append(Row("compiled, float64", "CPU", sizes.small, sizes.small / seconds, None, None, energy))
    _forget(device)
    seconds, energy = _timed(device, there.spin)
    rows.append(Row("spin, joints, float32", name, sizes.small, sizes.small / seconds, None, _peak(device), energy))
    return rows


def _cholesky(device: torch.device, there: OnDevice, n: int) -> float:
    """Share of a solve's time in its linear systems, without graphs."""
    watch = Stopwatch(device)
    with (
        mock.patch.object(graphs, "MOST_ROWS", 0),
        mock.patch.object(steps, "solve_systems", watch.around(steps.solve_systems)),
    ):
        _wait(device)
        began = time.perf_counter()
        there.solve(n)
        _wait(device)
        return watch.seconds() / (time.perf_counter() - began)


def _forget(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        forget_peak()


def _peak(device: torch.device) -> float:
    """MB of the device's memory since `_forget`; of the process on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else peak_mb()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="the same on the CPU, with a handful of hands")
    options = parser.parse_args(arguments)
    if not options.cpu and not torch.cuda.is_available():
        print(
            "This machine has no GPU that torch can use (torch.cuda.is_available() is false), so nothing was measured."
        )
        return 2
    rows = measure(torch.device("cpu" if options.cpu else "cuda"), TINY if options.cpu else FULL)
    compiled, spin = rows[-2].per_second, rows[-1].per_second
    print(HEAD, *(row.line(compiled, spin) for row in rows), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
