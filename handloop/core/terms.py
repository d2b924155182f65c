"""What a fit minimises: states, residuals in units of sigma, robust kernels, and the protocol of a term.

The energy of a hand is the sum over terms of 1/2 sum rho(|r|^2) with residuals r divided by their standard deviations,
so that terms need no weights against each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from handloop.core.rotations import (
    right_jacobian,
    right_jacobian_inverse,
    shortened,
    so3_exp,
    so3_exp_and_turn,
    so3_log,
)

ROTATIONS = slice(0, 48)
POSE = slice(3, 48)
BETAS = slice(48, 58)
ROOT = slice(58, 61)
FOCAL = slice(61, 62)
N_PARAMS = 62
"""Columns of an increment: 16 rotations (MANO order), betas, wrist bearing x and y and log depth, log focal factor."""


class PointsModel(Protocol):
    """The kinematics a state is posed with (see `handloop.hand.kinematics.Kinematics`)."""

    def points(self, rotations: Tensor, betas: Tensor, root: Tensor) -> Tensor:
        """(B, 21, 3)."""
        ...

    def points_and_jacobian(self, rotations: Tensor, betas: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 21, 3) and (B, 21, 3, 61)."""
        ...

    def points_and_rows(self, rotations: Tensor, turn: Tensor, betas: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 21, 3) and (B, 21, 3, 25), see `PosedHand.rows`; `turn` (B, 15, 3, 3) from what the finger joints'
        columns are by to increments of their rotations."""
        ...


@dataclass(frozen=True, eq=False)
class PoseAngles:
    """The finger joints of a state once more."""

    pose: Tensor
    """(B, 45) axis-angles, flat mean, each angle at most pi."""
    turn: Tensor
    """(B, 15, 3, 3) right Jacobians: an axis-angle's increment d turns its joint by `turn` d."""

    @classmethod
    def of(cls, rotations: Tensor) -> PoseAngles:
        """Of (B, 16, 3, 3)."""
        fingers = so3_log(rotations[:, 1:])
        return cls(fingers.flatten(1), right_jacobian(fingers))


@dataclass(frozen=True, eq=False)
class HandState:
    """Where B fits stand, in the right-hand canonical camera frame."""

    rotations: Tensor
    """(B, 16, 3, 3) wrist rotation and relative joint rotations, MANO order."""
    betas: Tensor
    """(B, 10)."""
    root: Tensor
    """(B, 3) wrist position, m, camera frame."""
    log_focal: Tensor
    """(B,) log of the factor on the camera's focal length."""

    def __len__(self) -> int:
        return self.betas.shape[0]

    def retract(self, delta: Tensor) -> HandState:
        """Move by an increment (B, 62): R exp(d), betas + d, wrist e^c (x + a z, y + b z, z), log focal + d.

        Bearing and log depth make the projection nearly linear in the increment and keep the depth positive.
        """
        spin = so3_exp(delta[:, ROTATIONS].reshape(-1, 16, 3))
        a, b, c = delta[:, ROOT].unbind(1)
        x, y, z = self.root.unbind(1)
        root = torch.stack([x + a * z, y + b * z, z], 1) * c.exp()[:, None]
        return HandState(self.rotations @ spin, self.betas + delta[:, BETAS], root, self.log_focal + delta[:, 61])

    def retract_pose(self, pose: Tensor, delta: Tensor) -> tuple[HandState, PoseAngles]:
        """As `retract`, with the finger joints' 45 increments added to their axis-angles `pose` (B, 45) instead."""
        turned = shortened((pose + delta[:, POSE]).reshape(-1, 15, 3))
        spin, turn = so3_exp_and_turn(torch.cat([delta[:, None, :3], turned], 1))
        rotations = torch.cat([self.rotations[:, :1] @ spin[:, :1], spin[:, 1:]], 1)
        a, b, c = delta[:, ROOT].unbind(1)
        x, y, z = self.root.unbind(1)
        root = torch.stack([x + a * z, y + b * z, z], 1) * c.exp()[:, None]
        moved = HandState(rotations, self.betas + delta[:, BETAS], root, self.log_focal + delta[:, 61])
        return moved, PoseAngles(turned.flatten(1), turn[:, 1:])

    def select(self, index: Tensor) -> HandState:
        """Rows by an integer or boolean index."""
        return HandState(self.rotations[index], self.betas[index], self.root[index], self.log_focal[index])

    def where(self, mask: Tensor, other: HandState) -> HandState:
        """Rows of this state where `mask` (B,), else of `other`."""

        def pick(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

        return HandState(
            pick(self.rotations, other.rotations),
            pick(self.betas, other.betas),
            pick(self.root, other.root),
            pick(self.log_focal, other.log_focal),
        )

    def orthonormalised(self) -> HandState:
        """The same with rotations cleaned of rounding that products pile up."""
        return HandState(so3_exp(so3_log(self.rotations)), self.betas, self.root, self.log_focal)


@dataclass(frozen=True, eq=False)
class PosedHand:
    """A state with what the terms need of it."""

    model: PointsModel
    state: HandState
    points: Tensor
    """(B, 21, 3) m, canonical order."""
    pose: Tensor
    """(B, 45) axis-angle of the finger joints, flat mean, each angle at most pi."""
    turn: Tensor | None = None
    """(B, 15, 3, 3), see `PoseAngles`; None when only energies are wanted."""
    rows: Tensor | None = None
    """(B, 21, 3, 25) what the solvers know of the points' Jacobian: by the nine axis-angle increments of the point's
    own finger (0 at the wrist), then wrist rotation, betas, bearings and log depth; None when only energies are wanted.
    Blend shapes that reach over from other fingers' joints are left out."""

    @classmethod
    def of(cls, model: PointsModel, state: HandState, jacobian: bool) -> PosedHand:
        """Pose a state."""
        if jacobian:
            return cls.at(model, state, PoseAngles.of(state.rotations))
        points = model.points(state.rotations, state.betas, state.root)
        return cls(model, state, points, so3_log(state.rotations[:, 1:]).flatten(1))

    @classmethod
    def at(cls, model: PointsModel, state: HandState, angles: PoseAngles) -> PosedHand:
        """Pose a state whose axis-angles are known already, with Jacobians."""
        points, rows = model.points_and_rows(state.rotations, angles.turn, state.betas, state.root)
        rows[..., 22:] = _by_sight(state.root)
        return cls(model, state, points, angles.pose, angles.turn, rows)

    @property
    def wants_jacobian(self) -> bool:
        """Whether terms are to bring their Jacobians."""
        return self.rows is not None

    @cached_property
    def points_jacobian(self) -> Tensor | None:
        """(B, 21, 3, 61) by the columns of an increment without the focal length, complete; computed when asked for,
        None when only energies are wanted."""
        if self.rows is None:
            return None
        state = self.state
        _, jac = self.model.points_and_jacobian(state.rotations, state.betas, state.root)
        jac[..., ROOT] = _by_sight(state.root)
        return jac

    @cached_property
    def pose_jacobian(self) -> Tensor | None:
        """(B, 15, 3, 3) derivative of each finger joint's axis-angle by its increment, as above."""
        return None if self.rows is None else right_jacobian_inverse(self.pose.unflatten(1, (15, 3)))


def _by_sight(root: Tensor) -> Tensor:
    """(B, 1, 3, 3) derivative of any point by a, b, c, which move the wrist by (a z, b z, 0) + c (x, y, z)."""
    x, y, z = root.unbind(1)
    o = torch.zeros_like(z)
    return torch.stack([z, o, x, o, z, y, o, o, z], 1).reshape(-1, 1, 3, 3)


class Kernel(Protocol):
    """A robust kernel on squared residual norms s, in sigma^2."""

    def rho(self, s: Tensor) -> Tensor:
        """The cost that replaces s; rho(s) ~ s for small s."""
        ...

    def weight(self, s: Tensor) -> Tensor:
        """Its derivative."""
        ...


@dataclass(frozen=True)
class GemanMcClure:
    """rho(s) = c^2 s / (c^2 + s): far residuals cost at most c^2 (Geman and McClure 1987; SMPLify's choice)."""

    c: float
    """Scale in sigmas."""

    def rho(self, s: Tensor) -> Tensor:
        """c^2 s / (c^2 + s)."""
        return s * (self.c**2 / (self.c**2 + s))

    def weight(self, s: Tensor) -> Tensor:
        """(c^2 / (c^2 + s))^2."""
        return (self.c**2 / (self.c**2 + s)).square()


@dataclass(frozen=True)
class Huber:
    """rho(s) = s up to c^2, then 2 c sqrt(s) - c^2 (Huber 1964)."""

    c: float
    """Scale in sigmas."""

    def rho(self, s: Tensor) -> Tensor:
        """s inside, linear in the norm outside."""
        return torch.where(s <= self.c**2, s, 2 * self.c * s.clamp(min=self.c**2).sqrt() - self.c**2)

    def weight(self, s: Tensor) -> Tensor:
        """min(1, c / sqrt(s))."""
        return self.c / s.clamp(min=self.c**2).sqrt()


@dataclass(frozen=True)
class Cauchy:
    """rho(s) = c^2 log(1 + s / c^2)."""

    c: float
    """Scale in sigmas."""

    def rho(self, s: Tensor) -> Tensor:
        """c^2 log(1 + s / c^2)."""
        return self.c**2 * torch.log1p(s / self.c**2)

    def weight(self, s: Tensor) -> Tensor:
        """c^2 / (c^2 + s)."""
        return self.c**2 / (self.c**2 + s)


KERNELS: dict[str, type[GemanMcClure] | type[Huber] | type[Cauchy]] = {
    "geman_mcclure": GemanMcClure,
    "huber": Huber,
    "cauchy": Cauchy,
}
"""Robust kernels by name; each is made with its scale in sigmas."""


@dataclass(frozen=True, eq=False)
class Residual:
    """One term's contribution at a state."""

    energy: Tensor
    """(B,) 1/2 sum rho(|r|^2)."""
    value: Tensor
    """(B, R) residuals times the square root of the kernel's weight (IRLS)."""
    jacobian: Tensor | None
    """(B, R, C) of `value` at fixed weights by the increment's `columns`; or (B, 15, D, 3) with R = 15 D where each
    finger joint's residuals depend on its own rotation only; None when only energies are wanted."""
    columns: slice = field(default_factory=lambda: slice(0, N_PARAMS))
    """Which columns of the increment `jacobian` covers (ignored for the second form)."""


def residual(
    groups: Tensor, jacobian: Tensor | None, kernel: Kernel | None = None, columns: slice = slice(0, N_PARAMS)
) -> Residual:
    """Make a `Residual` of groups (B, G, D) whose norms the kernel acts on, and their Jacobian (B, G, D, C)."""
    sq = groups.square().sum(-1)
    if kernel is None:
        flat = None if jacobian is None else jacobian.flatten(1, 2)
        return Residual(0.5 * sq.sum(-1), groups.flatten(1), flat, columns)
    root = kernel.weight(sq).sqrt()[..., None]
    flat = None if jacobian is None else (jacobian * root[..., None]).flatten(1, 2)
    return Residual(0.5 * kernel.rho(sq).sum(-1), (groups * root).flatten(1), flat, columns)


class Term(Protocol):
    """A named residual with its data for B hands. Priors are terms."""

    @property
    def name(self) -> str:
        """A short name, unique in a fit; results list energies under it."""
        ...

    def linearise(self, posed: PosedHand) -> Residual:
        """Residual at a posed hand; with a Jacobian when `posed` carries one."""
        ...

    def select(self, index: Tensor) -> Term:
        """The term for the hands named by an integer index (B',), repetitions allowed."""
        ...


@dataclass(frozen=True, eq=False)
class AutoTerm:
    """A term from a plain function; its Jacobian comes from automatic differentiation.

    Args:
        name: as in `Term`.
        function: (posed, *data) -> residuals (B, R) in sigmas, made of torch operations on `posed.points`,
            `posed.pose` and `posed.state`. Row i may depend on hand i only.
        data: tensors with one row per hand.
    """

    name: str
    function: Callable[..., Tensor]
    data: tuple[Tensor, ...] = ()
    kernel: Kernel | None = None

    def linearise(self, posed: PosedHand) -> Residual:
        """See `Term.linearise`."""
        data = tuple(d.to(posed.points) if d.is_floating_point() else d.to(posed.points.device) for d in self.data)
        if not posed.wants_jacobian:
            return residual(self.function(posed, *data)[..., None], None, self.kernel)
        with torch.enable_grad():
            delta = posed.points.new_zeros(len(posed.state), N_PARAMS).requires_grad_()
            value = self.function(PosedHand.of(posed.model, posed.state.retract(delta), jacobian=False), *data)
            rows = [
                torch.autograd.grad(value[:, r].sum(), delta, retain_graph=True, materialize_grads=True)[0]
                for r in range(value.shape[1])
            ]
        return residual(value.detach()[..., None], torch.stack(rows, 1)[:, :, None], self.kernel)

    def select(self, index: Tensor) -> AutoTerm:
        """See `Term.select`."""
        return AutoTerm(self.name, self.function, tuple(d[index.to(d.device)] for d in self.data), self.kernel)
