"""The training loop: its modes, its memory, and that an interruption at any moment changes nothing."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handloop.core.errors import FileFormatError, InputError
from handloop.hand.load import embedded_hand
from handloop.loop import cache as cache_module
from handloop.loop import checkpoint as checkpoint_module
from handloop.loop import run as run_module
from handloop.loop import train as train_module
from handloop.loop.cache import FitCache
from handloop.loop.config import FitOptions, LoopConfig, PriorOptions
from handloop.loop.hand_data import HandData
from handloop.loop.log import RunLog, read_log
from handloop.loop.ranks import Ranks
from handloop.loop.run import Progress
from handloop.loop.schedule import learning_rate
from handloop.loop.train import LoopTraining
from handloop.loop.verify import verify
from handloop.losses.biomechanical import BiomechanicalWeights
from handloop.priors.gaussian import GaussianPosePrior

from .loop_hands import TINY, drawn, seen

FORK = multiprocessing.get_context("fork")
Content = Callable[[Path], list[tuple[object, ...]]]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(train_module, "_CALIBRATION_HANDS", 64)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data() -> HandData:
    """All in about one pose, so that there is a prior to learn."""
    keypoints, camera, _ = seen(drawn(80, alike_deg=4.0))
    return HandData.of(keypoints, camera)


def train(folder: Path, data: HandData, config: LoopConfig, stop_after: int = -1) -> LoopTraining:
    """To the end, or until a step has been done."""

    class Stopped(Exception):
        pass

    def stop(at: Progress) -> None:
        if at.step == stop_after:
            raise Stopped

    training = LoopTraining(folder, data, embedded_hand(), config)
    with suppress(Stopped):
        training.run(stop)
    return training


def everything(training: LoopTraining, content: Content) -> tuple[Any, ...]:
    """All that must be the same: weights, their mean, the optimiser's moments, random state, fits, log, prior."""
    lines = [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in read_log(training.folder)]
    optimiser = training.learner.optimiser.state_dict()["state"]
    return (
        [t.tolist() for t in training.learner.network.state_dict().values()],
        [t.tolist() for t in training.learner.mean.state_dict().values()],
        [t.tolist() for group in optimiser.values() for t in group.values()],
        training.generator.get_state().tolist(),
        training.memory.prior.means.tolist(),
        [t.tolist() for t in training.held_out.params.tensors()],
        content(training.memory.cache.path),
        json.dumps(lines),
    )


@pytest.mark.parametrize("mode", ["in_loop", "static", "off"])
def test_each_mode(tmp_path: Path, data: HandData, mode: Any) -> None:
    training = train(tmp_path, data, replace(TINY, mode=mode, steps=3))
    starts = {origin.start for fits in training.memory.cache.batches() for origin in fits.origin if origin is not None}
    steps = {step for fits in training.memory.cache.batches() for step in fits.found_step.tolist()}
    if mode == "in_loop":
        assert starts <= {"regressor", "cached"} and "regressor" in starts and min(steps) > 0
    elif mode == "static":
        assert starts == {"static"} and steps == {0} and len(training.memory.cache) >= len(data.train) - 1
    else:
        assert len(training.memory.cache) == 0
    lines = read_log(tmp_path)
    assert [line["step"] for line in lines][-1] == 3 and all("loss_reprojection" in line for line in lines)
    assert ("new_fits" in lines[-1]) == (mode == "in_loop")
    assert (lines[-1]["loss_rotations"] > 0) and (tmp_path / "lifter.safetensors").is_file()
    # Held-out hands never enter the memory.
    out = [data.keypoints.ids[i] for i in data.held_out.tolist()]
    assert out and not bool(training.memory.cache.get(out).found.any())
    training.close()


def test_keypoints_alone_teach_the_network_to_meet_them(tmp_path: Path) -> None:
    keypoints, camera, _ = seen(drawn(12), 0.0)
    hands = HandData.of(keypoints, camera, held_out=0.0)
    config = replace(TINY, mode="off", steps=60, batch=12, synthetic=0, learning_rate=5e-3, log_every=10)
    training = train(tmp_path, hands, config)
    loss = [line["loss_reprojection"] for line in read_log(tmp_path)]
    assert loss[-1] < 0.6 * loss[0]
    training.close()


def test_the_loop_learns_the_hands(tmp_path: Path) -> None:
    """True joints, never shown, come nearer: from 2D alone."""
    hands = drawn(24)
    keypoints, camera, _ = seen(hands, 0.5)
    given = HandData.of(keypoints, camera, held_out=0.0)
    config = replace(TINY, steps=50, batch=24, views=24, learning_rate=5e-3, ema=0.9, save_every=80)
    training = LoopTraining(tmp_path, given, embedded_hand(), config)

    def angle() -> float:
        with torch.no_grad():
            out = training.learner.network(given.rays, given.conf, hands.offsets, hands.mean_betas)
        trace = (out.rotations.mT @ hands.rotations).diagonal(dim1=-2, dim2=-1).sum(-1)
        return float(((trace - 1) / 2).clamp(-1, 1).arccos().mean())

    before = angle()
    training.run()
    assert angle() < 0.8 * before
    training.close()


def test_energies_only_fall(tmp_path: Path, data: HandData) -> None:
    """Without closed-form starts there is much to improve."""
    config = replace(TINY, steps=12, prior=replace(TINY.prior, every=0), fit=FitOptions(first_seeds=0))
    training = LoopTraining(tmp_path, data, embedded_hand(), config)
    best: dict[str, float] = {}
    improved = 0

    def look(_: Progress) -> None:
        nonlocal improved
        for fits in training.memory.cache.batches():
            for name, energy, fine in zip(fits.ids, fits.energy.tolist(), fits.plausible.tolist(), strict=True):
                if fine and name in best:
                    assert energy <= best[name]
                    improved += energy < best[name]
                if fine:
                    best[name] = energy

    training.run(look)
    assert improved > 0
    training.close()


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, data: HandData, content: Content) -> None:
    """With a prior learned in between, whose fits are rolled back."""
    config = replace(TINY, steps=8, save_every=4)
    whole = train(tmp_path / "run" / "a", data, config)
    assert whole.prior_version > 0
    train(tmp_path / "again" / "a", data, config, stop_after=7).close()
    second = LoopTraining(tmp_path / "again" / "a", data, embedded_hand(), config)
    assert second.step == 4
    second.run()
    for one, other in zip(everything(whole, content), everything(second, content), strict=True):
        assert one == other
    assert (tmp_path / "run/a/lifter.safetensors").read_bytes() == (
        tmp_path / "again/a/lifter.safetensors"
    ).read_bytes()
    for training in (whole, second):
        training.close()


def killed_at(module: Any, name: str, call: int, before: bool) -> None:
    """In a child: kill the process at the n-th call of a function, before or after it does its work."""
    inner, calls = getattr(module, name), [0]

    def outer(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = inner(*arguments, **named)
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, name, outer)


PLACES: tuple[tuple[Any, str, int, bool], ...] = (
    (checkpoint_module.os, "fsync", 1, True),  # Inside the first checkpoint: the temporary file is written.
    (checkpoint_module.os, "fsync", 3, True),
    (run_module, "save_checkpoint", 3, False),  # Between the training's checkpoint and the cache's.
    (cache_module, "write_rows", 5, False),  # Inside the transaction of a put.
    (cache_module, "rescore_rows", 1, False),  # Half of a re-scoring.
    (cache_module, "make_checkpoint", 3, False),  # Inside the transaction that seals the cache.
    (run_module, "save_prior", 1, False),  # A prior whose fits do not exist.
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: HandData) -> LoopTraining:
    threads, many = torch.get_num_threads(), train_module._CALIBRATION_HANDS
    torch.set_num_threads(1)
    train_module._CALIBRATION_HANDS = 64
    training = train(tmp_path_factory.mktemp("whole") / "a", data, TINY)
    torch.set_num_threads(threads)
    train_module._CALIBRATION_HANDS = many
    return training


@pytest.mark.parametrize(("module", "name", "call", "before"), PLACES)
def test_a_killed_run_goes_on_to_the_same_bits(
    tmp_path: Path,
    data: HandData,
    content: Content,
    undisturbed: LoopTraining,
    module: Any,
    name: str,
    call: int,
    before: bool,
) -> None:
    folder = tmp_path / "a"

    def work() -> None:
        killed_at(module, name, call, before)
        train(folder, data, TINY)

    child = FORK.Process(target=work)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert verify(folder / "fits" / "fits-r00of01.sqlite").problems == ()
    again = train(folder, data, TINY)
    for one, other in zip(everything(undisturbed, content), everything(again, content), strict=True):
        assert one == other
    again.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_run_killed_at_any_moment_goes_on_to_the_same_bits(
    tmp_path: Path, data: HandData, content: Content, undisturbed: LoopTraining, seed: int
) -> None:
    """`benchmarks/loop_kills.py` does this many times."""
    draw = np.random.default_rng(seed)
    folder = tmp_path / "a"
    here, there = FORK.Pipe(duplex=False)

    def work() -> None:
        LoopTraining(folder, data, embedded_hand(), TINY).run(lambda at: there.send(at.step))

    for _ in range(1 + seed % 2):  # Of every second run, what goes on is killed, too.
        child = FORK.Process(target=work)
        child.start()
        for _ in range(int(draw.integers(0, 3))):
            here.recv()
        time.sleep(float(draw.uniform(0, 0.2)))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        while here.poll():
            here.recv()
    again = train(folder, data, TINY)
    for one, other in zip(everything(undisturbed, content), everything(again, content), strict=True):
        assert one == other
    again.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_disk_that_is_full_leaves_the_former_checkpoint(tmp_path: Path) -> None:
    """With the kernel's own error, which torch hides behind one of its writer's."""
    path = tmp_path / "checkpoint.pt"
    checkpoint_module.save_checkpoint(path, {"weights": torch.zeros(10)})
    former = path.read_bytes()
    path.with_name("checkpoint.pt.partial").symlink_to("/dev/full")
    for n in (10, 100_000):  # Noticed when the file is flushed, and in the middle of it.
        with pytest.raises(OSError, match=r"No space left.*former checkpoint is whole.*checkpoint\.pt"):
            checkpoint_module.save_checkpoint(path, {"weights": torch.zeros(n)})
        assert path.read_bytes() == former and [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
        path.with_name("checkpoint.pt.partial").symlink_to("/dev/full")


def test_another_run_is_refused(tmp_path: Path, data: HandData) -> None:
    train(tmp_path, data, replace(TINY, steps=1)).close()
    with pytest.raises(InputError, match="another configuration"):
        LoopTraining(tmp_path, data, embedded_hand(), replace(TINY, steps=1, seed=5))
    with pytest.raises(InputError, match="another starting prior"):
        narrow = GaussianPosePrior.from_hand(embedded_hand().right).scaled(2.0)
        LoopTraining(tmp_path, data, embedded_hand(), replace(TINY, steps=1), prior=narrow)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "checkpoint.pt").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(FileFormatError, match="checkpoint"):
        LoopTraining(tmp_path / "broken", data, embedded_hand(), TINY)
    keypoints, camera, _ = seen(drawn(80, seed=1))
    with pytest.raises(InputError, match="another data set"):
        LoopTraining(tmp_path, HandData.of(keypoints, camera), embedded_hand(), replace(TINY, steps=1))


def test_fits_imported_before_are_judged_by_the_loops_own_score(tmp_path: Path, data: HandData) -> None:
    first = train(tmp_path / "a", data, replace(TINY, mode="static", steps=1))
    held = next(iter(first.memory.cache.batches()))
    with FitCache.open(tmp_path / "b" / "fits") as cache:
        wrong = replace(held, energy=held.energy + 50, energy_terms={**held.energy_terms})
        wrong = replace(wrong, energy_terms={**held.energy_terms, "shape": held.energy_terms["shape"] + 50})
        wrong = replace(wrong, score_version=torch.zeros(len(wrong), dtype=torch.int64))
        assert held.origin[0] is not None
        cache.put(wrong.ids, wrong, held.origin[0], 0, 0)
    second = LoopTraining(tmp_path / "b", data, embedded_hand(), replace(TINY, steps=1))
    found = second.memory.cache.get(held.ids)
    torch.testing.assert_close(found.energy, held.energy, rtol=0, atol=1e-3)  # Keypoints are kept in float32.
    first.close()
    second.close()


def test_true_joints_are_used(tmp_path: Path) -> None:
    """With them, the labels are the true points whatever the fits say."""
    keypoints, camera, joints = seen(drawn(20))
    joints[5:] = float("nan")
    given = HandData.of(keypoints, camera, joints, held_out=0.0)
    training = train(tmp_path, given, replace(TINY, steps=2, batch=20, prior=PriorOptions(every=0)))
    fits = training.memory.cache.get(keypoints.ids)
    # The fits meet known joints to millimetres, also in depth.
    error = (fits.keypoints_3d[:5] - joints[:5]).norm(dim=-1).mean(1)
    assert bool((error[fits.found[:5]] < 0.01).all()) and bool(fits.found[:5].any())
    training.close()


def test_learning_rate() -> None:
    config = replace(TINY, steps=100, learning_rate=2.0, rising=0.1)
    assert learning_rate(5, config) == pytest.approx(1.0)
    assert learning_rate(10, config) == pytest.approx(2.0)
    assert learning_rate(55, config) == pytest.approx(2 * (0.01 + 0.99 / 2))
    assert learning_rate(100, config) == pytest.approx(0.02)


def test_a_training_that_diverges_stops(tmp_path: Path, data: HandData) -> None:
    training = LoopTraining(tmp_path, data, embedded_hand(), TINY)
    with torch.no_grad():
        training.learner.network.mean.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="step 1 is not finite; lower learning_rate"):
        training.run()
    training.close()


def test_biomechanical_losses_are_optional(tmp_path: Path, data: HandData) -> None:
    """They change what is learned, and cost something where hands are impossible."""
    plain = train(tmp_path / "a", data, replace(TINY, mode="off", steps=2))
    held = train(tmp_path / "b", data, replace(TINY, mode="off", steps=2, biomechanics=BiomechanicalWeights(1, 1, 1)))
    assert not torch.equal(plain.learner.network.mean.weight, held.learner.network.mean.weight)
    lines = [read_log(training.folder)[-1]["loss"] for training in (plain, held)]
    assert lines[1] > lines[0]
    for training in (plain, held):
        training.close()


def test_the_log_drops_half_lines_later_lines_and_what_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 2, "a": 1}\n{"step": 4, "a": 2}\n{"step": 6, "a"')
    log = RunLog(tmp_path, 3, Ranks.alone())
    log.add({"x": 1.0, "y": math.nan})
    log.add({"x": 3.0})
    log.write(5, {"z": math.inf, "w": "text"})
    log.write(7, {})
    assert read_log(tmp_path) == [{"step": 2, "a": 1}, {"step": 5, "x": 2.0, "w": "text"}, {"step": 7}]
