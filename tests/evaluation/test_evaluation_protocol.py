"""The whole evaluation: what is counted, what is left out, what is said."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from handloop.evaluation.prediction import Prediction, meshes
from handloop.evaluation.protocol import Errors, Evaluation, evaluate
from handloop.evaluation.report import as_json, print_evaluation, write_evaluation
from handloop.evaluation.truth import Truth
from handloop.hand.model import HandPair

Arrays = dict[str, np.ndarray]
SHIFT = torch.tensor([0.003, 0.0, 0.004], dtype=torch.float64)
"""5 mm."""


@pytest.fixture
def prediction(results: Arrays) -> Prediction:
    """Six hands, the fifth without a fit."""
    return Prediction.from_arrays(results)


@pytest.fixture
def truth(prediction: Prediction) -> Truth:
    """The same hands 5 mm away; a seventh that the results lack; and rows that know nothing, or not all joints."""
    joints = torch.cat([prediction.points, prediction.points[:2]]) + SHIFT
    joints[4] = joints[3]
    joints[7] = math.nan
    joints[0, 6] = math.nan
    ids = (*(f"hand{i}" for i in range(6)), "elsewhere", "empty")
    return Truth(joints, ids, True, None, None, None, False)


def by_name(evaluation: Evaluation, alignment: str) -> Errors:
    """The errors after one alignment."""
    return next(errors for errors in evaluation.errors if errors.alignment == alignment)


def test_every_hand_is_counted(prediction: Prediction, truth: Truth) -> None:
    short = replace(truth, joints=truth.joints[1:], ids=truth.ids[1:])
    counts = evaluate(prediction, short).counts
    assert (counts.truth, counts.compared, counts.not_fitted, counts.not_in_results) == (6, 4, 1, 1)
    assert (counts.unknown, counts.results_without_truth, counts.joints, counts.joints_unknown) == (1, 1, 84, 0)
    assert evaluate(prediction, truth).counts.joints == 5 * 21 - 1
    assert evaluate(prediction, truth).counts.joints_unknown == 1


def test_numbers_of_a_shift(prediction: Prediction, truth: Truth) -> None:
    evaluation = evaluate(prediction, truth)
    raw, root, pa = (by_name(evaluation, name) for name in ("raw", "root", "pa"))
    assert raw.mpjpe_mm.mean == pytest.approx(5) and raw.mpjpe_mm.n == 5 and raw.median_mm == pytest.approx(5)
    assert raw.joint_mm == pytest.approx([5.0] * 21) and raw.joint_n == (*[5] * 6, 4, *[5] * 14)
    assert root.mpjpe_mm.mean == pytest.approx(0, abs=1e-9) and pa.mpjpe_mm.mean == pytest.approx(0, abs=1e-9)
    assert evaluation.depth_mm.mean == pytest.approx(0, abs=1e-9)
    # Hands without a fit are two of seven, and wrong at every threshold.
    assert raw.above_10mm == 0 and raw.above_10mm_all == pytest.approx(2 / 7)
    assert root.pck.auc == pytest.approx(1, abs=0.006) and root.auc_all == pytest.approx(root.pck.auc * 5 / 7, rel=0.02)
    per_hand = evaluation.per_hand
    assert per_hand.state == (*["compared"] * 4, "not fitted", "compared", "not in results", "unknown")
    assert torch.isnan(per_hand.values["raw_mm"]).tolist() == [False] * 4 + [True, False, True, True]


def test_pixels_need_a_known_camera(prediction: Prediction, truth: Truth) -> None:
    known = evaluate(prediction, truth)
    # 3 mm at 600 px and half a metre, 4 mm farther.
    assert known.epe_px is not None and known.epe_px.mean == pytest.approx(600 * 0.003 / 0.5, rel=0.3)
    assert prediction.camera is not None
    assumed = replace(prediction, camera=replace(prediction.camera, known=torch.zeros(6, dtype=torch.bool)))
    evaluation = evaluate(assumed, truth)
    assert evaluation.epe_px is None
    assert any(note.startswith("the camera of 6 hands was assumed") for note in evaluation.notes)
    assert prediction.camera is not None
    camera = prediction.camera.select(torch.zeros(8, dtype=torch.int64))
    given = evaluate(assumed, replace(truth, camera=camera)).epe_px
    assert given is not None and given.mean == pytest.approx(known.epe_px.mean)
    assert evaluate(replace(prediction, camera=None), truth).epe_px is None


def test_truth_about_its_own_wrist_has_no_place(prediction: Prediction, truth: Truth) -> None:
    joints = truth.joints.clone()
    joints[1] -= joints[1, :1].clone()
    evaluation = evaluate(prediction, replace(truth, joints=joints))
    assert by_name(evaluation, "raw").mpjpe_mm.n == 4 and by_name(evaluation, "root").mpjpe_mm.n == 5
    assert evaluation.plane_mm.n == 4 and by_name(evaluation, "raw").mpjpe_mm.mean == pytest.approx(5)
    assert any("the truth of 1 hands is not in front of the camera" in note for note in evaluation.notes)


def test_meshes_trust_and_sides(prediction: Prediction, truth: Truth, pair: HandPair) -> None:
    vertices = meshes(prediction, pair)[0]
    full = replace(
        prediction,
        points_sd=torch.full((6, 21, 3), 0.0035, dtype=torch.float64),
        expected_error_mm=torch.arange(6, dtype=torch.float64),
    )
    target = torch.cat([vertices, vertices[:2]]) + SHIFT
    target[2, 700] = math.nan
    sides = torch.ones(8, dtype=torch.bool)
    evaluation = evaluate(full, replace(truth, vertices=target, is_right=sides), vertices)
    mesh = evaluation.mesh
    assert mesh is not None and mesh.mpvpe_mm.mean == pytest.approx(5) and mesh.mpvpe_mm.n == 4
    assert mesh.pa_mpvpe_mm.mean == pytest.approx(0, abs=1e-9) and mesh.pa_f_5.mean == 1 and mesh.f_15.mean == 1
    coverage = evaluation.coverage
    # Errors of 3, 0 and 4 mm against 3.5 mm: x inside 68 %, y inside, z inside 95 % only.
    assert coverage is not None and [held.within_68 for held in coverage.by_axis] == [1, 1, 0]
    assert coverage.by_axis[2].within_95 == 1 and coverage.by_axis[2].rms == pytest.approx(4 / 3.5)
    assert evaluation.ranking is None
    assert "1 hands were fitted as the other side than the truth says." in evaluation.notes


def test_ranking_over_hands_with_truth(generator: torch.Generator) -> None:
    joints = 0.5 + 0.05 * torch.randn(30, 21, 3, dtype=torch.float64, generator=generator)
    noise = torch.linspace(0.001, 0.03, 30, dtype=torch.float64)[:, None, None]
    points = joints + noise * torch.randn(30, 21, 3, dtype=torch.float64, generator=generator)
    bare = {"keypoints_3d": points.numpy(), "expected_error_mm": np.arange(30.0)}
    truth = Truth(joints, tuple(map(str, range(30))), False, None, None, None, False)
    found = evaluate(Prediction.from_arrays(bare), truth).ranking
    assert found is not None and found.found == 1 and found.n == 30


def test_a_hand_does_not_depend_on_the_others(prediction: Prediction, truth: Truth) -> None:
    together = evaluate(prediction, truth).per_hand.values
    for i in (0, 2, 5):
        alone = replace(truth, joints=truth.joints[i : i + 1], ids=truth.ids[i : i + 1])
        for name, values in evaluate(prediction, alone).per_hand.values.items():
            assert torch.equal(values, together[name][i : i + 1])


def test_the_same_seed_gives_the_same_intervals(prediction: Prediction, truth: Truth) -> None:
    joints = truth.joints.clone()
    joints[0] += 0.02
    uneven = replace(truth, joints=joints)
    once, again, other = (by_name(evaluate(prediction, uneven, seed=s), "raw").mpjpe_mm for s in (1, 1, 2))
    assert once == again and once.low < once.mean < once.high and other.mean == once.mean


def test_nothing_to_compare_is_said_not_raised(prediction: Prediction, truth: Truth, tmp_path: Path) -> None:
    lost = replace(prediction, points=torch.full_like(prediction.points, math.nan))
    evaluation = evaluate(lost, truth)
    assert evaluation.counts.compared == 0 and evaluation.counts.not_fitted == 6
    raw = by_name(evaluation, "raw")
    assert math.isnan(raw.mpjpe_mm.mean) and raw.above_10mm_all == 1 and raw.auc_all == 0
    text = write_evaluation(evaluation, tmp_path).read_text()
    assert "NaN" not in text and json.loads(text)["errors"][0]["mpjpe_mm"]["mean"] is None
    nothing = replace(truth, joints=truth.joints[:0], ids=(), own_ids=False)
    empty = replace(prediction, points=prediction.points[:0], ids=(), camera=None, is_right=prediction.is_right[:0])
    assert evaluate(empty, nothing).counts.truth == 0


def test_report_files(prediction: Prediction, truth: Truth, tmp_path: Path) -> None:
    odd = replace(truth, ids=("a,<b>", *truth.ids[1:]))
    evaluation = evaluate(replace(prediction, ids=("a,<b>", *(prediction.ids or ())[1:])), odd)
    path = write_evaluation(evaluation, tmp_path / "deep")
    first = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    assert sorted(first) == ["eval.json", "eval_curves.html", "eval_hands.csv", "plotly.min.js"]
    data = json.loads(path.read_text())
    assert data == as_json(evaluation) and data["counts"]["compared"] == 5 and "per_hand" not in data
    assert [e["alignment"] for e in data["errors"]] == ["raw", "root", "scale_translation", "rigid", "pa", "pa_mirror"]
    assert len(data["errors"][0]["pck"]["share"]) == 100 and data["texts"]["tip_set"] == "smplx"
    rows = first["eval_hands.csv"].decode().splitlines()
    assert rows[0].startswith("id,state,raw_mm,root_mm") and rows[1].startswith('"a,<b>",compared,5,')
    assert rows[5].startswith("hand4,not fitted,,") and len(rows) == 9
    page = first["eval_curves.html"].decode()
    assert 'src="plotly.min.js"' in page and "https://cdn" not in page and 'id="pck"' in page
    write_evaluation(evaluation, path.parent)
    assert first == {p.name: p.read_bytes() for p in path.parent.iterdir()}


def test_printed_report(prediction: Prediction, truth: Truth, pair: HandPair) -> None:
    vertices = meshes(prediction, pair)[0]
    full = replace(prediction, points_sd=torch.full((6, 21, 3), 0.004, dtype=torch.float64))
    with_mesh = replace(truth, vertices=torch.cat([vertices, vertices[:2]]) + SHIFT)
    text = io.StringIO()
    print_evaluation(evaluate(full, with_mesh, vertices), Console(file=text, width=200))
    printed = text.getvalue()
    assert "5 of 7 hands with truth compared; 1 without a fit, 1 not in the results." in printed
    assert "Procrustes (PA)" in printed and "5.00 [5.00, 5.00]" in printed and "0 % (29 %)" in printed
    assert "F@15" in printed and "z (depth)" in printed and "note: 2 hands with truth have no fit" in printed
