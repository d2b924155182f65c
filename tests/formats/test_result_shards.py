"""Results in shards: npz and Parquet, and both as one again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from handloop.core.errors import FileFormatError, InputError
from handloop.core.results import save_npz
from handloop.formats.parquet import read_parquet
from handloop.formats.result_shards import ShardIndex, join_shards, read_results, write_shard


def results(n: int, name: str, lens: int = 0) -> dict[str, np.ndarray]:
    """Arrays of every kind that results have."""
    rng = np.random.default_rng(n)
    arrays = {
        "hand_pose": rng.normal(size=(n, 45)),
        "joints": rng.normal(size=(n, 21, 3)),
        "keypoints_2d": rng.normal(size=(n, 21, 3)).astype(np.float32),
        "is_right": rng.random(n) > 0.5,
        "energy": np.where(rng.random(n) > 0.8, np.nan, rng.random(n)),
        "hypothesis_gap": np.where(rng.random(n) > 0.5, np.inf, 1.0),
        "status": rng.integers(0, 3, n),
        "doubts": np.array(["", "two; doubts", "ünsicher"] * n, dtype=np.str_)[:n],
        "id": np.array([f"{name}:{i}" for i in range(n)], dtype=np.str_),
        "joint_order": np.array("openpose21"),
    }
    if lens:
        arrays["distortion"] = rng.normal(size=(n, lens))
    return arrays


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Equal to the byte, dtype and shape included."""
    return set(a) == set(b) and all(
        (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()) for x, y in ((a[k], b[k]) for k in a)
    )


@pytest.mark.parametrize("lens", [0, 5])
def test_parquet_gives_back_the_arrays(tmp_path: Path, lens: int) -> None:
    arrays = results(7, "a", lens)
    write_shard(tmp_path / "a.parquet", arrays, "parquet")
    assert same(read_parquet(tmp_path / "a.parquet"), arrays)
    write_shard(tmp_path / "a.npz", arrays, "npz")
    assert same(read_results(tmp_path / "a.npz"), read_results(tmp_path / "a.parquet"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a.parquet"]


def test_parquet_as_other_tools_see_it(tmp_path: Path) -> None:
    arrays = results(5, "a")
    write_shard(tmp_path / "a.parquet", arrays, "parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.num_rows == 5 and str(table.schema.field("joints").type) == "fixed_size_list<element: double>[63]"
    np.testing.assert_array_equal(np.array(table["joints"].to_pylist()), arrays["joints"].reshape(5, 63))
    assert table.schema.field("joints").metadata[b"shape"] == b"21,3"
    assert (
        table["id"].to_pylist() == arrays["id"].tolist()
        and table["is_right"].to_pylist() == arrays["is_right"].tolist()
    )
    assert json.loads(table.schema.metadata[b"handloop"]) == {"joint_order": "openpose21"}
    assert pq.read_metadata(tmp_path / "a.parquet").row_group(0).column(0).compression == "ZSTD"
    frame = table.to_pandas()
    np.testing.assert_array_equal(np.stack(frame["hand_pose"]), arrays["hand_pose"])


def test_all_parquet_files_of_a_run_have_the_same_columns(tmp_path: Path) -> None:
    for name, arrays in (("a", results(3, "a")), ("b", results(3, "b", 4)), ("c", results(0, "c"))):
        write_shard(tmp_path / f"{name}.parquet", arrays, "parquet")
    schemas = [pq.read_schema(tmp_path / f"{name}.parquet") for name in "abc"]
    assert schemas[0].equals(schemas[1]) and schemas[0].equals(schemas[2])
    assert pq.ParquetDataset(tmp_path).read().num_rows == 6


def test_other_parquet_files_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", results(3, "a"), "parquet")
    bare = pq.read_table(tmp_path / "a.parquet").replace_schema_metadata(None)
    pq.write_table(bare, tmp_path / "b.parquet")
    with pytest.raises(FileFormatError, match="not written by handloop"):
        read_results(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(FileFormatError, match="not a readable Parquet file"):
        read_results(tmp_path / "c.parquet")


def test_shards_are_joined_in_order() -> None:
    first, none, last = results(3, "a", 4), results(0, "none"), results(2, "b")
    joined = join_shards([first, none, last])
    assert joined["id"].tolist() == ["a:0", "a:1", "a:2", "b:0", "b:1"]
    np.testing.assert_array_equal(joined["hand_pose"], np.concatenate([first["hand_pose"], last["hand_pose"]]))
    np.testing.assert_array_equal(joined["distortion"][:3], first["distortion"])
    assert joined["distortion"].shape == (5, 4) and not joined["distortion"][3:].any()
    assert join_shards([first, first])["id"].tolist()[3] == "a:0#2"
    with pytest.raises(FileFormatError, match="no 'id'"):
        join_shards([{}])


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_a_folder_of_shards_is_read_as_one(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    index = ShardIndex("run", "parquet" if kind == "parquet" else "npz", ("x", "w"))
    index.save(folder)
    assert ShardIndex.load(folder) == index
    write_shard(index.file(folder, "x"), results(3, "a"), index.kind)
    with pytest.raises(InputError, match=r"1 of 2 shards .* are not there"):
        read_results(tmp_path)
    write_shard(index.file(folder, "w"), results(2, "b"), index.kind)
    assert read_results(tmp_path)["id"].tolist() == ["a:0", "a:1", "a:2", "b:0", "b:1"]
    save_npz(tmp_path / "results.npz", results(4, "joined"))
    assert len(read_results(tmp_path)["id"]) == 4


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist; name a results\.npz"):
        read_results(tmp_path)
    with pytest.raises(InputError, match="cannot be read; name the folder"):
        ShardIndex.load(tmp_path)
