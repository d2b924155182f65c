"""`FitResult`: what a fit gives back, and its file `results.npz`."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.errors import FileFormatError, InputError
from handloop.core.keypoints import Keypoints
from handloop.core.params import HandParams


class Status(IntEnum):
    """How a fit ended; `STATUS_HELP` says what to do about each."""

    CONVERGED = 0
    MAX_STEPS = 1
    TOO_FEW_POINTS = 2
    FAILED = 3
    PREDICTED = 4


STATUS_HELP: dict[Status, str] = {
    Status.CONVERGED: "converged: the energy no longer changes.",
    Status.MAX_STEPS: "stopped at the step limit while still improving; usable, or fit again with more steps.",
    Status.TOO_FEW_POINTS: "too few visible points for a fit or all in one spot; parameters are NaN. Give more points.",
    Status.FAILED: "no finite solution was found; the parameters are NaN. Look at the input points and the camera.",
    Status.PREDICTED: "a network's answer, not fitted: usable, and better after a fit (handloop predict --refine).",
}
"""What each status means and what to do."""


def usable_status(status: Tensor) -> Tensor:
    """(N,) bool, whether hands of these statuses have parameters worth using."""
    return (status == Status.CONVERGED) | (status == Status.MAX_STEPS) | (status == Status.PREDICTED)


class MeshModel(Protocol):
    """What a result needs of the hand model it was fitted with."""

    def vertices(self, params: HandParams, is_right: Tensor) -> Tensor:
        """(B, 778, 3) m, camera frame."""
        ...

    def provenance(self) -> Mapping[str, str]:
        """Texts that name the model and its conventions."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class FitResult:
    """N fitted hands, one row each, in the order of the keypoints."""

    params: HandParams
    """Pose, shape and place in smplx's convention of each hand's own side; NaN where there is no fit."""
    joints: Tensor
    """(N, 21, 3) m, camera frame, canonical order, left hands un-mirrored."""
    keypoints_3d: Tensor
    """(N, 21, 3) m, the same as the source of the keypoints means them: with the layout's offsets."""
    keypoints_3d_sd: Tensor
    """(N, 21, 3) m, posterior standard deviation of `keypoints_3d` per camera axis; NaN where it was not computed."""
    depth_sd: Tensor
    """(N,) m, posterior standard deviation of the hand's mean distance."""
    expected_error_mm: Tensor
    """(N,) mm, expected mean joint error after similarity alignment."""
    weakest: tuple[str, ...]
    """N texts, the least determined directions, worst first."""
    plausible: Tensor
    """(N,) bool, False where there is no fit or something speaks against it."""
    doubts: tuple[str, ...]
    """N texts, what speaks against each fit; "" for nothing."""
    keypoints: Keypoints
    """The input."""
    camera: Camera
    """The cameras used; `known` is False where the focal length is assumed (or was estimated) and depth not metric."""
    keypoints_2d_fit: Tensor
    """(N, 21, 2) px, the fitted joints in the picture, lens distortion included."""
    energy: Tensor
    """(N,) final energy, in units of half squared sigmas."""
    energy_terms: Mapping[str, Tensor]
    """(N,) each, the parts `energy` is the sum of, by term."""
    rms_px: Tensor
    """(N,) confidence-weighted root mean square reprojection error over visible points, px."""
    status: Tensor
    """(N,) int64, see `Status`."""
    steps: Tensor
    """(N,) int64 accepted and rejected steps of the winning start."""
    hypothesis_gap: Tensor
    """(N,) energy of the best different solution minus the best one; inf when no other was found, NaN where none was
    looked for."""
    hand: MeshModel
    """The model, for `vertices()`."""
    provenance: Mapping[str, str]
    """Texts: version, recipe, noise, model, conventions."""
    condition: Tensor | None = None
    """(N,) condition number of the normal equations at the solution, each parameter in units of its own curvature: 1
    where all are determined independently, large where some combination hardly is; None where it was not kept."""

    def __len__(self) -> int:
        return len(self.keypoints)

    def __repr__(self) -> str:
        return f"FitResult({len(self)} hands, {int(self.fitted().sum())} fitted)"

    def vertices(self) -> Tensor:
        """(N, 778, 3) mesh in m, camera frame; computed when asked for."""
        return self.hand.vertices(self.params, self.keypoints.is_right)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of `results.npz`, by key (see docs/outputs.md)."""
        kp, cam = self.keypoints, self.camera
        out: dict[str, np.ndarray] = {
            "global_orient": _np(self.params.global_orient),
            "hand_pose": _np(self.params.hand_pose),
            "betas": _np(self.params.betas),
            "transl": _np(self.params.transl),
            "is_right": kp.is_right.numpy(),
            "joints": _np(self.joints),
            "keypoints_3d": _np(self.keypoints_3d),
            "keypoints_3d_sd": _np(self.keypoints_3d_sd),
            "joints_sd": _np(self.keypoints_3d_sd),
            "depth_sd": _np(self.depth_sd),
            "expected_error_mm": _np(self.expected_error_mm),
            "weakest": np.array(self.weakest, dtype=np.str_),
            "plausible": _np(self.plausible),
            "doubts": np.array(self.doubts, dtype=np.str_),
            "keypoints_2d": torch.cat([kp.xy, kp.conf[..., None]], -1).numpy().astype(np.float32),
            "keypoints_2d_fit": _np(self.keypoints_2d_fit),
            "focal_length": cam.focal.cpu().numpy(),
            "princpt": cam.princpt.cpu().numpy(),
            "image_size": kp.image_size.numpy(),
            "camera_known": cam.is_known().numpy(),
            "energy": _np(self.energy),
            "rms_px": _np(self.rms_px),
            "status": self.status.cpu().numpy(),
            "steps": self.steps.cpu().numpy(),
            "hypothesis_gap": _np(self.hypothesis_gap),
            "id": np.array(kp.ids, dtype=np.str_),
            "source": np.array(kp.source, dtype=np.str_),
            "image": np.array(kp.image, dtype=np.str_),
            "frame": kp.frame.numpy(),
        }
        out.update({f"energy_{name}": _np(value) for name, value in self.energy_terms.items()})
        if self.condition is not None:
            out["condition"] = _np(self.condition)
        if cam.dist is not None:
            out["distortion"] = cam.dist.cpu().numpy()
        out.update({key: np.array(text) for key, text in self.provenance.items()})
        return out

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], hand: MeshModel) -> FitResult:
        """Rebuild a result from the arrays of `results.npz` and the model it was fitted with.

        Raises:
            FileFormatError: a key is missing, so that this is not a results file.
        """
        try:

            def tensor(key: str) -> Tensor:
                return torch.as_tensor(arrays[key])

            points = tensor("keypoints_2d").double()
            ids, source, image = (tuple(arrays[key].tolist()) for key in ("id", "source", "image"))
            return cls(
                params=HandParams(*(tensor(key) for key in ("global_orient", "hand_pose", "betas", "transl"))),
                joints=tensor("joints"),
                keypoints_3d=tensor("keypoints_3d"),
                keypoints_3d_sd=tensor("keypoints_3d_sd"),
                depth_sd=tensor("depth_sd"),
                expected_error_mm=tensor("expected_error_mm"),
                weakest=tuple(arrays["weakest"].tolist()),
                plausible=tensor("plausible"),
                doubts=tuple(arrays["doubts"].tolist()),
                keypoints=Keypoints(
                    *(points[..., :2], points[..., 2], tensor("is_right"), tensor("image_size")),
                    *(ids, source, tensor("frame"), image),
                ),
                camera=Camera(
                    tensor("focal_length"),
                    tensor("princpt"),
                    tensor("distortion") if "distortion" in arrays else None,
                    tensor("camera_known"),
                ),
                keypoints_2d_fit=tensor("keypoints_2d_fit"),
                energy=tensor("energy"),
                # One text, what energies are measured with, has a name like theirs.
                energy_terms={
                    k.removeprefix("energy_"): tensor(k)
                    for k, v in arrays.items()
                    if k.startswith("energy_") and v.ndim
                },
                rms_px=tensor("rms_px"),
                status=tensor("status"),
                steps=tensor("steps"),
                hypothesis_gap=tensor("hypothesis_gap"),
                hand=hand,
                provenance={k: str(v) for k, v in arrays.items() if v.ndim == 0},
                condition=tensor("condition") if "condition" in arrays else None,
            )
        except KeyError as error:
            raise FileFormatError(
                f"the results lack {error}; expected a results.npz written by handloop fit."
            ) from error

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `results.npz` and `summary.json` into `folder` (made if missing); returns the npz path."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        path = target / "results.npz"
        save_npz(path, self.arrays())
        write_text(target / "summary.json", json.dumps(self.summary(), indent=1) + "\n")
        return path

    def summary(self) -> dict[str, object]:
        """Counts and medians over all hands, and what the run assumed: what `summary.json` holds."""
        fitted = self.fitted()
        done = fitted & torch.isfinite(self.rms_px)  # Fits to 3D points alone have no reprojection error.
        rms = self.rms_px[done].double()
        relative = rms / self.keypoints.box_size().to(rms)[done.cpu()].clamp(min=1e-9)
        expected = self.expected_error_mm[fitted].double()
        counts = {s.name.lower(): int((self.status == s).sum()) for s in Status}
        return {
            "hands": len(self),
            "fitted": int(fitted.sum()),
            "left": int((~self.keypoints.is_right).sum()),
            "status": counts,
            "rms_px_median": float(rms.quantile(0.5)) if len(rms) else None,
            "rms_px_p90": float(rms.quantile(0.9)) if len(rms) else None,
            "rms_relative_to_box_median": float(relative.quantile(0.5)) if len(rms) else None,
            "plausible": int(self.plausible.sum()),
            "expected_error_mm_median": float(expected.nanquantile(0.5)) if bool(fitted.any()) else None,
            "camera_known": int(self.camera.is_known().sum()),
            **dict(self.provenance),
        }

    def fitted(self) -> Tensor:
        """(N,) bool, hands with usable parameters."""
        return usable_status(self.status)


def save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an npz that is either whole or absent: to a temporary name first, then renamed. No pickled objects."""
    temporary = path.with_name(path.name + ".partial")
    try:
        # Not np.savez: before numpy 2.1 it takes allow_pickle=False for the name of one more array, and pickles.
        with zipfile.ZipFile(temporary, "w") as archive:
            for key, array in arrays.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read all arrays of an npz without ever unpickling.

    Raises:
        FileFormatError: not an npz, damaged, or it holds Python objects.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(6)
        # Told apart here, because numpy takes every other file for a pickle and advises to trust it.
        if start == b"\x93NUMPY":
            raise FileFormatError(f"{path}: a single array (npy), expected an npz with named arrays.")
        if not start.startswith(b"PK"):
            raise FileFormatError(f"{path}: not an npz file.")
        with np.load(path, allow_pickle=False) as data:
            arrays = {key: data[key] for key in data.files}
    except FileFormatError:
        raise
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # numpy and zipfile raise many kinds for damaged files.
        # What follows numpy's colon is the damaged content.
        reason = str(error).partition("\n")[0].partition(": ")[0].rstrip(".") or type(error).__name__
        raise FileFormatError(f"{path}: not a readable npz file ({reason}).") from error
    # numpy hands back the bytes of a member that is not an array, as in any other zip file.
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise FileFormatError(f"{path}: a zip file with other things than arrays, expected an npz.")
    return arrays


def write_text(path: Path, text: str) -> None:
    """Write a text file that is either whole or as before."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _np(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def merge_arrays(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join the arrays of several `results.npz` parts of one run.

    Raises:
        InputError: there are no parts, or they come from runs with different settings.
    """
    if not parts:
        raise InputError("there are no parts to join.")
    for key in sorted({key for part in parts for key in part}):
        if not all(key in part for part in parts):
            raise InputError(f"some parts lack {key!r}: they come from runs with different settings.")
    merged: dict[str, np.ndarray] = {}
    for key in parts[0]:
        pieces = [part[key] for part in parts]
        if pieces[0].ndim and len({(piece.ndim, piece.shape[1:]) for piece in pieces}) == 1:
            merged[key] = np.concatenate(pieces)
        elif not pieces[0].ndim and all(piece == pieces[0] for piece in pieces):
            merged[key] = pieces[0]
        else:
            raise InputError(f"the parts differ in {key!r}: they come from runs with different settings.")
    return merged
