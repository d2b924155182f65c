"""What every regressor is: a batch in, a proposal out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.errors import InputError, check_shape
from handloop.core.keypoints import Keypoints
from handloop.core.layout import KeypointLayout
from handloop.core.proposal import Proposal
from handloop.core.view_change import ViewChange

Batch = TypeVar("Batch", contravariant=True)


class Regressor(Protocol[Batch]):
    """Proposes hands for what it is given."""

    def propose(self, batch: Batch) -> Proposal:
        """One proposed hand per row."""
        ...


@dataclass(frozen=True, eq=False)
class KeypointBatch:
    """N sets of keypoints: what a lifter takes."""

    keypoints: Keypoints
    camera: Camera
    """N cameras."""
    layout: KeypointLayout
    """What their source means by its points."""


@dataclass(frozen=True, eq=False)
class CropBatch:
    """N crops of pictures: what an image regressor takes."""

    crops: Tensor
    """(N, 3, S, S) uint8, sRGB; left hands mirrored, so that all look like right ones."""
    view: ViewChange
    """From the pictures to the crops (`core.crop`)."""
    is_right: Tensor
    """(N,) bool, sides in the pictures."""
    keypoints: Keypoints | None = None
    """In the pictures, for regressors that take heat-maps."""
    ids: tuple[str, ...] | None = None
    """N names of the hands."""

    def __post_init__(self) -> None:
        n = len(self.view)
        check_shape("crops", tuple(self.crops.shape), (n, 3, None, None))
        check_shape("is_right", tuple(self.is_right.shape), (n,))
        if self.keypoints is not None and len(self.keypoints) != n:
            raise InputError(f"there are {n} crops but keypoints of {len(self.keypoints)} hands.")

    def __len__(self) -> int:
        return len(self.view)
