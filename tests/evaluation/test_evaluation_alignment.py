"""Alignments against scipy, closed-form truths and the published tools' formulas written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import procrustes
from scipy.spatial.transform import Rotation
from torch import Tensor

from handloop.core.errors import InputError
from handloop.evaluation.alignment import (
    ALIGNMENTS,
    Alignment,
    rigid,
    root_relative,
    scale_translation,
    similarity,
    similarity_or_mirror,
)

Hands = tuple[Tensor, Tensor]


def apart(alignment: Alignment, source: Tensor, target: Tensor) -> Tensor:
    """(B,) sum of squared distances after an alignment."""
    return (alignment.apply(source) - target).square().flatten(1).sum(1)


def moved(points: Tensor, scale: float, seed: int = 0) -> Tensor:
    """Each hand turned, scaled and shifted by its own amounts."""
    turns = torch.tensor(Rotation.random(len(points), rng=seed).as_matrix())
    return scale * torch.einsum("bij,bpj->bpi", turns, points) + turns[:, None, 0] * 0.3


def test_similarity_undoes_a_similarity(hands: Hands) -> None:
    truth, _ = hands
    found = similarity(moved(truth, 1.7), truth)
    assert torch.allclose(found.apply(moved(truth, 1.7)), truth, atol=1e-12)
    assert torch.allclose(found.scale, torch.full((12,), 1 / 1.7, dtype=torch.float64))
    assert torch.allclose(torch.linalg.det(found.rotation), torch.ones(12, dtype=torch.float64))


def test_mirror_alignment_is_scipys_procrustes(hands: Hands) -> None:
    truth, noisy = hands
    for i in range(12):
        a, b, disparity = procrustes(truth[i].numpy(), noisy[i].numpy())
        spread = truth[i] - truth[i].mean(0)
        ours = apart(similarity_or_mirror(noisy, truth), noisy, truth)[i] / spread.square().sum()
        assert float(ours) == pytest.approx(disparity, rel=1e-9)
        assert np.allclose(np.square(a - b).sum(), disparity)


def test_mirror_alignment_is_that_of_the_servers(hands: Hands) -> None:
    """FreiHAND's and HO-3D's formula: both sets centred, scaled to norm 1, turned by orthogonal_procrustes."""
    truth, noisy = (points.numpy() for points in hands)
    mirrored = noisy * np.array([1.0, 1.0, -1.0])
    for source in (noisy, mirrored):
        ours = similarity_or_mirror(torch.tensor(source), torch.tensor(truth)).apply(torch.tensor(source)).numpy()
        for t, s, o in zip(truth, source, ours, strict=True):
            size = np.linalg.norm(t - t.mean(0))
            unit_t, unit_s = (t - t.mean(0)) / size, (s - s.mean(0)) / np.linalg.norm(s - s.mean(0))
            turn, scale = orthogonal_procrustes(unit_t, unit_s)
            assert np.allclose(o, (unit_s @ turn.T) * scale * size + t.mean(0), atol=1e-7)


def test_mirror_images_are_told_apart(hands: Hands) -> None:
    truth, _ = hands
    mirrored = moved(truth * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64), 1.2)
    assert float(apart(similarity_or_mirror(mirrored, truth), mirrored, truth).max()) < 1e-20
    proper = similarity(mirrored, truth)
    assert torch.allclose(torch.linalg.det(proper.rotation), torch.ones(12, dtype=torch.float64))
    assert float(apart(proper, mirrored, truth).min()) > 1e-3


@pytest.mark.parametrize("mirror", [False, True])
def test_rotation_is_the_best_one(hands: Hands, mirror: bool) -> None:
    """scipy's solver for rotations, and no small change improves on scale or shift."""
    truth, noisy = hands
    source = noisy * torch.tensor([1.0, 1.0, -1.0]) if mirror else noisy
    found = rigid(source, truth)
    for i in range(12):
        a, b = truth[i] - truth[i].mean(0), source[i] - source[i].mean(0)
        turn, distance = Rotation.align_vectors(a.numpy(), b.numpy())
        assert np.allclose(found.rotation[i].numpy(), turn.as_matrix(), atol=1e-6)
        assert float(apart(found, source, truth)[i].sqrt()) == pytest.approx(float(distance), rel=1e-9)
    best = similarity(source, truth)
    least = apart(best, source, truth)
    assert bool((least <= apart(found, source, truth)).all())
    for factor in (0.999, 1.001):
        middle = best.apply(source).mean(1, keepdim=True)
        changed = middle + factor * (best.apply(source) - middle)
        assert bool(((changed - truth).square().flatten(1).sum(1) > least).all())


def test_unknown_points_are_left_out(hands: Hands) -> None:
    truth, noisy = hands
    holes = truth.clone()
    holes[:, [2, 7, 20]] = torch.nan
    kept = [k for k in range(21) if k not in (2, 7, 20)]
    for align in (similarity, similarity_or_mirror, rigid):
        a, b = align(noisy, holes), align(noisy[:, kept], truth[:, kept])
        assert torch.allclose(a.apply(noisy), b.apply(noisy), atol=1e-12)


def test_root_and_scale_by_hand() -> None:
    truth = torch.zeros(1, 21, 3, dtype=torch.float64)
    truth[0, 9] = torch.tensor([0.0, 0.1, 0.0])
    truth[0, :, 2] += 0.5
    points = torch.zeros(1, 21, 3, dtype=torch.float64)
    points[0, 9, 0] = 0.05
    points[0] += torch.tensor([0.3, 0.2, 0.9])
    shifted = root_relative(points, truth).apply(points)[0]
    assert torch.allclose(shifted[0], truth[0, 0]) and shifted[9].tolist() == pytest.approx([0.05, 0.0, 0.5])
    scaled = scale_translation(points, truth).apply(points)[0]
    # Twice as long now, still along x: nothing is turned.
    assert torch.allclose(scaled[0], truth[0, 0]) and scaled[9].tolist() == pytest.approx([0.1, 0.0, 0.5])


@pytest.mark.parametrize("name", ["rigid", "pa", "pa_mirror", "scale_translation", "root"])
def test_degenerate_hands_stay_finite(hands: Hands, name: str) -> None:
    truth, _ = hands
    line = torch.linspace(0, 0.1, 21, dtype=torch.float64)[:, None] * torch.tensor([1.0, 2.0, 2.0]) / 3
    cases = torch.stack([torch.zeros(21, 3, dtype=torch.float64), line.double(), truth[0]])
    for source in cases:
        for target in cases:
            aligned = ALIGNMENTS[name](source[None], target[None]).apply(source[None])
            assert bool(torch.isfinite(aligned).all())
    point = ALIGNMENTS["pa"](cases[:1], truth[:1]).apply(cases[:1])
    assert torch.allclose(point, truth[:1].mean(1, keepdim=True).expand(1, 21, 3))
    turned = ALIGNMENTS["rigid"](line[None].double().flip(2), line[None].double()).apply(line[None].double().flip(2))
    assert torch.allclose(turned, line[None].double(), atol=1e-12)


@pytest.mark.parametrize("name", list(ALIGNMENTS))
def test_a_hand_does_not_depend_on_its_batch(hands: Hands, name: str) -> None:
    truth, noisy = (points.clone() for points in hands)
    noisy[3], truth[5, :, 0], truth[6, 4] = torch.nan, torch.nan, torch.nan
    together = ALIGNMENTS[name](noisy, truth).apply(noisy)
    for i in range(12):
        alone = ALIGNMENTS[name](noisy[i : i + 1], truth[i : i + 1]).apply(noisy[i : i + 1])
        assert torch.equal(alone.nan_to_num(9.0), together[i : i + 1].nan_to_num(9.0))
    known = torch.isfinite(together).flatten(1).all(1)
    assert not known[3] and bool(known[[0, 1, 2, 6, 11]].all())


def test_no_hands_and_wrong_shapes() -> None:
    empty = torch.zeros(0, 21, 3)
    for align in ALIGNMENTS.values():
        assert align(empty, empty).apply(empty).shape == (0, 21, 3)
    with pytest.raises(InputError) as caught:
        similarity(torch.zeros(2, 21, 3), torch.zeros(2, 20, 3))
    assert str(caught.value) == (
        "points of shape (2, 21, 3) and (2, 20, 3) cannot be aligned, expected (B, P, 3) twice."
    )
