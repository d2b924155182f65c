"""The speed benchmark: every method at tiny size, the classic Jacobians for scipy, the gate, page and chart."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime

from benchmarks import speed, speed_gate, speed_service
from benchmarks.results_page import renew
from benchmarks.speed_chart import bars
from benchmarks.speed_clock import forget_peak, peak_mb, timed
from benchmarks.speed_gate import Figure
from benchmarks.speed_methods import Method, Problem, _HandResiduals, by_classic, energy, fused, methods
from handloop.fitting.baselines import SmplifyOptions, SpinOptions
from handloop.fitting.solver import SolverOptions


@pytest.fixture(scope="module")
def problem() -> Problem:
    models = speed_service.embedded()
    return Problem.of(models.right, *speed_service.synthetic(models, 4))


def test_scipys_residuals_are_the_standard_energy_with_their_exact_jacobian(problem: Problem) -> None:
    expected = energy(fused(problem.model, problem.seen), problem.start)
    rng = np.random.default_rng(0)
    for row in range(2):
        hand = _HandResiduals(problem, row)
        assert 0.5 * (hand.residuals(hand.start) ** 2).sum() == pytest.approx(float(expected[row]), rel=1e-9)
        # Away from the start, where limits and the kernel's flank are active.
        x = hand.start + 0.1 * rng.normal(size=61) * np.r_[np.ones(58), 0.1 * np.ones(3)]
        slope = hand.slope(x)
        numeric = approx_fprime(x, hand.residuals, 1e-7)
        assert np.abs(slope - numeric).max() < 1e-4 * np.abs(slope).max()


def test_every_method_lowers_the_common_energy(problem: Problem) -> None:
    before = energy(fused(problem.model, problem.seen), problem.start)
    ends = {}
    for method in methods(0.0, 2):
        if method.name.startswith(("spin", "smplify", "LBFGS")):
            continue  # Seconds each; the published methods minimise something else.
        row = speed.measure("made up", problem, method)
        assert row.n == 2 and row.steps > 1 and row.time.cpu > 0
        assert row.median < float(before[:2].median())
        ends[method.name] = row
    assert {"fused", "tensor", "scipy least_squares"} == set(ends)
    for other in ("tensor", "scipy least_squares"):
        assert ends[other].median == pytest.approx(ends["fused"].median, rel=1e-3)
        assert ends[other].pa_mm == pytest.approx(ends["fused"].pa_mm, rel=0.02)


def test_published_methods_run_in_batches(problem: Problem) -> None:
    for options in (SpinOptions(3, 3), SpinOptions(2, 2, full_mesh=True), SmplifyOptions(solver=SolverOptions(3))):
        end = by_classic(options, 1, problem.first(2))
        assert len(end.state) == 2 and bool(torch.isfinite(end.state.root).all()) and end.steps > 3


def test_ratios_are_of_process_time(problem: Problem) -> None:
    row = speed.measure("x", problem, Method("fused", lambda part: speed.End(part.start, 1.0), 2))
    names = ["fused", *(name for name, _ in speed.RATIOS)]
    taken = dict(zip(names, (1.0, 160.0, 15.0, 19.0, 100.0), strict=True))
    rows = {
        name: replace(row, method=Method(name, row.method.run, 2), time=speed.Time(1.0, cpu))
        for name, cpu in taken.items()
    }
    figures = speed._ratios("x", rows)
    assert [f.value for f in figures[:4]] == pytest.approx([160.0, 15.0, 19.0, 100.0])
    assert [f.reached() for f in figures] == [True, True, False, True, True, True, True]


def test_sections_at_tiny_size() -> None:
    for section in (speed_service.latency, speed_service.threads):
        assert all(figure.value > 0 for figure in section(0.001))
    grown = {figure.name: figure.value for figure in speed_service.growth(0.001)}
    assert grown["time from 8 starts over one"] > 2
    agreed = speed_service.agreement(0.001)
    assert agreed[0].value == 100 and agreed[0].reached()
    wall, cpu, peak = speed_service.stream(30)
    assert cpu > 0 and wall > 0 and peak > 50


def test_the_gate() -> None:
    good = [
        Figure("a ratio", 70.0, bar=50.0, most=False, ratio=True),
        Figure("a time", 1.0, "s", 1.15),
        Figure("for information", 1e9, "MB"),
    ]
    baseline = {"a ratio": 100.0}
    assert speed_gate.check(good, baseline) == []
    assert "below 0.6 of the baseline's 100" in speed_gate.check([replace(good[0], value=59.0)], baseline)[0]
    assert speed_gate.check([replace(good[0], value=49.0)], {}) == ["a ratio: 49 , bar 50"]
    assert len(speed_gate.check([replace(good[1], value=1.16)], baseline)) == 1
    assert len(speed_gate.check([replace(good[0], value=float("nan"))], baseline)) == 2
    assert "MISSED" in replace(good[1], value=2.0).row() and "MISSED" not in good[2].row()


def test_baseline_page_and_chart(tmp_path: Path) -> None:
    speed_gate.save(tmp_path / "b.json", [Figure("r", 1234.5, ratio=True), Figure("other", 2.0)])
    assert speed_gate.load(tmp_path / "b.json") == {"r": 1230.0}
    assert json.loads(speed.BASELINE.read_text(encoding="utf-8"))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x -->\nold\n<!-- end of x -->\nafter\n", encoding="utf-8")
    renew("x", "new", page)
    assert page.read_text(encoding="utf-8") == "before\n<!-- x -->\n\nnew\n\n<!-- end of x -->\nafter\n"
    root = ElementTree.fromstring(bars("a < b", {"one & only": 1.0, "ten thousand": 1e4}))
    widths = [float(r.attrib["width"]) for r in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[0] == 0 and widths[1] > 400
    assert "one & only" in [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]


def test_the_peak_counts_what_was_given_back() -> None:
    forget_peak()
    before = peak_mb()
    timed(lambda: np.ones(40_000_000))
    assert peak_mb() > before + 250


def test_renewing_needs_all_sections() -> None:
    with pytest.raises(SystemExit):
        speed.main(["--write", "--only", "latency"])
