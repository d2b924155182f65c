"""Files from strangers: damaged, hostile or of other kinds. One clear sentence each, never a traceback."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handloop.core.errors import InputError
from handloop.formats import FORMATS, ReadOptions, loading, read_keypoints

WriteJson = Any
HAND = {"people": [{"hand_left_keypoints_2d": [float(v) for v in range(5, 68)]}]}


def message(path: Path) -> str:
    result = read_keypoints([path])
    assert len(result.keypoints) == 0 and len(result.problems) == 1
    assert result.problems[0].path == str(path)
    text = result.problems[0].message
    assert text.endswith(".") and "Error" not in text and "Traceback" not in text
    return text


CONTENTS = {
    "empty": (b"", "the file is empty"),
    "spaces": (b"  \n", "not valid JSON"),
    "truncated": (json.dumps(HAND).encode()[:-40], "truncated"),
    "text": (b"hello", "not valid JSON (Expecting value at line 1, column 1)"),
    "binary": (bytes(range(128, 256)) * 10, "not text"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "deep object": (b'{"people":' * 50_000, "nested too deeply"),
    "long number": (b"[" + b"9" * 10_000 + b"]", "not valid JSON"),
    "pickle": (pickle.dumps({"people": []}), "not text"),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_damaged_json(tmp_path: Path, kind: str) -> None:
    content, words = CONTENTS[kind]
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert words in message(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_are_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps(HAND).encode(encoding))
    assert read_keypoints([path]).keypoints.ids == ("a:left",)


def test_missing_paths_empty_folders_and_devices(tmp_path: Path) -> None:
    assert message(tmp_path / "nothing.json") == "there is no such file or folder."
    (tmp_path / "empty").mkdir()
    assert "the folder is empty" in message(tmp_path / "empty")
    (tmp_path / "link.json").symlink_to(tmp_path / "gone.json")
    assert "cannot be read" in message(tmp_path / "link.json")
    os.mkfifo(tmp_path / "pipe.json")
    assert "not an ordinary file" in message(tmp_path / "pipe.json")


def test_other_kinds_are_skipped_in_folders_and_problems_by_name(write_json: WriteJson, tmp_path: Path) -> None:
    write_json("a_keypoints.json", HAND)
    others = ["a.mp4", "README.md", "model.pkl", ".hidden.json", "notes.txt"]
    for name in others:
        (tmp_path / name).write_bytes(b"\x80\x04]\x94.")
    result = read_keypoints([tmp_path])
    assert result.problems == () and len(result.keypoints) == 1
    assert sorted(Path(p).name for p in result.skipped) == sorted(others)
    assert "files of the kind .pkl are not keypoints" in message(tmp_path / "model.pkl")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "x.png").write_bytes(b"x")
    assert "no keypoint file (1 files of other kinds)" in message(tmp_path / "only")


def test_one_bad_file_does_not_stop_the_rest(write_json: WriteJson, tmp_path: Path) -> None:
    write_json("a.json", HAND)
    (tmp_path / "b.json").write_text("{")
    write_json("c.json", HAND)
    result = read_keypoints([tmp_path])
    assert result.keypoints.ids == ("a:left", "c:left")
    assert [Path(p.path).name for p in result.problems] == ["b.json"] and result.files_read == 2


def test_no_pickle_is_ever_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    np.save(tmp_path / "a.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "b.npz", allow_pickle=True, keypoints_2d=np.array([Bomb()], dtype=object))
    (tmp_path / "c.json").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "d.npy").write_bytes(pickle.dumps(Bomb()))
    result = read_keypoints([tmp_path])
    assert len(result.problems) == 4 and not (tmp_path / "exploded").exists()
    assert sum("Python objects, which are never loaded" in p.message for p in result.problems) >= 2


def test_sizes_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "big.json"
    with open(path, "wb") as file:
        file.truncate(2_100_000_000)  # Sparse: takes no space.
    assert "2.1 GB, the limit is 2 GB" in message(path)
    monkeypatch.setattr(loading, "MAX_BYTES", 100_000)
    np.savez_compressed(tmp_path / "bomb.npz", keypoints_2d=np.zeros((1000, 21, 3)))
    assert "the npz unpacks to" in message(tmp_path / "bomb.npz")


def test_damaged_containers(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, keypoints_2d=np.ones((2, 21, 3)))
    whole = buffer.getvalue()
    for name, content, words in (
        ("a.npz", whole[:200], "not an npz file, or it is damaged"),
        ("b.npz", b"junk", "not an npz file"),
        ("c.npy", b"\x93NUMPY\x01\x00", "not an npy file, or it is damaged"),
        ("d.npy", b"junk", "damaged"),
        ("e.npy", np.lib.format.magic(1, 0) + b"junk", "damaged"),
    ):
        (tmp_path / name).write_bytes(content)
        assert words in message(tmp_path / name) or "Python objects" in message(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "npz" in message(tmp_path / "f.npz")


def test_an_npy_that_claims_to_be_huge(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (10**10, 21, 3)})
    (tmp_path / "a.npy").write_bytes(buffer.getvalue() + b"\0" * 100)
    assert "damaged" in message(tmp_path / "a.npy")


def test_content_decides_without_a_known_suffix(tmp_path: Path) -> None:
    path = tmp_path / "keypoints"
    path.write_text(json.dumps(HAND))
    assert len(read_keypoints([path]).keypoints) == 1


def test_a_named_format_reads_only_its_files(write_json: WriteJson, tmp_path: Path) -> None:
    path = write_json("a.json", HAND)
    np.savez(tmp_path / "b.npz", keypoints_2d=np.ones((1, 21, 3)) * 50)
    result = read_keypoints([tmp_path], ReadOptions(format="openpose"))
    assert len(result.keypoints) == 1 and Path(result.skipped[0]).name == "b.npz"
    result = read_keypoints([path], ReadOptions(format="npz"))
    assert "not an npz file" in result.problems[0].message


def test_wrong_options_are_errors(tmp_path: Path) -> None:
    assert set(FORMATS) == {"openpose", "mediapipe", "npz", "csv", "coco", "mmpose", "interhand"}
    with pytest.raises(InputError, match="expected one of openpose, mediapipe, npz, csv"):
        read_keypoints([tmp_path], ReadOptions(format="dlc"))
    with pytest.raises(InputError, match="which is not a folder"):
        read_keypoints([tmp_path], ReadOptions(images=tmp_path / "nothing"))
    with pytest.raises(InputError, match="no input"):
        read_keypoints([])
    with pytest.raises(InputError, match="image size"):
        ReadOptions(image_size=(0, 5))
    with pytest.raises(InputError, match="least confidence"):
        ReadOptions(min_conf=2)
