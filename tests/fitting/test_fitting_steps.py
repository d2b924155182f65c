"""The tensor engine's inner parts: rows by fingers, their systems, steps that never wait, memory, precision."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from handloop.core.keypoints import Keypoints
from handloop.core.rotations import right_jacobian, so3_log
from handloop.core.terms import AutoTerm, GemanMcClure, HandState, PosedHand, Term
from handloop.fitting import fit as fit_module
from handloop.fitting import graphs
from handloop.fitting.anchor import Anchor
from handloop.fitting.engines import TensorEngine, free_parameters, standard_terms
from handloop.fitting.fit import fit_keypoints, hands_within
from handloop.fitting.normal import Assembly, by_parameter, normal_equations
from handloop.fitting.observe import Observations
from handloop.fitting.problem import FitModel, HandModels
from handloop.fitting.recipes import Recipe
from handloop.fitting.solver import Solution, SolverOptions, solve
from handloop.fitting.steps import Stepper
from handloop.fitting.terms import Points3d, PosePrior, Reprojection, Shape
from handloop.hand.kinematics import CHAINS
from handloop.hand.load import embedded_hand

F64 = torch.float64
FREE = torch.arange(62) < 61


def fitted_points(model: FitModel, state: HandState) -> Tensor:
    return model.kinematics.points(state.rotations, state.betas, state.root)


def case(models: HandModels, synthetic: Callable[..., Any], recipe: Recipe, n: int) -> tuple[list[Term], HandState]:
    """Standard terms of noisy hands in the models' precision, and starts near the truth."""
    hands = synthetic(n, 3)
    g = torch.Generator().manual_seed(0)
    uv = hands.uv + 2 * torch.randn(n, 21, 2, dtype=F64, generator=g)
    keypoints = Keypoints.from_arrays(torch.cat([uv, torch.ones(n, 21, 1).double()], 2))
    seen = Observations.of(keypoints, hands.camera, recipe, None, models.right.like)
    start = hands.state.retract(0.1 * torch.randn(n, 62, dtype=F64, generator=g) * FREE)
    return standard_terms(models.right, seen, recipe), HandState(
        *(t.to(models.right.like) for t in vars(start).values())
    )


@pytest.mark.parametrize("offsets", [False, True])
def test_rows_are_the_jacobian_of_a_fingers_own_joints_and_the_shared_columns(
    spread_model: FitModel, hard_state: HandState, offsets: bool
) -> None:
    """Against the complete Jacobian, which is tested by differences; weights and blend shapes reach everywhere."""
    by_point = 0.01 * torch.randn(21, 3, dtype=F64, generator=torch.Generator().manual_seed(3))
    kinematics = spread_model.kinematics.with_offsets(by_point if offsets else None)
    posed = PosedHand.of(kinematics, hard_state, jacobian=True)
    torch.testing.assert_close(
        posed.points, kinematics.points(hard_state.rotations, hard_state.betas, hard_state.root), rtol=0.0, atol=1e-13
    )
    whole, turn = posed.points_jacobian, right_jacobian(posed.pose.reshape(-1, 15, 3))
    assert whole is not None and posed.rows is not None
    expected = torch.zeros(len(hard_state), 21, 3, 64, dtype=F64)
    expected[..., :3], expected[..., 48:61] = whole[..., :3], whole[..., 48:]
    for finger, chain in enumerate(CHAINS):
        points = slice(1 + 4 * finger, 5 + 4 * finger)
        for joint in chain:
            at = slice(3 * joint, 3 * joint + 3)
            expected[:, points, :, at] = whole[:, points, :, at] @ turn[:, None, joint - 1]
    ours = by_parameter(posed.rows, torch.ones(62, dtype=torch.bool)).unflatten(1, (21, 3))
    torch.testing.assert_close(ours, expected, rtol=0.0, atol=1e-12)


def test_systems_against_automatic_differentiation(model: FitModel, synthetic: Callable[..., Any]) -> None:
    """Every structured term together, written once more as one plain function of the pose."""
    hands = synthetic(5, 8)
    g = torch.Generator().manual_seed(1)
    n = len(hands)
    uv, xyz = hands.uv + 20, hands.points + 0.004 * torch.randn(n, 21, 3, dtype=F64, generator=g)
    sigma, sigma_3d = torch.rand(n, 21, dtype=F64, generator=g), 300 * torch.rand(n, 21, dtype=F64, generator=g)
    camera, plain = hands.camera, GemanMcClure(1e9)
    prior, mean = model.pose_prior, torch.linspace(-1, 1, 10, dtype=F64)
    terms: list[Term] = [
        Reprojection(uv, sigma, camera.focal, camera.princpt, plain),
        Points3d(xyz, sigma_3d, plain),
        PosePrior(prior),
        Shape(0.7, mean),
    ]

    def residuals(posed: PosedHand, uv: Tensor, xyz: Tensor, sigma: Tensor, sigma_3d: Tensor) -> Tensor:
        seen = 600 * posed.state.log_focal.exp()[:, None, None] * posed.points[..., :2] / posed.points[..., 2:]
        seen = seen + torch.tensor([320.0, 240.0], dtype=F64)
        parts = [(seen - uv) * sigma[..., None], (posed.points - xyz) * sigma_3d[..., None]]
        white = (posed.pose - prior.mean) @ prior.precision_factor
        return torch.cat([*(p.flatten(1) for p in parts), white, (posed.state.betas - mean) / 0.7], 1)

    state = hands.state.retract(0.1 * torch.randn(n, 62, dtype=F64, generator=g))
    free = torch.ones(62, dtype=torch.bool)
    free[[4, 50]] = False
    ours = normal_equations(model.kinematics, terms, state, free)
    witness = AutoTerm("witness", residuals, (uv, xyz, sigma, sigma_3d))
    theirs = normal_equations(model.kinematics, [witness], state, free)
    torch.testing.assert_close(ours.energy, theirs.energy, rtol=1e-10, atol=0.0)
    for a, b in ((ours.gradient, theirs.gradient), (ours.hessian, theirs.hessian)):
        scale = b.abs().amax(tuple(range(1, b.ndim)))
        assert float(((a - b).abs().amax(tuple(range(1, b.ndim))) / scale).max()) < 1e-9
    assert bool((ours.gradient[:, [4, 50, 62, 63]] == 0).all())
    assert torch.equal(ours.hessian[:, [4, 50, 62, 63]], torch.eye(64, dtype=F64)[[4, 50, 62, 63]].expand(n, 4, 64))


class Waits(TorchFunctionMode):
    """Refuses what makes a host wait for a GPU: numbers asked for, and tables that are copied there each time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        asks = {"item", "tolist", "nonzero", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"}
        assert name not in {*asks, "tensor", "as_tensor", "from_numpy", "masked_select"}, name
        if name in ("__getitem__", "__setitem__"):
            for part in args[1] if isinstance(args[1], tuple) else (args[1],):
                assert not isinstance(part, (list, range)), "a list as an index"
                assert not isinstance(part, Tensor) or (part.dtype != torch.bool and part.device.type == "meta")
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            # Numbers without a dimension are passed as arguments of a kernel.
            assert not isinstance(made, Tensor) or made.ndim == 0 or made.device.type == "meta", name
        return out


def elsewhere(x: Any) -> Any:
    """The same with every tensor on a device that has shapes and no numbers."""
    if isinstance(x, Tensor):
        return x.to("meta")
    if is_dataclass(x) and not isinstance(x, type):
        out = object.__new__(type(x))
        for f in fields(x):
            object.__setattr__(out, f.name, elsewhere(getattr(x, f.name)))
        return out
    return type(x)(elsewhere(v) for v in x) if isinstance(x, (tuple, list)) else x


def test_a_step_never_waits_for_a_device(synthetic: Callable[..., Any]) -> None:
    """All terms of the recipe, an anchor and an automatic one, on a device that could not answer."""
    models = HandModels.of(embedded_hand(), torch.float32)
    recipe = Recipe(
        focal_sigma=0.1, coupling_sigma_deg=8.0, spread=True, hyperextension=1.5, self_penetration=100.0, kernel="huber"
    )
    terms, start = case(models, synthetic, recipe, 6)
    ones = torch.ones(6, 16), torch.ones(6, 10), torch.ones(6, 3)
    terms.append(Anchor.of(start.rotations, start.betas, start.root, *ones))
    terms.append(
        AutoTerm(
            "reach", lambda posed, far: posed.points[:, 8].norm(dim=1, keepdim=True) - far[:, None], (ones[0][:, 0],)
        )
    )
    assembly = Assembly.of(free_parameters(recipe, torch.device("cpu")), models.right.like)
    kinematics, there, began = (elsewhere(x) for x in (models.right.kinematics, terms, start))
    stepper = Stepper(kinematics, there, elsewhere(assembly), 1e-4)
    work = stepper.begin(began, 0.01)  # Tables are made at the first call.
    with Waits():
        done = stepper.advance(work, 2)
    shapes = [(t.shape, t.dtype) for t in work.tensors()]
    assert [(t.shape, t.dtype) for t in done.tensors()] == shapes and done.pose.device.type == "meta"
    with pytest.raises(AssertionError, match="a list as an index"), Waits():
        start.betas[:, [0, 1]]


@pytest.mark.parametrize("max_steps", [3, 4, 18])
def test_blocks_in_place_end_where_single_steps_do(
    models: HandModels, synthetic: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, max_steps: int
) -> None:
    """What a graph would replay, with a stand-in that runs the block itself; to the bit."""
    terms, start = case(models, synthetic, Recipe(), 9)
    options = SolverOptions(max_steps)
    plain = solve(models.right.kinematics, terms, start, FREE, options)
    replays = 0

    def capture(block: Callable[[], None]) -> Callable[[], None]:
        def again() -> None:
            nonlocal replays
            replays += 1
            block()

        block()
        return again

    monkeypatch.setattr(graphs, "pays", lambda device, rows: True)
    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr("handloop.fitting.solver._steps_between_looks", lambda device: 4)
    ours = solve(models.right.kinematics, terms, start, FREE, options)
    assert (replays > 0) == (max_steps > 4)
    assert torch.equal(ours.energy, plain.energy) and torch.equal(ours.steps, plain.steps)
    assert torch.equal(ours.converged, plain.converged)
    for a, b in zip(vars(ours.state).values(), vars(plain.state).values(), strict=True):
        assert torch.equal(a, b)
    assert len(set(plain.steps.tolist())) > 1 or max_steps < 18


def test_no_graph_without_a_gpu_or_for_many() -> None:
    cuda = torch.device("cuda")
    assert not graphs.pays(torch.device("cpu"), 8)
    assert graphs.pays(cuda, graphs.MOST_ROWS) and not graphs.pays(cuda, graphs.MOST_ROWS + 1)


def test_a_training_in_lower_precision_changes_nothing(models: HandModels, synthetic: Callable[..., Any]) -> None:
    small = HandModels.of(embedded_hand(), torch.float32)
    terms, start = case(small, synthetic, Recipe(), 5)
    engine = TensorEngine(small.right.kinematics, terms, FREE)
    plain = engine.solve(start, torch.arange(5), SolverOptions(6))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            mixed = engine.solve(start, torch.arange(5), SolverOptions(6))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert mixed.energy.dtype == torch.float32 and torch.equal(mixed.energy, plain.energy)
    assert torch.equal(mixed.state.rotations, plain.state.rotations)


class Held(TorchDispatchMode):
    """The most bytes that tensors made inside hold at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for made in tree_leaves(out):
            if isinstance(made, Tensor):
                storage = made.untyped_storage()
                key = storage._cdata
                if key not in given and key not in self.sizes:
                    self.sizes[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._dropped, key)
        return out

    def _dropped(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(seeds=2, explore_steps=2, solver=SolverOptions(2)),
        Recipe(seeds=1, explore_steps=2, solver=SolverOptions(2), self_penetration=100.0),
    ],
)
def test_chunks_stay_within_the_memory_they_were_given(
    synthetic: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, recipe: Recipe
) -> None:
    size = 6e6
    models = HandModels.of(embedded_hand(), torch.float32)
    chunk = hands_within(size, recipe, 4)
    assert 2 <= chunk <= 10
    hands = synthetic(chunk + 1, 4)
    monkeypatch.setattr(fit_module, "_chunk", lambda model, recipe: chunk)
    with Held() as held:
        fit_keypoints(models, Keypoints.from_arrays(hands.uv), hands.camera, recipe)
    assert 0.5 * size < held.most < size
    assert hands_within(0.0, recipe, 4) == 1
    assert hands_within(1e15, recipe, 4) * 4 * 30_000 * (2 * recipe.seeds + 1) < 9e9


def test_float32_finds_the_same_minima(models: HandModels, synthetic: Callable[..., Any]) -> None:
    """From the same starts: the same energy, and joints (wrist on wrist) less than a tenth of a millimetre apart."""
    small = HandModels.of(embedded_hand(), torch.float32)
    found: list[Solution] = []
    for used in (models, small):
        terms, start = case(used, synthetic, Recipe(), 60)
        found.append(TensorEngine(used.right.kinematics, terms, FREE).solve(start, torch.arange(60), SolverOptions()))
    double, single = found
    assert single.energy.dtype == torch.float32
    same = (single.energy - double.energy).abs() < 1e-3 * double.energy
    assert float(same.double().mean()) >= 0.99
    apart = fitted_points(small.right, single.state).double() - fitted_points(models.right, double.state)
    off = 1000 * (apart - apart[:, :1]).norm(dim=-1).mean(1)
    assert float((off < 0.1).double().mean()) >= 0.95 and float(off.median()) < 0.01


def test_points_nobody_knows_are_left_out(models: HandModels, synthetic: Callable[..., Any]) -> None:
    """A hand alone, and beside one with 3D points: the same to the bit."""
    terms, start = case(models, synthetic, Recipe(), 4)
    asked = [t for t in terms if isinstance(t, Points3d)]
    assert len(asked) == 1 and asked[0].knows_nothing()
    known = replace(asked[0], inverse_sigma=torch.zeros(4, 21, dtype=F64).index_fill(0, torch.tensor([3]), 300.0))
    assert not known.knows_nothing()
    both = [known if t is asked[0] else t for t in terms]
    a, b = (
        TensorEngine(models.right.kinematics, t, FREE).solve(start, torch.arange(4), SolverOptions(8))
        for t in (terms, both)
    )
    assert torch.equal(a.energy[:3], b.energy[:3]) and not torch.equal(a.energy[3], b.energy[3])


def test_axis_angles_stay_short(hard_state: HandState) -> None:
    """Steps beyond half a turn come back the other way round, and are known without a logarithm."""
    g = torch.Generator().manual_seed(9)
    pose = so3_log(hard_state.rotations[:, 1:]).flatten(1)
    delta = 1.5 * torch.randn(100, 62, dtype=F64, generator=g)
    moved, angles = hard_state.retract_pose(pose, delta)
    assert float(angles.pose.reshape(-1, 3).norm(dim=1).max()) <= torch.pi + 1e-12
    assert bool(((pose + delta[:, 3:48]).reshape(-1, 3).norm(dim=1) > torch.pi).any())
    torch.testing.assert_close(so3_log(moved.rotations[:, 1:]).flatten(1), angles.pose, rtol=0.0, atol=1e-7)
    torch.testing.assert_close(angles.turn, right_jacobian(angles.pose.reshape(100, 15, 3)), rtol=0.0, atol=1e-13)
    plain = hard_state.retract(torch.cat([delta[:, :3], torch.zeros_like(pose), delta[:, 48:]], 1))
    torch.testing.assert_close(moved.rotations[:, 0], plain.rotations[:, 0], rtol=0.0, atol=1e-14)
    assert torch.equal(moved.root, plain.root) and torch.equal(moved.betas, plain.betas)
