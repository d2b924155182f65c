"""The page of a run: curves of its log, its best and worst fits as pictures. Opens from disk, without any network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from handloop.core.results import FitResult, write_text
from handloop.loop.cached_fits import CachedFits
from handloop.loop.log import read_log
from handloop.priors.mixture import PosePriorModel
from handloop.priors.prior_file import load_prior
from handloop.view.overlay import write_overlays

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from handloop.loop.run import LoopRun

_PICTURES = 8
"""Of the best fits, and as many of the worst."""

_CURVES: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Losses",
        "weighted",
        tuple(
            (f"loss_{name}", name.replace("_", " "))
            for name in (
                *("points", "fingers", "rotations", "betas", "log_depth", "reprojection", "located"),
                *("heat", "heading", "depths"),
            )
        ),
    ),
    (
        "Held-out hands: how far the keypoints are missed",
        "% of the hand's box, median",
        (("held_out_network_rms_percent", "the network alone"), ("held_out_fit_rms_percent", "fits from it")),
    ),
    (
        "Energy of the fits",
        "half squared sigmas",
        (("energy", "best fits of the batch, mean"), ("held_out_fit_energy", "held-out fits, median")),
    ),
    (
        "Acceptance rate: how often a proposal's fit takes the place of the best one",
        "share of the fits offered",
        (("acceptance_rate", "accepted"),),
    ),
    (
        "Labels",
        "share",
        (("labels_used", "hands whose fit is a label"), ("trust", "mean weight of a label")),
    ),
    (
        "Seconds per step",
        "s",
        (
            ("seconds_network", "forward, loss, backward"),
            ("seconds_fit", "fits and their cache"),
            ("seconds_draw", "views and synthetic hands"),
        ),
    ),
)
"""Title, unit and (key of the log, words) of each figure."""


_BARE = {"displaylogo": False, "displayModeBar": False}
"""Of plotly: no buttons; zooming with the mouse stays."""


def write_run_report(training: LoopRun) -> Path:
    """Write report.html into the run's folder, pictures and plotly's script beside it; returns the page."""
    from plotly.io import to_html
    from plotly.offline import get_plotlyjs

    folder, lines = training.folder, read_log(training.folder)
    files = folder / "report_files"
    files.mkdir(exist_ok=True)
    script, path = get_plotlyjs(), files / "plotly.min.js"
    if not path.exists() or path.stat().st_size != len(script.encode()):
        write_text(path, script)
    figures = [*(_figure(lines, title, unit, curves) for title, unit, curves in _CURVES), _drift(training, lines)]
    drawn = [
        to_html(
            figure, include_plotlyjs=False, include_mathjax=False, full_html=False, div_id=f"figure-{i}", config=_BARE
        )
        for i, figure in enumerate(figures)
        if figure is not None
    ]
    config = training.config
    body = [
        f"<p>Mode {escape(config.mode)}, {training.step} of {config.steps} steps, {len(training.data.train)} hands to "
        f"learn from, {len(training.data.held_out)} held out, prior version {training.prior_version}.</p>",
        *drawn,
        _priors(lines),
        *_pictures(training, files),
    ]
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="connect-src 'none'">
<title>Training of {escape(folder.name)}</title>
<script src="report_files/plotly.min.js"></script>
</head>
<body style="font-family: sans-serif; max-width: 1100px; margin: 2em auto">
<h1>Training of {escape(folder.name)}</h1>
{chr(10).join(body)}
</body>
</html>
"""
    target = folder / "report.html"
    write_text(target, page)
    return target


def _figure(lines: Sequence[dict[str, Any]], title: str, unit: str, curves: Sequence[tuple[str, str]]) -> Figure | None:
    """Curves over the steps; None where the log has none of them."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for key, words in curves:
        known = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), (int, float))]
        if known:
            steps, values = zip(*known, strict=True)
            figure.add_trace(Scatter(x=steps, y=values, name=words, mode="lines+markers"))
    if not figure.data:
        return None
    for line in lines:
        if (line.get("prior_update") or {}).get("accepted"):
            figure.add_vline(x=line["step"], line_dash="dot", line_color="#888888")
    return _laid_out(figure, title, unit, lines)


def _laid_out(figure: Figure, title: str, unit: str, lines: Sequence[dict[str, Any]]) -> Figure:
    """All figures have the same steps below each other."""
    last = max(line["step"] for line in lines)
    figure.update_xaxes(title="step", range=[-0.02 * last, 1.02 * last])
    figure.update_layout(title=title, yaxis_title=unit, template="plotly_white", showlegend=True)
    return figure


def _drift(training: LoopRun, lines: Sequence[dict[str, Any]]) -> Figure | None:
    """How far the pose prior has gone from the one at the start, after each update; None where there was none."""
    from plotly.graph_objects import Figure, Scatter

    accepted = [line["step"] for line in lines if (line.get("prior_update") or {}).get("accepted")]
    files = [training.folder / "priors" / f"prior-{version:04d}.npz" for version in range(len(accepted) + 1)]
    if not accepted or not all(path.is_file() for path in files):
        return None
    known = [_moments(load_prior(path)) for path in files]
    steps = [0, *accepted, training.step]
    figure = Figure()
    for words, part in (("mean pose", 0), ("spread (standard deviations)", 1)):
        away = [float((moments[part] - known[0][part]).square().mean().sqrt()) for moments in known]
        trace = Scatter(x=steps, y=[*away, away[-1]], name=words, mode="lines+markers", line_shape="hv")
        figure.add_trace(trace)
    title = "Pose prior: distance from the one at the start"
    return _laid_out(figure, title, "degrees, root mean square", lines)


def _moments(prior: PosePriorModel) -> tuple[Tensor, Tensor]:
    """(45,) mean and standard deviation of each angle, degrees, of all components together."""
    half_log_det = -torch.diagonal(prior.precision_factors, dim1=1, dim2=2).log().sum(1)
    weights = torch.softmax(half_log_det - prior.offsets, 0)
    mean = weights @ prior.means
    within = torch.cholesky_inverse(prior.precision_factors).diagonal(dim1=1, dim2=2)
    spread = (weights @ (within + (prior.means - mean).square())).sqrt()
    return torch.rad2deg(mean), torch.rad2deg(spread)


def _priors(lines: Sequence[dict[str, Any]]) -> str:
    """A table of the attempts to learn a better prior."""
    attempts = [(line["step"], line["prior_update"]) for line in lines if line.get("prior_update")]
    if not attempts:
        return ""
    rows = "".join(
        f"<tr><td>{step}</td><td>{update['gain_nats']:+.2f} &plusmn; {update['gain_error'] or 0:.2f}</td>"
        f"<td>{update['moved_deg']:.2f}</td><td>{'taken' if update['accepted'] else escape(update['reason'])}</td></tr>"
        for step, update in attempts
    )
    return (
        "<h2>Attempts at a better pose prior (those taken: dotted lines)</h2>"
        "<table cellpadding='6'><tr><th>step</th><th>gain of a held-out hand's log "
        f"evidence</th><th>mean pose moved, degrees</th><th></th></tr>{rows}</table>"
    )


def _pictures(training: LoopRun, files: Path) -> list[str]:
    """Drawings of the fits of least and most energy."""
    parts = list(training.memory.cache.batches())
    if not parts:
        return []
    fits = CachedFits.concatenate(parts)
    order = fits.energy.argsort()
    few = min(_PICTURES, len(fits))
    shown = fits.select(torch.cat([order[:few], order[-few:].flip(0)]))
    result = shown.to_result(training.memory.models)
    pair = training.pair
    paths = write_overlays(result, pair.right.faces, pair.left.faces, files, max_size=256, suffix=".jpg")
    return [
        f"<h2>{title}</h2><div>{''.join(_picture(result, paths, i) for i in rows)}</div>"
        for title, rows in (("Fits of least energy", range(few)), ("Fits of most energy", range(few, 2 * few)))
    ]


def _picture(result: FitResult, paths: Sequence[Path], i: int) -> str:
    name, about = escape(result.keypoints.ids[i]), f"energy {float(result.energy[i]):.1f}"
    doubts = escape(result.doubts[i])
    return (
        f'<figure style="display: inline-block; width: 256px; margin: 4px; vertical-align: top">'
        f'<img src="report_files/{escape(paths[i].name)}" alt="{name}" style="max-width: 100%">'
        f"<figcaption>{name}<br>{about}<br>{doubts}</figcaption></figure>"
    )
