"""Settling the unit of x and y over a whole run, and turning everything into px."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from handloop.formats.notes import Notes
from handloop.formats.options import Problem, ReadOptions
from handloop.formats.rows import Rows

_UNIT_LIMIT = 2.0
"""Largest coordinate of a hand given as a part of the picture: such hands leave it by less than a picture's width,
and no hand in px lies within 2 px of the corner."""

_SIGNED_SHARE = 0.1
"""Share of negative coordinates from which [-1, 1] is meant: about half is negative there, a rare point in [0, 1]."""

_STRAY_SHARE = 0.02
"""Share of a source's hands below which those that look like parts of the picture are px as the others."""

_ASSUMED_SIZE = (1000.0, 1000.0)
"""Picture size (px) assumed for MediaPipe's coordinates where nothing gives it: square, as any ratio is a guess."""

_MAX_PX = 1e6
"""No picture is that wide."""


def to_pixels(rows: Rows, options: ReadOptions, notes: Notes) -> tuple[Rows, list[Problem]]:
    """Rows in px (pixel centres at integers); hands that cannot be converted are left out and named."""
    if not len(rows):
        return rows, []
    normalised = _is_normalised(rows, options)
    signed = _is_signed(rows, normalised, options, notes)
    size, refused, problems = _sizes_for(rows, normalised, notes)
    keep = ~refused
    openpose = rows.per_file([hands.kind == "openpose" for _, hands in rows.files])
    unit = np.where(signed[:, None, None], (rows.points[..., :2] + 1) / 2, rows.points[..., :2])
    # OpenPose divides by the size less one (keypointScaler.cpp), MediaPipe counts from the first pixel's outer edge.
    at_centre = unit * (size[:, None] - 1)
    from_edge = unit * size[:, None] - 0.5
    xy = np.where(openpose[:, None, None], at_centre, from_edge)
    points = rows.points.copy()
    points[..., :2] = np.where(normalised[:, None, None], xy, points[..., :2])
    stretch = np.where(normalised, size[:, 0] * np.where(signed, 0.5, 1.0), 1.0)
    done = replace(rows, points=points, depth=rows.depth * stretch[:, None], size=size).select(keep)
    return _without_huge(done, problems)


def _is_normalised(rows: Rows, options: ReadOptions) -> np.ndarray:
    """(N,) bool, decided per file."""
    if options.scale is not None:
        return np.full(len(rows), options.scale != "pixels")
    reach = np.where(rows.visible(), np.abs(rows.points[..., :2]).max(-1), 0.0).max(1)
    largest = np.zeros(len(rows.files))
    np.maximum.at(largest, rows.file, reach)
    normalised: np.ndarray = ((largest > 0) & (largest <= _UNIT_LIMIT))[rows.file]
    for kind in ("openpose", "mediapipe", "array", "table"):
        same = rows.per_file([hands.kind == kind for _, hands in rows.files])
        # Among thousands of files in px some hold nothing but junk in the corner; one tool writes one unit.
        if normalised[same].sum() < _STRAY_SHARE * same.sum():
            normalised &= ~same
    return normalised


def _is_signed(rows: Rows, normalised: np.ndarray, options: ReadOptions, notes: Notes) -> np.ndarray:
    """(N,) bool: [-1, 1], decided over all files of a run, as one quarter of the picture alone does not show it."""
    if options.scale is not None:
        return np.full(len(rows), options.scale == "signed-unit")
    doubtful: np.ndarray = normalised & rows.per_file([hands.kind in ("openpose", "table") for _, hands in rows.files])
    if not doubtful.any():
        return doubtful
    xy = rows.points[..., :2][doubtful][rows.visible()[doubtful]]
    signed = bool((xy < 0).mean() > _SIGNED_SHARE)
    one, other = ("[-1, 1]", "unit") if signed else ("[0, 1]", "signed-unit")
    sentence = f"the coordinates were taken as {one} of the picture; --scale {other} or --scale pixels changes that."
    for file in np.unique(rows.file[doubtful]).tolist():
        notes.add(sentence, rows.path(file))
    return doubtful if signed else np.zeros_like(doubtful)


def _sizes_for(rows: Rows, normalised: np.ndarray, notes: Notes) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
    """Picture sizes (N, 2), assumed ones filled in; (N,) bool rows that need a size nobody gave; and their problems."""
    unknown = normalised & ~np.isfinite(rows.size).all(1)
    may_assume = rows.per_file([hands.kind in ("mediapipe", "array") for _, hands in rows.files])
    size = np.where((unknown & may_assume)[:, None], np.array(_ASSUMED_SIZE), rows.size)
    for file in np.unique(rows.file[unknown & may_assume]).tolist():
        notes.add(
            "the picture's size is unknown, and 1000 x 1000 px was assumed; unless the picture is square the hands are "
            "distorted: give --image-size W H.",
            rows.path(file),
        )
    refused = unknown & ~may_assume
    message = (
        "the coordinates are parts of the picture, whose size is unknown; give --image-size W H, put the picture "
        "beside the file, or give --scale pixels if they are px."
    )
    return size, refused, [Problem(rows.path(f), message) for f in np.unique(rows.file[refused]).tolist()]


def _without_huge(rows: Rows, problems: list[Problem]) -> tuple[Rows, list[Problem]]:
    reach = np.where(rows.visible(), np.abs(rows.points[..., :2]).max(-1), 0.0).max(1, initial=0.0)
    huge = reach > _MAX_PX
    for i in np.nonzero(huge)[0].tolist():
        _, hands = rows.files[rows.file[i]]
        name = hands.labels[rows.row[i]].lstrip(":")
        where = f"hand {name!r}" if name else "the hand"
        problems.append(
            Problem(rows.path(rows.file[i]), f"{where} has a point {reach[i]:.3g} px out, beyond 1e6; it was left out.")
        )
    return rows.select(~huge), problems


def check_inside(rows: Rows, notes: Notes) -> None:
    """Say so when most points lie outside their pictures: then the px are those of a picture of another size."""
    known = np.isfinite(rows.size).all(1)
    if not known.any():
        return
    seen = rows.visible()[known]
    xy, size = rows.points[known][..., :2], rows.size[known][:, None]
    # A tenth of the picture is what detectors extrapolate beyond its edge.
    outside = ((xy < -0.1 * size) | (xy > 1.1 * size)).any(-1)
    if outside[seen].mean() > 0.5:
        notes.add(
            "most points lie outside their pictures; the keypoints may belong to pictures of another size "
            "(OpenPose's --keypoint_scale 1 or 2 writes such px)."
        )
