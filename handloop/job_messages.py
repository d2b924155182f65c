"""What `handloop fit` and `predict` say and write about a run: lines on the screen, summary, report, pictures."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from handloop.core.results import STATUS_HELP, FitResult, Status, write_text
from handloop.core.words import counted
from handloop.fitting.problem import HandModels
from handloop.formats import ReadResult

if TYPE_CHECKING:
    from handloop.commands import KeypointCommand


def model_notes(models: HandModels) -> list[str]:
    """What to know about the hand models."""
    right, left = models.pair.right, models.pair.left
    notes = list(dict.fromkeys([*right.notes, *left.notes]))
    if not right.licensed:
        notes.append(
            "the embedded hand is used: parameters are not MANO's. Name your MANO file with --mano to get those."
        )
    elif models.pair.left_is_mirror:
        notes.append("only one side's MANO file was given; the other side is its mirror image.")
    return notes


def say_what_was_read(console: Console, read: ReadResult, notes: list[str]) -> None:
    """Counts, notes and problems."""
    left = int((~read.keypoints.is_right).sum())
    right = len(read.keypoints) - left
    hands = f"{right:,} right and {counted(left, 'left hand')}" if right and left else ""
    hands = hands or (counted(left, "left hand") if left else counted(right, "right hand"))
    others = (
        (read.files_without_hands, counted(read.files_without_hands, "file") + " without hands"),
        (read.hands_empty, counted(read.hands_empty, "empty hand")),
        (len(read.skipped), counted(len(read.skipped), "file") + " of other kinds skipped"),
    )
    said = [hands if len(read.keypoints) else "no hands", *(text for n, text in others if n)]
    console.print(f"{counted(read.files_read, 'file')} read: {', '.join(said)}.")
    for note in notes:
        console.print(f"note: {note}", style="yellow", markup=False)
    for problem in read.problems:
        console.print(f"problem: {problem.path}: {problem.message}", style="red", markup=False)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Hands per second."""
        return Text("" if task.speed is None else f"{task.speed:.0f} hands/s")


def progress(console: Console) -> Progress:
    """A bar with rate and time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=not sys.stderr.isatty())


def write_summary(out: Path, result: FitResult, read: ReadResult, notes: list[str], seconds: float) -> None:
    """summary.json: counts, and by name what was not read or not fitted."""
    summary = {
        **result.summary(),
        "seconds": round(seconds, 3),
        "files_read": read.files_read,
        "files_without_hands": read.files_without_hands,
        "hands_empty": read.hands_empty,
        "skipped": list(read.skipped),
        "notes": notes,
        "problems": [{"path": p.path, "message": p.message} for p in read.problems],
        "not_fitted": [
            {"id": result.keypoints.ids[i], "status": Status(int(result.status[i])).name.lower()}
            for i in (~result.fitted()).nonzero()[:, 0].tolist()
        ],
    }
    write_text(out / "summary.json", json.dumps(summary, indent=1) + "\n")


def write_pictures(
    command: KeypointCommand,
    models: HandModels,
    result: FitResult,
    read: ReadResult,
    notes: list[str],
    console: Console,
) -> None:
    """Overlays and meshes if asked for, and the report."""
    from handloop.view.meshes import write_obj
    from handloop.view.overlay import write_overlays
    from handloop.view.report import write_report

    right, left = models.pair.right.faces, models.pair.left.faces
    if "overlays" in command.save:
        with console.status("drawing overlays"):
            write_overlays(result, right, left, command.out / "overlays")
    if "meshes" in command.save:
        with console.status("writing meshes"):
            write_obj(result, right, left, command.out / "meshes")
    if command.report_hands > 0 and len(result):
        with console.status("writing the report"):
            problems = [f"{p.path}: {p.message}" for p in read.problems]
            write_report(
                *(result, right, left, command.out, command.report_hands),
                notes=notes,
                problems=problems,
            )


def say_what_came_out(console: Console, result: FitResult, path: Path, seconds: float) -> None:
    """How many hands were fitted, how well, how fast, and which ask to be looked at."""
    fitted = int(result.fitted().sum())
    done = "predicted" if bool((result.status == Status.PREDICTED).any()) else "fitted"
    if fitted:
        relative = (result.rms_px / result.keypoints.box_size().clamp(min=1e-9))[result.fitted()].nanmedian()
        error = (
            f"median reprojection error {float(result.rms_px[result.fitted()].nanmedian()):.1f} px "
            f"({100 * float(relative):.1f} % of the hand's box)"
        )
        console.print(
            f"{fitted:,} of {counted(len(result), 'hand')} {done} in {seconds:.1f} s "
            f"({len(result) / max(seconds, 1e-9):,.0f}/s), "
            f"{'without keypoints to compare with' if bool(relative.isnan()) else error}."
        )
    else:
        console.print(f"none of {counted(len(result), 'hand')} {done}.")
    doubtful = [text for text, ok in zip(result.doubts, result.fitted().tolist(), strict=True) if ok and text]
    if doubtful:
        counts: Counter[str] = Counter()
        for text, count in Counter(doubtful).items():
            counts.update(dict.fromkeys(text.split("; "), count))
        named = ", ".join(f"{reason} ({count})" for reason, count in counts.most_common(3))
        style = "red" if len(doubtful) > fitted / 2 else "yellow"
        verb = "is" if len(doubtful) == 1 else "are"
        console.print(f"{len(doubtful)} of them {verb} doubtful: {named}.", style=style, markup=False)
    for status in (Status.TOO_FEW_POINTS, Status.FAILED):
        rows = (result.status == status).nonzero()[:, 0].tolist()
        if rows:
            names = ", ".join(result.keypoints.ids[i] for i in rows[:5]) + (" …" if len(rows) > 5 else "")
            console.print(f"{counted(len(rows), 'hand')}: {STATUS_HELP[status]} ({names})", style="red", markup=False)
    console.print(f"results in {path.parent}", markup=False)
