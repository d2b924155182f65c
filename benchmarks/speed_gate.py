"""Figures of a speed run, what each must reach anywhere, and the committed baseline that ratios are held against."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MAY_FALL_TO = 0.6
"""A ratio may be this share of the baseline's: process times on a busy machine differ by a third from run to run."""


@dataclass(frozen=True)
class Figure:
    """One measured number."""

    name: str
    value: float
    unit: str = ""
    bar: float | None = None
    """What it has to reach; None for information."""
    most: bool = True
    """The bar is an upper bound; False for a lower one."""
    ratio: bool = False
    """Larger is better, and held against the baseline."""

    def reached(self) -> bool:
        """Whether the bar is; NaN reaches none."""
        if self.bar is None:
            return True
        return self.value <= self.bar if self.most else self.value >= self.bar

    def row(self) -> str:
        """A row of a table in Markdown."""
        said = "" if self.bar is None else f"{'at most' if self.most else 'at least'} {self.bar:g}"
        return f"| {self.name} | {self.value:.3g} {self.unit} | {said} | {'' if self.reached() else 'MISSED'} |"


def load(path: Path) -> dict[str, float]:
    """The baseline's ratios by name."""
    return {str(name): float(value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()}


def save(path: Path, figures: Sequence[Figure]) -> None:
    """Write the ratios."""
    ratios = {f.name: float(f"{f.value:.3g}") for f in figures if f.ratio}
    path.write_text(json.dumps(ratios, indent=1) + "\n", encoding="utf-8")


def check(figures: Sequence[Figure], baseline: Mapping[str, float]) -> list[str]:
    """What is wrong, in sentences: bars missed, and ratios below `MAY_FALL_TO` of the baseline's."""
    wrong = [f"{f.name}: {f.value:.3g} {f.unit}, bar {f.bar:g}" for f in figures if not f.reached()]
    for figure in figures:
        before = baseline.get(figure.name)
        if figure.ratio and before is not None and not figure.value >= MAY_FALL_TO * before:
            wrong.append(f"{figure.name}: {figure.value:.3g}, below {MAY_FALL_TO:g} of the baseline's {before:.3g}")
    return wrong
