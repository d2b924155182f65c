"""`handloop cache` from end to end, and the documentation's example."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from handloop.api import fit
from handloop.cli import main
from handloop.core.results import FitResult, Status, load_npz
from handloop.formats import read_keypoints
from handloop.loop.cache import FitCache
from handloop.loop.cached_fits import Origin
from handloop.loop.database import COLUMNS
from handloop.loop.records import RECORD

Make = Callable[..., FitResult]
DOCS = Path(__file__).resolve().parents[2] / "docs" / "cache.md"
IDS = [f"{i:03d}" for i in range(30)]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def results(tmp_path: Path, make: Make) -> Path:
    """The folder of a fit of 30 hands, two of them implausible."""
    make(IDS, energy=np.arange(30.0), plausible=[True] * 28 + [False] * 2, dist=5).save(tmp_path / "out")
    return tmp_path / "out"


def run(*words: object) -> int:
    return main(["cache", *map(str, words)])


@pytest.mark.parametrize("ranks", [1, 3])
def test_import_merge_export_gives_the_results_back(
    tmp_path: Path, results: Path, ranks: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("import", results, "--cache", tmp_path / "fits", "--ranks", ranks) == 0
    said = capsys.readouterr().out
    assert "28 hands stored: the first fit of this hand." in said and "2 hands stored, marked implausible" in said
    assert run("merge", tmp_path / "fits", "--out", tmp_path / "other", "--ranks", 2) == 0
    assert f"30 fits of {ranks} shards in 2 shards" in capsys.readouterr().out
    assert run("verify", tmp_path / "other") == 0
    assert "all whole" in capsys.readouterr().out
    assert run("export", tmp_path / "other", "--out", tmp_path / "back") == 0
    given, back = load_npz(results / "results.npz"), load_npz(tmp_path / "back" / "results.npz")
    assert set(given) == set(back) and (tmp_path / "back" / "summary.json").is_file()
    for key in sorted(set(given) - {"keypoints_2d_fit"}):  # Computed anew; the fixture's are random.
        if given[key].dtype.kind == "f":
            exact = key.partition("_")[0] not in ("joints", "keypoints")
            assert np.allclose(back[key], given[key], rtol=0 if exact else 1e-7, atol=0, equal_nan=True), key
            assert back[key].dtype == given[key].dtype
        else:
            assert np.array_equal(back[key], given[key]), key
    assert run("export", tmp_path / "other", "--out", tmp_path / "good", "--plausible-only") == 0
    assert len(load_npz(tmp_path / "good" / "results.npz")["id"]) == 28


def test_importing_again_changes_nothing_and_a_training_is_left_alone(
    tmp_path: Path, results: Path, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    fits = tmp_path / "fits"
    assert run("import", results, "--cache", fits, "--ranks", 2, "--start", "offline") == 0
    capsys.readouterr()
    assert run("import", results / "results.npz", "--cache", fits) == 0
    assert "28 hands rejected: its energy is not lower" in capsys.readouterr().out
    assert run("import", results, "--cache", fits, "--ranks", 3) == 2
    assert "is a cache of 2 ranks, --ranks says 3" in capsys.readouterr().err
    with FitCache.open(fits, 0, 2) as cache:
        (first, *_) = cache.batches()
        assert {origin.start for origin in first.origin if origin} == {"offline"}
        cache.put(first.ids[:1], make(first.ids[:1], energy=-1.0), Origin("search"), 9, 0)
        cache.checkpoint(9)
    assert run("import", results, "--cache", fits) == 2
    assert "belongs to a training at step 9" in capsys.readouterr().err


def test_hands_without_a_fit_are_said_and_set_the_status(
    tmp_path: Path, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    make(IDS, status=Status.FAILED).save(tmp_path / "out")
    assert run("import", tmp_path / "out", "--cache", tmp_path / "fits") == 1
    assert "30 hands rejected: the fit failed" in capsys.readouterr().out
    assert run("export", tmp_path / "fits", "--out", tmp_path / "back") == 2
    assert "is empty, there is nothing to export" in capsys.readouterr().err


def test_info_tells_shards_origins_and_doubts(
    tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("import", results, "--cache", tmp_path / "fits")
    capsys.readouterr()
    assert run("info", tmp_path / "fits") == 0
    said = re.sub(r"[│┃]", "|", capsys.readouterr().out)
    for line in (
        r"fits-r00of01.sqlite \| +30 \| +28 \| +0 \| +0 \| +none \| 0 \(initial\)",
        r"static \| +\| +30",
        r"the shape is an outlier \| +2",
    ):
        assert re.search(line, said), line


def test_verify_finds_damage(tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("import", results, "--cache", tmp_path / "fits")
    path = tmp_path / "fits" / "fits-r00of01.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TRIGGER keep_history")
        db.execute("UPDATE fits SET crc=crc+1 WHERE id='004'")
        db.commit()
    capsys.readouterr()
    assert run("verify", tmp_path / "fits") == 1
    assert "'004' does not have the checksum" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:20000])
    assert run("verify", path) == 1
    assert "is damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("info", "nothing"), "nothing does not exist"),
        (("merge", "--out", "x"), "no cache was given"),
        (("import", "nothing", "--cache", "x"), "nothing does not exist; name a results.npz"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    assert said in capsys.readouterr().err


def test_real_fits_of_both_sides_have_the_same_meshes_after_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored parameters are complete: model, side and place follow from them alone."""
    monkeypatch.delenv("HANDLOOP_MANO", raising=False)
    keypoints = read_keypoints([DOCS.parents[1] / "examples" / "data" / "openpose"]).keypoints
    result = fit(keypoints, recipe="fast", device="cpu")
    assert bool(keypoints.is_right.any()) and not bool(keypoints.is_right.all())
    with FitCache.open(tmp_path) as cache:
        cache.put(keypoints.ids, result, Origin("search"), 0, 0)
        fits = cache.get(keypoints.ids)
    back = fits.to_result(result.hand)
    assert torch.equal(back.vertices(), result.vertices()) and torch.equal(back.energy, result.energy)
    assert torch.allclose(back.keypoints_2d_fit, result.keypoints_2d_fit, rtol=0, atol=1e-3)
    # Where a fit started from is kept row by row, as its origin.
    assert dict(back.provenance) == {k: v for k, v in result.provenance.items() if k != "starts"}


# docs/cache.md


def test_the_documented_example_reads_a_cache(tmp_path: Path, results: Path, make: Make) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    run("import", results, "--cache", tmp_path / "fits")
    names = ["ids", "pose", "betas", "transl", "joints", "keypoints_2d"]
    keep = f"np.savez('seen.npz', {', '.join(f'{name}={name}' for name in names)})"
    subprocess.run([sys.executable, "-c", f"{code}\n{keep}"], cwd=tmp_path, check=True)
    seen = load_npz(tmp_path / "seen.npz")
    truth = make(IDS, dist=5)
    right = truth.keypoints.is_right.numpy()
    sign = np.where(right, 1.0, -1.0)[:, None] * [1.0, 0.0, 0.0] + [0.0, 1.0, 1.0]
    assert seen["ids"].tolist() == IDS
    assert np.array_equal(seen["transl"], truth.params.transl.numpy() * sign)
    assert np.array_equal(seen["betas"], truth.params.betas.numpy())
    pose = seen["pose"]
    assert np.array_equal(pose[right], truth.params.hand_pose.numpy()[right]) and pose.shape == (30, 45)
    assert np.array_equal(seen["joints"], truth.joints.numpy().astype(np.float32))
    assert np.array_equal(seen["keypoints_2d"][..., :2], truth.keypoints.xy.numpy().astype(np.float32))


def test_the_documented_tables_are_the_files() -> None:
    text = DOCS.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (?:(\d+)(?:\D(\d+))? )?float(\d+) \|", text, re.MULTILINE)
    assert RECORD.names is not None and [row[1] for row in rows] == list(RECORD.names)
    for at, name, many, wide, bits in rows:
        dtype, offset = RECORD.fields[name][:2]  # type: ignore[index]
        assert offset == int(at) and dtype.base.itemsize * 8 == int(bits)
        assert dtype.shape == tuple(int(number) for number in (many, wide) if number)
    columns = re.findall(r"^\| (`[a-z_]+`(?:, `[a-z_]+`)*) \| .* \|$", text.partition("Table `fits`")[2], re.MULTILINE)
    assert [name for row in columns for name in re.findall(r"\w+", row)] == list(COLUMNS)
