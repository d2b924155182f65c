"""Summaries of shards, and of all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import handloop
from handloop.bulk.shard_summary import ShardSummary, summarise
from handloop.core.errors import FileFormatError
from handloop.formats import read_keypoints


@pytest.fixture(scope="module")
def summaries(
    many_hands: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[ShardSummary], np.ndarray, Path]:
    """Of two shards of unequal size, with their hands' reprojection errors, and their folder."""
    folder = tmp_path_factory.mktemp("shards")
    read = read_keypoints(many_hands / "many.npz")
    assert read.camera is not None
    out, errors = [], []
    for key, rows in (("a", torch.arange(60)), ("b", torch.arange(60, 70))):
        result = handloop.fit(read.keypoints.select(rows), read.camera.select(rows), device="cpu")
        (folder / f"{key}.npz").write_bytes(b"12345")
        out.append(ShardSummary.of(key, folder / f"{key}.npz", "many.npz", result, read, ["a note."]))
        errors.append(result.rms_px.numpy())
    return out, np.concatenate(errors), folder


def test_quantiles_over_all_shards(summaries: tuple[list[ShardSummary], np.ndarray, Path]) -> None:
    shards, errors, _ = summaries
    run = summarise(shards)
    assert run.hands == run.fitted == 70 and run.notes == ["a note. (in 2 shards)"]
    for share, key in ((0.5, "rms_px_median"), (0.9, "rms_px_p90")):
        true = np.quantile(errors, share, method="inverted_cdf")
        assert run.entries[key] == pytest.approx(true, rel=0.0051)


def test_a_summary_counts_only_while_its_results_are_whole(
    summaries: tuple[list[ShardSummary], np.ndarray, Path],
) -> None:
    shards, _, folder = summaries
    shards[0].save(folder)
    loaded = ShardSummary.load(folder, "a")
    assert loaded is not None and loaded.hands == 60 and loaded.rms_px == shards[0].rms_px
    assert ShardSummary.load(folder, "b") is None
    (folder / "a.npz").write_bytes(b"1234")
    assert ShardSummary.load(folder, "a") is None
    (folder / "a.json").write_text("{")
    assert ShardSummary.load(folder, "a") is None


def test_shards_of_other_settings_are_not_added_up(
    summaries: tuple[list[ShardSummary], np.ndarray, Path],
) -> None:
    first, second = summaries[0]
    with pytest.raises(FileFormatError, match="other settings"):
        summarise([first, replace(second, texts={**second.texts, "recipe": "fast"})])


def test_notes_that_differ_by_counts_and_files_are_told_once(
    summaries: tuple[list[ShardSummary], np.ndarray, Path],
) -> None:
    first, second = summaries[0]
    notes = [["10 hands without a camera.", "no side. [a.npz]"], ["1,200 hands without a camera.", "no side. [b.npz]"]]
    run = summarise([replace(first, notes=notes[0]), replace(second, notes=[*notes[1], "another."])])
    assert run.notes == [
        "10 hands without a camera. (the like in 2 shards)",
        "no side. [a.npz] (the like in 2 shards)",
        "another.",
    ]
