"""Predictions in the form that the servers of FreiHAND and HO-3D take.

Both take `pred.json`, a list of all joints (N, 21, 3) and a list of all vertices (N, 778, 3), in metres and in the
order of their evaluation pictures, inside a zip file. They differ in axes, joint order, joint definition and tips.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from handloop.core.camera import points_to_opengl
from handloop.core.errors import InputError
from handloop.core.joints import CANONICAL_FROM_MANO
from handloop.evaluation.prediction import JointDefinition, Prediction, meshes, with_definition
from handloop.hand.model import HandPair

_DIGITS = 7
"""Decimals of a coordinate in m: a tenth of a micrometre, half the size of the file that full precision makes."""


@dataclass(frozen=True)
class Style:
    """What one data set's server expects."""

    title: str
    """Its name for people."""
    definition: JointDefinition
    """How its true joints are defined."""
    tip_set: str
    """Its fingertip vertices."""
    is_ho3d: bool
    """MANO's joint order with the tips behind, and OpenGL's axes, in place of the canonical ones."""
    sizes: tuple[int, ...]
    """How many pictures its evaluation sets have."""


STYLES: dict[str, Style] = {
    # utils/model.py and mano_utils.py of lmb-freiburg/freihand; 3,960 pictures (fh_utils.db_size).
    "freihand": Style("FreiHAND", "regressed", "freihand", False, (3960,)),
    # setup_mano.py (tips behind MANO's posed joints), README (axes) and db_size for v2, v3 of shreyashampali/ho3d.
    "ho3d": Style("HO-3D", "skinning", "ho3d", True, (11524, 20137)),
}


@dataclass(frozen=True, eq=False)
class Submission:
    """N hands as a server takes them."""

    points: Tensor
    """(N, 21, 3) m, in the server's axes and joint order; zeros for hands without a fit."""
    vertices: Tensor
    """(N, 778, 3) m, likewise."""
    without_fit: int
    """Hands written as zeros, as the servers' own templates do: the servers take no gaps, and count them as wrong."""
    notes: tuple[str, ...]
    """What to know before uploading."""


def make_submission(
    prediction: Prediction,
    pair: HandPair,
    style: str,
    definition: JointDefinition | None = None,
    tip_set: str | None = None,
    order: Sequence[str] | None = None,
) -> Submission:
    """Bring results into a server's form.

    Args:
        prediction: M hands.
        pair: the models that were fitted.
        style: a key of `STYLES`.
        definition: of the joints; None takes the data set's own.
        tip_set: fingertip vertices; None takes the data set's own. Where the results follow a keypoint layout, their
            skinning points are written as they are.
        order: N ids in the server's order; hands that the results lack become zeros. None keeps the results' order.

    Raises:
        InputError: unknown style or ids, or results without parameters or of other models.
    """
    if style not in STYLES:
        raise InputError(f"the format {style!r} is unknown, expected one of {', '.join(STYLES)}.")
    wanted = STYLES[style]
    chosen = wanted.definition if definition is None else definition
    if tip_set is None and not (chosen == "skinning" and prediction.has_layout):
        tip_set = wanted.tip_set
    vertices = meshes(prediction, pair)[0]
    points = with_definition(prediction, pair, chosen, tip_set).points
    rows = torch.arange(len(prediction)) if order is None else _rows(prediction, order)
    points, vertices = (_arranged(values, rows) for values in (points, vertices))
    without_fit = int((~torch.isfinite(points[:, 0, 0])).sum())
    if wanted.is_ho3d:
        # The inverse of the order in which canonical points lie among MANO's joints and tips.
        to_mano = [CANONICAL_FROM_MANO.index(k) for k in range(21)]
        points, vertices = points_to_opengl(points[:, to_mano]), points_to_opengl(vertices)
    # Adding zero turns the -0 of a negated gap into 0.
    points, vertices = (values.nan_to_num(nan=0.0) + 0.0 for values in (points, vertices))
    return Submission(points, vertices, without_fit, tuple(_notes(prediction, wanted, len(rows), without_fit)))


def write_submission(submission: Submission, path: str | os.PathLike[str]) -> Path:
    """Write a submission as `.json`, or as `.zip` with `pred.json` in it (`zip -j pred.zip pred.json`).

    The file is either whole or absent, and the same hands give the same bytes.

    Raises:
        InputError: another suffix, or the file cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() not in (".json", ".zip"):
        raise InputError(f"{target}: a submission is a .zip file, or its .json alone; change the name.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(target, submission)
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror or error}); name another file.") from error
    return target


def _write_whole(target: Path, submission: Submission) -> None:
    temporary = target.with_name(target.name + ".partial")
    try:
        if target.suffix.lower() == ".json":
            with open(temporary, "wb") as file:
                _write_json(file, submission)
        else:
            with zipfile.ZipFile(temporary, "w") as archive:
                # A ZipInfo of its own carries no time of writing.
                info = zipfile.ZipInfo("pred.json")
                info.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(info, "w", force_zip64=True) as member:
                    _write_json(member, submission)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _write_json(file: IO[bytes], submission: Submission) -> None:
    """[[joints of each hand], [vertices of each hand]], hand by hand: as one string it would take gigabytes."""
    for opening, values in ((b"[[", submission.points), (b"],\n[", submission.vertices)):
        file.write(opening)
        for text in _texts(values):
            file.write(text.encode("ascii"))
    file.write(b"]]\n")


def _texts(values: Tensor) -> Iterator[str]:
    for row, hand in enumerate(values.numpy().round(_DIGITS)):
        yield (",\n" if row else "") + json.dumps(hand.tolist(), allow_nan=False)


def _rows(prediction: Prediction, order: Sequence[str]) -> Tensor:
    if prediction.ids is None:
        raise InputError("the results hold no ids to put in order.")
    if len(set(order)) != len(order):
        twice = next(name for name in order if order.count(name) > 1)
        raise InputError(f"the order names {twice!r} more than once; every picture is predicted once.")
    place = {name: row for row, name in enumerate(prediction.ids)}
    rows = [place.get(name, -1) for name in order]
    if order and max(rows) < 0:
        known = f", they hold {prediction.ids[0]!r} for example" if prediction.ids else ""
        raise InputError(f"none of the {len(order)} ids of the order is in the results{known}.")
    return torch.tensor(rows, dtype=torch.int64)


def _arranged(values: Tensor, rows: Tensor) -> Tensor:
    out = torch.full((len(rows), *values.shape[1:]), math.nan, dtype=torch.float64)
    there = rows >= 0
    out[there] = values[rows[there]]
    return out


def _notes(prediction: Prediction, style: Style, n: int, without_fit: int) -> list[str]:
    notes = []
    if without_fit:
        notes.append(f"{without_fit} of {n} hands have no fit and were written as zeros, which counts as wrong.")
    if n not in style.sizes:
        sizes = " or ".join(f"{size:,}" for size in style.sizes)
        notes.append(f"{n:,} hands were written, {style.title}'s evaluation sets have {sizes}: the server will refuse.")
    left = int((~prediction.is_right).sum())
    if left:
        notes.append(f"{left} hands are left hands; {style.title} has right hands only.")
    return notes
