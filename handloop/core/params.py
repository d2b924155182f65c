"""`HandParams`: pose, shape and place of hands in smplx's names, and conversions to what other tools expect."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.core.errors import InputError, check_shape
from handloop.core.rotations import matrix_from_6d, matrix_to_6d, so3_exp, so3_log


@dataclass(frozen=True)
class HandParams:
    """Parameters of B hands, each in the convention of its own side (smplx with `is_rhand` accordingly)."""

    global_orient: Tensor
    """(B, 3) axis-angle of the wrist, rad, camera frame."""
    hand_pose: Tensor
    """(B, 45) axis-angle of the 15 finger joints in MANO's order, rad, flat mean (absolute: zero is the flat hand)."""
    betas: Tensor
    """(B, 10) shape coefficients, population standard deviations."""
    transl: Tensor
    """(B, 3) m, camera frame; the wrist ends up at J_0(betas) + transl."""

    def __post_init__(self) -> None:
        b = self.global_orient.shape[0]
        check_shape("global_orient", tuple(self.global_orient.shape), (b, 3))
        check_shape("hand_pose", tuple(self.hand_pose.shape), (b, 45))
        check_shape("betas", tuple(self.betas.shape), (b, 10))
        check_shape("transl", tuple(self.transl.shape), (b, 3))

    def __len__(self) -> int:
        return self.global_orient.shape[0]

    @classmethod
    def zeros(cls, n: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> HandParams:
        """The flat mean-shaped hand at the origin, n times."""
        return cls(*(torch.zeros(n, k, dtype=dtype, device=device) for k in (3, 45, 10, 3)))

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> HandParams:
        """The same parameters with another dtype or on another device."""
        return HandParams(*(t.to(device=device, dtype=dtype) for t in self.tensors()))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`global_orient`, `hand_pose`, `betas`, `transl`."""
        return self.global_orient, self.hand_pose, self.betas, self.transl

    def select(self, index: Tensor) -> HandParams:
        """The hands named by an integer or boolean index."""
        return HandParams(*(t[index] for t in self.tensors()))

    def mirrored(self) -> HandParams:
        """The same hands seen in a mirror (x negated): right becomes left and back.

        A rotation R becomes S R S with S = diag(-1, 1, 1), so axis-angle components y and z change sign; the wrist's
        translation changes sign in x; betas stay (the left model being the mirror image of the right one).
        """
        sign = torch.tensor([1.0, -1.0, -1.0], dtype=self.hand_pose.dtype, device=self.hand_pose.device)
        return HandParams(self.global_orient * sign, self.hand_pose * sign.repeat(15), self.betas, self.transl * -sign)

    def as_right(self, is_right: Tensor) -> HandParams:
        """(B,) bool sides: right hands as they are, left ones mirrored; called again, it brings them back."""
        pairs = zip(self.tensors(), self.mirrored().tensors(), strict=True)
        return HandParams(*(torch.where(is_right[:, None], same, mirrored) for same, mirrored in pairs))

    def rotation_matrices(self) -> Tensor:
        """(B, 16, 3, 3): the wrist's rotation, then the 15 absolute joint rotations (as in HaMeR, MANOLayer)."""
        pose = torch.cat([self.global_orient, self.hand_pose], 1)
        return so3_exp(pose.reshape(-1, 16, 3))

    @classmethod
    def from_rotation_matrices(cls, rotations: Tensor, betas: Tensor, transl: Tensor) -> HandParams:
        """From (B, 16, 3, 3) absolute rotations (identity is the flat hand), (B, 10) betas and (B, 3) translation."""
        check_shape("rotations", tuple(rotations.shape), (None, 16, 3, 3))
        pose = so3_log(rotations).reshape(-1, 48)
        return cls(pose[:, :3], pose[:, 3:], betas, transl)

    def rotations_6d(self) -> Tensor:
        """(B, 16, 6): the first two columns of each rotation matrix, one behind the other (Zhou et al. 2019)."""
        return matrix_to_6d(self.rotation_matrices())

    @classmethod
    def from_6d(cls, rotations: Tensor, betas: Tensor, transl: Tensor) -> HandParams:
        """From (B, 16, 6), Gram-Schmidt orthonormalised."""
        check_shape("rotations", tuple(rotations.shape), (None, 16, 6))
        return cls.from_rotation_matrices(matrix_from_6d(rotations), betas, transl)

    def pose_relative_to(self, hands_mean: Tensor) -> Tensor:
        """(B, 45) `hand_pose` as tools with `flat_hand_mean=False` expect it: relative to the mean pose (45,)."""
        check_shape("hands_mean", tuple(hands_mean.shape), (45,))
        return self.hand_pose - hands_mean.to(self.hand_pose)

    @classmethod
    def from_mean_relative(
        cls, global_orient: Tensor, hand_pose: Tensor, betas: Tensor, transl: Tensor, hands_mean: Tensor
    ) -> HandParams:
        """From a (B, 45) pose that the model adds its mean pose (45,) to (`flat_hand_mean=False`)."""
        check_shape("hands_mean", tuple(hands_mean.shape), (45,))
        return cls(global_orient, hand_pose + hands_mean.to(hand_pose), betas, transl)

    def pca(self, hands_components: Tensor, hands_mean: Tensor, n: int = 45) -> Tensor:
        """(B, n) coefficients of the pose: the least-squares solution of mean + c @ components[:n] = pose.

        Args:
            hands_components: (45, 45), one component per row, orthonormal.
            hands_mean: (45,); zeros for coefficients about the flat hand.
            n: how many leading components, 1 to 45.
        """
        if not 1 <= n <= 45:
            raise InputError(f"{n} PCA components were asked for, expected 1 to 45.")
        check_shape(f"hands_components[:{n}]", tuple(hands_components[:n].shape), (n, 45))
        return self.pose_relative_to(hands_mean) @ hands_components[:n].to(self.hand_pose).T

    @classmethod
    def from_pca(
        cls,
        global_orient: Tensor,
        coefficients: Tensor,
        betas: Tensor,
        transl: Tensor,
        hands_components: Tensor,
        hands_mean: Tensor,
    ) -> HandParams:
        """From (B, n) PCA coefficients, as smplx's `use_pca=True` with n components; mean zeros for a flat mean."""
        n = coefficients.shape[1]
        if not 1 <= n <= 45:
            raise InputError(f"{n} PCA coefficients were given, expected 1 to 45.")
        check_shape(f"hands_components[:{n}]", tuple(hands_components[:n].shape), (n, 45))
        check_shape("hands_mean", tuple(hands_mean.shape), (45,))
        pose = coefficients @ hands_components[:n].to(coefficients) + hands_mean.to(coefficients)
        return cls(global_orient, pose, betas, transl)
