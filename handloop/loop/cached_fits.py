"""`CachedFits`: what the cache gives back, one row per sample asked for, and `Origin`, where a fit came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.distortion import DISTORTION_LENGTHS
from handloop.core.errors import InputError
from handloop.core.keypoints import Keypoints
from handloop.core.params import HandParams
from handloop.core.results import FitResult, MeshModel, Status

PER_ROW_TEXTS = ("recipe", "handloop_version")
"""Texts of a result's provenance that may differ from row to row; `Origin` has them."""


@dataclass(frozen=True)
class Origin:
    """Where fits come from: the same for a batch. Hashes are any text that names a version; "" for none."""

    start: str
    """What the search started from: "static", "search", "regressor", "cached" or a name of the caller's."""
    recipe: str = ""
    """Name or hash of the recipe; "" takes the name in the result."""
    weights: str = ""
    """Hash of the regressor's weights."""
    prior: str = ""
    """Hash of the pose prior."""
    layout: str = ""
    """Hash of the keypoint layout."""
    epoch: int = -1
    """Epoch of the training, -1 outside one."""
    handloop_version: str = ""
    """By what; "" takes the version in the result."""

    def completed(self, recipe: str, handloop_version: str) -> Origin:
        """The same with what it leaves to the result."""
        return replace(self, recipe=self.recipe or recipe, handloop_version=self.handloop_version or handloop_version)


@dataclass(frozen=True, eq=False, repr=False)
class CachedFits:
    """N rows in the order asked for; a missing row has `found` False, NaN for numbers and "" for texts.

    Everything is in the original picture's pixels and camera frame. Numbers are float64 on the CPU.
    """

    ids: tuple[str, ...]
    """N samples."""
    found: Tensor
    """(N,) bool, there is a fit."""
    is_right: Tensor
    """(N,) bool, the person's own side; True where missing."""
    params: HandParams
    """Pose, shape and place in smplx's convention of each hand's own side, as in `FitResult`."""
    focal: Tensor
    """(N, 2) px, of the camera the fit was made with."""
    princpt: Tensor
    """(N, 2) px."""
    dist: Tensor | None
    """(N, 4|5|8|12) OpenCV's coefficients, zeros for rows without distortion; None where no row has any."""
    camera_known: Tensor
    """(N,) bool, False where the focal length is an assumption; False where missing."""
    image_size: Tensor
    """(N, 2) px, NaN where unknown."""
    keypoints_2d: Tensor
    """(N, 21, 3) px and confidence: the input the energy is of."""
    joints: Tensor
    """(N, 21, 3) m, camera frame."""
    keypoints_3d: Tensor
    """(N, 21, 3) m, camera frame, as the source of the keypoints means them."""
    keypoints_3d_sd: Tensor
    """(N, 21, 3) m, posterior standard deviation per camera axis; NaN where it was not computed."""
    depth_sd: Tensor
    """(N,) m, posterior standard deviation of the hand's mean distance."""
    expected_error_mm: Tensor
    """(N,) mm."""
    rms_px: Tensor
    """(N,) px."""
    hypothesis_gap: Tensor
    """(N,) energy of the best different solution minus this one's, at the time of the fit."""
    weakest: tuple[str, ...]
    """N texts, the least determined directions."""
    status: Tensor
    """(N,) int64, see `Status`; FAILED where missing."""
    plausible: Tensor
    """(N,) bool, False where missing or something speaks against the fit."""
    doubts: tuple[str, ...]
    """N texts, what speaks against it."""
    energy: Tensor
    """(N,) the whole energy under `score_version`, half squared sigmas; inf where the present score has none."""
    energy_terms: Mapping[str, Tensor]
    """(N,) each, its parts."""
    score_version: Tensor
    """(N,) int64, -1 where missing."""
    solver_steps: Tensor
    """(N,) int64, steps of the solver."""
    step: Tensor
    """(N,) int64, training step that wrote the row last, -1 where missing."""
    found_step: Tensor
    """(N,) int64, training step in which this fit was accepted, -1 where missing."""
    improvements: Tensor
    """(N,) int64, how often a fit of this sample was replaced by a better one."""
    origin: tuple[Origin | None, ...]
    """N origins, None where missing."""
    source: tuple[str, ...]
    """N file names."""
    image: tuple[str, ...]
    """N paths of pictures."""
    frame: Tensor
    """(N,) int64, -1 for none."""
    conventions: Mapping[str, str]
    """Texts that hold for all rows: hand model and its digest, tip set, noise level, layout."""

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"CachedFits({len(self)} asked for, {int(self.found.sum())} found)"

    def select(self, index: Tensor) -> CachedFits:
        """The rows named by an integer or boolean index."""
        at = index.nonzero()[:, 0] if index.dtype == torch.bool else index
        rows = at.tolist()

        def pick(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[at]
            return tuple(value[i] for i in rows) if isinstance(value, tuple) else value

        picked = {f.name: pick(getattr(self, f.name)) for f in fields(self)}
        picked["params"] = self.params.select(at)
        picked["energy_terms"] = {name: value[at] for name, value in self.energy_terms.items()}
        return CachedFits(**picked)

    @classmethod
    def concatenate(cls, parts: Sequence[CachedFits]) -> CachedFits:
        """Several sets of one cache behind each other; at least one."""
        first = parts[0]
        lengths = [0 if part.dist is None else part.dist.shape[1] for part in parts]
        names = list(dict.fromkeys(name for part in parts for name in part.energy_terms))

        def distortion(part: CachedFits) -> Tensor:
            given = torch.zeros(len(part), 0, dtype=torch.float64) if part.dist is None else part.dist
            return torch.nn.functional.pad(given, (0, max(lengths) - given.shape[1]))

        def term(part: CachedFits, name: str) -> Tensor:
            return part.energy_terms.get(name, torch.full_like(part.energy, float("nan")))

        joined: dict[str, Any] = {}
        for f in fields(cls):
            values = [getattr(part, f.name) for part in parts]
            if isinstance(values[0], tuple):
                joined[f.name] = tuple(value for part in values for value in part)
            elif f.name not in ("params", "dist", "energy_terms", "conventions"):
                joined[f.name] = torch.cat(values)
        tensors = zip(*(part.params.tensors() for part in parts), strict=True)
        joined["params"] = HandParams(*(torch.cat(values) for values in tensors))
        joined["dist"] = torch.cat([distortion(part) for part in parts]) if max(lengths) else None
        joined["energy_terms"] = {name: torch.cat([term(part, name) for part in parts]) for name in names}
        return cls(**joined, conventions=first.conventions)

    def camera(self) -> Camera:
        """The cameras the fits were made with.

        Raises:
            InputError: a row is missing; select the found ones first.
        """
        self._whole("cameras")
        return Camera(self.focal, self.princpt, self.dist, self.camera_known)

    def usable(self) -> Tensor:
        """(N,) bool, rows that did not fail and whose parameters, points and energy are finite."""
        usable = self.found & ((self.status == Status.CONVERGED) | (self.status == Status.MAX_STEPS))
        numbers = (*self.params.tensors(), self.joints, self.keypoints_3d, self.focal, self.princpt, self.energy)
        for value in (*numbers, *self.energy_terms.values()):
            usable = usable & torch.isfinite(value).flatten(1).all(1) if value.ndim > 1 else usable & value.isfinite()
        return usable

    @classmethod
    def from_result(
        cls, result: FitResult, ids: Sequence[str], origin: Origin, step: int, score_version: int
    ) -> CachedFits:
        """Rows as the cache would hold them, none of them decided on."""
        n = len(result)
        if len(ids) != n:
            raise InputError(f"{len(ids)} ids were given for {n} fits, expected one per fit.")
        texts = dict(result.provenance)
        origin = origin.completed(*(texts.pop(name, "") for name in PER_ROW_TEXTS))

        def plain(value: Tensor) -> Tensor:
            return value.detach().to("cpu", torch.float64)

        def many(value: int) -> Tensor:
            return torch.full((n,), value)

        points, camera = result.keypoints, result.camera
        return cls(
            ids=tuple(ids),
            found=torch.ones(n, dtype=torch.bool),
            is_right=points.is_right,
            params=HandParams(*(plain(t) for t in result.params.tensors())),
            focal=plain(camera.focal),
            princpt=plain(camera.princpt),
            dist=None if camera.dist is None else plain(camera.dist),
            camera_known=camera.is_known().cpu(),
            image_size=plain(points.image_size),
            keypoints_2d=torch.cat([points.xy, points.conf[..., None]], -1),
            joints=plain(result.joints),
            keypoints_3d=plain(result.keypoints_3d),
            keypoints_3d_sd=plain(result.keypoints_3d_sd),
            depth_sd=plain(result.depth_sd),
            expected_error_mm=plain(result.expected_error_mm),
            rms_px=plain(result.rms_px),
            hypothesis_gap=plain(result.hypothesis_gap),
            weakest=result.weakest,
            status=result.status.cpu(),
            plausible=result.plausible.cpu(),
            doubts=result.doubts,
            energy=plain(result.energy),
            energy_terms={name: plain(value) for name, value in result.energy_terms.items()},
            score_version=many(score_version),
            solver_steps=result.steps.cpu(),
            step=many(step),
            found_step=many(step),
            improvements=many(0),
            origin=(origin,) * n,
            source=points.source,
            image=points.image,
            frame=points.frame,
            conventions=texts,
        )

    def keypoints(self) -> Keypoints:
        """What they were fitted to."""
        points = self.keypoints_2d
        return Keypoints(
            *(points[..., :2], points[..., 2], self.is_right, self.image_size),
            *(self.ids, self.source, self.frame, self.image),
        )

    def to_result(self, hand: MeshModel) -> FitResult:
        """The same as a fit gives back, for saving, evaluation and the report.

        Args:
            hand: the model, for meshes; not looked at otherwise.

        Raises:
            InputError: a row is missing; select the found ones first.
        """
        camera = self.camera()
        return FitResult(
            params=self.params,
            joints=self.joints,
            keypoints_3d=self.keypoints_3d,
            keypoints_3d_sd=self.keypoints_3d_sd,
            depth_sd=self.depth_sd,
            expected_error_mm=self.expected_error_mm,
            weakest=self.weakest,
            plausible=self.plausible,
            doubts=self.doubts,
            keypoints=self.keypoints(),
            camera=camera,
            keypoints_2d_fit=camera.project(self.keypoints_3d),
            energy=self.energy,
            energy_terms=self.energy_terms,
            rms_px=self.rms_px,
            status=self.status,
            steps=self.solver_steps,
            hypothesis_gap=self.hypothesis_gap,
            hand=hand,
            provenance={**self.conventions, **self._common_texts()},
        )

    def _common_texts(self) -> dict[str, str]:
        out = {}
        for name in PER_ROW_TEXTS:
            values = sorted({getattr(origin, name) for origin in self.origin})
            out[name] = values[0] if len(values) == 1 else f"several: {', '.join(values)}" if values else ""
        return out

    def _whole(self, what: str) -> None:
        missing = (~self.found).nonzero()[:, 0].tolist()
        if missing:
            raise InputError(
                f"{len(missing)} of {len(self)} samples have no fit (the first is {self.ids[missing[0]]!r}), so there "
                f"are no {what} for them; select the found rows first: fits.select(fits.found)."
            )


def trimmed(dist: Tensor) -> Tensor | None:
    """(N, 12) coefficients without the columns of zeros at the end, at one of OpenCV's lengths; None without any."""
    used = (dist != 0).any(0).nonzero()[:, 0]
    if not len(used):
        return None
    length = next(k for k in DISTORTION_LENGTHS if k > int(used.max()))
    return dist[:, :length].contiguous()
