"""Results of many chunks of hands, collected and brought back to each hand's own side and camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from handloop._version import __version__
from handloop.core.camera import Camera
from handloop.core.keypoints import Keypoints
from handloop.core.params import HandParams
from handloop.core.results import FitResult, Status, usable_status
from handloop.core.terms import HandState
from handloop.fitting.observe import Observations
from handloop.fitting.problem import HandModels
from handloop.fitting.recipes import Recipe
from handloop.fitting.solver import Finish, Solution
from handloop.fitting.trust import judge, reasons_against


@dataclass(frozen=True, eq=False)
class Best:
    """The best solution of each hand and how far the next different one is."""

    solution: Solution
    points: Tensor
    """(B, 21, 3) m, as the source means them."""
    own_points: Tensor
    """(B, 21, 3) m, the model's own."""
    gap: Tensor
    """(B,) energy; inf where no other solution was found."""
    apart: Tensor
    """(B,) m, mean distance of the next different solution's points, wrist on wrist; 0 where there is none."""
    others: Tensor
    """(B, M, 21, 3) m, how the points of all that was tried differ from the best's, palm on palm."""
    above: Tensor
    """(B, M) energy of these, above the best."""


@dataclass(frozen=True, eq=False)
class Output:
    """Growing results in the right-hand canonical frame, one row per input hand."""

    state: HandState
    energy: Tensor
    gap: Tensor
    status: Tensor
    steps: Tensor
    apart: Tensor
    points: Tensor
    """(N, 21, 3) as the source means them."""
    own_points: Tensor
    """(N, 21, 3) the model's."""
    points_sd: Tensor
    depth_sd: Tensor
    expected: Tensor
    condition: Tensor
    weakest: list[str]
    terms: dict[str, Tensor]

    @classmethod
    def empty(cls, n: int, like: Tensor) -> Output:
        nan = float("nan")
        state = HandState(
            torch.full((n, 16, 3, 3), nan, dtype=like.dtype),
            torch.full((n, 10), nan, dtype=like.dtype),
            torch.full((n, 3), nan, dtype=like.dtype),
            torch.full((n,), nan, dtype=like.dtype),
        )
        energy = torch.full((n,), nan, dtype=like.dtype)
        status = torch.full((n,), int(Status.FAILED))
        return cls(
            state=state,
            energy=energy,
            gap=energy.clone(),
            status=status,
            steps=torch.zeros(n, dtype=torch.int64),
            apart=energy.clone(),
            points=torch.full((n, 21, 3), nan, dtype=like.dtype),
            own_points=torch.full((n, 21, 3), nan, dtype=like.dtype),
            points_sd=torch.full((n, 21, 3), nan, dtype=like.dtype),
            depth_sd=energy.clone(),
            expected=energy.clone(),
            condition=energy.clone(),
            weakest=[""] * n,
            terms={},
        )

    def put(self, at: Tensor, best: Best, ends: Finish, seen: Observations) -> None:
        """Take over the finite solutions; the rest keep NaN and the status "failed"."""
        solution, state = best.solution, best.solution.state
        # Views of the same memory in numpy, which takes a third of torch's time for a few numbers.
        parts = (solution.energy[:, None], state.rotations.flatten(1), state.root, state.betas)
        good = np.isfinite(np.concatenate([part.numpy(force=True) for part in parts], 1)).all(1)
        rows = at.numpy()[good]

        def put(into: Tensor, value: Tensor) -> None:
            into.numpy()[rows] = value.numpy(force=True)[good]

        for into, value in (
            (self.state.rotations, solution.state.rotations),
            (self.state.betas, solution.state.betas),
            (self.state.root, solution.state.root),
            (self.state.log_focal, solution.state.log_focal),
            (self.energy, solution.energy),
            (self.gap, best.gap),
            (self.steps, solution.steps),
            (self.apart, best.apart),
            (self.points, best.points),
            (self.own_points, best.own_points),
        ):
            put(into, value)
        converged = solution.converged.numpy(force=True)[good]
        self.status.numpy()[rows] = np.where(converged, int(Status.CONVERGED), int(Status.MAX_STEPS))
        if ends.posterior is not None:
            count = 2 * (seen.conf > 0).sum(1) + 3 * (seen.inverse_sigma_3d > 0).sum(1)
            trust = judge(ends.posterior, best.points, ends.terms, count, best.others, best.above)
            put(self.points_sd, trust.points_sd)
            put(self.depth_sd, trust.depth_sd)
            put(self.condition, trust.condition)
            put(self.expected, trust.expected_error)
            for row, text, fine in zip(at.tolist(), trust.weakest, good.tolist(), strict=True):
                self.weakest[row] = text if fine else ""
        for name, value in ends.terms.items():
            if name not in self.terms:
                self.terms[name] = torch.full_like(self.energy, float("nan"))
            put(self.terms[name], value)

    def put_proposed(self, at: Tensor, state: HandState, points: Tensor, own_points: Tensor) -> None:
        """Take over hands that were not fitted; energies and errors stay NaN."""
        for into, value in (
            (self.state.rotations, state.rotations),
            (self.state.betas, state.betas),
            (self.state.root, state.root),
            (self.state.log_focal, state.log_focal),
            (self.points, points),
            (self.own_points, own_points),
        ):
            into[at] = value.cpu()
        self.status[at] = int(Status.PREDICTED)


def result_of(
    models: HandModels, keypoints: Keypoints, camera: Camera, recipe: Recipe, out: Output, starts: str
) -> FitResult:
    """The collected solutions as a result; `starts` says what they began from."""
    from handloop.so3_kernel import rotation_vectors

    dtype, betas, n = out.energy.dtype, out.state.betas, len(keypoints)
    # In numpy, which takes a third of torch's time for a few numbers: a single hand is mostly such.
    pose_limit, transl = np.zeros(n), out.state.root.numpy().copy()
    for model, rows in models.split(keypoints.is_right):
        pose_limit[rows.numpy()] = model.pose_prior.energy_limit
        transl[rows.numpy()] -= model.plain.root_offset(betas[rows]).numpy()
    # Left hands were fitted in a mirror: axis-angles keep their x, positions all but theirs (`HandParams.mirrored`).
    sign = np.where(keypoints.is_right.numpy(), 1.0, -1.0).astype(transl.dtype)[:, None]
    transl[:, :1] *= sign
    pose = rotation_vectors(out.state.rotations.numpy())
    pose[..., 1:] *= sign[..., None]
    turns = torch.from_numpy(pose.reshape(n, 48)).to(dtype)
    params = HandParams(turns[:, :3], turns[:, 3:], betas, torch.from_numpy(transl))
    joints, meant = out.own_points.numpy().copy(), out.points.numpy().copy()
    joints[..., 0] *= sign
    meant[..., 0] *= sign
    used = camera
    if recipe.focal_sigma is not None:
        factor = torch.where(camera.is_known(), 1.0, out.state.log_focal.double().exp().nan_to_num(1.0))
        used = Camera(camera.focal * factor[:, None], camera.princpt, camera.dist, camera.known)
    fit_2d = used.project(torch.from_numpy(meant).double())
    rms = weighted_rms(fit_2d - keypoints.xy, keypoints.conf)
    relative = rms / keypoints.box_size().clamp(min=1e-9)
    from_usual = betas - models.layout.mean_betas.to(betas)
    limit = torch.from_numpy(pose_limit).to(dtype)
    doubts = reasons_against(out.terms, limit, from_usual, recipe, relative, out.gap, out.apart)
    usable = usable_status(out.status)
    return FitResult(
        params=params,
        joints=torch.from_numpy(joints),
        keypoints_3d=torch.from_numpy(meant),
        keypoints_3d_sd=out.points_sd,
        depth_sd=out.depth_sd,
        expected_error_mm=1000 * out.expected,
        weakest=tuple(out.weakest),
        doubts=doubts,
        plausible=usable & torch.tensor([not text for text in doubts], dtype=torch.bool),
        keypoints=keypoints,
        camera=used,
        keypoints_2d_fit=fit_2d,
        energy=out.energy,
        energy_terms=out.terms,
        rms_px=rms,
        status=out.status,
        steps=out.steps,
        hypothesis_gap=out.gap,
        hand=models,
        provenance={
            "handloop_version": __version__,
            "recipe": recipe.name,
            "starts": starts,
            "noise_px_at_224": f"{recipe.noise_px:g}",
            "energy_settings": recipe.energy_settings(),
            "flat_hand_mean": "True",
            "joint_order": "openpose21",
            "joint_definition": "skinning",
            **models.provenance(),
        },
        condition=out.condition,
    )


def weighted_rms(error: Tensor, conf: Tensor) -> Tensor:
    """(N,) root of the confidence-weighted mean squared distance of (N, 21, 2) px errors; NaN without points."""
    away, weight = error.numpy(), conf.numpy()
    sq = np.where(weight > 0, (away * away).sum(-1), 0.0)
    return torch.from_numpy(np.sqrt((sq * weight).sum(1) / weight.sum(1)))
