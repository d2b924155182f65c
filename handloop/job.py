"""The job behind `handloop fit`: read files, fit in parts that survive an interruption, write everything out."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from handloop._version import __version__
from handloop.api import (
    check_camera,
    hand_lengths,
    hand_models,
    lifter_proposal,
    pick_device,
    pick_lifter,
    prediction_recipe,
    propose,
)
from handloop.core.camera import Camera
from handloop.core.errors import FileFormatError, InputError
from handloop.core.keypoints import Keypoints
from handloop.core.proposal import Proposal
from handloop.core.results import FitResult, load_npz, merge_arrays, save_npz, write_text
from handloop.core.words import counted
from handloop.fitting.fit import fit_keypoints
from handloop.fitting.problem import HandModels
from handloop.fitting.recipes import RECIPES, Recipe
from handloop.formats import ReadOptions, ReadResult, read_camera, read_keypoints
from handloop.job_messages import (
    model_notes,
    progress,
    say_what_came_out,
    say_what_was_read,
    write_pictures,
    write_summary,
)
from handloop.picture_start import PictureStart, is_image_weights
from handloop.priors.prior_file import load_prior
from handloop.regressors.lifter import Lifter

if TYPE_CHECKING:
    from handloop.commands import KeypointCommand

PART = 2048
"""Hands fitted between two writes: a few seconds of work at most is lost by an interruption."""


def run_fit(command: KeypointCommand, start: Path | None) -> int:
    """Fit, from the hands in the file `start` besides the usual starts if it is given; returns the exit status."""
    return _run(command, RECIPES[command.recipe], start)


def run_predict(command: KeypointCommand, weights: Path | None, boxes: Path | None, refine: bool) -> int:
    """Lift keypoints or pictures with a network, and fit from there if asked to; returns the exit status."""
    recipe = prediction_recipe(RECIPES[command.recipe], refine)
    if weights is not None and is_image_weights(weights):
        return _run(command, replace(recipe, keep_proposal=True), PictureStart(weights, boxes))
    if boxes is not None:
        raise InputError("--boxes is for image regressors; name the weights of one with --weights.")
    return _run(command, recipe, pick_lifter(weights))


def _run(command: KeypointCommand, recipe: Recipe, start: Path | Lifter | PictureStart | None) -> int:
    console = Console(stderr=True, highlight=False)
    if not command.inputs:
        raise InputError(
            "no input was given; name keypoint files or folders, for example: handloop fit hands/ --out out"
        )
    recipe = with_options(recipe, command)
    device = pick_device(command.device)
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    prior = None if command.prior is None else load_prior(command.prior)
    models = hand_models(command.mano, device, dtype, command.layout, prior)
    options = read_options(command)
    box = None
    with console.status("reading keypoints"):
        if isinstance(start, PictureStart):
            read, box = start.read(command.inputs, options)
        else:
            read = read_keypoints(command.inputs, options)
    camera, camera_notes = choose_camera(command, read)
    proposal = None
    if isinstance(start, PictureStart) and box is not None:
        with console.status("looking at the pictures"):
            read, camera, proposal = start.propose(read, box, camera, models.pair, device)
    check_camera(camera)
    keypoints = read.keypoints
    length = None if command.hand_length is None else hand_lengths(command.hand_length, len(keypoints))
    notes = [*read.notes, *camera_notes, *model_notes(models)]
    say_what_was_read(console, read, notes)
    out = command.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the folder {out} for the results cannot be made ({error.strerror}); name another."
        ) from error
    clear_earlier(out)
    if device.type == "cpu" and len(keypoints):
        from handloop.compiler import ensure_compiled

        ensure_compiled()
    started = time.monotonic()
    if start is not None and not isinstance(start, PictureStart):
        source = start.for_pair(models.pair) if isinstance(start, Lifter) else start
        proposal = propose(source, keypoints, camera, models.layout)
    result = _fit_in_parts(command, recipe, models, keypoints, camera, length, proposal, console)
    seconds = time.monotonic() - started
    path = result.save(out)
    write_summary(out, result, read, notes, seconds)
    write_pictures(command, models, result, read, [*read.notes, *model_notes(models)], console)
    shutil.rmtree(out / "parts", ignore_errors=True)
    say_what_came_out(console, result, path, seconds)
    return 1 if read.problems or not bool(result.fitted().all()) else 0


def choose_camera(command: KeypointCommand, read: ReadResult) -> tuple[Camera, list[str]]:
    """One camera per hand from the command's options, the files, or an assumption; and what to tell the user.

    Raises:
        InputError: more than one of --camera, --focal, --fov, or a value that cannot be used.
    """
    keypoints = read.keypoints
    given = [name for name in ("camera", "focal", "fov") if getattr(command, name) is not None]
    if len(given) > 1:
        raise InputError(f"--{given[0]} and --{given[1]} both say what the camera is; give one of them.")
    n = len(keypoints)
    if command.camera is not None:
        row = read_camera(command.camera)
        return row.select(torch.zeros(n, dtype=torch.int64)), []
    if command.fov is not None:
        return Camera.from_fov(command.fov, keypoints.image_size), []
    assumed = Camera.assumed(keypoints.image_size, keypoints.box())
    if command.focal is not None:
        if not 1 <= command.focal <= 1e6:
            raise InputError(f"a focal length of {command.focal} px was given, expected 1 to 1,000,000 px.")
        if not bool(torch.isfinite(keypoints.image_size).all()):
            raise InputError(
                "--focal needs the image size for the principal point, which the files lack: give --image-size W H."
            )
        return replace(assumed, focal=torch.full_like(assumed.focal, command.focal), known=None), []
    camera = assumed if read.camera is None else read.camera
    unknown = ~camera.is_known()
    if not bool(unknown.any()):
        return camera, []
    sized = torch.isfinite(keypoints.image_size).all(1)
    notes = []
    lacking = counted(int((unknown & sized).sum()), "hand")
    if bool((unknown & sized).any()):
        notes.append(
            f"{lacking} without a camera: the focal length is assumed to be the image "
            "diagonal, so depth and size are not metric. Give --camera, --focal or --fov."
        )
    lacking = counted(int((unknown & ~sized).sum()), "hand")
    if bool((unknown & ~sized).any()):
        notes.append(
            f"{lacking} without camera and image size: a focal length of four times "
            "the hand's box is assumed, centred on it, so place and depth mean nothing. "
            "Give --image-size W H, or a camera."
        )
    return camera, notes


def read_options(command: KeypointCommand) -> ReadOptions:
    """What the command says that the files do not."""
    return ReadOptions(
        command.format,
        command.image_size,
        command.hand,
        command.mediapipe_handedness,
        command.scale,
        command.images,
        command.min_conf,
    )


def with_options(recipe: Recipe, command: KeypointCommand) -> Recipe:
    """The recipe with the command's noise and focal length."""
    if command.noise is not None:
        recipe = replace(recipe, noise_px=command.noise)
    if command.joint_noise is not None:
        recipe = replace(recipe, joint_noise=command.joint_noise)
    if command.free_focal is not None:
        if not 0.01 <= command.free_focal <= 2:
            raise InputError(f"--free-focal is {command.free_focal}, expected a relative deviation of 0.01 to 2.")
        recipe = replace(recipe, focal_sigma=command.free_focal)
    return recipe


def clear_earlier(out: Path) -> None:
    """Remove what an earlier run wrote, so that a page or a mesh of other hands is never taken for this run's.

    Only in a folder whose summary is ours, and only files of the kinds a run writes.
    """
    summary = out / "summary.json"
    if not summary.is_file() or "handloop_version" not in summary.read_text(encoding="utf-8", errors="replace"):
        return
    written = [out / "results.npz", summary, out / "report.html"]
    written += [*(out / "overlays").glob("*.png"), *(out / "meshes").glob("*.obj")]
    for path in written:
        path.unlink(missing_ok=True)


def _fit_in_parts(
    command: KeypointCommand,
    recipe: Recipe,
    models: HandModels,
    keypoints: Keypoints,
    camera: Camera,
    length: Tensor | None,
    proposal: Proposal | None,
    console: Console,
) -> FitResult:
    parts = command.out / "parts"
    stamp = _fingerprint(command, recipe, models, keypoints, camera, proposal)
    stamp_file = parts / "fingerprint.txt"
    if not (command.resume and stamp_file.is_file() and stamp_file.read_text(encoding="utf-8") == stamp):
        if command.resume and stamp_file.is_file():
            console.print("The earlier run had other inputs or settings; starting afresh.", style="yellow")
        shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(exist_ok=True)
    write_text(stamp_file, stamp)
    n = len(keypoints)
    arrays: list[dict[str, np.ndarray]] = []
    with progress(console) as bar:
        task = bar.add_task("fitting", total=n)
        for number, start in enumerate(range(0, max(n, 1), PART)):
            path = parts / f"part-{number:06d}.npz"
            rows = torch.arange(start, min(start + PART, n))
            part = _earlier_part(path)
            if part is None:
                points, view = keypoints.select(rows), camera.select(rows)
                if proposal is None:
                    first = lifter_proposal(models, recipe, points, view)
                else:
                    first = proposal.select(rows)
                known = None if length is None else length[rows]
                fitted = fit_keypoints(models, points, view, recipe, known, proposal=first)
                part = fitted.arrays()
                save_npz(path, part)
            arrays.append(part)
            bar.advance(task, len(rows))
    return FitResult.from_arrays(merge_arrays(arrays), models)


def _earlier_part(path: Path) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    try:
        return load_npz(path)
    except FileFormatError:
        return None


def _fingerprint(
    command: KeypointCommand,
    recipe: Recipe,
    models: HandModels,
    keypoints: Keypoints,
    camera: Camera,
    proposal: Proposal | None,
) -> str:
    digest = hashlib.sha256()
    settings = {
        **asdict(recipe),
        "length": command.hand_length,
        "version": __version__,
        "device": command.device,
        "offsets": models.layout.offsets.tolist(),
    }
    digest.update(json.dumps({**settings, **models.provenance(), "ids": keypoints.ids}, default=str).encode())
    prior = models.right.pose_prior
    start = () if proposal is None else proposal.params.tensors()
    tensors = (keypoints.xy, keypoints.conf, keypoints.is_right, camera.focal, camera.princpt, camera.dist, *start)
    for tensor in (*tensors, prior.means, prior.precision_factors, prior.offsets):
        if tensor is not None:
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
    return digest.hexdigest()
