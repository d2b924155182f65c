"""How fast is the fit? handloop's engines, the published methods and general optimisers side by side.

    python -m benchmarks.speed                     all sections, about eight minutes on two cores
    python -m benchmarks.speed --only engines growth
    python -m benchmarks.speed --check             fail where a bar is missed or a ratio fell below the baseline
    python -m benchmarks.speed --write             renew docs/results.md, its chart and the baseline

Every method starts from the same closed-form state of the same hands and is judged by the same energy, the standard
recipe's, at its end state. Speeds are process time, which other programs on the machine disturb least; one thread.
Slow methods run on fewer hands, as the tables say; quality is compared on the hands that all have in common where
a method ran on at least as many. Real hands are used where HANDLOOP_REAL_DATA names their folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks import speed_gate, speed_service
from benchmarks.baselines import load as load_fpha
from benchmarks.results_page import renew
from benchmarks.speed_chart import bars
from benchmarks.speed_clock import Time, forget_peak, peak_mb, timed
from benchmarks.speed_gate import Figure
from benchmarks.speed_methods import End, Method, Problem, energy, fastest_spin_batch, fused, methods
from handloop.core.camera import Camera
from handloop.core.keypoints import Keypoints
from handloop.evaluation.alignment import similarity

BASELINE = Path(__file__).parent / "baselines" / "speed.json"
CHART = Path("docs/images/speed.svg")
COMMON = 256
"""Hands that quality is compared on."""
HEAD = (
    "| hands | method | timed on | hands/s | wall hands/s | steps | energy median | energy 90 % | PA mm |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
RATIOS = (
    ("spin, full mesh, batch 64", 150.0),
    ("spin, joints", 15.0),
    ("tensor", 20.0),
    ("scipy least_squares", 100.0),
)
"""How many times as fast as these the fused engine has to be."""


@dataclass(frozen=True)
class Row:
    """One method on one set of hands."""

    hands: str
    method: Method
    n: int
    time: Time
    steps: float
    median: float
    """Energy."""
    tenth: float
    """Its 90th percentile."""
    pa_mm: float

    def cpu_ms(self) -> float:
        """Process time of a hand, ms."""
        return 1e3 * self.time.cpu / self.n

    def row(self) -> str:
        """Of the table."""
        return (
            f"| {self.hands} | {self.method.name} | {self.n} | {self.n / self.time.cpu:,.3g} "
            f"| {self.n / self.time.wall:,.3g} | {self.steps:.1f} | {self.median:.2f} | {self.tenth:.2f} "
            f"| {self.pa_mm:.2f} |"
        )


def problems(n: int) -> dict[str, Problem]:
    """Synthetic hands, and real ones where there are any."""
    models = speed_service.embedded()
    out = {"synthetic, 2 px": Problem.of(models.right, *speed_service.synthetic(models, n))}
    folder = os.environ.get("HANDLOOP_REAL_DATA", "")
    if folder and (Path(folder) / "keypoints_3d" / "fpha.npz").is_file():
        real = load_fpha(Path(folder), min(n, 2048))
        camera = Camera.from_matrix(real.K, len(real.uv))
        out["FPHA subject 3"] = Problem.of(models.right, Keypoints.from_arrays(real.uv), camera, real.points)
    return out


def measure(name: str, problem: Problem, method: Method) -> Row:
    """Time a method and judge where it ends."""
    part = problem.first(method.hands)
    method.run(part.first(2))
    ends: list[End] = []
    time = timed(lambda: ends.append(method.run(part)), 3 if method.name == "fused" else 1)
    judged = part.first(COMMON)
    state = ends[0].state.select(torch.arange(len(judged)))
    value = energy(fused(problem.model, judged.seen), state)
    points = problem.model.kinematics.points(state.rotations, state.betas, state.root)
    error = 1000 * (similarity(points, judged.truth).apply(points) - judged.truth).norm(dim=-1).mean(1)
    quantiles = (float(value.quantile(0.5)), float(value.quantile(0.9)))
    return Row(name, method, len(part), time, ends[0].steps, *quantiles, float(error.mean()))


def engines(scale: float) -> tuple[list[Row], list[Figure]]:
    """Every method on every set, and what the fused engine gains."""
    rows, out = [], []
    for name, problem in problems(max(2, round(8192 * scale))).items():
        batch = fastest_spin_batch(problem)
        print(f"{name}: spin on joints is fastest in batches of {batch}", flush=True)
        done = []
        for method in methods(scale, batch):
            done.append(measure(name, problem, method))
            print(done[-1].row(), flush=True)
        rows += done
        out += _ratios(name, {row.method.name: row for row in done})
    return rows, out


def _ratios(name: str, rows: dict[str, Row]) -> list[Figure]:
    ours, out = rows["fused"], []
    for other, bar in RATIOS:
        ratio = rows[other].cpu_ms() / ours.cpu_ms()
        out.append(Figure(f"{name}: fused over {other}", ratio, "times as fast", bar, most=False, ratio=True))
    spin = rows["spin, joints"]
    for what, a, b in (
        ("median energy", ours.median, spin.median),
        ("90th percentile of the energy", ours.tenth, spin.tenth),
        ("PA error", ours.pa_mm, spin.pa_mm),
    ):
        out.append(Figure(f"{name}: {what}, fused over spin", a / b, "", 1.0))
    return out


def memory(scale: float) -> list[Figure]:
    """Peak resident size of each method in a process of its own; "idle" is what imports and hands take."""
    out = []
    # More steps take no more memory.
    names = [m.name for m in methods(scale, 1024) if "500+500" not in m.name]
    for name in ("idle", *names):
        command = [sys.executable, "-m", "benchmarks.speed", "--memory", name, "--scale", str(scale)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peak, n = said.split()
        out.append(Figure(f"peak memory, {name}, {n} hands", float(peak), "MB"))
    return out


def _memory_of(name: str, scale: float) -> None:
    chosen = {m.name: m for m in methods(scale, 1024)}.get(name)
    n = 2 if chosen is None else chosen.hands
    problem = next(iter(problems(n).values()))
    forget_peak()
    if chosen is not None:
        chosen.run(problem)
    print(peak_mb(), n)


SECTIONS: dict[str, Callable[[float], list[Figure]]] = {
    "memory": memory,
    "growth": speed_service.growth,
    "latency": speed_service.latency,
    "startup": speed_service.startup,
    "agreement": speed_service.agreement,
    "threads": speed_service.threads,
    "streaming": speed_service.streaming,
}


def write(rows: Sequence[Row], figures: Sequence[Figure]) -> None:
    """Renew the page's part, the chart and the baseline."""
    table = "\n".join(row.row() for row in rows)
    head = "| figure | value | bar | |\n|---|---|---|---|"
    listed = "\n".join(figure.row() for figure in figures)
    drawn = {row.method.name: row.n / row.time.cpu for row in rows if row.hands == rows[0].hands}
    CHART.write_text(bars("Hands per second of process time, one thread", drawn), encoding="utf-8")
    chart = f"![Hands per second of each method](images/{CHART.name})"
    renew("speed", f"{chart}\n\n{HEAD}\n{table}\n\n{head}\n{listed}")
    speed_gate.save(BASELINE, figures)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print all sections; 1 where `--check` finds something wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("engines", *SECTIONS)
    parser.add_argument("--only", nargs="+", default=names, choices=names, help="these sections")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the hands everywhere (default: 1)")
    parser.add_argument("--million", action="store_true", help="stream 1,000,000 hands, not 50,000")
    parser.add_argument("--check", action="store_true", help="compare with the bars and the baseline")
    parser.add_argument("--write", action="store_true", help="renew docs/results.md, chart and baseline")
    parser.add_argument("--memory", metavar="METHOD", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.memory is not None:
        _memory_of(options.memory, options.scale)
        return 0
    if options.write and (set(options.only) != set(names) or options.scale != 1):
        parser.error("--write renews everything; leave out --only and --scale.")
    rows, figures = [], []
    if "engines" in options.only:
        print(HEAD)
        rows, figures = engines(options.scale)
        print(*(f.row() for f in figures), sep="\n", flush=True)
    sections = {**SECTIONS, "streaming": partial(speed_service.streaming, million=options.million)}
    for name, section in sections.items():
        if name in options.only:
            found = section(options.scale)
            print(*(f.row() for f in found), sep="\n", flush=True)
            figures += found
    if options.write:
        write(rows, figures)
    if not options.check:
        return 0
    wrong = speed_gate.check(figures, speed_gate.load(BASELINE))
    print(*(wrong or ["every bar is reached, no ratio fell."]), sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
