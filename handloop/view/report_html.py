"""The report page's HTML, piece by piece. Every text from outside goes through `escape`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from handloop.core.joints import FINGERS
from handloop.view.overlay import MESH_COLOURS
from handloop.view.report_text import Fact, number
from handloop.view.strokes import FINGER_COLOURS

_PAGE = Path(__file__).parent / "page"


def document(title: str, files: str, body: Sequence[str]) -> str:
    """The whole page.

    Args:
        title: not yet escaped.
        files: name of the folder beside the page.
        body: pieces of HTML.
    """
    style = (_PAGE / "page.css").read_text(encoding="utf-8")
    script = (_PAGE / "page.js").read_text(encoding="utf-8")
    pieces = "\n".join(body)
    # connect-src: neither this page nor plotly may fetch anything, whatever they are asked to draw.
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="connect-src 'none'">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{pieces}
</main>
<script src="{files}/data.js"></script>
<script>
{script}</script>
</body>
</html>
"""


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """The counts at the top: (number, what it counts)."""
    inner = "".join(f'<div class="tile"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in values)
    return f'<div class="tiles">{inner}</div>'


def box(heading: str, sentences: Sequence[str], bad: bool = False) -> str:
    """A loud list; nothing where there is nothing to say."""
    if not sentences:
        return ""
    items = "".join(f"<li>{escape(s)}</li>" for s in sentences)
    return f'<section class="box{" bad" if bad else ""}"><h2>{escape(heading)}</h2><ul>{items}</ul></section>'


def table(n: int, most: int) -> str:
    """The table's frame for n hands, of which it shows so many; page.js fills it."""
    heading = "All hands" if n <= most else f"The worst {most:,} of {n:,} hands (all are in results.npz)"
    return f"""<h2 id="table">{heading}</h2>
<p class="soft">Worst first: hands without a fit, doubtful ones, then by error relative to the hand. Click a heading to
sort by it.</p>
<div class="tools"><input type="search" id="filter" placeholder="part of an id" aria-label="show ids that contain">
<button type="button" id="back">Back</button><button type="button" id="next">Next</button>
<span id="where" class="soft"></span></div>
<noscript><p>The table needs JavaScript; the same numbers are in results.npz.</p></noscript>
<div class="scroll"><table id="hands"><thead></thead><tbody></tbody></table></div>"""


def legend() -> str:
    """What the drawings show."""
    swatch = "".join(
        f'<li><i style="background:rgb{colour}"></i>{finger}</li>'
        for finger, colour in zip(FINGERS, FINGER_COLOURS, strict=True)
    )
    meshes = "".join(
        f'<li><i class="mesh" style="background:rgb{MESH_COLOURS[side]}"></i>{word} hand</li>'
        for side, word in ((True, "right"), (False, "left"))
    )
    return (
        f'<ul class="legend">{swatch}{meshes}<li><i class="ring"></i>input point, larger when more confident; a line '
        "leads to its fitted joint</li></ul>"
    )


def card(
    anchor: str,
    heading: tuple[str, str, str, str],
    drawing: tuple[str, int, int],
    has_mesh: bool,
    lines: Sequence[Fact],
    terms: Mapping[str, float],
) -> str:
    """One hand.

    Args:
        anchor: the card's own id in the page.
        heading: the hand's id, side, status in a word, and its tone (good, warn, bad).
        drawing: path relative to the page (safe as it is), width and height.
        has_mesh: False where there is no fit.
        lines: the numbers.
        terms: energy by term; empty where there is no fit.
    """
    name, side, status, tone = (escape(text) for text in heading)
    path, width, height = drawing
    stage = f'<div class="stage" data-hand="{anchor}"></div>' if has_mesh else '<div class="stage">no mesh</div>'
    half = (len(lines) + 1) // 2
    left, right = ("".join(_fact(line) for line in part) for part in (lines[:half], lines[half:]))
    return f"""<article class="card" id="{anchor}">
<header><h3>{name}</h3><span class="chip">{side}</span><span class="chip {tone}">{status}</span></header>
<div class="views">
<figure class="drawing">
<img src="{path}" width="{width}" height="{height}" loading="lazy" alt="overlay of {name}"></figure>
{stage}
</div>
<div class="facts"><section><dl>{left}</dl></section><section><dl>{right}</dl>{_terms(terms)}</section></div>
</article>"""


def _fact(line: Fact) -> str:
    meaning = f'<span class="soft">{escape(line.meaning)}</span>' if line.meaning else ""
    return f"<dt>{escape(line.name)}</dt><dd>{escape(line.value)}{meaning}</dd>"


def _terms(terms: Mapping[str, float]) -> str:
    if not terms:
        return ""
    total = sum(terms.values())
    largest = max((abs(v) for v in terms.values() if np.isfinite(v)), default=0.0) or 1.0
    rows = "".join(
        f'<tr><td class="text">{escape(name.replace("_", " "))}</td><td>{number(value)}</td>'
        f'<td class="bar"><i style="width:{100 * np.nan_to_num(abs(value) / largest, posinf=1.0):.0f}%"></i></td></tr>'
        for name, value in sorted(terms.items(), key=lambda item: -np.nan_to_num(item[1]))
    )
    return (
        f'<dl><dt>Energy {number(total)}, by term</dt><dd><span class="soft">in half squared sigmas: a point off by '
        "one standard deviation of its noise costs half a unit per axis; a prior costs what makes the hand unusual"
        f'</span></dd></dl><table class="terms">{rows}</table>'
    )


def histogram(values: np.ndarray, caption: str, unit: str, digits: int) -> str:
    """Counts of values (n,) as inline SVG; the few beyond the 97th percentile share the last bar."""
    finite = np.sort(values[np.isfinite(values)])
    if not len(finite):
        return ""
    end = _round_up(float(np.quantile(finite, 0.97)))
    bins = 24
    counts = np.histogram(finite[finite <= end], bins=bins, range=(0.0, end))[0].tolist()
    over = int((finite > end).sum())
    top = max([*counts, over, 1])
    width, height, base = 460, 150, 128
    step = (width - 20) / (bins + 2)
    bars: list[str] = []
    for k, count in enumerate([*counts, over]):
        x = 10 + (k if k < bins else k + 0.6) * step
        tall = 104 * count / top
        words = f"{number(end * k / bins, digits)} to {number(end * (k + 1) / bins, digits)} {unit}"
        words = words if k < bins else f"more than {number(end, digits)} {unit}"
        name = ' class="over"' if k == bins else ""
        bars.append(
            f'<rect{name} x="{x:.1f}" y="{base - tall:.1f}" width="{step - 1.5:.1f}" height="{tall:.1f}">'
            f"<title>{count:,} hands: {words}</title></rect>"
        )
    middle = float(np.median(finite))
    mark = 10 + min(middle / end, 1.0) * bins * step
    anchor = "start" if middle < 0.7 * end else "end"
    shift = 4 if anchor == "start" else -4
    labels = "".join(
        f'<text x="{10 + part * bins * step:.1f}" y="{base + 15}" text-anchor="{"middle" if part else "start"}">'
        f"{number(part * end, digits)}</text>"
        for part in ((0.0, 0.25, 0.5, 0.75) if over else (0.0, 0.25, 0.5, 0.75, 1.0))
    )
    more = f'<text x="{width - 10}" y="{base + 15}" text-anchor="end">over {number(end, digits)}</text>' if over else ""
    return f"""<figure class="chart"><figcaption>{escape(caption)}</figcaption>
<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(caption)}: median {number(middle, digits)} {unit}">
<line x1="10" y1="{base}" x2="{width - 10}" y2="{base}"/>{"".join(bars)}
<line class="mark" x1="{mark:.1f}" y1="12" x2="{mark:.1f}" y2="{base}"/>
<text x="{mark + shift:.1f}" y="18" text-anchor="{anchor}">median {number(middle, digits)} {unit}</text>{labels}{more}
</svg></figure>"""


def _round_up(value: float) -> float:
    """To a number that divides by four without many digits, so that the axis is readable."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** np.floor(np.log10(value))
    return float(unit * next(m for m in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if m * unit >= value * 0.999))


def about(texts: Mapping[str, str]) -> str:
    """Where the numbers come from: the result's provenance."""
    rows = "".join(
        f'<tr><td class="text">{escape(k)}</td><td class="text">{escape(v)}</td></tr>' for k, v in texts.items()
    )
    return f'<details><summary>How this was made</summary><table class="about">{rows}</table></details>'
