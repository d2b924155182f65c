"""What a shard says about itself, in a file beside its results, and the same of a whole run."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from handloop.core.errors import FileFormatError
from handloop.core.results import FitResult, Status, write_text
from handloop.formats.options import ReadResult
from handloop.formats.result_shards import put_whole

_BINS = 100
"""Bins per factor e: a median over a whole run is exact to half a percent."""
LISTED = 1000
"""Hands of each kind that a summary names, and files that a run's names; counts are complete, results say all."""


@dataclass(frozen=True)
class ShardSummary:
    """Counts of a shard, and lists of what went wrong."""

    key: str
    file: str
    """Name of its results."""
    size: int
    """Their bytes."""
    inputs: str
    """The files, in short."""
    seconds: float
    """From its first file's reading to its writing."""
    cpu_seconds: float
    """Of the processor, in the same time."""
    node: str
    """Name of the machine."""
    peak_mb: int
    """Most memory that the worker had taken until then, MB."""
    hands: int
    fitted: int
    left: int
    plausible: int
    camera_known: int
    status: dict[str, int]
    """Hands by how their fits ended."""
    files_read: int
    files_without_hands: int
    hands_empty: int
    problems: list[tuple[str, str]]
    """Files that could not be used, and why."""
    not_fitted: list[tuple[str, str]]
    """Ids of hands without a fit, and their statuses; the first of them."""
    doubts: dict[str, int]
    """Hands by what speaks against their fits."""
    doubtful_count: int
    """Hands that something speaks against."""
    doubtful: list[str]
    """Ids of the first of them."""
    notes: list[str]
    """What was assumed or looks odd."""
    rms_px: dict[str, int]
    """Fitted hands by the logarithm of their error, in hundredths."""
    rms_relative: dict[str, int]
    """The same, as a part of the hand's box."""
    expected_error_mm: dict[str, int]
    """The same of the expected error."""
    texts: dict[str, str]
    """Version, model, recipe and conventions."""

    @classmethod
    def of(
        cls, key: str, file: Path, inputs: str, result: FitResult, read: ReadResult, notes: list[str]
    ) -> ShardSummary:
        """The summary of results that were written to `file`; what the worker
        alone knows (`seconds`, `cpu_seconds`, `node`, `peak_mb`) is left open."""
        fitted = result.fitted()
        done = fitted & torch.isfinite(result.rms_px)
        relative = result.rms_px / result.keypoints.box_size().clamp(min=1e-9)
        ids = result.keypoints.ids
        doubtful = [i for i in fitted.nonzero()[:, 0].tolist() if result.doubts[i]]
        doubts = Counter(reason for i in doubtful for reason in result.doubts[i].split("; "))
        without = (~fitted).nonzero()[:LISTED, 0].tolist()
        return cls(
            key=key,
            file=file.name,
            size=file.stat().st_size,
            inputs=inputs,
            seconds=0.0,
            cpu_seconds=0.0,
            node="",
            peak_mb=0,
            hands=len(result),
            fitted=int(fitted.sum()),
            left=int((~result.keypoints.is_right).sum()),
            plausible=int(result.plausible.sum()),
            camera_known=int(result.camera.is_known().sum()),
            status={status.name.lower(): int((result.status == status).sum()) for status in Status},
            files_read=read.files_read,
            files_without_hands=read.files_without_hands,
            hands_empty=read.hands_empty,
            problems=[(problem.path, problem.message) for problem in read.problems],
            not_fitted=[(ids[i], Status(int(result.status[i])).name.lower()) for i in without],
            doubts=dict(doubts),
            doubtful_count=len(doubtful),
            doubtful=[ids[i] for i in doubtful[:LISTED]],
            notes=notes,
            rms_px=_histogram(result.rms_px[done]),
            rms_relative=_histogram(relative[done]),
            expected_error_mm=_histogram(result.expected_error_mm[fitted]),
            texts=dict(result.provenance),
        )

    def save(self, folder: Path) -> None:
        """Write it beside the results. It is written after them, so that it says they are whole."""
        put_whole(folder / f"{self.key}.json", lambda path: write_text(path, json.dumps(asdict(self), indent=1) + "\n"))

    @classmethod
    def load(cls, folder: Path, key: str) -> ShardSummary | None:
        """The summary of a shard that is done; None where it is not, or its results are not as they were written."""
        try:
            held = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
            summary = cls(**{field.name: held[field.name] for field in fields(cls)})
            whole = (folder / summary.file).stat().st_size == summary.size
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return summary if whole else None


@dataclass(frozen=True)
class RunSummary:
    """The shards' summaries added up."""

    hands: int
    fitted: int
    doubtful: int
    doubts: dict[str, int]
    """Hands by what speaks against their fits, the most frequent first."""
    problems: list[tuple[str, str]]
    """Files that could not be used, and why; the first of them."""
    problems_count: int
    """All of them."""
    notes: list[str]
    """Each sentence once, with the number of shards that say it."""
    entries: dict[str, object]
    """All of this and more under the keys of a plain run's `summary.json`."""


def summarise(shards: Iterable[ShardSummary]) -> RunSummary:
    """Add up what shards say.

    Raises:
        FileFormatError: the shards are of different models or settings.
    """
    counts: Counter[str] = Counter()
    status: Counter[str] = Counter()
    doubts: Counter[str] = Counter()
    errors: dict[str, Counter[str]] = {"rms_px": Counter(), "rms_relative": Counter(), "expected_error_mm": Counter()}
    problems: list[tuple[str, str]] = []
    not_fitted: list[tuple[str, str]] = []
    notes: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for shard in shards:
        if texts and texts != shard.texts:
            raise FileFormatError(f"the shard {shard.file} was fitted with other settings than those before it.")
        texts = shard.texts
        for name in ("hands", "fitted", "left", "plausible", "camera_known"):
            counts[name] += getattr(shard, name)
        for name in ("files_read", "files_without_hands", "hands_empty"):
            counts[name] += getattr(shard, name)
        counts["problems"] += len(shard.problems)
        counts["doubtful"] += shard.doubtful_count
        status.update(shard.status)
        doubts.update(shard.doubts)
        for name, total in errors.items():
            total.update(getattr(shard, name))
        problems += shard.problems[: LISTED - len(problems)]
        not_fitted += shard.not_fitted[: LISTED - len(not_fitted)]
        for note in shard.notes:
            notes.setdefault(_alike(note), []).append(note)
    told = [_together(each) for each in notes.values()]
    entries: dict[str, object] = {
        **{name: counts[name] for name in ("hands", "fitted", "left")},
        "status": dict(status),
        "rms_px_median": _quantile(errors["rms_px"], 0.5),
        "rms_px_p90": _quantile(errors["rms_px"], 0.9),
        "rms_relative_to_box_median": _quantile(errors["rms_relative"], 0.5),
        "plausible": counts["plausible"],
        "expected_error_mm_median": _quantile(errors["expected_error_mm"], 0.5),
        "camera_known": counts["camera_known"],
        **texts,
        **{name: counts[name] for name in ("files_read", "files_without_hands", "hands_empty", "doubtful")},
        "doubts": dict(doubts.most_common()),
        "notes": told,
        "problems_count": counts["problems"],
        "problems": [{"path": path, "message": message} for path, message in problems],
        "not_fitted": [{"id": name, "status": why} for name, why in not_fitted],
    }
    return RunSummary(
        *(counts["hands"], counts["fitted"], counts["doubtful"], dict(doubts.most_common())),
        *(problems, counts["problems"], told, entries),
    )


def _alike(note: str) -> str:
    """What notes have in common that differ by counts and by the file that they are about."""
    return re.sub(r"[\d,.]+", "0", re.sub(r" \[[^\]]*\]$", "", note))


def _together(notes: list[str]) -> str:
    """One line for notes of as many shards: thousands of shards would otherwise say as many things."""
    if len(notes) == 1:
        return notes[0]
    same = len(set(notes)) == 1
    return f"{notes[0]} (in {len(notes)} shards)" if same else f"{notes[0]} (the like in {len(notes)} shards)"


def _histogram(values: Tensor) -> dict[str, int]:
    """How many values round to each hundredth of a logarithm; what is not finite is left out."""
    finite = values[torch.isfinite(values)].double().clamp(min=1e-12)
    bins, counts = (finite.log() * _BINS).round().long().unique(return_counts=True)
    return {str(place): count for place, count in zip(bins.tolist(), counts.tolist(), strict=True)}


def _quantile(histogram: Mapping[str, int], share: float) -> float | None:
    """The value below which this share lies."""
    total = sum(histogram.values())
    passed = 0
    for place, count in sorted((int(place), count) for place, count in histogram.items()):
        passed += count
        if passed >= share * total:
            return math.exp(place / _BINS)
    return None
