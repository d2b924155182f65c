"""`Proposal`: hands as a network proposes them, with how far it trusts each part; a fit starts from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.errors import InputError, check_shape
from handloop.core.params import HandParams


@dataclass(frozen=True, eq=False)
class Proposal:
    """N proposed hands. A standard deviation of NaN means "no opinion"; so does a NaN parameter."""

    params: HandParams
    """Pose, shape and place in smplx's convention of each hand's own side, in the frame of `camera`."""
    is_right: Tensor
    """(N,) bool."""
    camera: Camera | None
    """N cameras that the place refers to: a network's assumption, perhaps; a fit carries the place over to its own.
    None for the cameras of the keypoints."""
    rotations_sd: Tensor
    """(N, 16) rad, standard deviation per axis of each joint's rotation vector from the proposed one, MANO order."""
    betas_sd: Tensor
    """(N, 10)."""
    bearing_sd: Tensor
    """(N,) rad, per axis, of the wrist's direction from the camera."""
    log_depth_sd: Tensor
    """(N,) of the log of the wrist's distance."""
    ids: tuple[str, ...] | None = None
    """N names to match keypoints by; None where only the order is known."""
    source: str = "proposal"
    """Where they come from, in a word, for the provenance of what is made of them."""

    def __post_init__(self) -> None:
        n = len(self.params)
        check_shape("is_right", tuple(self.is_right.shape), (n,))
        check_shape("rotations_sd", tuple(self.rotations_sd.shape), (n, 16))
        check_shape("betas_sd", tuple(self.betas_sd.shape), (n, 10))
        check_shape("bearing_sd", tuple(self.bearing_sd.shape), (n,))
        check_shape("log_depth_sd", tuple(self.log_depth_sd.shape), (n,))
        if self.camera is not None and len(self.camera) != n:
            raise InputError(f"the proposal holds {n} hands but {len(self.camera)} cameras.")
        if self.ids is not None and len(self.ids) != n:
            raise InputError(f"the proposal holds {n} hands but {len(self.ids)} ids.")

    def __len__(self) -> int:
        return len(self.params)

    @classmethod
    def without_opinion(
        cls, params: HandParams, is_right: Tensor, camera: Camera | None, ids: tuple[str, ...] | None = None
    ) -> Proposal:
        """Parameters that come without standard deviations."""
        like = params.betas

        def nan(*shape: int) -> Tensor:
            return like.new_full((len(params), *shape), float("nan"))

        return cls(params, is_right, camera, nan(16), nan(10), nan(), nan(), ids)

    def select(self, index: Tensor) -> Proposal:
        """The hands named by an integer or boolean index."""
        at = index.nonzero()[:, 0] if index.dtype == torch.bool else index
        return Proposal(
            self.params.select(at),
            self.is_right[at],
            None if self.camera is None else self.camera.select(at),
            self.rotations_sd[at],
            self.betas_sd[at],
            self.bearing_sd[at],
            self.log_depth_sd[at],
            None if self.ids is None else tuple(self.ids[i] for i in at.tolist()),
            self.source,
        )

    def rows_for(self, ids: tuple[str, ...], is_right: Tensor) -> Proposal:
        """The rows that belong to hands of these names and sides, in their order.

        By name where each hand finds one; else by order where there are as many rows as hands.

        Raises:
            InputError: neither works, or a row is of the other side.
        """
        row = {} if self.ids is None else {name: i for i, name in enumerate(self.ids)}
        found = sum(name in row for name in ids)
        if self.ids == ids:
            chosen = self
        elif found == len(ids):
            chosen = self.select(torch.tensor([row[name] for name in ids], dtype=torch.int64))
        elif len(self) == len(ids) and found == 0:
            chosen = self
        else:
            lacking = next(name for name in ids if name not in row)
            raise InputError(
                f"the start holds {len(self)} hands for {len(ids)} sets of keypoints, and {found} of them share an id "
                f"(none is called {lacking!r}); give one row per hand, in their order or with their ids."
            )
        wrong = (chosen.is_right != is_right).nonzero()[:, 0].tolist()
        if wrong:
            given = "right" if bool(chosen.is_right[wrong[0]]) else "left"
            raise InputError(
                f"the start's hand for {ids[wrong[0]]!r} is a {given} hand and its keypoints are not "
                f"({len(wrong)} such hands); check is_right and the order of the rows."
            )
        return chosen


def in_other_camera(turn: Tensor, root: Tensor, camera: Camera, other: Camera) -> tuple[Tensor, Tensor]:
    """A hand placed under one camera, placed so that it looks the same in the picture of another one.

    The wrist stays on its pixel, the distance grows with the focal length, and the hand turns as its line of sight
    does: what a network saw in a crop is the hand relative to that line.

    Args:
        turn: (N, 3, 3) rotations of the wrist.
        root: (N, 3) m, the wrist.
        camera: N cameras they refer to.
        other: N cameras of the same pictures.

    Returns:
        Turned rotations (N, 3, 3) and moved wrists (N, 3).
    """
    pixel = camera.project(root[:, None])
    bearing = other.normalise(pixel)[:, 0]
    ratio = (other.focal.mean(1) / camera.focal.mean(1)).to(root)
    ray = torch.cat([bearing, torch.ones_like(bearing[:, :1])], 1)
    moved = ray * (root[:, 2] * ratio)[:, None]
    return rotation_between(root, moved) @ turn, moved


def rotation_between(of: Tensor, to: Tensor) -> Tensor:
    """(N, 3, 3) least rotations that take the directions of (N, 3) vectors to those of others, less than half a turn
    away."""
    a, b = torch.nn.functional.normalize(of, dim=1), torch.nn.functional.normalize(to, dim=1)
    v = torch.linalg.cross(a, b)
    cos = (a * b).sum(1)[:, None, None]
    eye = torch.eye(3, dtype=of.dtype, device=of.device)
    # cos I + [v] + v v^T / (1 + cos), Rodrigues' formula without its angle.
    x, y, z = v.unbind(1)
    o = torch.zeros_like(x)
    skew = torch.stack([o, -z, y, z, o, -x, -y, x, o], 1).reshape(-1, 3, 3)
    return cos * eye + skew + v[:, :, None] * v[:, None] / (1 + cos)
