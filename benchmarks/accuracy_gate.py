"""Figures of an accuracy run, the committed baseline, and how much worse a figure may be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

TOLERANCES = {
    "pa_mm": (0.1, 0.02),
    "over_20_percent": (1.0, 0.0),
    "inside_68": (3.0, 0.0),
    "worst_found_percent": (20.0, 0.0),
}
"""By how much a figure may be worse than the baseline: absolute, plus a share of the baseline's. Room for the rounding
of another machine, where a hand between two modes may fall into the other."""

_SMALLER_IS_BETTER = {"pa_mm", "over_20_percent"}


@dataclass(frozen=True)
class Figures:
    """One case with one recipe."""

    pa_mm: float
    """Mean joint error after similarity alignment."""
    over_20_percent: float
    """Share of the hands whose error is above 20 mm."""
    root_relative_mm: float
    """Mean joint error, wrist on wrist."""
    rms_percent: float
    """Median reprojection error over the hand's box."""
    inside_68: float
    """Share of the coordinates within one posterior standard deviation, %."""
    inside_95: float
    """Within 1.96."""
    worst_found_percent: float
    """Share of the worst tenth among the fifth that `expected_error_mm` ranks worst."""
    hands_per_s: float
    """For information: not part of the baseline."""

    def row(self) -> str:
        """The rest of a table row after its names."""
        return (
            f"| {self.pa_mm:.2f} | {self.over_20_percent:.1f} | {self.root_relative_mm:.1f} | {self.rms_percent:.2f} "
            f"| {self.inside_68:.0f} | {self.inside_95:.0f} | {self.worst_found_percent:.0f} | {self.hands_per_s:.0f} |"
        )


def key(case: str, recipe: str) -> str:
    """The name of a row."""
    return f"{case} / {recipe}"


@dataclass(frozen=True)
class Baseline:
    """What a run is compared with."""

    hands: int
    """Per case."""
    figures: Mapping[str, Figures]

    @classmethod
    def load(cls, path: Path) -> Baseline:
        """Read a file written by `save`."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(int(data["hands"]), {name: Figures(**row, hands_per_s=0.0) for name, row in data["figures"].items()})

    def save(self, path: Path) -> None:
        """Write as JSON, one row per line, without the speeds."""
        rows = []
        for name, figures in self.figures.items():
            row = {k: round(v, 2) for k, v in asdict(figures).items() if k != "hands_per_s"}
            rows.append(f"  {json.dumps(name)}: {json.dumps(row)}")
        text = f'{{\n "hands": {self.hands},\n "figures": {{\n' + ",\n".join(rows) + "\n }\n}\n"
        path.write_text(text, encoding="utf-8")


def check(figures: Mapping[str, Figures], baseline: Baseline) -> tuple[str, bool]:
    """A table of what is worse than allowed, and whether anything is."""
    worse, new = [], [name for name in figures if name not in baseline.figures]
    compared = 0
    for name, now in figures.items():
        before = baseline.figures.get(name)
        # The published methods change when the hand or its prior does; only the figures of handloop's own are held.
        if before is None or name.rsplit(" / ", 1)[1].startswith(("spin", "smplify")):
            continue
        for field in fields(Figures):
            if field.name not in TOLERANCES:
                continue
            compared += 1
            was, value = getattr(before, field.name), getattr(now, field.name)
            absolute, share = TOLERANCES[field.name]
            allowed = absolute + share * was
            excess = value - was if field.name in _SMALLER_IS_BETTER else was - value
            if not excess <= allowed:
                worse.append(f"| {name} | {field.name} | {was:.2f} | {value:.2f} | {allowed:.2f} |")
    lines = [f"{compared} figures compared with the baseline, {len(worse)} worse than allowed."]
    if worse:
        lines += ["| hands / recipe | figure | baseline | now | may be worse by |", "|---|---|---|---|---|", *worse]
    if new:
        lines.append(f"without a baseline: {'; '.join(new)}")
    return "\n".join(lines), bool(worse)
