"""CSV tables, wide and long."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from handloop.core.joints import JOINT_NAMES
from handloop.formats import read_keypoints

HEAD = [f"{a}{i}" for i in range(21) for a in "xyc"]
ROW = [f"{v}" for i in range(21) for v in (100 + i, 200.5 + i, 0.5)]
NAMED = [f"{a}_{name}" for name in JOINT_NAMES for a in "xy"]


def write(path: Path, *rows: list[str], sep: str = ",") -> Path:
    path.write_text("\n".join(sep.join(row) for row in rows) + "\n")
    return path


@pytest.mark.parametrize("sep", [",", ";", "\t"])
def test_wide(tmp_path: Path, sep: str) -> None:
    rows = [["a", "left", "7", "640", "480", *ROW], ["b", "R", "8", "640", "480", *ROW]]
    path = write(tmp_path / "k.csv", ["id", "Side", "frame", "width", "height", *HEAD], *rows, sep=sep)
    result = read_keypoints([path])
    assert result.problems == () and result.notes == ()
    assert result.keypoints.ids == ("a", "b") and result.keypoints.is_right.tolist() == [False, True]
    assert result.keypoints.frame.tolist() == [7, 8] and result.keypoints.image_size[0].tolist() == [640.0, 480.0]
    assert result.keypoints.xy[1, 20].tolist() == [120.0, 220.5] and result.keypoints.conf[0, 0] == 0.5


def test_wide_by_joint_name_without_confidence_and_decimal_comma(tmp_path: Path) -> None:
    cells = [f"{100 + i},5" for i in range(42)]
    cells[4] = cells[5] = ""
    result = read_keypoints([write(tmp_path / "k.csv", ["is_right", *NAMED], ["0", *cells], sep=";")])
    assert result.keypoints.xy[0, 0].tolist() == [100.5, 101.5] and not result.keypoints.is_right[0]
    assert result.keypoints.conf[0, :4].tolist() == [1.0, 1.0, 0.0, 1.0]


def test_long_with_missing_points(tmp_path: Path) -> None:
    names = list(enumerate(JOINT_NAMES))
    rows = [[h, j, f"{100 + i}", "50", "0.9"] for h in ("a", "b") for i, j in names if (h, i) != ("b", 3)]
    result = read_keypoints([write(tmp_path / "k.csv", ["id", "joint", "x", "y", "conf"], *rows)])
    assert result.keypoints.ids == ("a", "b")
    assert result.keypoints.conf[1, 2:5].tolist() == [0.9, 0.0, 0.9]
    assert result.keypoints.xy[0, 5].tolist() == [105.0, 50.0]


def test_an_id_that_repeats_over_frames_gets_the_frame(tmp_path: Path) -> None:
    rows = [["h", f"{f}", *ROW] for f in (3, 4)]
    result = read_keypoints([write(tmp_path / "k.csv", ["id", "frame", *HEAD], *rows)])
    assert result.keypoints.ids == ("h:000003", "h:000004")


def test_text_encodings(tmp_path: Path) -> None:
    text = ",".join(HEAD) + "\r\n" + ",".join(ROW) + "\r\n"
    for encoding in ("utf-8-sig", "utf-16"):
        path = tmp_path / f"{encoding}.csv"
        path.write_bytes(text.encode(encoding))
        assert len(read_keypoints([path]).keypoints) == 1


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([HEAD, [*ROW[:4], "oops", *ROW[5:]]], "line 2, column 'y1' holds 'oops', expected a number"),
        ([HEAD, ROW, ROW[:-1]], "line 3 has 62 cells, expected 63"),
        ([HEAD[:-3], ROW[:-3]], "the columns x20, y20 are missing; points are counted from 0"),
        ([HEAD[:-1], ROW[:-1]], "point 20 has no confidence column"),
        ([["a", "b"], ["1", "2"]], "the columns are a, b; expected"),
        ([["x0", "x0"], ["1", "2"]], "'x0' occurs more than once"),
        ([["side", *HEAD], ["up", *ROW]], "line 2, column 'side' holds 'up', expected right or left"),
        ([["frame", *HEAD], ["1.5", *ROW]], "line 2 has the frame 1.5"),
        ([["id", "joint", "x", "y"], ["a", "21", "1", "2"]], "line 2 names the joint '21', expected 0 to 20"),
        ([["joint", "x", "y"], ["1", "1", "2"], ["1", "3", "4"]], "line 3 gives joint 1 of the same hand as line 2"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, rows: list[list[str]], words: str) -> None:
    result = read_keypoints([write(tmp_path / "a.csv", *rows)])
    assert len(result.problems) == 1 and words in result.problems[0].message


def test_a_header_alone_is_a_file_without_hands(tmp_path: Path) -> None:
    assert read_keypoints([write(tmp_path / "a.csv", HEAD)]).files_without_hands == 1


def test_numbers_agree_with_the_npz_path(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", keypoints_2d=np.reshape(np.array(ROW, dtype=float), (1, 21, 3)))
    write(tmp_path / "b.csv", HEAD, ROW)
    result = read_keypoints([tmp_path])
    assert (result.keypoints.xy[0] == result.keypoints.xy[1]).all()
