"""`read_pickle_tree`: nested annotations come back as plain values, everything else is refused or marked."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handloop.core.errors import ModelError, UnsafePickleError
from handloop.hand import pickle_reader
from handloop.hand.pickle_reader import UnreadableValue, read_pickle_tree


def written(path: Path, value: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_nested_values(tmp_path: Path, protocol: int) -> None:
    value = {0: {"uv": np.arange(6.0).reshape(3, 2), "n": np.float32(2.5)}, "list": [1, "a", (None, True)], 7: []}
    tree = read_pickle_tree(written(tmp_path / "a.pkl", value, protocol))
    assert isinstance(tree, dict) and list(tree) == [0, "list", 7]
    assert tree["list"] == [1, "a", [None, True]] and tree[7] == []
    assert np.array_equal(tree[0]["uv"], value[0]["uv"]) and tree[0]["n"] == 2.5  # type: ignore[index]


def test_python_2_texts(tmp_path: Path) -> None:
    # {'a': 'b\xe9'} as Python 2 writes it.
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02}q\x00U\x01aU\x02b\xe9s.")
    assert read_pickle_tree(tmp_path / "a.pkl") == {"a": "b\xe9"}


def test_nothing_is_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    with pytest.raises(UnsafePickleError, match=r"posix\.mkdir, which annotations never do.*nothing was executed"):
        read_pickle_tree(written(tmp_path / "a.pkl", {"a": [Bomb()]}))
    assert not (tmp_path / "exploded").exists()


def test_odd_values_are_marked(tmp_path: Path) -> None:
    tree = read_pickle_tree(written(tmp_path / "a.pkl", {"s": {1, 2}, "o": np.array([None]), (1, 2): 3}))
    assert isinstance(tree, dict) and set(tree) == {"s", "o"}
    assert all(isinstance(v, UnreadableValue) for v in tree.values())


def test_endless_and_exploding_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop: list[object] = []
    loop.append(loop)
    tree = read_pickle_tree(written(tmp_path / "a.pkl", loop))
    depth = 0
    while isinstance(tree, list):
        tree, depth = tree[0], depth + 1
    assert isinstance(tree, UnreadableValue) and depth < 30
    # Ten lists of the same ten lists of ..., a few hundred bytes on disk.
    many: object = "x"
    for _ in range(15):
        many = [many] * 10
    with pytest.raises(ModelError, match="need more than"):
        monkeypatch.setattr(pickle_reader, "MAX_BYTES", 2**20)
        read_pickle_tree(written(tmp_path / "b.pkl", many))


def test_truncated(tmp_path: Path) -> None:
    whole = written(tmp_path / "a.pkl", {"a": np.arange(100)}).read_bytes()
    (tmp_path / "a.pkl").write_bytes(whole[:-300])
    with pytest.raises(ModelError, match="ends too early"):
        read_pickle_tree(tmp_path / "a.pkl")
