"""What every regressor is: a batch in, a proposal out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from handloop.core.camera import Camera
from handloop.core.keypoints import Keypoints
from handloop.core.layout import KeypointLayout
from handloop.core.proposal import Proposal

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
