"""Proposals as starts: the right state in the canonical frame, fits from them, what stands in where they are silent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from handloop.core.camera import Camera
from handloop.core.errors import InputError
from handloop.core.keypoints import Keypoints
from handloop.core.params import HandParams
from handloop.core.proposal import Proposal
from handloop.core.results import Status
from handloop.fitting.fit import fit_keypoints
from handloop.fitting.observe import Observations
from handloop.fitting.problem import FitModel, HandModels
from handloop.fitting.proposals import proposal_starts
from handloop.fitting.recipes import RECIPES, Recipe
from handloop.fitting.solver import SolverOptions

F64 = torch.float64
ALONE = Recipe(name="alone", seeds=0)
AS_IT_IS = Recipe(name="as it is", seeds=0, solver=SolverOptions(max_steps=0))


class Scene:
    """Synthetic hands as keypoints, every second one a left hand, and the proposal that is their truth."""

    def __init__(self, synthetic: Callable[..., object], model: FitModel, n: int = 6) -> None:
        truth = synthetic(n, 3)
        self.state, self.camera = truth.state, truth.camera
        right = torch.arange(n) % 2 == 0
        uv = truth.uv.clone()
        uv[~right, :, 0] = 2 * self.camera.princpt[~right, None, 0] - uv[~right, :, 0]
        self.keypoints = Keypoints.from_arrays(uv, right)
        transl = self.state.root - model.plain.root_offset(self.state.betas)
        canonical = HandParams.from_rotation_matrices(self.state.rotations, self.state.betas, transl)
        pairs = zip(canonical.tensors(), canonical.mirrored().tensors(), strict=True)
        params = HandParams(*(torch.where(right[:, None], a, b) for a, b in pairs))
        self.proposal = Proposal.without_opinion(params, right, self.camera, self.keypoints.ids)
        self.seen = Observations.of(self.keypoints, self.camera, Recipe(), None, model.like)


@pytest.fixture
def scene(synthetic: Callable[..., object], model: FitModel) -> Scene:
    return Scene(synthetic, model)


def test_the_truth_comes_back_as_the_canonical_state(scene: Scene, model: FitModel) -> None:
    start = proposal_starts(model, scene.proposal, scene.camera, scene.seen)
    torch.testing.assert_close(start.rotations, scene.state.rotations, rtol=0, atol=1e-9)
    torch.testing.assert_close(start.root, scene.state.root, rtol=0, atol=1e-12)
    torch.testing.assert_close(start.betas, scene.state.betas)


def test_a_hand_of_an_assumed_focal_length_is_carried_over(scene: Scene, model: FitModel) -> None:
    """A network that assumed 5 times the focal length put the same picture 5 times as far away."""
    p = scene.proposal
    far = Camera(5 * scene.camera.focal, scene.camera.princpt)
    sign = torch.where(p.is_right, 1.0, -1.0).double()[:, None] * torch.tensor([[1.0, 0, 0]]).double()
    sign[:, 1:] = 1
    offset = sign * model.plain.root_offset(p.params.betas)
    place = (p.params.transl + offset) * torch.tensor([1.0, 1.0, 5.0]).double() - offset
    assumed = replace(p, params=replace(p.params, transl=place), camera=far)
    start = proposal_starts(model, assumed, scene.camera, scene.seen)
    torch.testing.assert_close(start.root, scene.state.root, rtol=0, atol=1e-9)
    # The line of sight turned from nearly ahead to the true one, and the hand with it.
    angle = torch.linalg.vector_norm(start.rotations[:, 0] - scene.state.rotations[:, 0], dim=(1, 2)) / 2**0.5
    slant = (scene.state.root[:, :2] / scene.state.root[:, 2:]).norm(dim=1)
    torch.testing.assert_close(angle, slant.atan() - (slant / 5).atan(), rtol=0.02, atol=1e-3)


def test_without_a_place_the_keypoints_give_one(scene: Scene, model: FitModel) -> None:
    p = scene.proposal
    nowhere = replace(p, params=replace(p.params, transl=torch.full_like(p.params.transl, float("nan"))))
    for silent in (nowhere, replace(nowhere, camera=None)):
        start = proposal_starts(model, silent, scene.camera, scene.seen)
        torch.testing.assert_close(start.root, scene.state.root, rtol=0, atol=1e-6)
        torch.testing.assert_close(start.rotations, scene.state.rotations, rtol=0, atol=1e-9)


def test_silence_is_filled_in(scene: Scene, model: FitModel) -> None:
    p = scene.proposal
    pose = p.params.hand_pose.clone()
    pose[1] = float("nan")
    betas = torch.full_like(p.params.betas, float("nan"))
    behind = p.params.transl.clone()
    behind[2] = torch.tensor([0.0, 0.0, -1.0])
    quiet = replace(p, params=HandParams(p.params.global_orient, pose, betas, behind))
    start = proposal_starts(model, quiet, scene.camera, scene.seen)
    assert bool(start.rotations.isfinite().all() and (start.root[:, 2] > 0).all())
    assert bool((start.betas == model.shape_mean).all())
    torch.testing.assert_close(start.rotations[0], scene.state.rotations[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(start.rotations[1, 1:], model.seeds[0])


def test_a_proposal_alone_is_fitted_from(scene: Scene, models: HandModels) -> None:
    exact = fit_keypoints(models, scene.keypoints, scene.camera, ALONE, proposal=scene.proposal)
    assert bool(exact.fitted().all()) and bool((exact.steps < 30).all())
    assert bool(exact.hypothesis_gap.isinf().all())
    before = fit_keypoints(models, scene.keypoints, scene.camera, AS_IT_IS, proposal=scene.proposal)
    full = fit_keypoints(models, scene.keypoints, scene.camera, RECIPES["default"])
    assert bool((exact.energy < before.energy).all())
    # Another pose may explain a hand better than the true one; mostly it does not.
    assert int((exact.energy < 1.01 * full.energy).sum()) >= 5


def test_a_proposal_beside_the_usual_starts_never_hurts(scene: Scene, models: HandModels) -> None:
    short = replace(RECIPES["default"], seeds=1)  # Three starts, and all of them are finished.
    without = fit_keypoints(models, scene.keypoints, scene.camera, short)
    beside = fit_keypoints(models, scene.keypoints, scene.camera, short, proposal=scene.proposal)
    assert bool((beside.energy <= without.energy * 1.001 + 1e-3).all())


def test_unfitted_it_is_evaluated_and_called_predicted(scene: Scene, models: HandModels) -> None:
    result = fit_keypoints(models, scene.keypoints, scene.camera, AS_IT_IS, proposal=scene.proposal)
    assert result.status.tolist() == [int(Status.PREDICTED)] * 6 and bool(result.fitted().all())
    assert bool((result.steps == 0).all()) and bool((result.rms_px < 1e-6).all())
    for ours, given in zip(result.params.tensors(), scene.proposal.params.tensors(), strict=True):
        torch.testing.assert_close(ours, given, rtol=0, atol=1e-7)
    total = torch.stack(list(result.energy_terms.values())).sum(0)
    torch.testing.assert_close(result.energy, total)
    assert bool(result.keypoints_3d_sd.isfinite().all())


def test_both_engines_predict_the_same(scene: Scene, models: HandModels) -> None:
    tensor_models = HandModels.of(models.pair, torch.float32)
    a = fit_keypoints(models, scene.keypoints, scene.camera, AS_IT_IS, proposal=scene.proposal)
    b = fit_keypoints(tensor_models, scene.keypoints, scene.camera, AS_IT_IS, proposal=scene.proposal)
    torch.testing.assert_close(b.energy.double(), a.energy, rtol=1e-2, atol=1e-2)
    assert b.status.tolist() == a.status.tolist()


def test_what_cannot_be_is_refused(scene: Scene, models: HandModels) -> None:
    with pytest.raises(InputError, match="has no seeds and no proposal was given"):
        fit_keypoints(models, scene.keypoints, scene.camera, ALONE)
    with pytest.raises(InputError, match="knows nothing of another start"):
        fit_keypoints(models, scene.keypoints, scene.camera, RECIPES["spin"], proposal=scene.proposal)
    some = scene.proposal.select(torch.tensor([0, 1]))
    with pytest.raises(InputError, match="2 hands for 6 sets of keypoints"):
        fit_keypoints(models, scene.keypoints, scene.camera, ALONE, proposal=some)


def test_no_hand_at_all_is_no_error(scene: Scene, models: HandModels) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    result = fit_keypoints(
        models, scene.keypoints.select(none), scene.camera.select(none), AS_IT_IS, proposal=scene.proposal.select(none)
    )
    assert len(result) == 0
