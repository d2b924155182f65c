"""Results of many chunks of hands, collected and brought back to each hand's own side and camera."""

from __future__ import annotations

from dataclasses import dataclass

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
        solution = best.solution
        good = torch.isfinite(solution.energy) & torch.isfinite(solution.state.rotations).flatten(1).all(1)
        good &= torch.isfinite(solution.state.root).all(1) & torch.isfinite(solution.state.betas).all(1)
        keep = good.cpu()
        rows = at[keep]
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
            into[rows] = value[good].cpu()
        ended = torch.where(solution.converged, int(Status.CONVERGED), int(Status.MAX_STEPS))
        self.status[rows] = ended[good].cpu()
        if ends.posterior is not None:
            count = 2 * (seen.conf > 0).sum(1) + 3 * (seen.inverse_sigma_3d > 0).sum(1)
            trust = judge(ends.posterior, best.points, ends.terms, count, best.others, best.above)
            self.points_sd[rows] = trust.points_sd[good].cpu()
            self.depth_sd[rows] = trust.depth_sd[good].cpu()
            self.condition[rows] = trust.condition[good].cpu()
            self.expected[rows] = trust.expected_error[good].cpu()
            for row, text, fine in zip(at.tolist(), trust.weakest, keep.tolist(), strict=True):
                self.weakest[row] = text if fine else ""
        for name, value in ends.terms.items():
            column = self.terms.setdefault(name, torch.full_like(self.energy, float("nan")))
            column[rows] = value[good].cpu()

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
    dtype = out.energy.dtype
    root_offset = torch.zeros(len(keypoints), 3, dtype=dtype)
    pose_limit = torch.zeros(len(keypoints), dtype=dtype)
    for model, rows in models.split(keypoints.is_right):
        pose_limit[rows] = model.pose_prior.energy_limit
        root_offset[rows] = model.plain.root_offset(out.state.betas[rows])
    canonical = HandParams.from_rotation_matrices(out.state.rotations, out.state.betas, out.state.root - root_offset)
    mirrored = canonical.mirrored()
    side = keypoints.is_right[:, None]
    params = HandParams(
        *(torch.where(side, a, b) for a, b in zip(canonical.tensors(), mirrored.tensors(), strict=True))
    )
    sign = torch.where(keypoints.is_right, 1.0, -1.0).to(dtype)
    mirror = torch.stack([sign, torch.ones_like(sign), torch.ones_like(sign)], -1)[:, None]
    joints, meant = out.own_points * mirror, out.points * mirror
    factor = torch.where(camera.is_known(), 1.0, out.state.log_focal.double().exp().nan_to_num(1.0))
    used = Camera(camera.focal * factor[:, None], camera.princpt, camera.dist, camera.known)
    fit_2d = used.project(meant.double())
    rms = weighted_rms(fit_2d - keypoints.xy, keypoints.conf)
    relative = rms / keypoints.box_size().clamp(min=1e-9)
    from_usual = params.betas - models.layout.mean_betas.to(params.betas)
    doubts = reasons_against(out.terms, pose_limit, from_usual, recipe, relative, out.gap, out.apart)
    usable = usable_status(out.status)
    return FitResult(
        params=params,
        joints=joints,
        keypoints_3d=meant,
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
    sq = torch.where(conf > 0, error.square().sum(-1), torch.zeros_like(conf))
    return ((sq * conf).sum(1) / conf.sum(1)).sqrt()
