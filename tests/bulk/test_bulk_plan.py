"""Where the cuts between shards lie, and when a shard gets another name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from handloop.bulk.plan import Plan, Shard, make_plan
from handloop.core.errors import InputError
from handloop.formats import ReadOptions, read_keypoints

OPTIONS = ReadOptions()


def small_files(folder: Path, names: list[str]) -> Path:
    """Files of 2000 bytes, which count as one hand each."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / f"{name}.json").write_text(" " * 2000)
    return folder


def paths(plan: Plan) -> list[str]:
    return [file.path for shard in plan.shards for file in shard.files]


def test_every_file_is_in_one_shard_in_natural_order(tmp_path: Path) -> None:
    folder = small_files(tmp_path / "in", [f"frame_{i}" for i in range(300)])
    plan = make_plan([folder], OPTIONS, "s", 20)
    assert paths(plan) == [str(folder / f"frame_{i}.json") for i in range(300)]
    assert all(10 < len(shard.files) <= 20 for shard in plan.shards[:-1])
    assert len({shard.key for shard in plan.shards}) == len(plan.shards) >= 15
    assert make_plan([folder], OPTIONS, "s", 20) == plan


def test_a_file_more_moves_only_the_cuts_near_it(tmp_path: Path) -> None:
    folder = small_files(tmp_path / "in", [f"frame_{i:04d}" for i in range(1000)])
    before = {shard.key for shard in make_plan([folder], OPTIONS, "s", 20).shards}
    small_files(folder, ["frame_0100a"])
    after = {shard.key for shard in make_plan([folder], OPTIONS, "s", 20).shards}
    assert 0 < len(after - before) <= 8  # Of some 75: cuts at every 20th file would have moved all behind the tenth.


def test_names_change_with_inputs_and_settings(tmp_path: Path) -> None:
    folder = small_files(tmp_path / "in", [f"{i:02d}" for i in range(40)])
    first = [shard.key for shard in make_plan([folder], OPTIONS, "s", 20).shards]
    assert not {shard.key for shard in make_plan([folder], OPTIONS, "other", 20).shards} & set(first)
    os.utime(folder / "39.json", ns=(1, 1))
    second = [shard.key for shard in make_plan([folder], OPTIONS, "s", 20).shards]
    assert first[:-1] == second[:-1] and first[-1] != second[-1]


def test_a_large_npz_is_cut_by_its_rows(tmp_path: Path) -> None:
    # Packed to a hundredth of its size: the header decides, not the bytes.
    points = np.random.default_rng(0).uniform(0, 500, (1000, 21, 2))
    np.savez_compressed(tmp_path / "a.npz", keypoints_2d=points, junk=np.zeros(10**6))
    plan = make_plan([tmp_path / "a.npz"], OPTIONS, "s", 300)
    assert [(shard.part, shard.parts) for shard in plan.shards] == [(i, 4) for i in range(4)]
    assert sum(shard.hands for shard in plan.shards) == 1000
    assert plan.shards[1].label().endswith("a.npz, part 2 of 4")
    # Up to twice a shard's hands stay together.
    assert len(make_plan([tmp_path / "a.npz"], OPTIONS, "s", 500).shards) == 1


def test_a_manifest_lists_paths(tmp_path: Path) -> None:
    folder = small_files(tmp_path / "in", ["b", "a"])
    manifest = tmp_path / "list.txt"
    manifest.write_text(f"{folder / 'b.json'}\n\n{folder / 'a.json'}\n{folder / 'gone.json'}\n")
    plan = make_plan([manifest], OPTIONS, "s", 20)
    assert paths(plan) == [str(folder / "b.json"), str(folder / "a.json")]
    assert [problem.path for problem in plan.problems] == [str(folder / "gone.json")]
    manifest.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="one path per line"):
        make_plan([manifest], OPTIONS, "s", 20)


def test_a_data_set_of_pictures_is_refused(tmp_path: Path) -> None:
    for name in ("training/rgb", "evaluation/rgb"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("training_K.json", "training_xyz.json", "training_mano.json"):
        (tmp_path / name).write_text("[]")
    with pytest.raises(InputError, match="data set of pictures; fit it without --engine ray"):
        make_plan([tmp_path], OPTIONS, "s", 20)


def test_ids_are_those_of_a_plain_run(many_hands: Path, tmp_path: Path) -> None:
    """Files of one name in two folders, in shards of their own."""
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "many.npz").write_bytes((many_hands / "lens.npz").read_bytes())
    plan = make_plan([tmp_path], OPTIONS, "s", 1)
    names = [file.name for shard in plan.shards for file in shard.files if shard.part == 0]
    plain = read_keypoints(tmp_path).keypoints.ids
    assert names == ["x/many", "y/many"] == list(dict.fromkeys(name.split(":")[0] for name in plain))


def test_a_shard_comes_back_from_its_line(many_hands: Path) -> None:
    for shard in make_plan([many_hands], OPTIONS, "s", 100).shards:
        assert Shard.from_json(shard.to_json()) == shard
