"""The library calls: arrays or tensors in, one result out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.errors import InputError
from handloop.core.keypoints import Keypoints
from handloop.core.layout import KeypointLayout
from handloop.core.proposal import Proposal
from handloop.core.results import FitResult
from handloop.fitting.fit import fit_keypoints
from handloop.fitting.observe import before_the_camera
from handloop.fitting.problem import HandModels
from handloop.fitting.recipes import RECIPES, Recipe
from handloop.fitting.solver import SolverOptions
from handloop.hand.load import load_hand
from handloop.hand.model import HandPair
from handloop.priors.gaussian import GaussianPosePrior
from handloop.priors.mixture import MixturePosePrior, PosePriorModel
from handloop.priors.prior_file import load_prior
from handloop.regressors.adapters import proposal_of
from handloop.regressors.base import KeypointBatch, Regressor
from handloop.regressors.lifter import Lifter

Start = Proposal | Regressor[KeypointBatch] | str | os.PathLike[str]
"""What a fit can start from: proposed hands, a network that proposes them, or a file of another network's."""


def fit(
    keypoints: Keypoints | np.ndarray | Tensor,
    K: Camera | np.ndarray | Tensor | Sequence[Sequence[float]] | None = None,
    *,
    is_right: np.ndarray | Tensor | bool = True,
    image_size: np.ndarray | Tensor | Sequence[float] | None = None,
    hand: HandPair | str | os.PathLike[str] | None = None,
    recipe: Recipe | str = "default",
    joint_noise: str | Sequence[float] | None = None,
    hand_length_mm: float | np.ndarray | Tensor | None = None,
    layout: KeypointLayout | str | os.PathLike[str] | None = None,
    prior: PosePriorModel | str | os.PathLike[str] | None = None,
    start: Start | None = None,
    device: str = "auto",
    dtype: torch.dtype = torch.float64,
) -> FitResult:
    """Fit a hand to each set of 21 keypoints.

    Args:
        keypoints: (B, 21, 2) or (B, 21, 3) px with confidence, OpenPose order; or `Keypoints`, which then say side and
            image size themselves.
        K: (3, 3) or (B, 3, 3) camera matrix, or a `Camera` with lens distortion; None assumes a focal length, and the
            result's `camera.known` says that depth is not metric.
        is_right: the person's own side, for all or (B,).
        image_size: (w, h) px or (B, 2).
        hand: what `load_hand` takes: a MANO file or folder; None for HANDLOOP_MANO or the embedded hand.
        recipe: a `Recipe` or one of `RECIPES`.
        joint_noise: how exact the points are compared with each other: the name of their source ("coco_wholebody"; see
            `core.joint_noise`), or 21 numbers; None for what the recipe says.
        hand_length_mm: wrist joint to middle fingertip where it is known: makes size and depth metric.
        layout: what the source means by its points, a `KeypointLayout` or its file; None for the model's own points.
        prior: which poses are likely, a `GaussianPosePrior`, a `MixturePosePrior` or the file of one, for both sides;
            None for the Gaussian of the model's own poses.
        start: hands to start from besides the closed-form starts (instead of them where the recipe has no seeds): a
            `Proposal`, an npz of another network's hands (HaMeR, WiLoR, MANO's names), or a `Regressor`; None for the
            package's keypoint lifter where it knows the hand model and the recipe wants it.
        device: "auto" takes a CUDA device if there is one; else as torch names it.
        dtype: torch.float64, or torch.float32 for speed on a GPU.

    Returns:
        `FitResult` with one row per hand, in order. A hand that cannot be fitted has NaN parameters and a `status`.

    Raises:
        InputError: wrong shapes or options.
        ModelError: the hand model cannot be read.
    """
    keypoints, camera = _inputs(keypoints, K, is_right, image_size)
    length = None if hand_length_mm is None else hand_lengths(hand_length_mm, len(keypoints))
    models = hand_models(hand, pick_device(device), dtype, layout, prior)
    chosen = pick_recipe(recipe)
    if joint_noise is not None:
        ratios = joint_noise if isinstance(joint_noise, str) else tuple(float(v) for v in joint_noise)
        chosen = replace(chosen, joint_noise=ratios)
    if start is None:
        proposal = lifter_proposal(models, chosen, keypoints, camera)
    else:
        proposal = propose(start, keypoints, camera, models.layout)
    return fit_keypoints(models, keypoints, camera, chosen, length, proposal=proposal)


def predict(
    keypoints: Keypoints | np.ndarray | Tensor,
    K: Camera | np.ndarray | Tensor | Sequence[Sequence[float]] | None = None,
    *,
    is_right: np.ndarray | Tensor | bool = True,
    image_size: np.ndarray | Tensor | Sequence[float] | None = None,
    hand: HandPair | str | os.PathLike[str] | None = None,
    weights: Lifter | str | os.PathLike[str] | None = None,
    refine: bool = False,
    recipe: Recipe | str = "default",
    hand_length_mm: float | np.ndarray | Tensor | None = None,
    layout: KeypointLayout | str | os.PathLike[str] | None = None,
    device: str = "auto",
    dtype: torch.dtype = torch.float64,
) -> FitResult:
    """Lift each set of 21 keypoints to a hand with a network, many thousands in a second.

    Args:
        keypoints, K, is_right, image_size, hand, hand_length_mm, layout, device, dtype: as in `fit`.
        weights: a `Lifter` or its file; None for the one that comes with the package, which knows the embedded hand.
        refine: fit from there, from no other start.
        recipe: how to fit, and what energies and posterior mean where nothing is fitted.

    Returns:
        `FitResult` as of `fit`: energies, posterior and reprojection errors at the network's answer, whose status is
        "predicted".

    Raises:
        InputError: wrong shapes or options, or the weights belong to another hand model.
        ModelError: the hand model cannot be read.
    """
    pair = hand_models(hand, pick_device(device), dtype, layout).pair
    start = pick_lifter(weights).for_pair(pair)
    how = prediction_recipe(pick_recipe(recipe), refine)
    points, camera = _inputs(keypoints, K, is_right, image_size)
    return fit(
        points,
        camera,
        hand=pair,
        recipe=how,
        hand_length_mm=hand_length_mm,
        layout=layout,
        start=start,
        device=device,
        dtype=dtype,
    )


def prediction_recipe(recipe: Recipe, refine: bool) -> Recipe:
    """A recipe with a network's proposal as its only start, fitted from there or left as it is."""
    if recipe.baseline is not None:
        raise InputError(f"the recipe {recipe.name!r} is a published method with starts of its own.")
    if refine:
        return replace(recipe, name=f"predict, {recipe.name}", seeds=0)
    return replace(recipe, name="predict", seeds=0, solver=SolverOptions(max_steps=0))


def pick_lifter(weights: Lifter | str | os.PathLike[str] | None) -> Lifter:
    """A lifter, from its file, or the package's own."""
    if isinstance(weights, Lifter):
        return weights
    return _shipped_lifter() if weights is None else Lifter.load(weights)


@lru_cache(maxsize=4)
def _lifter_for(pair: HandPair) -> Regressor[KeypointBatch] | None:
    """The package's lifter, if it knows these hands."""
    lifter = _shipped_lifter()
    return lifter.for_pair(pair) if lifter.knows(pair.right) else None


@lru_cache(maxsize=1)
def _shipped_lifter() -> Lifter:
    return Lifter.shipped()


def lifter_proposal(models: HandModels, recipe: Recipe, keypoints: Keypoints, camera: Camera) -> Proposal | None:
    """The package's lifter's hands, where the recipe wants them and the lifter knows the hand model."""
    start = _lifter_for(models.pair) if recipe.wants_lifter() else None
    return None if start is None else propose(start, keypoints, camera, models.layout)


def propose(start: Start, keypoints: Keypoints, camera: Camera, layout: KeypointLayout) -> Proposal:
    """The hands to start from, from wherever they come.

    Raises:
        InputError: the file's hands do not match the keypoints.
        FileFormatError: the file cannot be read as hands.
    """
    if isinstance(start, Proposal):
        return start
    if not isinstance(start, (str, os.PathLike)):
        return start.propose(KeypointBatch(keypoints, camera, layout))
    # All readers come along, and few fits start from a file.
    from handloop.formats.start_file import read_start_arrays

    try:
        return proposal_of(read_start_arrays(start), keypoints.image_size).rows_for(keypoints.ids, keypoints.is_right)
    except InputError as error:
        raise type(error)(f"{os.fspath(start)}: {error}") from error


def fit_joints(
    joints: np.ndarray | Tensor,
    *,
    is_right: np.ndarray | Tensor | bool = True,
    hand: HandPair | str | os.PathLike[str] | None = None,
    recipe: Recipe | str = "default",
    layout: KeypointLayout | str | os.PathLike[str] | None = None,
    prior: PosePriorModel | str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> FitResult:
    """MANO parameters of 21 joints in 3D: sparse, weighted, in any frame.

    Args:
        joints: (B, 21, 3) m, or (B, 21, 4) with a weight 0..1; points that are not finite count as unknown. Axes are
            right-handed: in a mirrored frame a right hand is a left one.
        is_right: the person's own side, for all or (B,).
        hand, recipe, layout, prior, device: as in `fit`; the recipe's `noise_mm` says how exact the points are.

    Returns:
        `FitResult` in the frame of the joints. It has no 2D keypoints (all missing), so `rms_px` is NaN; how well the
        points are met is in `keypoints_3d`.

    Raises:
        InputError: wrong shapes, or values that look like millimetres.
    """
    given = torch.as_tensor(np.asarray(joints, dtype=np.float64) if not torch.is_tensor(joints) else joints).double()
    if given.ndim != 3 or given.shape[1] != 21 or given.shape[2] not in (3, 4):
        raise InputError(f"joints have shape {tuple(given.shape)}, expected (N, 21, 3) m or (N, 21, 4) with a weight.")
    if given.shape[2] == 3:
        given = torch.cat([given, torch.ones_like(given[..., :1])], 2)
    points, shift = before_the_camera(given)
    size = (points[..., :3] - points.new_tensor([0.0, 0.0, 1.0])).norm(dim=-1)
    size = (size * (points[..., 3] > 0)).amax(1)
    if len(size) and float(size.median()) > 2:
        raise InputError(
            f"the joints spread over {float(size.median()):.0f} units, expected metres; divide millimetres by 1000."
        )
    n = len(given)
    keypoints = Keypoints.from_arrays(torch.zeros(n, 21, 3), is_right)
    camera = Camera.assumed(keypoints.image_size, keypoints.box())
    models = hand_models(hand, pick_device(device), torch.float64, layout, prior)
    result = fit_keypoints(models, keypoints, camera, pick_recipe(recipe), points_3d=points)
    place = result.params.transl - shift[:, 0].to(result.params.transl)
    return replace(
        result,
        params=replace(result.params, transl=place),
        joints=result.joints - shift.to(result.joints),
        keypoints_3d=result.keypoints_3d - shift.to(result.keypoints_3d),
        keypoints_2d_fit=torch.full_like(result.keypoints_2d_fit, float("nan")),
    )


def _inputs(
    keypoints: Keypoints | np.ndarray | Tensor,
    K: Camera | np.ndarray | Tensor | Sequence[Sequence[float]] | None,
    is_right: np.ndarray | Tensor | bool,
    image_size: np.ndarray | Tensor | Sequence[float] | None,
) -> tuple[Keypoints, Camera]:
    """Checked keypoints and one camera per hand."""
    if not isinstance(keypoints, Keypoints):
        keypoints = Keypoints.from_arrays(keypoints, is_right, image_size)
    n = len(keypoints)
    if K is None:
        camera = Camera.assumed(keypoints.image_size, keypoints.box())
    elif isinstance(K, Camera):
        camera = K
    else:
        camera = Camera.from_matrix(K, n)
    if len(camera) != n:
        raise InputError(f"{n} hands but {len(camera)} cameras were given.")
    check_camera(camera)
    return keypoints, camera


def check_camera(camera: Camera) -> None:
    """Refuse focal lengths that cannot be in px; assumed ones follow from the keypoints, which may be anything.

    Raises:
        InputError: a normalised K, most likely.
    """
    given = camera.focal[camera.is_known()]
    if len(given) and float(given.min()) < 10:
        raise InputError(
            f"the camera has a focal length of {float(given.min()):g} px, expected hundreds; is K normalised? "
            "Multiply its first row by the width and its second by the height of the picture."
        )


def hand_lengths(given_mm: float | np.ndarray | Tensor, n: int) -> Tensor:
    """(n,) m of one hand length in mm, or n; NaN where unknown.

    Raises:
        InputError: another number of lengths, or not a hand's.
    """
    length = torch.as_tensor(given_mm, dtype=torch.float64) / 1000
    if length.shape not in ((), (n,)):
        raise InputError(f"hand_length_mm has shape {tuple(length.shape)}, expected one number or ({n},).")
    length = length.expand(n)
    if not bool((torch.isnan(length) | ((length > 0.05) & (length < 0.4))).all()):
        raise InputError("a hand length outside 50 to 400 mm was given, expected mm from wrist to middle fingertip.")
    return length


def pick_recipe(recipe: Recipe | str) -> Recipe:
    """A recipe by name, or itself.

    Raises:
        InputError: no recipe has this name.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise InputError(f"the recipe {recipe!r} is unknown, expected one of {', '.join(RECIPES)}.")
    return RECIPES[recipe]


def pick_device(name: str) -> torch.device:
    """ "auto", "cpu", "cuda" or "cuda:1" to a device.

    Raises:
        InputError: the name means nothing, or there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"the device {name!r} is unknown, expected auto, cpu or cuda.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"the device {name!r} was asked for, but torch finds no CUDA device; use auto or cpu.")
    return device


def hand_models(
    hand: HandPair | str | os.PathLike[str] | None,
    device: torch.device,
    dtype: torch.dtype,
    layout: KeypointLayout | str | os.PathLike[str] | None = None,
    prior: PosePriorModel | str | os.PathLike[str] | None = None,
) -> HandModels:
    """Models ready to fit. Those read from files are kept, because reading one takes longer than fitting a hand."""
    if layout is not None and not isinstance(layout, KeypointLayout):
        layout = KeypointLayout.load(layout)
    if prior is not None and not isinstance(prior, (GaussianPosePrior, MixturePosePrior)):
        prior = load_prior(prior)
    if isinstance(hand, HandPair):
        if layout is None and prior is None:
            return _models_of_pair(hand, device, dtype)
        return HandModels.of(hand, dtype, device, layout, prior)
    path = os.environ.get("HANDLOOP_MANO", "") if hand is None else os.fspath(hand)
    if layout is not None or prior is not None:
        return HandModels.of(_pair_of(path), dtype, device, layout, prior)
    return _models_of_pair(_pair_of(path), device, dtype)


@lru_cache(maxsize=4)
def _pair_of(path: str) -> HandPair:
    return load_hand(path or None)


@lru_cache(maxsize=4)
def _models_of_pair(pair: HandPair, device: torch.device, dtype: torch.dtype) -> HandModels:
    return HandModels.of(pair, dtype, device)
