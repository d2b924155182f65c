"""The whole evaluation of a set of hands: every metric, over fitted hands and with the missing ones counted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.evaluation.alignment import ALIGNMENTS
from handloop.evaluation.coverage import Coverage, Ranking, posterior_coverage, ranking
from handloop.evaluation.metrics import (
    Curve,
    Mean,
    bootstrap,
    f_scores,
    hand_means,
    joint_errors,
    joint_means,
    pck,
    pixel_errors,
    plane_and_depth,
    share_above,
)
from handloop.evaluation.prediction import Prediction
from handloop.evaluation.truth import Truth, pair_hands


@dataclass(frozen=True)
class Counts:
    """What became of every hand."""

    truth: int
    """Hands with at least one known joint."""
    compared: int
    """Those with a fit: what every mean is over."""
    not_fitted: int
    """Those in the results, but without a fit."""
    not_in_results: int
    """Those that the results lack."""
    unknown: int
    """Hands of the truth file without one known joint; left out."""
    results_without_truth: int
    """Hands of the results that the truth file lacks; left out."""
    joints: int
    """Joints compared."""
    joints_unknown: int
    """Joints of compared hands without truth; left out."""


@dataclass(frozen=True)
class Errors:
    """Joint errors after one alignment. "All" counts hands without a fit as wrong, the rest is over fitted hands."""

    alignment: str
    """A key of `ALIGNMENTS`."""
    mpjpe_mm: Mean
    """Mean over hands of the mean over a hand's known joints."""
    median_mm: float
    """Median over hands of the same."""
    p90_mm: float
    """90th percentile over hands."""
    above_10mm: float
    """Share of hands whose mean error exceeds 10 mm."""
    above_20mm: float
    """Share above 20 mm."""
    above_10mm_all: float
    """Share above 10 mm, all hands."""
    above_20mm_all: float
    """Share above 20 mm, all hands."""
    joint_mm: tuple[float, ...]
    """(21,) mean error by joint."""
    joint_n: tuple[int, ...]
    """(21,) hands in each of those means."""
    pck: Curve
    """0 to 50 mm in 100 steps, as FreiHAND's and HO-3D's servers."""
    auc_all: float
    """Its area, all hands."""
    auc_20_50: float
    """Area from 20 to 50 mm, as customary since Zimmermann and Brox 2017."""


@dataclass(frozen=True)
class MeshErrors:
    """Vertex errors of fitted hands, raw (camera space) and after Procrustes alignment of the vertices."""

    mpvpe_mm: Mean
    pa_mpvpe_mm: Mean
    f_5: Mean
    """F-score at 5 mm, 0..1."""
    f_15: Mean
    """F-score at 15 mm."""
    pa_f_5: Mean
    pa_f_15: Mean


@dataclass(frozen=True, eq=False)
class PerHand:
    """Values by hand of the truth, NaN where there is none."""

    ids: tuple[str, ...]
    """N names."""
    state: tuple[str, ...]
    """N times compared, not fitted, not in results or unknown."""
    values: Mapping[str, Tensor]
    """(N,) float64 each, by name with unit."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All metrics of a set of hands."""

    counts: Counts
    errors: tuple[Errors, ...]
    """One per alignment."""
    plane_mm: Mean
    """Root-relative error across the viewing ray."""
    depth_mm: Mean
    """Root-relative error along the viewing ray."""
    epe_px: Mean | None
    """Distance of fitted and true joints in the picture; None where no camera is known."""
    mesh: MeshErrors | None
    """None without meshes on both sides."""
    coverage: Coverage | None
    """None where the results hold no standard deviations."""
    ranking: Ranking | None
    """None where the results hold no expected error, or for fewer than ten hands."""
    notes: tuple[str, ...]
    """What to know when reading the numbers."""
    texts: Mapping[str, str]
    """Conventions: model, joint definition, fingertips."""
    per_hand: PerHand


@dataclass(frozen=True, eq=False)
class _Hands:
    """Results and truth row by row, in the truth's order."""

    points: Tensor
    """(N, 21, 3) m, NaN for hands without a fit."""
    truth: Tensor
    """(N, 21, 3) m, NaN where unknown."""
    seen: Tensor
    """The same, NaN also for hands that are not in front of the camera: truth about its own wrist, or in a frame of its
    own, says nothing about place and viewing rays."""
    rows: Tensor
    """(N,) int64 row in the results, -1 for none."""

    @classmethod
    def of(cls, prediction: Prediction, truth: Truth, rows: Tensor) -> _Hands:
        joints = truth.joints
        joints = torch.where(torch.isfinite(joints).all(-1, keepdim=True), joints, torch.full_like(joints, math.nan))
        behind = (joints[..., 2] <= 0).any(1)
        seen = torch.where(behind[:, None, None], torch.full_like(joints, math.nan), joints)
        return cls(_take(prediction.points, rows), joints, seen, rows)

    def known(self) -> Tensor:
        """(N, 21) bool, joints with truth."""
        return torch.isfinite(self.truth[..., 0])

    def usable(self) -> Tensor:
        """(N,) bool, hands with truth."""
        return self.known().any(1)

    def fitted(self) -> Tensor:
        """(N,) bool, hands with a fit."""
        return torch.isfinite(self.points).flatten(1).all(1)

    def lost(self) -> Tensor:
        """(N,) bool, hands with truth and without a fit."""
        return self.usable() & ~self.fitted()

    def behind(self) -> Tensor:
        """(N,) bool, hands whose truth is not in front of the camera."""
        return self.usable() & ~torch.isfinite(self.seen[..., 0]).any(1)

    def truth_for(self, alignment: str) -> Tensor:
        """(N, 21, 3) the truth that errors after an alignment are taken against."""
        return self.seen if alignment == "raw" else self.truth

    def states(self) -> tuple[str, ...]:
        """What became of each hand, in words."""
        words = []
        columns = (self.usable().tolist(), self.fitted().tolist(), (self.rows >= 0).tolist())
        for has_truth, has_fit, has_row in zip(*columns, strict=True):
            without_fit = "not fitted" if has_row else "not in results"
            words.append("unknown" if not has_truth else "compared" if has_fit else without_fit)
        return tuple(words)

    def counts(self, results_without_truth: int) -> Counts:
        """The sums of `states`, and of joints."""
        states, known, compared = self.states(), self.known(), self.usable() & self.fitted()
        return Counts(
            truth=len(states) - states.count("unknown"),
            compared=states.count("compared"),
            not_fitted=states.count("not fitted"),
            not_in_results=states.count("not in results"),
            unknown=states.count("unknown"),
            results_without_truth=results_without_truth,
            joints=int(known[compared].sum()),
            joints_unknown=int((~known)[compared].sum()),
        )


def evaluate(prediction: Prediction, truth: Truth, vertices: Tensor | None = None, seed: int = 0) -> Evaluation:
    """Compare fitted hands with the truth.

    Args:
        prediction: M hands.
        truth: N hands; paired with those of the results by id, or by order (`pair_hands`).
        vertices: (M, 778, 3) m meshes of the results, for F-scores where the truth has meshes.
        seed: of the bootstrap.

    Raises:
        InputError: the hands cannot be paired.
    """
    pairing = pair_hands(truth, prediction.ids, len(prediction))
    hands = _Hands.of(prediction, truth, pairing.rows)
    by_alignment = {name: joint_errors(hands.points, hands.truth_for(name), name) for name in ALIGNMENTS}
    columns = {f"{name}_mm": 1000 * hand_means(errors) for name, errors in by_alignment.items()}
    across, along = plane_and_depth(hands.points, hands.seen)
    columns["plane_mm"], columns["depth_mm"] = 1000 * hand_means(across), 1000 * hand_means(along)
    pixels = _pixels(prediction, truth, hands)
    if pixels is not None:
        columns["epe_px"] = pixels
    if vertices is not None and truth.vertices is not None:
        columns.update(_mesh_columns(_take(vertices, hands.rows), truth.vertices))
    intervals = bootstrap(torch.stack(list(columns.values()), 1), torch.Generator().manual_seed(seed))
    means = dict(zip(columns, intervals, strict=True))
    sd, expected = prediction.points_sd, prediction.expected_error_mm
    return Evaluation(
        hands.counts(pairing.without_truth),
        tuple(
            _errors(name, errors, columns[f"{name}_mm"], means[f"{name}_mm"], _determined(hands, name))
            for name, errors in by_alignment.items()
        ),
        means["plane_mm"],
        means["depth_mm"],
        means.get("epe_px"),
        MeshErrors(*(means[name] for name in _MESH_COLUMNS)) if _MESH_COLUMNS[0] in means else None,
        None if sd is None else posterior_coverage(hands.points, hands.seen, _take(sd, hands.rows)),
        None if expected is None else ranking(_take(expected, hands.rows), columns["pa_mm"]),
        tuple(_notes(prediction, truth, hands, pairing.by_order)),
        {key: prediction.texts[key] for key in _TEXTS if key in prediction.texts},
        PerHand(truth.ids, hands.states(), columns),
    )


_TEXTS = ("hand_model", "hand_model_digest", "joint_definition", "tip_set", "recipe", "layout", "handloop_version")
_MESH_COLUMNS = ("mpvpe_mm", "pa_mpvpe_mm", "f_5", "f_15", "pa_f_5", "pa_f_15")


def _take(values: Tensor, rows: Tensor) -> Tensor:
    """Rows of (M, ...) in another order; NaN for rows of -1."""
    out = torch.full((len(rows), *values.shape[1:]), math.nan, dtype=torch.float64)
    there = rows >= 0
    out[there] = values[rows[there]].double()
    return out


def _determined(hands: _Hands, alignment: str) -> Tensor:
    """(N, 21) bool, joints of hands without a fit that would have had an error with one."""
    target = hands.truth_for(alignment)
    return torch.isfinite(joint_errors(target, target, alignment)) & hands.lost()[:, None]


def _errors(name: str, errors: Tensor, hands_mm: Tensor, mean: Mean, lost: Tensor) -> Errors:
    finite = hands_mm[torch.isfinite(hands_mm)]
    by_joint, number = joint_means(errors)
    missing = int(lost.any(1).sum())
    return Errors(
        name,
        mean,
        float(finite.quantile(0.5)) if len(finite) else math.nan,
        float(finite.quantile(0.9)) if len(finite) else math.nan,
        share_above(hands_mm, 10),
        share_above(hands_mm, 20),
        share_above(hands_mm, 10, missing),
        share_above(hands_mm, 20, missing),
        tuple((1000 * by_joint).tolist()),
        tuple(number.tolist()),
        pck(errors),
        pck(torch.where(lost, torch.full_like(errors, math.inf), errors)).auc,
        pck(errors, 20, 50).auc,
    )


def _pixels(prediction: Prediction, truth: Truth, hands: _Hands) -> Tensor | None:
    """(N,) px, NaN where either camera is unknown; None where that is so for all."""
    if prediction.camera is None or not len(prediction):
        return None
    own = prediction.camera.select(hands.rows.clamp(min=0))
    true_camera = own if truth.camera is None else truth.camera
    errors = hand_means(pixel_errors(hands.points, hands.seen, own, true_camera))
    if truth.camera is None:
        # Where the focal length is a guess, the truth's place in the picture is one too.
        errors = torch.where(own.is_known(), errors, torch.full_like(errors, math.nan))
    return errors if bool(torch.isfinite(errors).any()) else None


def _mesh_columns(vertices: Tensor, truth: Tensor) -> dict[str, Tensor]:
    whole = torch.isfinite(truth).flatten(1).all(1)
    target = torch.where(whole[:, None, None], truth, torch.full_like(truth, math.nan))
    aligned = ALIGNMENTS["pa"](vertices, target).apply(vertices)
    raw_f, pa_f = f_scores(vertices, target), f_scores(aligned, target)
    raw, pa = (1000 * hand_means((mesh - target).norm(dim=-1)) for mesh in (vertices, aligned))
    return dict(zip(_MESH_COLUMNS, (raw, pa, *raw_f.unbind(1), *pa_f.unbind(1)), strict=True))


def _notes(prediction: Prediction, truth: Truth, hands: _Hands, by_order: bool) -> list[str]:
    notes = []
    if by_order:
        notes.append("the hands were paired by their order, because truth and results share no names.")
    if missing := int(hands.lost().sum()):
        notes.append(
            f"{missing} hands with truth have no fit: means are over the others; shares and areas are given with these "
            "counted as wrong, too."
        )
    rows, there = hands.rows, hands.rows >= 0
    camera = prediction.camera
    if camera is not None and (assumed := int((~camera.is_known()[rows[there]]).sum())):
        notes.append(
            f"the camera of {assumed} hands was assumed: their errors in camera space and without scale alignment "
            "say little."
        )
    if behind := int(hands.behind().sum()):
        notes.append(
            f"the truth of {behind} hands is not in front of the camera (about its own wrist?): they are left out "
            "of raw errors, image plane and depth, pixels and coverage."
        )
    if truth.is_right is not None:
        other = int((truth.is_right[there] != prediction.is_right[rows[there]]).sum())
        if other:
            notes.append(f"{other} hands were fitted as the other side than the truth says.")
    if truth.is_freihand and prediction.texts.get("joint_definition", "skinning") == "skinning":
        notes.append(
            "FreiHAND's joints are regressed from the mesh, 2 to 5 mm from skinning joints; "
            "compare like with like by --joint-definition regressed."
        )
    return notes
