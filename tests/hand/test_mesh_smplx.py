"""The mesh against smplx on the same files, both sides, both meanings of the pose; and against itself."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from handloop.core.errors import InputError
from handloop.core.params import HandParams
from handloop.core.rotations import so3_exp
from handloop.hand.load import embedded_hand, load_hand
from handloop.hand.mesh import MeshLayer, mesh_layer, regressed_joints, skin
from handloop.hand.model import Hand, HandPair

smplx = pytest.importorskip("smplx")
F64 = torch.float64
# smplx rounds a model's constants to float32 even in a float64 model: 6e-9 m on positions, less on the rest.
TOLERANCE = {"atol": 1e-6, "rtol": 0.0}


def _mano_entries(hand: Hand) -> dict[str, np.ndarray]:
    return {
        "v_template": hand.v_template,
        "shapedirs": hand.shapedirs,
        "posedirs": hand.posedirs,
        "J_regressor": hand.j_regressor,
        "weights": hand.weights,
        "f": hand.faces.astype(np.uint32),
        "hands_mean": hand.hands_mean,
        "hands_components": hand.hands_components,
        "hands_coeffs": hand.hands_coeffs[:200],
        "kintree_table": np.array([[4294967295, *hand.parents[1:]], list(range(16))], dtype=np.int64),
    }


@pytest.fixture(scope="module", params=["made up", "embedded"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make: ModuleType) -> Path:
    """A folder with MANO_RIGHT.pkl and a MANO_LEFT.pkl that has the official file's sign error."""
    arrays = make.hand_arrays() if request.param == "made up" else _mano_entries(embedded_hand().right)
    path: Path = tmp_path_factory.mktemp("mano")
    (path / "MANO_RIGHT.pkl").write_bytes(make.plain_pickle(arrays))
    (path / "MANO_LEFT.pkl").write_bytes(make.plain_pickle(make.mirrored_arrays(arrays, sign_error=True)))
    return path


@pytest.fixture(scope="module")
def pair(folder: Path) -> HandPair:
    return load_hand(folder)


def _params(n: int = 5, seed: int = 0, dtype: torch.dtype = F64) -> HandParams:
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(n, k, generator=generator, dtype=F64) for k in (3, 45, 10, 3)]
    return HandParams(draws[0], 0.7 * draws[1], draws[2], draws[3]).to(dtype)


def _smplx(kind: Any, folder: Path, is_right: bool, flat: bool, pca: int | None = None) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        model = kind(
            str(folder),
            is_rhand=is_right,
            use_pca=pca is not None,
            num_pca_comps=pca or 6,
            flat_hand_mean=flat,
            dtype=F64,
            batch_size=5,
        )
    if not is_right:
        # What smplx's users are told to do in issue 48, with its own test.
        right = _smplx(kind, folder, True, flat)
        assert float((model.shapedirs[:, 0] - right.shapedirs[:, 0]).abs().sum()) < 1
        model.shapedirs[:, 0] *= -1
    return model


def _check(hand: Hand, params: HandParams, vertices: Tensor, joints: Tensor) -> None:
    ours_vertices, ours_joints = skin(hand, *params.tensors())
    torch.testing.assert_close(ours_vertices, vertices.detach(), **TOLERANCE)
    torch.testing.assert_close(ours_joints, joints.detach(), **TOLERANCE)


@pytest.mark.parametrize("is_right", [True, False])
@pytest.mark.parametrize("flat", [True, False])
def test_smplx_mano(is_right: bool, flat: bool, folder: Path, pair: HandPair) -> None:
    hand, params = pair.side(is_right), _params()
    mean = torch.from_numpy(hand.hands_mean)
    pose = params.hand_pose if flat else params.pose_relative_to(mean)
    model = _smplx(smplx.MANO, folder, is_right, flat)
    out = model(betas=params.betas, global_orient=params.global_orient, hand_pose=pose, transl=params.transl)
    _check(hand, params, out.vertices, out.joints)


@pytest.mark.parametrize("is_right", [True, False])
def test_smplx_mano_with_pca(is_right: bool, folder: Path, pair: HandPair) -> None:
    hand, base = pair.side(is_right), _params()
    coefficients = base.hand_pose[:, :12]
    model = _smplx(smplx.MANO, folder, is_right, False, pca=12)
    out = model(betas=base.betas, global_orient=base.global_orient, hand_pose=coefficients, transl=base.transl)
    components, mean = torch.from_numpy(hand.hands_components), torch.from_numpy(hand.hands_mean)
    params = HandParams.from_pca(base.global_orient, coefficients, base.betas, base.transl, components, mean)
    _check(hand, params, out.vertices, out.joints)


@pytest.mark.parametrize("is_right", [True, False])
def test_smplx_mano_layer_has_no_mean(is_right: bool, folder: Path, pair: HandPair) -> None:
    hand, params = pair.side(is_right), _params()
    model = _smplx(smplx.MANOLayer, folder, is_right, False)
    rotations = params.rotation_matrices()
    out = model(betas=params.betas, global_orient=rotations[:, :1], hand_pose=rotations[:, 1:], transl=params.transl)
    _check(hand, params, out.vertices, out.joints)
    layer = MeshLayer(hand)
    torch.testing.assert_close(
        layer.skin_rotations(rotations, params.betas, params.transl)[0], out.vertices, **TOLERANCE
    )


def test_left_without_the_repair_differs(folder: Path) -> None:
    params = _params()
    repaired = skin(load_hand(folder).left, *params.tensors())[0]
    as_file = skin(load_hand(folder, left_shapedirs="as-file").left, *params.tensors())[0]
    assert float((repaired - as_file).abs().max()) > 1e-3


# Properties


def test_rest_pose_is_the_template(pair: HandPair) -> None:
    vertices, joints = skin(pair.right, *HandParams.zeros(2).tensors())
    np.testing.assert_allclose(vertices[1], pair.right.v_template, atol=1e-12)
    np.testing.assert_allclose(joints[1], pair.right.joints_rest, atol=1e-12)
    np.testing.assert_allclose(regressed_joints(pair.right, vertices)[0], pair.right.joints_rest, atol=1e-12)


def test_the_wrist_turns_in_place(pair: HandPair) -> None:
    params = _params(3)
    _, joints = skin(pair.right, *params.tensors())
    wrist = pair.right.joints_rest[0] + np.einsum("cs,bs->bc", pair.right.joints_shapedirs[0], params.betas)
    np.testing.assert_allclose(joints[:, 0], wrist + params.transl.numpy(), atol=1e-12)


def test_regressed_joints_are_another_definition(pair: HandPair) -> None:
    vertices, joints = skin(pair.right, *_params(20).tensors())
    regressed = regressed_joints(pair.right, vertices)
    expected = np.einsum("jv,bvc->bjc", pair.right.j_regressor, vertices)
    np.testing.assert_allclose(regressed, expected, atol=1e-12)
    assert float((regressed - joints).norm(dim=-1).mean()) > 1e-4


def test_row_alone_equals_row_in_a_batch_across_chunks(pair: HandPair) -> None:
    params = _params(600)
    vertices, joints = skin(pair.right, *params.tensors())
    for i in (0, 255, 256, 599):
        alone = skin(pair.right, *params.select(torch.tensor([i])).tensors())
        torch.testing.assert_close(alone[0][0], vertices[i], atol=1e-12, rtol=0)
        torch.testing.assert_close(alone[1][0], joints[i], atol=1e-12, rtol=0)


def test_no_hands(pair: HandPair) -> None:
    vertices, joints = skin(pair.right, *HandParams.zeros(0).tensors())
    assert vertices.shape == (0, 778, 3) and joints.shape == (0, 16, 3)


def test_float32(pair: HandPair) -> None:
    exact = skin(pair.right, *_params().tensors())
    single = skin(pair.right, *_params(dtype=torch.float32).tensors())
    for ours, theirs in zip(single, exact, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, atol=2e-6, rtol=0)


def test_gradients(pair: HandPair) -> None:
    params = _params(1)
    pick = torch.randn(778, 3, generator=torch.Generator().manual_seed(1), dtype=F64)

    def measure(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        vertices, joints = skin(pair.right, *inputs)
        return (vertices * pick).sum((1, 2)), joints

    inputs = tuple(tensor.requires_grad_() for tensor in params.tensors())
    assert torch.autograd.gradcheck(measure, inputs, fast_mode=True)
    # Also at the rest pose, where the angles are zero.
    rest = tuple(tensor.requires_grad_() for tensor in HandParams.zeros(1).tensors())
    assert torch.autograd.gradcheck(measure, rest, fast_mode=True)


def test_constants_are_kept_and_usable_after_inference_mode(make: ModuleType) -> None:
    hand = embedded_hand().right
    with torch.inference_mode():
        skin(hand, *_params(1).tensors())
    assert mesh_layer(hand, F64, torch.device("cpu")) is mesh_layer(hand, F64, torch.device("cpu"))
    betas = torch.zeros(1, 10, dtype=F64, requires_grad=True)
    rest = HandParams.zeros(1)
    skin(hand, rest.global_orient, rest.hand_pose, betas, rest.transl)[0].sum().backward()
    assert betas.grad is not None and bool(torch.isfinite(betas.grad).all())


def test_wrong_inputs(pair: HandPair) -> None:
    params = _params(2)
    with pytest.raises(InputError, match=r"hand_pose has shape \(2, 44\), expected \(2, 45\)"):
        skin(pair.right, params.global_orient, params.hand_pose[:, 1:], params.betas, params.transl)
    with pytest.raises(InputError, match=r"betas has shape \(1, 10\), expected \(2, 10\)"):
        skin(pair.right, params.global_orient, params.hand_pose, params.betas[:1], params.transl)
    with pytest.raises(InputError, match=r"betas is torch\.float32"):
        skin(pair.right, params.global_orient, params.hand_pose, params.betas.float(), params.transl)
    with pytest.raises(InputError, match=r"vertices has shape"):
        regressed_joints(pair.right, so3_exp(params.global_orient))
    with pytest.raises(InputError, match="floating-point dtype"):
        MeshLayer(pair.right, torch.int64)
