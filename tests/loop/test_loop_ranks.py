"""A run on several processes: the same as on one, whatever stops it and however many go on."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handloop.cli import main
from handloop.core.errors import CacheError
from handloop.hand.load import embedded_hand
from handloop.loop import train as train_module
from handloop.loop.cache import FitCache
from handloop.loop.cached_fits import Origin
from handloop.loop.config import LoopConfig
from handloop.loop.lifter_learner import LifterLearner
from handloop.loop.log import read_log
from handloop.loop.ranks import Ranks
from handloop.loop.reshard import bring_home
from handloop.loop.run import Progress
from handloop.loop.shards import rank_of
from handloop.loop.supervise import Supervision
from handloop.loop.train import LoopTraining
from handloop.loop.verify import verify
from handloop.regressors.network import Lifted
from handloop.synth.keypoints import KeypointSynth

from .conftest import Make
from .loop_hands import TINY, drawn, seen
from .rank_launch import environment, launch
from .rank_worker import Stopped, config, hands

RUN: dict[str, Any] = {"config": {"steps": 8, "save_every": 4}}
EXACT: dict[str, Any] = {"config": {"steps": 3, "views": 0, "synthetic": 0}}
"""Without anything drawn, so that the processes differ from one in the order of sums alone."""
Content = Callable[[Path], list[tuple[object, ...]]]


def alone(folder: Path, job: dict[str, Any], stop: int = -1) -> LoopTraining:
    """The same job in this process, without others."""

    def look(at: Progress) -> None:
        if at.step == stop:
            raise Stopped

    training = LoopTraining(folder, hands(job), embedded_hand(), config(job))
    with suppress(Stopped):
        training.run(look)
    training.close()
    return training


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    threads, many = torch.get_num_threads(), train_module._CALIBRATION_HANDS
    torch.set_num_threads(1)
    train_module._CALIBRATION_HANDS = 64
    yield
    torch.set_num_threads(threads)
    train_module._CALIBRATION_HANDS = many


@dataclass(frozen=True)
class Done:
    """Two launches of two processes."""

    base: Path
    status: list[int]
    """Of the launch in which rank 1 was killed."""
    lost: dict[str, Any]
    """What rank 0 wrote there."""
    jobs: dict[str, list[dict[str, Any]]]
    """What both ranks wrote of each job of the other launch."""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    base = tmp_path_factory.mktemp("ranks")
    killed = base / "killed" / "run"
    status, (lost, nothing) = launch(base / "first", [{**RUN, "folder": str(killed), "rank 1": {"kill": 6}}])
    assert nothing is None and lost is not None
    shutil.copytree(base / "killed", base / "copy")
    alone(base / "single" / "run", RUN, stop=5)
    jobs = {
        "whole": {**RUN, "folder": str(base / "whole" / "run")},
        "resumed": {**RUN, "folder": str(killed)},
        # Two machines: each rank has a folder of its own.
        "apart": {**RUN, "folder": str(base / "single/run"), "rank 1": {"folder": str(base / "elsewhere" / "run")}},
        "other": {**RUN, "folder": str(base / "other"), "rank 1": {"seed": 1}},
        "one-sided": {"config": {"steps": 2}, "folder": str(base / "sided"), "one_sided": True},
        "exact": {**EXACT, "folder": str(base / "exact")},
    }
    second, written = launch(base / "second", list(jobs.values()))
    assert second == [0, 0]
    results = {name: [each[i] for each in written if each is not None] for i, name in enumerate(jobs)}
    return Done(base, status, lost[0], results)


def merged(folder: Path) -> Path:
    """The one shard that is left."""
    (path,) = (folder / "fits").iterdir()
    assert path.name == "fits-r00of01.sqlite"
    return path


def energies(path: Path) -> dict[str, float]:
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT id, energy FROM fits"))


def test_all_ranks_take_the_same_steps(done: Done) -> None:
    first, second = done.jobs["whole"]
    assert (first["own"], second["own"]) == (35, 37)  # By the hash of their ids; 8 of 80 are held out.
    assert len(first["losses"]) == len(second["losses"]) == 8
    assert first["losses"] == second["losses"] and first["digest"] == second["digest"]
    assert first["prior"] == second["prior"]
    lines = read_log(done.base / "whole" / "run")
    assert lines[-1]["prior_version"] > 0 and lines[-1]["step"] == 8
    assert lines[-1]["loss"] == pytest.approx(np.mean(first["losses"][-2:]), abs=1e-6)


def test_every_hand_is_in_the_joined_cache_once(done: Done) -> None:
    folder = done.base / "whole" / "run"
    data = hands({})
    trained = {data.keypoints.ids[i] for i in data.train.tolist()}
    path = merged(folder)
    assert verify(path).problems == ()
    with np.load(folder / "results.npz", allow_pickle=False) as file:
        ids = file["id"].tolist()
    assert len(ids) == len(set(ids)) and set(ids) == trained == set(energies(path))
    assert read_log(folder)[-1]["fits"] == len(trained)


def test_without_chance_it_is_the_same_as_one_process(done: Done, tmp_path: Path) -> None:
    """Losses, weights and fits, to the rounding of sums in another order."""
    one = alone(tmp_path / "run", EXACT)
    two = done.jobs["exact"][0]
    lines, others = read_log(tmp_path / "run"), read_log(done.base / "exact")
    for line, other in zip(lines, others, strict=True):
        for key in ("loss", "held_out_network_rms_percent", "held_out_fit_energy"):
            assert line.get(key) == pytest.approx(other.get(key), rel=1e-4), key
        assert line["fits"] == other["fits"]
    for ours, theirs in zip(one.learner.network.parameters(), two["weights"], strict=True):
        assert float((ours.detach().flatten() - torch.tensor(theirs)).abs().max()) < 3e-4  # Of steps of 1e-3 each.
    mine, theirs = energies(merged(tmp_path / "run")), energies(merged(done.base / "exact"))
    assert set(mine) == set(theirs)
    away = np.array([abs(mine[name] - theirs[name]) for name in mine])
    assert np.median(away) < 1e-6 and (away < 1e-3).mean() > 0.9


def test_with_chance_it_is_as_good_as_one_process(done: Done, tmp_path: Path) -> None:
    alone(tmp_path / "run", RUN)
    one, two = read_log(tmp_path / "run")[-1], read_log(done.base / "whole" / "run")[-1]
    for key in ("held_out_network_rms_percent", "held_out_fit_rms_percent", "held_out_fit_energy"):
        assert one[key] == pytest.approx(two[key], rel=0.1), key


def test_a_killed_rank_stops_the_other_in_a_sentence(done: Done) -> None:
    # gloo's own threads sometimes abort a process that has lost the other; the sentence has been said by then.
    assert done.status[0] in (0, -signal.SIGABRT) and done.status[1] == -signal.SIGKILL
    assert done.lost["error"].startswith("rank 0 of 2 has lost the others") and "--resume" in done.lost["error"]


def test_a_resumed_run_ends_with_the_same_bits(done: Done, content: Content) -> None:
    whole, resumed = done.jobs["whole"], done.jobs["resumed"]
    assert [each["first"] for each in resumed] == [4, 4]
    assert {each["digest"] for each in whole} == {each["digest"] for each in resumed}
    folders = [done.base / name / "run" for name in ("whole", "killed")]
    one, other = (content(merged(folder)) for folder in folders)
    assert one == other
    for name in ("lifter.safetensors", "prior.npz", "results.npz"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_one_process_goes_on_where_two_were_killed(done: Done) -> None:
    folder = done.base / "copy" / "run"
    assert {path.name for path in (folder / "fits").glob("*.sqlite")} == {f"fits-r0{r}of02.sqlite" for r in (0, 1)}
    training = alone(folder, RUN)
    assert training.step == 8
    assert set(energies(merged(folder))) == set(energies(merged(done.base / "whole" / "run")))
    assert verify(merged(folder)).problems == ()


def test_two_processes_apart_go_on_where_one_was_stopped(done: Done) -> None:
    """Each with a folder of its own: shards go there and come back."""
    first, second = done.jobs["apart"]
    assert first["first"] == second["first"] == 4 and first["digest"] == second["digest"]
    folder, elsewhere = done.base / "single" / "run", done.base / "elsewhere" / "run"
    assert set(energies(merged(folder))) == set(energies(merged(done.base / "whole" / "run")))
    assert not list((elsewhere / "fits").iterdir())
    # The run's files are rank 0's alone.
    assert {path.name for path in elsewhere.iterdir()} == {"fits"}
    assert (folder / "results.npz").is_file() and not list(folder.glob("rank-*"))
    assert [line["step"] for line in read_log(folder)][-1] == 8


def test_ranks_that_were_given_different_things_are_stopped(done: Done) -> None:
    for each in done.jobs["other"]:
        assert each["error"].startswith("rank 1 of 2 has another data set than rank 0; give all processes the same")


def test_a_rank_without_hands_goes_along(done: Done) -> None:
    first, second = done.jobs["one-sided"]
    assert (first["own"], second["own"]) == (72, 0)
    assert first["losses"] == second["losses"] and first["digest"] == second["digest"]
    assert len(energies(merged(done.base / "sided"))) > 20


def test_torchrun_runs_the_command(tmp_path: Path) -> None:
    keypoints, camera, _ = seen(drawn(24))
    points = np.concatenate([keypoints.xy.numpy(), keypoints.conf.numpy()[..., None]], -1)
    k, right = camera.matrix()[0].numpy(), keypoints.is_right.numpy()
    np.savez(tmp_path / "hands.npz", keypoints_2d=points, is_right=right, K=k, image_size=np.array([640, 480]))
    settings = {**{"steps": 2, "batch": 16, "views": 8, "synthetic": 8}, "size": {"width": 24, "blocks": 1}}
    (tmp_path / "c.json").write_text(json.dumps(settings))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    call = ["-m", "handloop", "train", "loop", "hands.npz", "--out", "run", "--config", "c.json", "--fresh"]
    ran = subprocess.run(
        [*torchrun, *call], cwd=tmp_path, env=environment(COLUMNS=400), capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("22 hands to learn from, 2 held out; step 0 of 2 on 2 processes") == 1
    assert ran.stderr.count("done in") == 1
    assert (tmp_path / "run" / "report.html").is_file() and merged(tmp_path / "run")


def test_the_lifter_s_training_refuses_several_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    out = str(tmp_path / "w.safetensors")
    assert main(["train", "lifter", "--out", out]) == 2
    assert "handloop train lifter works as one process, torchrun has started 2" in capsys.readouterr().err


# What needs no other process.


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_ranks_share_everything_out(n: int) -> None:
    ranks = [Ranks(rank, n) for rank in range(n)]
    assert [sum(each.share(count) for each in ranks) for count in (0, 1, 64, 65)] == [0, 1, 64, 65]
    owners = torch.stack([each.own([f"hand-{i}" for i in range(50)]) for each in ranks]).sum(0)
    assert owners.tolist() == [1] * 50


def learner(settings: LoopConfig) -> tuple[LifterLearner, KeypointSynth]:
    pair = embedded_hand()
    synth = KeypointSynth.of(pair.right, settings.synth)
    return LifterLearner(pair, settings, synth, None, None, Ranks.alone(), torch.device("cpu")), synth


def step_of(**values: Any) -> tuple[LifterLearner, float]:
    """A step of hands of which some have exact labels."""
    settings = LoopConfig(**{**vars(TINY), **values})
    made, synth = learner(settings)
    exact = Supervision.of_exact(synth.draw(17, torch.Generator().manual_seed(1)))
    vague = Supervision.of_exact(synth.draw(12, torch.Generator().manual_seed(2)))
    vague = Supervision(**{**vars(vague), "exact": torch.zeros(12, dtype=torch.bool)})
    loss = made.step(1, [vague, exact], [made.look(vague.hands)], lambda _: None)
    return made, loss


@pytest.mark.parametrize("parts", [2, 3, 29, 64])
def test_parts_of_a_step_add_up_to_the_whole(parts: int) -> None:
    whole, loss = step_of()
    split, same = step_of(accumulate=parts)
    assert same == pytest.approx(loss, rel=1e-5)
    for a, b in zip(whole.network.parameters(), split.network.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6 * float(a.grad.abs().max()) + 1e-9)


def test_accumulation_in_a_run(tmp_path: Path) -> None:
    """The proposals, which then take a pass of their own, are the same: the fits of the first step are."""
    job = {"config": {"steps": 1, "views": 0, "synthetic": 0}}
    one = alone(tmp_path / "a", job)
    split = alone(tmp_path / "b", {"config": {**job["config"], "accumulate": 3}})
    assert energies(merged(tmp_path / "a")) == energies(merged(tmp_path / "b"))
    lines = [read_log(tmp_path / name)[-1]["loss"] for name in "ab"]
    assert lines[0] == pytest.approx(lines[1], rel=1e-5)
    assert one.learner.config.accumulate == 1 and split.learner.config.accumulate == 3


def test_mixed_precision_is_for_the_layers_alone() -> None:
    whole, loss = step_of()
    mixed, near = step_of(precision="bf16")
    assert near == pytest.approx(loss, rel=0.02) and near != loss
    assert {p.dtype for p in mixed.network.parameters()} == {torch.float32}
    hands = KeypointSynth.of(embedded_hand().right).draw(50, torch.Generator().manual_seed(3))
    seen, exact = mixed.look(hands), mixed.averaged(hands)
    assert {value.dtype for value in vars(seen).values()} == {torch.float32}
    seen = Lifted(**{name: value.detach() for name, value in vars(seen).items()})
    # Rotations are rotations, and the direction to the hand is what the keypoints say, not what 16 bits leave of it.
    error = seen.rotations.mT @ seen.rotations - torch.eye(3)
    assert float(error.abs().max()) < 1e-5
    bearing = (seen.root / seen.root[:, 2:] - exact.root / exact.root[:, 2:]).norm(dim=1)
    assert float(bearing.max()) < 2e-3
    assert not torch.equal(whole.network.mean.weight, mixed.network.mean.weight)


def test_wrong_settings_are_explained() -> None:
    for values in ({"accumulate": 0}, {"precision": "fp8"}):
        with pytest.raises(ValueError, match="expected 1 or more and fp32 or bf16"):
            LoopConfig(**values)  # type: ignore[arg-type]


def fill(folder: Path, make: Make, n_ranks: int, step: int = 3) -> list[str]:
    ids = [f"hand-{i}" for i in range(20)]
    for rank in range(n_ranks):
        with FitCache.open(folder, rank, n_ranks) as cache:
            mine = [name for name in ids if rank_of(name, n_ranks) == rank]
            cache.put(mine, make(mine), Origin("regressor"), step, 0)
            cache.put(mine, make(mine, energy=5.0), Origin("regressor"), step + 1, 0)
    return ids


@pytest.mark.parametrize("step", [3, 4])
def test_shards_are_taken_back_before_they_are_handed_out(tmp_path: Path, make: Make, step: int) -> None:
    ids = fill(tmp_path / "fits", make, 3)
    bring_home(tmp_path / "fits", Ranks.alone(), step)
    assert energies(merged(tmp_path)) == dict.fromkeys(ids, 10.0 if step == 3 else 5.0)


def test_an_interrupted_exchange_is_taken_back(tmp_path: Path, make: Make) -> None:
    ids = fill(tmp_path / "fits.old", make, 2)
    (tmp_path / "fits.new").mkdir()
    (tmp_path / "fits.new" / "fits-r00of01.sqlite.partial").write_bytes(b"half")
    bring_home(tmp_path / "fits", Ranks.alone(), 4)
    assert set(energies(merged(tmp_path))) == set(ids)
    assert {path.name for path in tmp_path.iterdir()} == {"fits"}


def test_missing_shards_are_named(tmp_path: Path, make: Make) -> None:
    fill(tmp_path / "fits", make, 2)
    (tmp_path / "fits" / "fits-r01of02.sqlite").unlink()
    with pytest.raises(CacheError, match=r"lacks shards of the run's cache \(there are: fits-r00of02.sqlite\)"):
        bring_home(tmp_path / "fits", Ranks.alone(), 4)


def test_a_cache_made_beforehand_is_shared_out(tmp_path: Path, make: Make) -> None:
    """Before a run's first checkpoint nothing is taken back, and nothing need be there."""
    bring_home(tmp_path / "none" / "fits", Ranks.alone(), None)
    assert not (tmp_path / "none").exists()
    ids = fill(tmp_path / "fits", make, 2)
    bring_home(tmp_path / "fits", Ranks.alone(), None)
    assert energies(merged(tmp_path)) == dict.fromkeys(ids, 5.0)
