"""CSV: a row per hand (x0, y0, c0 ... x20, y20, c20 or by joint name), or a row per point (id, joint, x, y, conf)."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from handloop.core.errors import FileFormatError
from handloop.core.joints import JOINT_NAMES
from handloop.formats.file_hands import FileHands, no_hands, with_confidence
from handloop.formats.landmarks import side_of
from handloop.formats.loading import read_text

_COLUMNS: dict[str, tuple[str, ...]] = {
    "id": ("id", "hand_id", "name"),
    "side": ("side", "hand", "handedness", "is_right"),
    "frame": ("frame", "frame_id", "frame_number"),
    "width": ("width", "image_width"),
    "height": ("height", "image_height"),
    "image": ("image", "image_path", "file", "filename"),
    "joint": ("joint", "keypoint", "landmark", "point", "joint_id", "joint_name"),
    "x": ("x", "x_px", "u"),
    "y": ("y", "y_px", "v"),
    "conf": ("conf", "confidence", "c", "score"),
}
"""Accepted headings (lower case), by meaning."""


@dataclass(frozen=True)
class _Table:
    """A CSV file as text."""

    header: tuple[str, ...]
    """Lower-case headings."""
    cells: tuple[tuple[str, ...], ...]
    """Rows of as many cells."""
    lines: tuple[int, ...]
    """Line number of each row in the file."""
    decimal_comma: bool
    """Numbers may be written 1,5: the cells are separated by something else."""

    def find(self, meaning: str) -> int | None:
        """The column of a meaning in `_COLUMNS`."""
        return next((self.header.index(name) for name in _COLUMNS[meaning] if name in self.header), None)

    def texts(self, column: int | None) -> list[str] | None:
        """The cells of a column."""
        return None if column is None else [row[column] for row in self.cells]

    def floats(self, columns: list[int]) -> np.ndarray:
        """(rows, len(columns)); empty cells are NaN.

        Raises:
            FileFormatError: a cell is not a number; its line and column are named.
        """
        texts = [[row[c] or "nan" for c in columns] for row in self.cells]
        if self.decimal_comma:
            texts = [[t.replace(",", ".") for t in row] for row in texts]
        try:
            return np.array(texts, dtype=np.float64).reshape(len(texts), len(columns))
        except ValueError:
            pass
        for line, row in zip(self.lines, texts, strict=True):
            for column, text in zip(columns, row, strict=True):
                if not _is_float(text):
                    name = self.header[column]
                    raise FileFormatError(f"line {line}, column {name!r} holds {text[:40]!r}, expected a number.")
        raise FileFormatError("the table holds something other than numbers.")


@dataclass(frozen=True)
class _Hand:
    """What names a hand in the table."""

    id: str
    frame: int
    side: bool | None


def read_csv(path: Path) -> FileHands:
    """The hands of one table, separated by commas, semicolons or tabs; optional columns are listed in `_COLUMNS`.

    Raises:
        FileFormatError: not such a table; the line and column at fault are named.
    """
    table = _read_table(read_text(path))
    if not table.cells:
        return no_hands("table")
    wide = _wide_columns(table.header)
    if wide is not None:
        xy = table.floats(wide[0]).reshape(-1, 21, 2)
        points = with_confidence(xy)
        if wide[1]:
            points[..., 2] = table.floats(wide[1])
        return _file_hands(table, points, _hand_keys(table), list(range(len(table.cells))))
    joint, x, y = table.find("joint"), table.find("x"), table.find("y")
    if joint is not None and x is not None and y is not None:
        return _long(table, joint, x, y)
    shown = ", ".join(table.header[:8])
    raise FileFormatError(
        f"the columns are {shown}; expected x0, y0 to x20, y20 (c0 to c20) or x_wrist, y_wrist, ... for a row per "
        "hand, or id, joint, x, y (conf) for a row per point."
    )


def _read_table(text: str) -> _Table:
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t", key=first.count)
    header: tuple[str, ...] = ()
    cells: list[tuple[str, ...]] = []
    lines: list[int] = []
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        for row in reader:
            stripped = tuple(cell.strip() for cell in row)
            if not any(stripped):
                continue
            if not header:
                header = tuple(cell.lower() for cell in stripped)
                continue
            if len(stripped) != len(header):
                raise FileFormatError(
                    f"line {reader.line_num} has {len(stripped)} cells, expected {len(header)} as in the header."
                )
            cells.append(stripped)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise FileFormatError(f"line {reader.line_num} is not valid CSV ({error}).") from error
    twice = [name for name, count in Counter(header).items() if name and count > 1]
    if twice:
        raise FileFormatError(f"the column {twice[0]!r} occurs more than once.")
    return _Table(header, tuple(cells), tuple(lines), delimiter != ",")


def _wide_columns(header: tuple[str, ...]) -> tuple[list[int], list[int]] | None:
    """Columns of x, y of the 21 points in turn, and of their confidences ([] for none); None for no such table."""
    place = {name: i for i, name in enumerate(header)}

    def column(letters: tuple[str, ...], point: int) -> int | None:
        ends = (str(point), f"_{point}", f"_{JOINT_NAMES[point]}")
        starts = (f"{JOINT_NAMES[point]}_", f"{point}_")
        names = [a + e for a in letters for e in ends] + [s + a for a in letters for s in starts]
        return next((place[name] for name in names if name in place), None)

    xy = [(f"{axis}{point}", column((axis,), point)) for point in range(21) for axis in "xy"]
    if all(at is None for _, at in xy):
        return None
    missing = [name for name, at in xy if at is None]
    if missing:
        raise FileFormatError(f"the columns {', '.join(missing[:4])} are missing; points are counted from 0 to 20.")
    conf = [column(("c", "conf", "confidence", "score"), point) for point in range(21)]
    found = [at for at in conf if at is not None]
    if found and len(found) < 21:
        raise FileFormatError(f"point {conf.index(None)} has no confidence column, others have; give all or none.")
    return [at for _, at in xy if at is not None], found


def _long(table: _Table, joint: int, x: int, y: int) -> FileHands:
    xy = table.floats([x, y])
    conf = table.find("conf")
    rows = with_confidence(xy)
    if conf is not None:
        rows[:, 2] = table.floats([conf])[:, 0]
    keys = _hand_keys(table)
    numbers: dict[_Hand, int] = {}
    for key in keys:
        numbers.setdefault(key, len(numbers))
    points = np.zeros((len(numbers), 21, 3))
    first: dict[tuple[int, int], int] = {}
    for i, (key, line) in enumerate(zip(keys, table.lines, strict=True)):
        at = numbers[key], _joint(table.cells[i][joint], line)
        if at in first:
            raise FileFormatError(
                f"line {line} gives joint {at[1]} of the same hand as line {first[at]}; a column id, frame or side "
                "must tell hands apart."
            )
        first[at] = line
        points[at] = rows[i]
    starts = [keys.index(key) for key in numbers]
    return _file_hands(table, points, list(numbers), starts)


def _joint(text: str, line: int) -> int:
    name = text.lower().replace(" ", "_")
    if name in JOINT_NAMES:
        return JOINT_NAMES.index(name)
    if name.isdecimal() and len(name) <= 2 and int(name) < 21:
        return int(name)
    raise FileFormatError(f"line {line} names the joint {text[:40]!r}, expected 0 to 20 or a name such as index_tip.")


def _hand_keys(table: _Table) -> list[_Hand]:
    """What names the hand of each row."""
    ids = table.texts(table.find("id")) or [""] * len(table.cells)
    frame_column = table.find("frame")
    frames = [-1] * len(ids)
    if frame_column is not None:
        values = table.floats([frame_column])[:, 0]
        for i, value in enumerate(values.tolist()):
            if not (abs(value) < 2**53 and value == int(value)):
                raise FileFormatError(f"line {table.lines[i]} has the frame {value}, expected a whole number.")
            frames[i] = int(value)
    side_column = table.find("side")
    texts = table.texts(side_column)
    sides: list[bool | None] = [None] * len(ids)
    if texts is not None and side_column is not None:
        name = table.header[side_column]
        sides = [_side(text, line, name) for text, line in zip(texts, table.lines, strict=True)]
    return [_Hand(*key) for key in zip(ids, frames, sides, strict=True)]


def _side(text: str, line: int, column: str) -> bool | None:
    if not text:
        return None
    yes_no = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
    side = yes_no.get(text.lower()) if column == "is_right" else side_of(text)
    if side is None:
        wanted = "1 or 0" if column == "is_right" else "right or left"
        raise FileFormatError(f"line {line}, column {column!r} holds {text[:40]!r}, expected {wanted}.")
    return side


def _file_hands(table: _Table, points: np.ndarray, hands: list[_Hand], rows: list[int]) -> FileHands:
    """`rows` holds the row of the table that each hand's optional columns are read from."""
    at = np.array(rows)
    width, height = table.find("width"), table.find("height")
    size = table.floats([width, height])[at] if width is not None and height is not None else None
    images = table.texts(table.find("image"))
    with_ids = all(hand.id for hand in hands)
    with_frames = table.find("frame") is not None
    return FileHands(
        "table",
        points,
        tuple(_labels(hands, with_ids, with_frames)),
        tuple(hand.side for hand in hands),
        own_ids=with_ids,
        frames=np.array([hand.frame for hand in hands], dtype=np.int64),
        image_size=size,
        images=None if images is None else tuple(images[i] for i in rows),
    )


def _labels(hands: list[_Hand], with_ids: bool, with_frames: bool) -> list[str]:
    """The id where it is enough, with the frame and the side where an id repeats; row numbers without any."""
    if with_ids:
        counts = Counter(hand.id for hand in hands)
        return [hand.id if counts[hand.id] == 1 else hand.id + _suffix(hand, with_frames) for hand in hands]
    if with_frames:
        return [_suffix(hand, True) for hand in hands]
    return [f":{i:06d}" for i in range(len(hands))] if len(hands) > 1 else [""]


def _suffix(hand: _Hand, with_frames: bool) -> str:
    side = "" if hand.side is None else ":right" if hand.side else ":left"
    return (f":{hand.frame:06d}" if with_frames else "") + side


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
