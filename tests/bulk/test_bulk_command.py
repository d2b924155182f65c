"""`handloop fit --engine ray` from end to end, through a killed driver and killed workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import ray

from handloop.bulk.worker import TRIES
from handloop.cli import main
from handloop.formats import read_keypoints


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a Ray of two CPUs on this machine, under a short path because sockets lie in it."""
    folder = tempfile.mkdtemp(prefix="hl")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    for last in (False, True):
        try:
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=100_000_000,
                log_to_driver=False,
                _temp_dir=folder,
            )
            break
        except Exception:  # A busy machine misses Ray's half minute for its own start.
            ray.shutdown()
            if last:
                raise
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def shards_in(out: Path) -> dict[str, int]:
    """Time of writing of every shard that is done, by its name."""
    return {path.stem: path.stat().st_mtime_ns for path in (out / "shards").glob("*.json") if path.stem != "run"}


class Killer(threading.Thread):
    """Kills every worker that begins one shard, the first that it sees begun."""

    def __init__(self, attempts: Path) -> None:
        super().__init__(daemon=True)
        self.attempts, self.victim, self.killed = attempts, "", set[int]()

    def run(self) -> None:
        while len(self.killed) < TRIES:
            time.sleep(0.002)
            for path in self.attempts.glob(self.victim or "*"):
                try:
                    lines = path.read_text().splitlines()
                except FileNotFoundError:
                    continue
                if lines and int(lines[-1].split()[1]) not in self.killed:
                    self.victim = path.name
                    self.killed.add(int(lines[-1].split()[1]))
                    os.kill(int(lines[-1].split()[1]), signal.SIGKILL)


@dataclass(frozen=True)
class Story:
    """What was seen on the way of one run."""

    out: Path
    after_kill: dict[str, int]
    """Shards when the driver was killed."""
    status_lost: int
    """Exit status of the run whose workers were killed."""
    summary_lost: dict[str, object]
    after_lost: dict[str, int]
    victim: str
    status: int
    after: dict[str, int]


@pytest.fixture(scope="module")
def story(cluster: str, many_hands: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A driver killed early; the same again, with every worker of one shard killed; the same again, in peace."""
    out = tmp_path_factory.mktemp("out")
    args = ["fit", str(many_hands), "--out", str(out), "--engine", "ray", "--workers", "2", "--shard-hands", "12"]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HANDLOOP_MANO", raising=False)
        driver = subprocess.Popen(
            [sys.executable, "-m", "handloop.cli", *args, "--address", cluster],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not shards_in(out) and driver.poll() is None:
            time.sleep(0.002)
        driver.kill()
        driver.wait()
        time.sleep(1)  # Its workers may still write what they had in hand.
        after_kill = shards_in(out)
        killer = Killer(out / "shards" / "attempts")
        # Tries that the killed run counted are no tries of this one, and must not lead the killer astray.
        shutil.rmtree(killer.attempts)
        killer.start()
        status_lost = main(args)
        summary_lost = json.loads((out / "summary.json").read_text())
        after_lost = shards_in(out)
        return Story(out, after_kill, status_lost, summary_lost, after_lost, killer.victim, main(args), shards_in(out))


def test_a_killed_driver_loses_no_shard(story: Story) -> None:
    assert 0 < len(story.after_kill) < len(story.after)
    assert {key: story.after[key] for key in story.after_kill} == story.after_kill


def test_a_shard_whose_workers_die_is_named_and_the_rest_goes_on(story: Story) -> None:
    assert story.status_lost == 1
    # Now and then the last kill comes when the shard is written already, and only the word of it is lost.
    assert set(story.after) - set(story.after_lost) <= {story.victim}
    (lost,) = story.summary_lost["shards_failed"]  # type: ignore[misc]
    assert lost["key"] == story.victim and "died or failed 3 times" in lost["error"]


def test_a_rerun_ends_with_the_bytes_of_the_plain_command(story: Story, many_hands: Path, tmp_path: Path) -> None:
    args = ["fit", str(many_hands), "--device", "cpu", "--report-hands", "0"]
    # 1 because of the damaged file, which both name.
    assert main([*args, "--out", str(tmp_path)]) == story.status == 1
    assert (tmp_path / "results.npz").read_bytes() == (story.out / "results.npz").read_bytes()
    ours, plain = (json.loads((folder / "summary.json").read_text()) for folder in (story.out, tmp_path))
    assert len(story.after) == ours["shards"] > 20 and ours["shards_failed"] == []
    for key in ("hands", "fitted", "left", "status", "plausible", "problems", "files_read", "not_fitted", "recipe"):
        assert ours[key] == plain[key], key
    assert ours["rms_px_median"] == pytest.approx(plain["rms_px_median"], rel=0.02)
    assert not list((story.out / "shards").glob(".*")) and not (story.out / "shards" / "attempts").exists()


def test_results_are_no_new_input(story: Story, tmp_path: Path) -> None:
    shutil.copytree(story.out / "shards", tmp_path / "out" / "shards")
    (tmp_path / "one.csv").write_text(
        "id," + ",".join(f"x{i},y{i}" for i in range(21)) + "\nh," + ",".join(["10,20"] * 20) + ",30,50\n"
    )
    assert len(read_keypoints(tmp_path).keypoints) == 1


def test_the_folder_of_shards_is_evaluated_and_exported(
    story: Story, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(story.out / "shards", tmp_path / "shards")
    results = np.load(story.out / "results.npz")
    np.savez(tmp_path / "truth.npz", joints_3d=results["keypoints_3d"], id=results["id"])
    assert main(["eval", str(tmp_path), str(tmp_path / "truth.npz")]) == 0
    assert "303" in capsys.readouterr().out
    export = ["export", str(tmp_path), "--format", "ho3d", "--out", str(tmp_path / "pred.json")]
    assert main(export) == 0 and "303 hands" in capsys.readouterr().err


def test_a_run_with_nothing_to_do_takes_away_shards_of_earlier_ones(
    story: Story, many_hands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(story.out / "shards", tmp_path / "shards")
    before = shards_in(tmp_path)
    earlier = "0123456789abcdef0123"
    stray = [tmp_path / "shards" / name for name in (f"{earlier}.npz", f"{earlier}.json", ".x.npz.partial-0")]
    mine = tmp_path / "shards" / "mine.npz"
    for path in (*stray, mine):
        path.write_bytes(b"{}")
    args = ["fit", str(many_hands), "--out", str(tmp_path), "--engine", "ray", "--shard-hands", "12"]
    assert main([*args, "--merge", "no"]) == 1
    assert "removed: 1 shard of earlier inputs or settings" in capsys.readouterr().err
    # What bears no shard's name is not this command's to remove.
    assert mine.read_bytes() == b"{}"
    mine.unlink()
    assert shards_in(tmp_path) == before and not any(path.exists() for path in stray)
    assert not (tmp_path / "results.npz").exists()


def test_without_ray_it_says_what_to_install(
    many_hands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["fit", str(many_hands), "--out", str(tmp_path), "--engine", "ray"]) == 2
    assert "pip install 'ray[data]'" in capsys.readouterr().err
    assert not any(tmp_path.iterdir()), "before it has looked at the files"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--save", "meshes"], "--engine ray takes no --save"),
        (["--start", "x.npz"], "--engine ray takes no --start"),
        (["--device", "cuda"], "--engine ray fits on CPUs"),
        (["--workers", "0"], "numbers from 1 on"),
        (["--focal", "500", "--fov", "60"], "give one of them"),
        (["--hand-length", "5"], "outside 50 to 400 mm"),
    ],
)
def test_what_a_bulk_run_has_no_place_for(
    many_hands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], sentence: str
) -> None:
    assert main(["fit", str(many_hands), "--out", str(tmp_path), "--engine", "ray", *args]) == 2
    assert sentence in capsys.readouterr().err
