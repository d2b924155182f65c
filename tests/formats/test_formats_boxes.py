"""Files of boxes: both kinds, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handloop.core.errors import FileFormatError, InputError
from handloop.formats.boxes import read_boxes
from handloop.formats.options import ReadOptions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "p").mkdir()
    for name, width in (("a.png", 40), ("b.png", 60)):
        Image.new("RGB", (width, 30)).save(tmp_path / "p" / name)
    return tmp_path


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_json_and_npz_say_the_same(folder: Path) -> None:
    entries = [
        {"image": "a.png", "box": [1, 2, 11, 22], "is_right": False},
        {"image": "a.png", "box": [3, 4.5, 9, 9], "is_right": True},
        {"image": "b.png", "box": [0, 0, 60, 30], "is_right": True},
    ]
    columns = {key: np.array([e[key] for e in entries]) for key in ("image", "box", "is_right")}
    np.savez(folder / "boxes.npz", **columns)
    for path in (write(folder / "boxes.json", entries), folder / "boxes.npz"):
        read, box = read_boxes(path, [folder / "p"], ReadOptions())
        assert box.tolist() == [[1, 2, 11, 22], [3, 4.5, 9, 9], [0, 0, 60, 30]]
        assert read.keypoints.ids == ("a", "a#2", "b")
        assert read.keypoints.is_right.tolist() == [False, True, True]
        assert read.keypoints.image_size.tolist() == [[40, 30], [40, 30], [60, 30]]
        assert not read.keypoints.conf.any() and not read.problems


def test_missing_pictures_are_named_and_sides_can_be_given(folder: Path) -> None:
    boxes = [{"image": "a.png", "box": [0, 0, 9, 9], "id": "x"}, {"image": "gone.png", "box": [0, 0, 9, 9]}]
    path = write(folder / "boxes.json", boxes)
    with pytest.raises(InputError, match=r"boxes.json: it does not say which side .* give --hand"):
        read_boxes(path, [folder / "p"], ReadOptions())
    read, box = read_boxes(path, [folder / "p"], ReadOptions(side="left"))
    assert read.keypoints.ids == ("x",) and len(box) == 1 and not bool(read.keypoints.is_right[0])
    assert [p.path for p in read.problems] == ["gone.png"]
    with pytest.raises(InputError, match="none of its 2 pictures can be read"):
        read_boxes(path, [], ReadOptions(side="left"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1}, "is no list of"),
        ([{"image": "a.png", "box": [1, 2, 3]}], "entry 0 is not"),
        ([{"image": "a.png", "box": [1, 2, 3, "4"]}], "entry 0 is not"),
        ([{"image": "a.png", "box": [5, 5, 1, 9], "is_right": True}], "a box has no extent"),
        ([{"image": "a.png", "box": [1, 2, 3, 4], "is_right": "yes"}], "entry 0 is not"),
    ],
)
def test_json_of_other_kinds_is_refused(folder: Path, value: object, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        read_boxes(write(folder / "boxes.json", value), [folder / "p"], ReadOptions())


def test_npz_of_other_kinds_is_refused(folder: Path) -> None:
    path = folder / "boxes.npz"
    for arrays, message in (
        ({"box": np.zeros((1, 4))}, "has no 'image'"),
        ({"image": np.array(["a.png"]), "box": np.zeros((2, 4))}, r"box has shape \(2, 4\)"),
        ({"image": np.array(["a.png"]), "box": np.ones((1, 4)), "is_right": np.array([2])}, "true and false"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(FileFormatError, match=message):
            read_boxes(path, [folder / "p"], ReadOptions())
