"""One worker, without Ray: what it writes, and what it says when something is wrong."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from handloop._version import __version__
from handloop.api import hand_models
from handloop.bulk.plan import Plan, Shard, make_plan
from handloop.bulk.shard_summary import ShardSummary
from handloop.bulk.worker import TRIES, ShardWorker, WorkOrder, attempts_folder
from handloop.cli import main
from handloop.commands import FitCommand
from handloop.fitting.recipes import RECIPES
from handloop.formats.result_shards import ShardIndex, ShardKind, read_results, read_shards
from handloop.job import read_options


def prepared(inputs: Path, out: Path, kind: ShardKind = "npz") -> tuple[Plan, WorkOrder]:
    """A plan of shards of at most 100 hands, and the order for its workers."""
    command = FitCommand(inputs=(inputs,), out=out, device="cpu")
    plan = make_plan(command.inputs, read_options(command), "settings", 100)
    shards = out / "shards"
    attempts_folder(shards).mkdir(parents=True)
    ShardIndex(plan.run(), kind, tuple(shard.key for shard in plan.shards)).save(shards)
    models = hand_models(None, torch.device("cpu"), torch.float64)
    order = WorkOrder(
        command=command,
        recipe=RECIPES["default"],
        mano=None,
        digest=models.provenance()["hand_model_digest"],
        version=__version__,
        shards=str(shards),
        folder=os.getcwd(),
        run=plan.run(),
        kind=kind,
        probe=plan.shards[0].files[0],
    )
    return plan, order


@pytest.fixture(scope="module")
def plain(many_hands: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Results of the plain command."""
    out = tmp_path_factory.mktemp("plain")
    assert main(["fit", str(many_hands), "--out", str(out), "--device", "cpu", "--report-hands", "0"]) == 1
    return read_results(out)


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_shards_hold_the_plain_results(
    many_hands: Path, tmp_path: Path, plain: dict[str, np.ndarray], kind: ShardKind
) -> None:
    plan, order = prepared(many_hands, tmp_path, kind)
    worker = ShardWorker(order)
    # Backwards: nothing may depend on what was fitted before.
    for shard in reversed(plan.shards):
        assert worker.fit(shard).error == ""
    assert len(plan.shards) >= 4 and {shard.parts for shard in plan.shards} == {1, 3}
    found = read_shards(Path(order.shards))
    assert set(found) == set(plain)
    for key, array in plain.items():
        assert (found[key].dtype, found[key].tobytes()) == (array.dtype, array.tobytes()), key
    assert not list(attempts_folder(Path(order.shards)).iterdir())
    summaries = [ShardSummary.load(Path(order.shards), shard.key) for shard in plan.shards]
    told = [tuple(problem) for summary in summaries if summary is not None for problem in summary.problems]
    assert told == [(str(many_hands / "bad.json"), "the JSON ends too early; the file is truncated, write it again.")]
    assert sum(summary.files_read for summary in summaries if summary is not None) == 4


def one_hand(folder: Path) -> Path:
    folder.mkdir()
    np.savez(folder / "one.npz", keypoints_2d=np.random.default_rng(0).uniform(0, 300, (1, 21, 2)))
    return folder


def test_a_file_that_changes_fails_its_shard_until_it_is_given_up(tmp_path: Path) -> None:
    plan, order = prepared(one_hand(tmp_path / "in"), tmp_path / "out")
    worker = ShardWorker(order)
    broken = replace(plan.shards[0], files=(replace(plan.shards[0].files[0], size=1),))
    outcomes = [worker.fit(broken) for _ in range(TRIES + 1)]
    assert [outcome.final for outcome in outcomes] == [False, False, True, True]
    assert not any(outcome.stop for outcome in outcomes)
    assert "not as it was when the run began" in outcomes[0].error
    # The fourth is what a shard gets whose workers die without a word.
    assert f"its worker died or failed {TRIES} times" in outcomes[-1].error
    assert ShardSummary.load(Path(order.shards), broken.key) is None


def test_a_shard_that_no_try_can_fit_is_given_up_at_once(tmp_path: Path) -> None:
    plan, order = prepared(one_hand(tmp_path / "in"), tmp_path / "out")
    outcome = ShardWorker(replace(order, command=replace(order.command, focal=500.0))).fit(plan.shards[0])
    assert outcome.final and not outcome.stop and "--focal needs the image size" in outcome.error


def test_a_machine_that_cannot_take_part_stops_the_run(tmp_path: Path) -> None:
    plan, order = prepared(one_hand(tmp_path / "in"), tmp_path / "out")
    shard: Shard = plan.shards[0]
    cases = (
        (replace(order, version="0.0.0"), f"has handloop {__version__}, the driver 0.0.0"),
        (replace(order, shards=str(tmp_path / "elsewhere")), "file system that all machines share"),
        (replace(order, folder=str(tmp_path / "elsewhere")), "file system that all machines share"),
        (replace(order, run="another"), "sees another run"),
        (replace(order, probe=replace(order.probe, mtime_ns=1)), "with its size and time of change"),
        (replace(order, digest="other"), "reads another hand model"),
    )
    for wrong, sentence in cases:
        outcome = ShardWorker(wrong).fit(shard)
        assert outcome.stop and sentence in outcome.error
    assert ShardWorker(order).fit(shard).error == ""
