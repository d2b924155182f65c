"""The report's numbers in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from handloop.core.joints import JOINT_NAMES
from handloop.core.results import STATUS_HELP, FitResult, Status

STATUS_WORD = {
    Status.CONVERGED: "converged",
    Status.MAX_STEPS: "step limit",
    Status.TOO_FEW_POINTS: "too few points",
    Status.FAILED: "failed",
    Status.PREDICTED: "predicted",
}

STATUS_TONE = {
    Status.CONVERGED: "good",
    Status.MAX_STEPS: "warn",
    Status.TOO_FEW_POINTS: "bad",
    Status.FAILED: "bad",
    Status.PREDICTED: "good",
}

HELP = {
    "id": "the hand's name; a link where the page holds a drawing of it",
    "side": "the person's own hand, as the input says",
    "status": "how the fit ended",
    "rms_px": "root mean square distance from input to fitted points, weighted by confidence, px",
    "rms_percent": "the same as a share of the longer side of the box around the input points",
    "energy": "what the fit minimised, in half squared sigmas",
    "hypothesis_gap": "energy of the best different solution minus this one's; small means ambiguous",
    "points": "input points that are not missing, of 21",
    "expected_error_mm": "expected mean distance of the joints from the true ones after alignment",
    "depth_sd": "standard deviation of the hand's distance from the camera",
    "doubts": "what speaks against the fit",
    "weakest": "the direction the input determines least",
}
"""What a column means."""


@dataclass(frozen=True)
class Fact:
    """One line of a hand's card."""

    name: str
    value: str
    meaning: str


def number(value: float, digits: int = 1) -> str:
    """With thousands separated; a dash where there is none."""
    return f"{value:,.{digits}f}" if math.isfinite(value) else "\u2013"


def box_percent(result: FitResult) -> np.ndarray:
    """(N,) reprojection error in % of the longer side of the hand's box; NaN where there is none."""
    rms = result.rms_px.detach().cpu().double()
    size = result.keypoints.box_size().cpu().double()
    return torch.where(size > 0, 100 * rms / size.clamp(min=1e-9), torch.full_like(rms, math.nan)).numpy()


def worst_first(result: FitResult) -> list[int]:
    """Rows by how much they ask to be looked at: no fit, then doubtful ones, then the largest error for their size."""
    done = result.fitted().cpu().numpy()
    error = box_percent(result)
    error = np.where(np.isfinite(error), error, np.inf)
    rows: list[int] = np.lexsort((-error, ~doubtful(result), done)).tolist()
    return rows


def doubtful(result: FitResult) -> np.ndarray:
    """(N,) fits that something speaks against."""
    fitted: np.ndarray = (result.fitted() & ~result.plausible).cpu().numpy()
    return fitted


def camera_notes(result: FitResult) -> list[str]:
    """What the cameras of a result mean for its numbers."""
    n, guessed = len(result), int((~result.camera.is_known()).sum())
    if not guessed:
        return []
    which = "all hands" if guessed == n else f"{guessed:,} of {n:,} hands"
    return [
        f"The focal length is an assumption for {which}: the distance from the camera is NOT metric "
        "there. Give the camera (K or the field of view) for metric results."
    ]


def facts(result: FitResult, row: int, percent: float) -> list[Fact]:
    """A hand's numbers with what they mean."""
    kp = result.keypoints
    status = Status(int(result.status[row]))
    out = [Fact("Status", STATUS_WORD[status], STATUS_HELP[status])]
    seen = kp.conf[row] > 0
    missing = [JOINT_NAMES[k] for k in range(21) if not seen[k]]
    text = (
        "none is missing" if not missing else "missing: " + ", ".join(missing[:8]) + (", \u2026" if missing[8:] else "")
    )
    out.append(Fact("Input points", f"{int(seen.sum())} of 21", text))
    if not bool(result.fitted()[row]):
        return out + _origin(result, row)
    box = float(kp.select([row]).box_size())
    out.append(
        Fact(
            "Reprojection error",
            f"{number(float(result.rms_px[row]), 2)} px = {number(percent)} % of the hand",
            f"how far fitted points lie from the input, root mean square; the hand's box is {number(box, 0)} px. A "
            "small error alone does not prove the pose: other poses may project alike",
        )
    )
    away = (result.keypoints_2d_fit[row].cpu().double() - kp.xy[row]).norm(dim=1)
    away = torch.where(seen, away, torch.full_like(away, -1.0)).nan_to_num(-1.0)
    worst = [k for k in away.argsort(descending=True).tolist()[:3] if away[k] >= 0]
    named = ", ".join(f"{JOINT_NAMES[k]} {number(float(away[k]))} px" for k in worst)
    out.append(Fact("Furthest off", named or "\u2013", "look at these input points first"))
    out.append(_gap(float(result.hypothesis_gap[row])))
    place = result.joints[row, 0].detach().cpu().double() * 1000
    known = bool(result.camera.is_known()[row])
    focal = result.camera.focal[row].mean()
    out.append(
        Fact(
            "Wrist at",
            ", ".join(f"{axis} {number(v, 0)}" for axis, v in zip("xyz", place.tolist(), strict=True)) + " mm",
            f"camera frame: right, down, forward; focal length {number(float(focal), 0)} px"
            + ("" if known else ", ASSUMED: the distance is not metric"),
        )
    )
    return out + _origin(result, row)


def _gap(gap: float) -> Fact:
    if math.isnan(gap):
        return Fact("Second-best solution", "\u2013", "not known")
    if math.isinf(gap):
        return Fact("Second-best solution", "none found", "no start led to a different solution")
    if gap < 1:
        meaning = "a different pose explains the input about as well: do not trust this one blindly"
    elif gap < 3:
        meaning = "a different pose explains the input nearly as well"
    else:
        meaning = "the next different pose explains the input clearly worse"
    return Fact("Second-best solution", f"energy {number(gap)} higher", meaning)


def _origin(result: FitResult, row: int) -> list[Fact]:
    kp = result.keypoints
    frame = int(kp.frame[row])
    parts = [kp.source[row], f"frame {frame}" if frame >= 0 else ""]
    if kp.image[row]:
        parts.append(f"picture {kp.image[row]}")
    text = ", ".join(part for part in parts if part)
    return [Fact("From", text, "")] if text else []


def headline(result: FitResult, order: Sequence[int]) -> str:
    """One sentence: the bottom line."""
    if not order:
        return "There are no hands in this result."
    lost = int((~result.fitted()).sum())
    hands = "1 hand" if len(order) == 1 else f"{len(order):,} hands"
    doubts = int(doubtful(result).sum())
    said = f" {doubts:,} {'is' if doubts == 1 else 'are'} doubtful and shown first." if doubts else ""
    if not lost:
        return (f"{hands}, fitted." if len(order) == 1 else f"{hands}, all fitted.") + said
    said = f" then {doubts:,} doubtful ones." if doubts else ""
    return (
        f"{hands}: {len(order) - lost:,} fitted, {lost:,} not. Those without a fit come first below"
        f"{',' + said if said else '.'}"
    )
