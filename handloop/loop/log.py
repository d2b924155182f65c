"""The log of a run: one JSON object per line, and TensorBoard where it is installed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from handloop.core.results import write_text
from handloop.loop.ranks import Ranks


class RunLog:
    """Writes lines; averages what comes in between, over all ranks."""

    def __init__(self, folder: Path, last_step: int, ranks: Ranks) -> None:
        """Go on after a step: lines of later ones, which an interruption left, are taken out. Rank 0 has the file."""
        self.path, self._ranks = folder / "log.jsonl", ranks
        self._sums: dict[str, list[float]] = {}
        self._board = None
        if not ranks.first:
            return
        kept = [line for line in read_log(folder) if line["step"] <= last_step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._board = _tensorboard(folder)

    def add(self, values: dict[str, float]) -> None:
        """Values of one step; those that are not finite do not count."""
        for name, value in values.items():
            if math.isfinite(value):
                self._sums.setdefault(name, []).append(value)

    def write(self, step: int, values: dict[str, Any]) -> dict[str, Any]:
        """A line of a step with these values and the means of what was added since the last."""
        sums: dict[str, list[float]] = {}
        for text in self._ranks.texts(json.dumps(self._sums)):
            for name, of_one in json.loads(text).items():
                sums.setdefault(name, []).extend(of_one)
        means = {name: round(sum(v) / len(v), 6) for name, v in sums.items()}
        self._sums = {}
        known = {k: v for k, v in values.items() if not isinstance(v, float) or math.isfinite(v)}
        line = {"step": step, **means, **known}
        if not self._ranks.first:
            return line
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        if self._board is not None:
            for name, value in line.items():
                if isinstance(value, (int, float)) and name != "step":
                    self._board.add_scalar(name, value, step)
        return line


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run; half a line, which a killed process left, is none."""
    path = folder / "log.jsonl"
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
