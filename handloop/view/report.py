"""The report page: one HTML file and a folder beside it, opened from disk, without any network."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch

from handloop.core.results import FitResult, Status, write_text
from handloop.view import report_html as html
from handloop.view.overlay import write_overlays
from handloop.view.report_text import (
    HELP,
    STATUS_TONE,
    STATUS_WORD,
    Fact,
    box_percent,
    camera_notes,
    doubtful,
    facts,
    headline,
    number,
    worst_first,
)
from handloop.view.selection import vertices_of

FILES = "report_files"
"""The folder beside the page."""

MAX_TABLE = 20_000
"""Hands in the page's table, worst first: a browser holds no more at ease. results.npz has all."""


@dataclass(frozen=True)
class _Column:
    """One column of the table."""

    key: str
    label: str
    values: Sequence[object]
    """N numbers, bools or texts; None where absent."""
    digits: int = 0
    absent: str = "\u2013"


def write_report(
    result: FitResult,
    faces_right: np.ndarray,
    faces_left: np.ndarray,
    folder: str | Path,
    max_hands: int = 60,
    title: str = "Fitted hands",
    notes: Sequence[str] = (),
    problems: Sequence[object] = (),
) -> Path:
    """Write `report.html` and `report_files/` into a folder.

    Args:
        result: the fits.
        faces_right, faces_left: (F, 3) vertex ids of each side's mesh, outward (see `write_overlays`).
        folder: made if missing. Files of an earlier report there are overwritten, never deleted.
        max_hands: hands that get a card with drawing and mesh: two thirds the worst (at most a quarter without a fit),
            the rest spread over the others. The table holds the worst `MAX_TABLE` hands in any case.
        title: the heading.
        notes: what was assumed, in sentences, shown loudly. That a focal length is assumed is said without being asked.
        problems: what could not be read or fitted; each is shown as its text.

    Returns:
        The page.
    """
    target = Path(folder)
    (target / FILES).mkdir(parents=True, exist_ok=True)
    order = worst_first(result)
    shown = _choose(order, int((~result.fitted()).sum()), max_hands)
    chosen = shown.all()
    percent = box_percent(result)
    _write_plotly(target / FILES / "plotly.min.js")
    _write_data(target / FILES / "data.js", order[:MAX_TABLE], chosen, _columns(result, percent))
    drawn = _write_meshes(target / FILES / "meshes.js", result, chosen, faces_right, faces_left)
    drawings = write_overlays(result, faces_right, faces_left, target / FILES, chosen, suffix=".jpg")
    cards = [
        _card(result, row, path, row in drawn, [*facts(result, row, percent[row]), *_trust(result, row)])
        for row, path in zip(chosen, drawings, strict=True)
    ]
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(headline(result, order))}</p>',
        html.tiles(_counts(result, percent)),
        html.box("What was assumed", [*camera_notes(result), *notes]),
        html.box("Problems", [str(problem) for problem in problems], bad=True),
        *_charts(result, percent),
        html.table(len(order), MAX_TABLE),
        *_sections(cards, shown, len(order)),
        html.about({**result.hand.provenance(), **result.provenance}),
    ]
    page = target / "report.html"
    text = html.document(title, FILES, [piece for piece in body if piece])
    write_text(page, _plain(text))
    return page


@dataclass(frozen=True)
class _Chosen:
    """The rows that get a card."""

    lost: list[int]
    """Hands without a fit."""
    worst: list[int]
    """The worst fits."""
    sample: list[int]
    """Some of the others."""

    def all(self) -> list[int]:
        return [*self.lost, *self.worst, *self.sample]


def _choose(order: Sequence[int], lost: int, most: int) -> _Chosen:
    """What to show of rows in order, worst first, of which the first `lost` have no fit."""
    if len(order) <= most:
        return _Chosen(list(order[:lost]), list(order[lost:]), [])
    # Of hands without a fit there is little to see but their points: a quarter, or all there is room for.
    n_lost = min(lost, max(most // 4, most - (len(order) - lost)))
    n_worst = max(0, min(-(-2 * most // 3) - n_lost, len(order) - lost))
    rest = order[lost + n_worst :]
    n_sample = min(most - n_lost - n_worst, len(rest))
    # The last of each stretch, so that the best hand of all is among them.
    sample = [rest[(k + 1) * len(rest) // n_sample - 1] for k in range(n_sample)]
    return _Chosen(list(order[:n_lost]), list(order[lost : lost + n_worst]), sample)


def _counts(result: FitResult, percent: np.ndarray) -> list[tuple[str, str]]:
    done = result.fitted().cpu()
    right = int(result.keypoints.is_right.sum())
    rms = result.rms_px.detach().cpu().double()[done].numpy()
    median = float(np.median(rms)) if len(rms) else math.nan
    share = float(np.median(percent[done.numpy()])) if len(rms) else math.nan
    return [
        (f"{len(result):,}", "hands"),
        (f"{int(done.sum()):,}", "fitted"),
        (f"{len(result) - int(done.sum()):,}", "without a fit"),
        (f"{int(doubtful(result).sum()):,}", "doubtful"),
        (f"{right:,} / {len(result) - right:,}", "right / left"),
        (f"{number(median, 2)} px", "median error"),
        (f"{number(share)} %", "median error, of the hand's box"),
    ]


def _charts(result: FitResult, percent: np.ndarray) -> list[str]:
    rms = result.rms_px.detach().cpu().double().numpy()
    charts = [
        html.histogram(percent, "Reprojection error, % of the hand's box", "%", 1),
        html.histogram(rms, "Reprojection error, px", "px", 1),
    ]
    if not any(charts):
        return []
    return ['<h2>How well the points are met</h2><div class="charts">', *charts, "</div>"]


def _sections(cards: Sequence[str], chosen: _Chosen, n: int) -> list[str]:
    if not cards:
        return []
    if len(cards) == n:
        return ["<h2>Each hand</h2>", html.legend(), *cards]
    first = len(chosen.lost) + len(chosen.worst)
    said = (
        f'<p class="soft">Drawings and meshes of {len(cards):,} of {n:,} hands: {len(chosen.lost):,} without a fit, '
        f"the {len(chosen.worst):,} worst fits, and a sample of {len(chosen.sample):,} others.</p>"
    )
    sample = ["<h2>A sample of the others</h2>", *cards[first:]] if cards[first:] else []
    return ["<h2>The worst hands</h2>", said, html.legend(), *cards[:first], *sample]


def _card(result: FitResult, row: int, drawing: Path, has_mesh: bool, lines: Sequence[Fact]) -> str:
    from PIL import Image

    status = Status(int(result.status[row]))
    side = "right" if bool(result.keypoints.is_right[row]) else "left"
    terms: dict[str, float] = {}
    if bool(result.fitted()[row]):
        terms = {name: float(value[row]) for name, value in result.energy_terms.items()}
    with Image.open(drawing) as image:
        width, height = image.size
    heading = (result.keypoints.ids[row], side, STATUS_WORD[status], STATUS_TONE[status])
    return html.card(_anchor(row), heading, (f"{FILES}/{drawing.name}", width, height), has_mesh, lines, terms)


def _anchor(row: int) -> str:
    return f"hand-{row}"


def _columns(result: FitResult, percent: np.ndarray) -> list[_Column]:
    kp = result.keypoints
    done = result.fitted().tolist()
    gap = result.hypothesis_gap.detach().cpu().double().tolist()
    status = [STATUS_WORD[Status(s)] for s in result.status.tolist()]
    return [
        _Column("id", "id", [_plain(text) for text in kp.ids]),
        _Column("side", "side", ["right" if r else "left" for r in kp.is_right.tolist()]),
        _Column("status", "status", status),
        _Column("doubts", "doubts", [_plain(text) for text in result.doubts]),
        _Column("expected_error_mm", "expected error, mm", _numbers(result.expected_error_mm), 1),
        _Column("rms_px", "error px", _numbers(result.rms_px), 2),
        _Column("rms_percent", "error %", [_number(v) for v in percent.tolist()], 1),
        _Column("energy", "energy", _numbers(result.energy), 1),
        # An infinite gap and an absent one are both shown as a dash, and sorted last.
        _Column("hypothesis_gap", "gap", [_number(g) if d else None for g, d in zip(gap, done, strict=True)], 1),
        _Column("depth_sd", "depth sd, mm", _numbers(1000 * result.depth_sd), 0),
        _Column("points", "points", (kp.conf > 0).sum(1).tolist(), 0),
    ]


def _trust(result: FitResult, row: int) -> list[Fact]:
    """How far a fit can be trusted."""
    said = {
        "expected_error_mm": f"{number(float(result.expected_error_mm[row]))} mm",
        "doubts": _plain(result.doubts[row]) or "none",
        "depth_sd": f"{number(1000 * float(result.depth_sd[row]), 0)} mm",
        "weakest": result.weakest[row],
    }
    names = {"expected_error_mm": "Expected error", "depth_sd": "Depth sd", "weakest": "Weakest direction"}
    return [Fact(names.get(key, key.capitalize()), value, HELP[key]) for key, value in said.items()]


def _numbers(values: torch.Tensor) -> list[float | None]:
    return [_number(v) for v in values.detach().cpu().double().tolist()]


def _number(value: float, digits: int = 4) -> float | None:
    return round(value, digits) if math.isfinite(value) else None


def _write_data(path: Path, order: Sequence[int], chosen: Sequence[int], columns: Sequence[_Column]) -> None:
    """The table's contents, rows worst first. A script, because pages opened from disk may not read JSON files."""
    cards = set(chosen)
    data = {
        "files": FILES,
        "columns": [_describe(column) for column in columns],
        "rows": [[column.values[row] for column in columns] for row in order],
        "cards": [_anchor(row) if row in cards else None for row in order],
    }
    write_text(path, f"window.handloopReport = {_json(data)};\n")


def _describe(column: _Column) -> dict[str, object]:
    present = [v for v in column.values if v is not None]
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in present)
    return {
        "key": column.key,
        "label": column.label,
        "help": HELP[column.key],
        "kind": "number" if numeric and column.key != "id" else "text",
        "digits": column.digits,
        "absent": column.absent,
    }


def _write_meshes(
    path: Path, result: FitResult, rows: Sequence[int], faces_right: np.ndarray, faces_left: np.ndarray
) -> set[int]:
    """Vertices in tenths of mm about their middle, 16 bits each, and one list of faces per side; the rows written."""
    hands: dict[str, dict[str, str]] = {}
    drawn: set[int] = set()
    for row, vertices in zip(rows, vertices_of(result, rows), strict=True):
        if not len(vertices) or not np.isfinite(vertices).all():
            continue
        points = np.round((vertices - (vertices.min(0) + vertices.max(0)) / 2) * 1e4)
        if np.abs(points).max() > np.iinfo(np.int16).max:
            continue  # Three metres and more: nothing to look at.
        side = "right" if bool(result.keypoints.is_right[row]) else "left"
        hands[_anchor(row)] = {"side": side, "points": _base64(points.astype("<i2"))}
        drawn.add(row)
    faces = {"right": _base64(faces_right.astype("<u2")), "left": _base64(faces_left.astype("<u2"))}
    write_text(path, f"window.handloopMeshes = {_json({'faces': faces, 'hands': hands})};\n")
    return drawn


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def _plain(text: str) -> str:
    """Without lone surrogates, which is how file names that are not UTF-8 reach Python: browsers crash on them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _json(data: object) -> str:
    # ASCII only, so that no encoding and no odd id can break the script.
    return json.dumps(data, allow_nan=False, ensure_ascii=True, separators=(",", ":"))


def _write_plotly(path: Path) -> None:
    """Plotly's own script, from the installed package; kept where it is there already."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs()
    if not path.exists() or path.stat().st_size != len(script.encode()):
        write_text(path, script)
