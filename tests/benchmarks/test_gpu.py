"""The GPU benchmark, on the CPU with a handful of hands, and what it says where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu
from handloop.fitting import graphs


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "no GPU" in said


def test_every_row_at_tiny_size(capsys: pytest.CaptureFixture[str]) -> None:
    most = graphs.MOST_ROWS
    assert gpu.main(["--cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == [
        "tensor, float32",
        "tensor, float32, no graph",
        "tensor, float32",
        "compiled, float64",
        "spin, joints, float32",
    ]
    assert [row[2] for row in rows] == ["8", "8", "24", "8", "8"]
    assert most == graphs.MOST_ROWS
    assert all(float(row[3].replace(",", "")) > 0 for row in rows)
    assert rows[3][4] == "1" and rows[4][5] == "1"
    assert all(0 < float(row[6].removesuffix(" %")) < 100 for row in rows[:3])
    # All of handloop's engines end alike, 24 hands being the eight thrice; SPIN minimises something else.
    energies = [float(row[8]) for row in rows]
    assert energies[:3] == pytest.approx([energies[3]] * 3, rel=1e-3)
    assert energies[4] > energies[3]


def test_the_stopwatch_adds_up() -> None:
    watch = gpu.Stopwatch(torch.device("cpu"))
    timed = watch.around(torch.mul)
    assert watch.seconds() == 0
    assert torch.equal(timed(torch.ones(2), torch.full((2,), 3.0)), torch.full((2,), 3.0))
    once = watch.seconds()
    timed(torch.ones(2), torch.ones(2))
    assert watch.seconds() > once > 0
