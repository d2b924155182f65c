"""An evaluation as a table on the screen, and as eval.json, eval_hands.csv and eval_curves.html in a folder."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from handloop.core.joints import FINGERS, JOINT_NAMES
from handloop.core.results import write_text
from handloop.evaluation.coverage import Coverage, Ranking
from handloop.evaluation.metrics import Mean
from handloop.evaluation.protocol import Errors, Evaluation, MeshErrors

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LABELS: dict[str, str] = {
    "raw": "nothing (camera space)",
    "root": "wrist",
    "scale_translation": "wrist, scale (HO-3D)",
    "rigid": "rotation, shift",
    "pa": "Procrustes (PA)",
    "pa_mirror": "PA or mirrored (servers)",
}
"""What an alignment takes out, for people."""

_CURVES = ("raw", "root", "pa")
_FINGER_PARTS = ("CMC / MCP", "MCP / PIP", "IP / DIP", "tip")


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Counts, errors, mesh, trust and notes, as tables and sentences."""
    counts = evaluation.counts
    console.print(
        f"{counts.compared} of {counts.truth} hands with truth compared; {counts.not_fitted} without a fit, "
        f"{counts.not_in_results} not in the results. {counts.results_without_truth} results and {counts.unknown} rows "
        f"of the truth had no counterpart. {counts.joints} joints compared, {counts.joints_unknown} without truth."
    )
    if counts.compared:
        console.print(_error_table(evaluation))
        console.print(_joint_table(next(e for e in evaluation.errors if e.alignment == "root")))
        console.print(
            f"root-relative error across the viewing ray {_mean(evaluation.plane_mm)} mm, "
            f"along it (depth) {_mean(evaluation.depth_mm)} mm"
        )
        if evaluation.epe_px is not None:
            console.print(f"error in the picture {_mean(evaluation.epe_px)} px")
        if evaluation.mesh is not None:
            console.print(_mesh_table(evaluation.mesh))
        if evaluation.coverage is not None:
            console.print(_coverage_table(evaluation.coverage))
        if evaluation.ranking is not None:
            console.print(_ranking_line(evaluation.ranking))
    for note in evaluation.notes:
        console.print(f"note: {note}", style="yellow", markup=False)


def write_evaluation(evaluation: Evaluation, folder: str | Path) -> Path:
    """Write eval.json, eval_hands.csv and eval_curves.html with plotly's script beside it; returns the JSON's path."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    path = target / "eval.json"
    write_text(path, json.dumps(as_json(evaluation), indent=1, allow_nan=False) + "\n")
    write_text(target / "eval_hands.csv", _hands_csv(evaluation))
    write_curves(evaluation, target)
    return path


def as_json(evaluation: Evaluation) -> dict[str, object]:
    """All numbers but those by hand, under the names of the dataclasses' fields; null where there is none."""
    return {
        field.name: _plain(getattr(evaluation, field.name)) for field in fields(evaluation) if field.name != "per_hand"
    }


def write_curves(evaluation: Evaluation, folder: Path) -> Path:
    """Write the PCK curves and the errors by joint as a page that opens from disk without a network."""
    from plotly.io import to_html
    from plotly.offline import get_plotlyjs

    script, path = get_plotlyjs(), folder / "plotly.min.js"
    if not path.exists() or path.stat().st_size != len(script.encode()):
        write_text(path, script)
    figures = {"pck": _pck_figure(evaluation), "joints": _joint_figure(evaluation)}
    body = "\n".join(
        to_html(figure, include_plotlyjs=False, include_mathjax=False, full_html=False, div_id=name)
        for name, figure in figures.items()
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in evaluation.notes)
    counts = evaluation.counts
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="connect-src 'none'">
<title>Evaluation of fitted hands</title>
<script src="plotly.min.js"></script>
</head>
<body style="font-family: sans-serif; max-width: 1000px; margin: 2em auto">
<h1>Evaluation of fitted hands</h1>
<p>{counts.compared} of {counts.truth} hands with truth have a fit and are compared; the numbers are in eval.json.</p>
<ul>{notes}</ul>
{body}
</body>
</html>
"""
    target = folder / "eval_curves.html"
    write_text(target, page)
    return target


def _pck_figure(evaluation: Evaluation) -> Figure:
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for errors in evaluation.errors:
        if errors.alignment in _CURVES:
            name = f"{LABELS[errors.alignment]}: AUC {_number(errors.pck.auc, 3)}"
            figure.add_trace(Scatter(x=list(errors.pck.thresholds_mm), y=_plain(errors.pck.share), name=name))
    figure.update_layout(
        title="Share of joints within a distance of the truth, by what was aligned",
        xaxis_title="mm",
        yaxis={"title": "share of joints", "range": [0, 1]},
        template="plotly_white",
    )
    return figure


def _joint_figure(evaluation: Evaluation) -> Figure:
    from plotly.graph_objects import Bar, Figure

    figure = Figure()
    for errors in evaluation.errors:
        if errors.alignment in _CURVES[1:]:
            figure.add_trace(Bar(x=list(JOINT_NAMES), y=_plain(errors.joint_mm), name=LABELS[errors.alignment]))
    figure.update_layout(
        title="Mean error by joint, by what was aligned", yaxis_title="mm", template="plotly_white", barmode="group"
    )
    return figure


def _hands_csv(evaluation: Evaluation) -> str:
    hands = evaluation.per_hand
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "state", *hands.values])
    columns = [values.tolist() for values in hands.values.values()]
    for name, state, *row in zip(hands.ids, hands.state, *columns, strict=True):
        writer.writerow([name, state, *("" if math.isnan(v) else f"{v:.6g}" for v in row)])
    return text.getvalue()


def _error_table(evaluation: Evaluation) -> Table:
    lost = evaluation.counts.truth > evaluation.counts.compared
    table = Table(title="joint errors by what was aligned" + (" (in brackets: all hands)" if lost else ""))
    table.add_column("aligned")
    for heading in ("mean mm [95 %]", "median", "p90", "> 10 mm", "> 20 mm", "AUC 0-50", "20-50"):
        table.add_column(heading, justify="right")
    for errors in evaluation.errors:
        shares = ((errors.above_10mm, errors.above_10mm_all), (errors.above_20mm, errors.above_20mm_all))
        table.add_row(
            LABELS[errors.alignment],
            _mean(errors.mpjpe_mm),
            _number(errors.median_mm, 1),
            _number(errors.p90_mm, 1),
            *(_number(100 * a, 0) + " %" + (f" ({_number(100 * b, 0)} %)" if lost else "") for a, b in shares),
            _number(errors.pck.auc, 3) + (f" ({_number(errors.auc_all, 3)})" if lost else ""),
            _number(errors.auc_20_50, 3),
        )
    return table


def _joint_table(errors: Errors) -> Table:
    table = Table(title="mean root-relative error by joint, mm")
    table.add_column("finger")
    for part in _FINGER_PARTS:
        table.add_column(part, justify="right")
    for k, finger in enumerate(FINGERS):
        table.add_row(finger, *(_number(v, 1) for v in errors.joint_mm[1 + 4 * k : 5 + 4 * k]))
    return table


def _mesh_table(mesh: MeshErrors) -> Table:
    table = Table(title=f"vertices of {mesh.mpvpe_mm.n} hands")
    table.add_column("aligned")
    for heading in ("mean mm [95 %]", "F@5", "F@15"):
        table.add_column(heading, justify="right")
    rows = (("raw", mesh.mpvpe_mm, mesh.f_5, mesh.f_15), ("pa", mesh.pa_mpvpe_mm, mesh.pa_f_5, mesh.pa_f_15))
    for name, error, f_5, f_15 in rows:
        table.add_row(LABELS[name], _mean(error), _number(f_5.mean, 3), _number(f_15.mean, 3))
    return table


def _coverage_table(coverage: Coverage) -> Table:
    table = Table(title="truth inside the posterior's intervals (camera space)")
    table.add_column("axis")
    for heading in ("68 %", "95 %", "rms error / sd", "n"):
        table.add_column(heading, justify="right")
    for name, held in zip(("all", "x", "y", "z (depth)"), (coverage.overall, *coverage.by_axis), strict=True):
        shares = (f"{_number(100 * share, 1)} %" for share in (held.within_68, held.within_95))
        table.add_row(name, *shares, _number(held.rms, 2), str(held.n))
    return table


def _ranking_line(ranking: Ranking) -> str:
    return (
        f"of the worst tenth by PA error, {100 * ranking.found:.0f} % are among the fifth expected to be worst "
        f"(20 % by chance; {ranking.n} hands)"
    )


def _mean(mean: Mean) -> str:
    # A backslash keeps rich from taking the bracket for markup.
    return f"{_number(mean.mean, 2)} \\[{_number(mean.low, 2)}, {_number(mean.high, 2)}]"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def _plain(value: object) -> object:
    """Dataclasses, tuples and mappings as JSON's objects and lists; what is not finite as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
