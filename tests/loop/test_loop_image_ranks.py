"""An image regressor's training on several processes: the same steps as on one, and the same network on each."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handloop.loop.ranks import Ranks
from handloop.synth.picture import PictureOptions
from handloop.synth.produce import Order, produce

from .image_rank_worker import work
from .rank_launch import environment, launch


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    produce(Order(folder, 36, PictureOptions(size=64, seed=3), "embedded", workers=1))
    return folder


@pytest.fixture(scope="module")
def done(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What both ranks made of each job."""
    base = tmp_path_factory.mktemp("ranks")

    def job(name: str, norms: bool, **more: object) -> dict[str, Any]:
        return {"pictures": str(pictures), "checkpoint": str(base / name), "norms": norms, **more}

    jobs = {"whole": job("whole", True), "stopped": job("part", True, stop=5)}
    jobs |= {"resumed": job("part", True, resume=True), "odd": job("odd", True, batch=9)}
    if importlib.util.find_spec("transformers") is not None:
        jobs["without norms"] = job("without", False)
    status, written = launch(base / "run", list(jobs.values()), worker="image_rank_worker")
    assert status == [0, 0]
    both = [each for each in written if each is not None]
    return {name: [each[place] for each in both] for place, name in enumerate(jobs)}


def test_all_ranks_end_with_one_network(done: dict[str, list[dict[str, Any]]]) -> None:
    """Running figures of norms too, though each saw other hands; the first alone measures."""
    first, second = done["whole"]
    assert first["digest"] == second["digest"]
    assert (first["measured"], second["measured"]) == ([2, 4, 6], [])


def test_a_stopped_training_goes_on_to_the_same_network(done: dict[str, list[dict[str, Any]]]) -> None:
    assert done["resumed"][0]["digest"] == done["resumed"][1]["digest"] == done["whole"][0]["digest"]
    assert done["stopped"][0]["digest"] != done["whole"][0]["digest"]


def test_two_share_the_step_of_one(done: dict[str, list[dict[str, Any]]], pictures: Path, tmp_path: Path) -> None:
    """Where nothing is drawn and no norm looks at the batch, only the order of sums differs."""
    if "without norms" not in done:
        pytest.skip("transformers is not installed (extra image)")
    job = {"pictures": str(pictures), "checkpoint": str(tmp_path / "one"), "norms": False}
    alone = work(job, Ranks.alone())
    for rank in done["without norms"]:
        for ours, theirs in zip(rank["weights"], alone["weights"], strict=True):
            assert np.allclose(ours, theirs, atol=2e-5)


def test_a_batch_that_cannot_be_shared_is_refused(done: dict[str, list[dict[str, Any]]]) -> None:
    for each in done["odd"]:
        assert each["error"] == (
            "a batch of 9 hands cannot be shared among 2 processes; give a multiple of 2, at least 4."
        )


def test_torchrun_runs_the_command(pictures: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    call = ["-m", "handloop", "train", "image", str(pictures), "--out", "w.safetensors", "--steps", "2"]
    call += ["--batch", "4", "--held-out", "4", "--workers", "0"]
    ran = subprocess.run(
        [*torchrun, *call], cwd=tmp_path, env=environment(COLUMNS=400), capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("on cpu and 2 processes, 36 hands, 4 of them held out") == 1
    assert ran.stderr.count("written to w.safetensors") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.json", "w.jsonl", "w.safetensors"]
