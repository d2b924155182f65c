"""Each example runs as a user would run it, and says what it is there to show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def output(name: str, folder: Path) -> str:
    """What an example prints, run without arguments; what it saves lands in `folder`."""
    environment = {key: value for key, value in os.environ.items() if key != "HANDLOOP_MANO"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, cwd=folder, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    tested = re.findall(r'"(0\d_\w+\.py)"', Path(__file__).read_text(encoding="utf-8"))
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(tested)


def test_fit_keypoint_files(tmp_path: Path) -> None:
    said = output("01_fit_keypoint_files.py", tmp_path)
    assert "00_spread:left" in said and said.count("converged") >= 9 and "drew 10 overlays" in said
    assert (tmp_path / "out/example_01/results.npz").is_file()
    assert len(list((tmp_path / "out/example_01/overlays").glob("*.png"))) == 10


def test_library_call(tmp_path: Path) -> None:
    said = output("02_library_call.py", tmp_path)
    assert "joints (24, 21, 3)" in said and "vertices (24, 778, 3)" in said
    assert float(re.findall(r"median joint error ([\d.]+) mm", said)[0]) < 20
    lines = (EXAMPLES / "02_library_call.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 30


def test_custom_term(tmp_path: Path) -> None:
    said = output("03_custom_term.py", tmp_path)
    off = [(float(tip), float(joints)) for tip, joints in re.findall(r"tip +([\d.]+) mm .* joints +([\d.]+) mm", said)]
    (tip_before, joints_before), (tip_after, joints_after) = off
    assert tip_after < 1 < tip_before and joints_after < joints_before


def test_smplx_roundtrip(tmp_path: Path) -> None:
    pytest.importorskip("smplx")
    said = output("04_smplx_roundtrip.py", tmp_path)
    assert float(re.findall(r"differ by at most ([\d.e+-]+) m", said)[0]) < 1e-5


def code_lines(name: str) -> int:
    """Lines that are neither blank nor comment nor docstring."""
    text = re.sub(r'""".*?"""', "", (EXAMPLES / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    return sum(1 for line in text.splitlines() if line.strip() and not line.strip().startswith("#"))


def test_custom_term_with_its_own_derivative(tmp_path: Path) -> None:
    said = output("05_custom_jacobian.py", tmp_path)
    without, with_it = (float(off) for off in re.findall(r"tips +([\d.]+) mm", said))
    assert with_it < 1 < without
    assert code_lines("05_custom_jacobian.py") <= 30


def test_custom_recipe(tmp_path: Path) -> None:
    said = output("06_custom_recipe.py", tmp_path)
    errors = {name: float(off) for name, off in re.findall(r"(\w+) *: joints +([\d.]+) mm", said)}
    assert list(errors) == ["default", "mine"] and max(errors.values()) < 60
    assert code_lines("06_custom_recipe.py") <= 30


def test_self_improving(tmp_path: Path) -> None:
    said = output("07_self_improving.py", tmp_path)
    first, last = (float(missed) for missed in re.findall(r"misses held-out keypoints by ([\d.]+) %", said))
    assert last < 1.2 * first and "20 hands taught" in said
    names = {path.name for path in (tmp_path / "out/example_07").iterdir()}
    assert {"lifter.safetensors", "prior.npz", "results.npz", "report.html"} <= names


def test_fit_in_your_training(tmp_path: Path) -> None:
    said = output("08_fit_in_your_training.py", tmp_path)
    first, last = (float(loss) for loss in re.findall(r"loss ([\d.]+)", said))
    assert last < 0.5 * first and code_lines("08_fit_in_your_training.py") <= 40
