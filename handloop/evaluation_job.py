"""The jobs behind `handloop eval` and `handloop export`: results in, numbers or a server's file out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from torch import Tensor

from handloop.core.errors import InputError, ModelError
from handloop.evaluation.prediction import Prediction, meshes, read_prediction, with_definition
from handloop.evaluation.protocol import evaluate
from handloop.evaluation.report import print_evaluation, write_evaluation
from handloop.evaluation.submission import make_submission, write_submission
from handloop.evaluation.truth import Truth, read_truth
from handloop.hand.load import load_hand

if TYPE_CHECKING:
    from handloop.commands import EvalCommand, ExportCommand


def run_eval(command: EvalCommand) -> int:
    """Compare results with the truth, print the numbers, write them where asked; returns the exit status."""
    console = Console(highlight=False)
    prediction = read_prediction(command.results)
    truth = read_truth(command.truth, command.vertices)
    if command.joint_definition == "regressed" or command.tip_set is not None:
        prediction = with_definition(prediction, load_hand(command.mano), command.joint_definition, command.tip_set)
    vertices, reason = _vertices(prediction, truth, command.mano)
    evaluation = evaluate(prediction, truth, vertices, command.seed)
    print_evaluation(evaluation, console)
    if reason:
        console.print(f"note: vertices were not compared: {reason}", style="yellow", markup=False)
    if command.out is not None:
        try:
            path = write_evaluation(evaluation, command.out)
        except OSError as error:
            raise InputError(f"the folder {command.out} cannot be written ({error.strerror}); name another.") from error
        console.print(f"numbers in {path}, curves in {path.with_name('eval_curves.html')}", markup=False)
    return 0


def run_export(command: ExportCommand) -> int:
    """Write results as a server takes them; returns the exit status."""
    console = Console(stderr=True, highlight=False)
    prediction = read_prediction(command.results)
    order = None if command.order is None else _names(command.order)
    submission = make_submission(
        prediction, load_hand(command.mano), command.format, command.joint_definition, command.tip_set, order
    )
    path = write_submission(submission, command.out)
    console.print(f"{len(submission.points)} hands in {path}", markup=False)
    for note in submission.notes:
        console.print(f"note: {note}", style="yellow", markup=False)
    return 0


def _vertices(prediction: Prediction, truth: Truth, mano: str | None) -> tuple[Tensor | None, str]:
    """The results' meshes where the truth has some to compare with, or why there are none."""
    if truth.vertices is None:
        return None, ""
    try:
        return meshes(prediction, load_hand(mano))[0], ""
    except ModelError:
        raise
    except InputError as error:
        # Joints can be compared all the same.
        return None, str(error)


def _names(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the order {path} cannot be read; expected a text file with one id per line.") from error
    return [line.strip() for line in lines if line.strip()]
