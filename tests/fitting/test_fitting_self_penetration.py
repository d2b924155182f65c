"""E_sp: the published formula by hand, its Jacobian, and what it does to meshes that cut into themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from handloop.api import fit
from handloop.core.camera import Camera
from handloop.core.errors import InputError
from handloop.core.keypoints import Keypoints
from handloop.core.rotations import so3_exp, so3_log
from handloop.core.terms import POSE, AutoTerm, HandState, PosedHand
from handloop.evaluation.penetration import self_penetration
from handloop.fitting.engines import standard_terms, uses_fused_engine
from handloop.fitting.observe import Observations
from handloop.fitting.problem import FitModel, HandModels
from handloop.fitting.recipes import RECIPES, Recipe
from handloop.fitting.self_penetration import CLOSEST, WIDTH, SelfPenetration
from handloop.hand.kinematics import CHAINS
from handloop.hand.mesh import skin
from handloop.priors.anatomy import JointLimits, rotations_from_angles
from handloop.priors.spheres import HandSpheres, hand_spheres

F64 = torch.float64
WEIGHT = 100.0


def colliding(model: FitModel, n: int, seed: int) -> Tensor:
    """(3 n, 45) fists too tight, fingers crossed, thumbs through the palm."""
    g = torch.Generator().manual_seed(seed)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, dtype=F64, generator=g)

    angles = torch.zeros(3, n, 15, 3, dtype=F64)
    for chain in CHAINS[1:]:
        for joint, (low, high) in zip(chain, ((70, 115), (85, 125), (50, 100)), strict=True):
            angles[0, :, joint - 1, 0] = between(low, high)
    for i in range(n):
        finger = 1 + i % 3
        for side, chain in zip((1, -1), CHAINS[finger : finger + 2], strict=True):
            angles[1, i, chain[0] - 1, 1] = side * between(5, 25)[i]
            angles[1, i, chain[0] - 1, 0] = between(0, 30)[i]
    base, middle, end = (joint - 1 for joint in CHAINS[0])
    angles[2, :, base] = torch.stack([between(20, 60), between(-60, 0), between(-40, 40)], 1)
    angles[2, :, middle, 0], angles[2, :, end, 0] = between(20, 70), between(0, 80)
    axes = JointLimits.from_hand(model.hand).axes
    return so3_log(rotations_from_angles(torch.deg2rad(angles).flatten(0, 1), axes)).flatten(1)


def state_of(pose: Tensor, betas: Tensor, seed: int = 0) -> HandState:
    """Hands seen from anywhere at 0.6 m."""
    n, g = len(pose), torch.Generator().manual_seed(seed)
    turn = so3_exp(2 * torch.randn(n, 1, 3, dtype=F64, generator=g))
    rotations = torch.cat([turn, so3_exp(pose.reshape(n, 15, 3))], 1)
    root = torch.tensor([[0.0, 0.0, 0.6]], dtype=F64).repeat(n, 1)
    return HandState(rotations, betas, root, torch.zeros(n, dtype=F64))


@pytest.fixture(scope="module")
def term(model: FitModel) -> SelfPenetration:
    return SelfPenetration(hand_spheres(model.hand), WEIGHT)


@pytest.fixture(scope="module")
def posed(model: FitModel, hard_state: HandState) -> PosedHand:
    """100 hard states, straight fingers and joints half a turn round among them, then 45 collisions."""
    g = torch.Generator().manual_seed(2)
    crash = state_of(colliding(model, 15, 0), torch.randn(45, 10, dtype=F64, generator=g))
    both = [torch.cat([getattr(s, name) for s in (hard_state, crash)]) for name in ("rotations", "betas", "root")]
    return PosedHand.of(model.kinematics, HandState(*both, torch.zeros(145, dtype=F64)), jacobian=True)


def all_pairs(spheres: HandSpheres, state: HandState) -> np.ndarray:
    """(B, P) the published energies of single pairs, in numpy."""
    at = spheres.posed(state.rotations, state.betas)
    centres, radii = at.centres.numpy(), at.radii.numpy()
    i, j = spheres.pairs.numpy().T
    squared = ((centres[:, i] - centres[:, j]) ** 2).sum(2)
    energy: np.ndarray = WEIGHT * np.exp(-squared / ((WIDTH * radii[:, i]) ** 2 + (WIDTH * radii[:, j]) ** 2))
    return energy


def test_two_spheres_by_hand(model: FitModel) -> None:
    """Index and middle finger straight, one sphere on each; then the middle finger turns by a right angle."""
    zero = torch.zeros(2, 10, dtype=F64)
    two = HandSpheres(
        part=torch.tensor([1, 4]),
        offset=torch.tensor([[-0.01, 0.0, 0.0], [-0.02, 0.0, 0.0]], dtype=F64),
        offset_dirs=torch.zeros(2, 3, 10, dtype=F64),
        radius=torch.tensor([0.009, 0.012], dtype=F64),
        radius_dirs=0.001 * torch.eye(10, dtype=F64)[:2],
        joints=torch.tensor([[0.09, 0, 0], [0.0, 0, 0.02], *[[0.0, 0, 0]] * 14], dtype=F64),
        joints_dirs=torch.zeros(16, 3, 10, dtype=F64),
        pairs=torch.tensor([[0, 1]]),
    )
    pose = torch.zeros(2, 15, 3, dtype=F64)
    pose[1, 3] = torch.tensor([0.0, torch.pi / 2, 0.0], dtype=F64)
    state = state_of(pose.flatten(1), zero)
    state.betas[1, 0] = 3
    part = SelfPenetration(two, 7.0).linearise(PosedHand.of(model.kinematics, state, jacobian=True))
    # Centres (-10, 0, 20) and (-20, 0, 0) mm; a quarter turn about y takes (-20, 0, 0) to (0, 0, 20).
    first = 7 * np.exp(-(0.01**2 + 0.02**2) / (WIDTH**2 * (0.009**2 + 0.012**2)))
    second = 7 * np.exp(-(0.01**2) / (WIDTH**2 * (0.012**2 + 0.012**2)))
    np.testing.assert_allclose(part.energy.numpy(), [first, second], rtol=1e-12)
    np.testing.assert_allclose(part.value.numpy()[:, 0], np.sqrt([2 * first, 2 * second]), rtol=1e-12)
    # Turning the middle finger on by d about y moves its sphere by (20 d, 0, 0): 10 - 20 d behind the index one's.
    assert part.jacobian is not None and part.columns == POSE
    slope = -np.sqrt(2 * second) * (0.02 * 0.01) / (WIDTH**2 * 2 * 0.012**2)
    assert float(part.jacobian[1, 0, 3 * 3 + 1]) == pytest.approx(slope, rel=1e-9)


def test_energy_is_the_published_sum(term: SelfPenetration, posed: PosedHand) -> None:
    energies = np.sort(all_pairs(term.spheres, posed.state), 1)[:, ::-1]
    part = term.linearise(posed)
    np.testing.assert_allclose(part.energy.numpy(), energies[:, :CLOSEST].sum(1), rtol=1e-9)
    np.testing.assert_allclose(part.energy.numpy(), 0.5 * part.value.square().sum(1).numpy(), rtol=1e-12)
    # What is left out weighs next to nothing, even in fists that no hand can make.
    left = energies[100:, CLOSEST:].sum(1) / energies[100:].sum(1)
    assert left.max() < 0.15 and np.median(left) < 0.01


def test_jacobian_equals_autograd(term: SelfPenetration, model: FitModel, posed: PosedHand) -> None:
    posed = PosedHand.of(model.kinematics, posed.state.select(torch.arange(0, 145, 4)), jacobian=True)
    part = term.linearise(posed)
    expected = AutoTerm("auto", lambda moved: term.linearise(moved).value).linearise(posed)
    assert part.jacobian is not None and expected.jacobian is not None and part.columns == POSE
    scale = expected.jacobian[..., POSE].abs().amax((1, 2), keepdim=True)
    assert bool((scale > 0).all()) and bool(torch.isfinite(part.jacobian).all())
    assert float(((part.jacobian - expected.jacobian[..., POSE]).abs() / scale).max()) < 1e-9
    # The wrist moves all spheres alike.
    outside = expected.jacobian[..., [0, 1, 2, 58, 59, 60, 61]]
    assert float((outside.abs() / scale).max()) < 1e-9


def test_gradient_equals_differences(
    term: SelfPenetration, model: FitModel, posed: PosedHand, derivative: Callable[..., Tensor]
) -> None:
    state = posed.state.select(torch.arange(100, 145))

    def energy(moved: HandState) -> Tensor:
        return torch.tensor(all_pairs(term.spheres, moved)).sum(1, keepdim=True)

    numeric = derivative(energy, state, 1e-4)[:, 0, POSE]
    part = term.linearise(PosedHand.of(model.kinematics, state, jacobian=True))
    assert part.jacobian is not None
    gradient = (part.jacobian * part.value[..., None]).sum(1)
    scale = numeric.abs().amax(1, keepdim=True)
    few = torch.tensor(np.sort(all_pairs(term.spheres, state), 1)[:, :-CLOSEST].sum(1)) < 1e-9 * part.energy
    assert int(few.sum()) > 10
    assert float(((gradient - numeric).abs() / scale)[few].max()) < 1e-6


def test_energy_alone_is_the_same(term: SelfPenetration, model: FitModel, posed: PosedHand) -> None:
    alone = term.linearise(PosedHand.of(model.kinematics, posed.state, jacobian=False))
    assert alone.jacobian is None and torch.equal(alone.energy, term.linearise(posed).energy)


def test_a_hand_does_not_depend_on_its_batch(term: SelfPenetration, model: FitModel, posed: PosedHand) -> None:
    whole = term.linearise(posed)
    assert whole.jacobian is not None
    for at in (torch.tensor([102]), torch.tensor([144, 0, 121]), torch.arange(144, -1, -1)):
        some = PosedHand.of(model.kinematics, posed.state.select(at), jacobian=True)
        part = term.select(at).linearise(some)
        assert part.jacobian is not None
        assert torch.equal(part.value, whole.value[at]) and torch.equal(part.energy, whole.energy[at])
        assert torch.equal(part.jacobian, whole.jacobian[at])


def test_spheres_in_one_place_are_finite_in_single_precision(term: SelfPenetration, posed: PosedHand) -> None:
    n = len(term.spheres.part)
    same = replace(term.spheres, offset=torch.zeros(n, 3, dtype=F64), joints=torch.zeros(16, 3, dtype=F64))
    same = replace(same, offset_dirs=0 * same.offset_dirs, joints_dirs=0 * same.joints_dirs).to(torch.zeros(0))
    state = posed.state
    low = HandState(state.rotations.float(), state.betas.float(), state.root.float(), state.log_focal.float())
    part = SelfPenetration(same, WEIGHT).linearise(replace(posed, state=low))
    assert part.jacobian is not None and part.energy.dtype == torch.float32
    assert torch.allclose(part.energy, torch.tensor(WEIGHT * CLOSEST)) and not part.jacobian.any()


def test_shape_places_the_spheres(term: SelfPenetration, model: FitModel) -> None:
    """The same pose is a collision for thick fingers only: betas count, though none is moved by the term."""
    pose = colliding(model, 1, 4)[1:2].repeat(2, 1)
    betas = torch.zeros(2, 10, dtype=F64)
    thick = term.spheres.radius_dirs.mean(0)
    betas[1] = -2 * thick.sign()
    energy = term.linearise(PosedHand.of(model.kinematics, state_of(pose, betas), jacobian=False)).energy
    assert float(energy[0]) > 1.05 * float(energy[1])


def test_open_hands_cost_nothing(term: SelfPenetration, model: FitModel) -> None:
    g = torch.Generator().manual_seed(0)
    state = state_of(torch.zeros(50, 45, dtype=F64), torch.randn(50, 10, dtype=F64, generator=g))
    energy = term.linearise(PosedHand.of(model.kinematics, state, jacobian=False)).energy
    assert float(energy.median()) < 0.05 and float(energy.max()) < 0.5


def test_energy_ranks_hands_as_their_meshes_do(term: SelfPenetration, model: FitModel) -> None:
    """Against the depth of the true intersection: poses of the prior and authored collisions."""
    g = torch.Generator().manual_seed(0)
    pose = torch.cat([model.pose_prior.sample(70, g), colliding(model, 10, 1)])
    betas, zeros = torch.randn(100, 10, dtype=F64, generator=g), torch.zeros(100, 3, dtype=F64)
    depth = self_penetration(model.hand, skin(model.hand, zeros, pose, betas, zeros)[0]).numpy()
    posed = PosedHand.of(model.kinematics, state_of(pose, betas), jacobian=False)
    energy = term.linearise(posed).energy.numpy()
    for threshold in (0.0, 0.002):
        cut = depth > threshold
        assert 25 < cut.sum() < 75
        rank = rankdata(energy)
        auc = (rank[cut].sum() - cut.sum() * (cut.sum() + 1) / 2) / (cut.sum() * (~cut).sum())
        assert auc > 0.93
    assert spearmanr(energy, depth)[0] > 0.8
    # Half a squared sigma is what one keypoint a sigma off costs.
    assert np.median(energy[depth == 0]) < 0.2 and np.median(energy[depth > 0.005]) > 5


def test_a_fit_with_the_term_takes_flesh_out_of_flesh(model: FitModel, models: HandModels) -> None:
    pose = colliding(model, 8, 3)
    state = state_of(pose, torch.zeros(24, 10, dtype=F64), seed=5)
    points = model.kinematics.points(state.rotations, state.betas, state.root)
    focal, centre = torch.full((24, 2), 600.0, dtype=F64), torch.tensor([[320.0, 240.0]], dtype=F64).repeat(24, 1)
    uv = focal[:, None] * points[..., :2] / points[..., 2:] + centre[:, None]
    results = {}
    for weight in (None, WEIGHT):
        found = fit(
            uv, camera(focal, centre), hand=models.pair, recipe=replace(RECIPES["fast"], self_penetration=weight)
        )
        depth = 1000 * self_penetration(model.hand, models.vertices(found.params, found.keypoints.is_right))
        results[weight] = (depth, 224 * found.rms_px / found.keypoints.box_size())
    (before, px), (after, px_after) = results.values()
    assert float(before.mean()) > 3
    assert float(after.mean()) < 0.6 * float(before.mean())
    # Within the standard recipe's noise of a keypoint, 2 px at a 224-px box.
    assert float((px_after - px).median()) < 1 and float(px_after.median()) < 2


def camera(focal: Tensor, princpt: Tensor) -> Camera:
    return Camera(focal, princpt)


def test_recipe_switch(model: FitModel) -> None:
    off, on = Recipe(), Recipe(self_penetration=WEIGHT)
    assert uses_fused_engine(model, off) and not uses_fused_engine(model, on)
    keypoints = Keypoints.from_arrays(torch.rand(2, 21, 2, dtype=F64) * 100)
    focal, centre = torch.full((2, 2), 600.0, dtype=F64), torch.zeros(2, 2, dtype=F64)
    names = []
    for recipe in (off, on):
        seen = Observations.of(keypoints, camera(focal, centre), recipe, None, model.like)
        names.append([t.name for t in standard_terms(model, seen, recipe)])
    assert names[1] == [*names[0], "self_penetration"]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_recipe_refuses_what_is_no_weight(weight: float) -> None:
    with pytest.raises(InputError, match=r"self_penetration is .*expected a positive number"):
        Recipe(self_penetration=weight)


def test_published_methods_refuse_the_term(model: FitModel) -> None:
    keypoints = torch.rand(2, 21, 2, dtype=F64) * 100
    with pytest.raises(InputError, match="knows nothing of self_penetration"):
        fit(keypoints, np.diag([600.0, 600.0, 1.0]), recipe=replace(RECIPES["smplify"], self_penetration=WEIGHT))
