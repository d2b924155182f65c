"""Sections of benchmarks.speed on handloop alone: growth, latency, starting, agreement, threads, streaming."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.accuracy_cases import SEED, disturb
from benchmarks.recovery import K, draw
from benchmarks.speed_clock import peak_mb, timed, timed_command
from benchmarks.speed_gate import Figure
from benchmarks.speed_methods import RECIPE, Problem, by_tensor, energy, fused
from handloop.api import fit, hand_models
from handloop.compiler import WARM_UP
from handloop.core.camera import Camera
from handloop.core.keypoints import Keypoints
from handloop.core.results import save_npz
from handloop.fitting.fit import fit_keypoints
from handloop.fitting.problem import HandModels

ONE_START = replace(RECIPE, name="one start", seeds=1, explore_steps=0, finalists=1, lifter=False)
"""The standard recipe from the better flip of one closed-form start."""

_CHUNK = 10_000
_FIRST = f"import handloop; import numpy as np; handloop.fit(np.array([{{points}}]), K={K})"


def embedded() -> HandModels:
    """The embedded hand, whatever HANDLOOP_MANO names."""
    return hand_models("", torch.device("cpu"), torch.float64)


def synthetic(models: HandModels, n: int, seed: int = SEED) -> tuple[Keypoints, Camera, torch.Tensor]:
    """n hands of the model's own poses, seen with 2 px of noise; and their points (n, 21, 3) m."""
    g = torch.Generator().manual_seed(seed)
    truth = draw(models.right, models.pair.right.poses(), n, g)
    return Keypoints.from_arrays(disturb(truth.uv, 2.0, 0.0, g)), Camera.from_matrix(K, n), truth.points


def growth(scale: float) -> list[Figure]:
    """Process time per hand by the size of the batch, and per start by their number."""
    models = embedded()
    most = max(64, round(100_000 * scale))
    keypoints, camera, truth = synthetic(models, most)
    out, per_hand = [], {}
    sizes = sorted({*(min(n, most) for n in (1, 16, 256, 1000, 4096, 10_000, 16_384)), most})
    for n in sizes:
        at = torch.arange(n)
        call = partial(fit_keypoints, models, keypoints.select(at), camera.select(at), ONE_START)
        if n < 10_000:
            call()
        per_hand[n] = timed(call, max(1, min(5, 20_000 // n))).cpu / n
        out.append(Figure(f"one start, batch {n:,}", 1e3 * per_hand[n], "ms of process time per hand"))
    # From about a thousand hands on, less than which a call's own cost shows.
    large = [per_hand[size] for size in sizes if size >= most // 100]
    out.append(
        Figure(f"time per hand, {most // 100:,} to {most:,} hands, most over least", max(large) / min(large), "", 1.15)
    )
    n = min(most, 2000)
    problem = Problem.of(models.right, keypoints.select(range(n)), camera.select(torch.arange(n)), truth[:n])
    engine = fused(models.right, problem.seen)
    starts = engine.starts(models.right.kinematics, models.right.seeds[:4], problem.seen.views())
    single = 0.0
    for count in (1, 2, 4, 8):
        at = (torch.arange(n)[:, None] * 8 + torch.arange(count)).flatten()
        hand = torch.arange(n).repeat_interleave(count)
        taken = timed(partial(engine.solve, starts.select(at), hand, RECIPE.solver), 2).cpu / n
        single = single or taken
        out.append(Figure(f"time from {count} starts over one", taken / single, "", 1.15 * count))
    return out


def latency(scale: float) -> list[Figure]:
    """One warm hand, numpy arrays to the result object."""
    models = embedded()
    keypoints, _, _ = synthetic(models, 50)
    points, matrix = keypoints.xy.numpy(), np.array(K)
    out = []
    for recipe, bar in ((ONE_START, 2.0), (RECIPE, 2.0)):
        taken = [
            timed(partial(fit, points[i % 50][None], matrix, hand=models.pair, recipe=recipe, device="cpu"))
            for i in range(max(5, round(200 * scale)))
        ]
        named = f"one warm hand, {recipe.name}"
        out.append(Figure(f"{named}, pair given", 1e3 * statistics.median(t.cpu for t in taken), "ms of process time"))
        taken = [
            timed(partial(fit, points[i % 50][None], matrix, recipe=recipe, device="cpu"))
            for i in range(max(5, round(200 * scale)))
        ]
        out.append(Figure(named, 1e3 * statistics.median(t.cpu for t in taken), "ms of process time", bar))
        out.append(Figure(f"{named}, wall", 1e3 * statistics.median(t.wall for t in taken), "ms"))
    return out


def startup(scale: float) -> list[Figure]:
    """What waits for the first answer: fresh processes, compiled code in the disk cache."""
    models = embedded()
    points = synthetic(models, 1)[0].xy.tolist()[0]
    fit(np.array([points]), K)  # The cache is warm from here on.
    python = [sys.executable, "-c"]
    commands = (
        ("import handloop", [*python, "import handloop"], 0.3),
        ("handloop --help", [sys.executable, "-m", "handloop.cli", "--help"], 0.6),
        ("first fit of a fresh process", [*python, _FIRST.format(points=points)], 3.0),
    )
    out = []
    for name, command, bar in commands:
        taken = timed_command(command, 3 if scale >= 0.5 else 1)
        out.append(Figure(name, taken.cpu, "s of process time", bar))
        out.append(Figure(f"{name}, wall", taken.wall, "s"))
    return out + compiling()


def compiling() -> list[Figure]:
    """Filling an empty cache, as the first fit of an installation does in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "HANDLOOP_CACHE": folder, "HANDLOOP_COMPILING": "1"}
        taken = timed_command([sys.executable, "-c", WARM_UP], 1, environment)
    return [Figure("compiling the fit, once per installation", taken.cpu, "s of process time")]


def agreement(scale: float) -> list[Figure]:
    """Fused and tensor engine from the same starts."""
    models = embedded()
    n = max(20, round(10_000 * scale))
    problem = Problem.of(models.right, *synthetic(models, n, seed=SEED + 1))
    engine = fused(models.right, problem.seen)
    ours = engine.solve(problem.start, torch.arange(n), RECIPE.solver).state
    theirs = by_tensor(problem).state
    a, b = energy(engine, ours), energy(engine, theirs)
    kinematics = models.right.kinematics
    apart = [kinematics.points(s.rotations, s.betas, s.root) for s in (ours, theirs)]
    away = (apart[0] - apart[1]).norm(dim=-1).amax(1)
    same_energy, same_points = (a - b).abs() <= 1e-4 * b.clamp(min=1e-9), away <= 1e-4
    agree = same_energy & same_points
    # Taken on with firmer stopping rules, both come to rest in a minimum each: the same one or two.
    firm = replace(RECIPE.solver, max_steps=200, tolerance=1e-9)
    ends = [engine.solve(s, torch.arange(n), firm).state for s in (ours, theirs)]
    rest = [kinematics.points(s.rotations, s.betas, s.root) for s in ends]
    other = (rest[0] - rest[1]).norm(dim=-1).amax(1) > 1e-3
    share = 100 / n
    return [
        Figure("engines agree: energy to 1e-4 and points to 0.1 mm", share * int(agree.sum()), "%", 99.0, most=False),
        Figure("energy to 1e-4", share * int(same_energy.sum()), "%"),
        Figure("points to 0.1 mm", share * int(same_points.sum()), "%"),
        Figure("of the others, in another minimum", 100 * float(other[~agree].double().mean().nan_to_num(0)), "%"),
    ]


def threads(scale: float) -> list[Figure]:
    """Two threads against one, wall time: needs two idle cores."""
    models = embedded()
    n = max(64, round(8192 * scale))
    problem = Problem.of(models.right, *synthetic(models, n))
    engine = fused(models.right, problem.seen)
    before, taken = torch.get_num_threads(), {1: float("inf"), 2: float("inf")}
    try:
        for _ in range(3):
            for count in taken:
                torch.set_num_threads(count)
                call = partial(engine.solve, problem.start, torch.arange(n), RECIPE.solver)
                taken[count] = min(taken[count], timed(call).wall)
    finally:
        torch.set_num_threads(before)
    return [Figure("2 threads over 1, wall", taken[1] / taken[2], "times as fast", 1.8, most=False)]


def stream(n: int) -> tuple[float, float, float]:
    """Fit n hands drawn in chunks, write each chunk's results; wall s, process s and the peak in MB."""
    models = embedded()
    wall = cpu = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number, first in enumerate(range(0, n, _CHUNK)):
            keypoints, camera, _ = synthetic(models, min(_CHUNK, n - first), seed=SEED + number)
            begin, used = time.perf_counter(), time.process_time()
            result = fit_keypoints(models, keypoints, camera, ONE_START)
            save_npz(Path(folder) / "part.npz", result.arrays())
            wall, cpu = wall + time.perf_counter() - begin, cpu + time.process_time() - used
    return wall, cpu, peak_mb()


def streaming(scale: float, million: bool = False) -> list[Figure]:
    """`stream` in a process of its own, for its memory."""
    n = 1_000_000 if million else max(20, round(50_000 * scale))
    code = f"import torch; torch.set_num_threads(1); from benchmarks.speed_service import stream; print(*stream({n}))"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    wall, cpu, peak = map(float, said.split())
    return [
        Figure(f"{n:,} hands fitted from one start and written", n / wall, "hands/s"),
        Figure("the same, process time", n / cpu, "hands/s"),
        Figure("its peak memory", peak, "MB", 2000.0),
    ]
