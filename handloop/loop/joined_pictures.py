"""Sources of pictures made of others: several as one, or pictures with labels from elsewhere."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from handloop.core.camera import Camera
from handloop.core.keypoints import Keypoints
from handloop.core.params import HandParams
from handloop.loop.picture_source import DrawnPictures, KnownPictures, LabelledHands, sized


@dataclass(frozen=True, eq=False)
class RelabelledPictures:
    """Pictures of a source with other labels than its own: keypoints of a detector, say, or no 3D."""

    pictures: KnownPictures
    hands: LabelledHands
    """Of the first pictures of the source."""

    @property
    def count(self) -> int:
        """See `PictureSource`."""
        return len(self.hands)

    def draw(self, numbers: Sequence[int]) -> DrawnPictures:
        """See `PictureSource`."""
        drawn = self.pictures.draw(numbers)
        return replace(drawn, hands=sized(self.hands, numbers, drawn.pictures))


@dataclass(frozen=True, eq=False)
class JoinedPictures:
    """The hands of one source behind those of the other."""

    parts: tuple[KnownPictures, ...]
    hands: LabelledHands
    """Their ids begin with the number of their source."""

    @classmethod
    def of(cls, parts: Sequence[KnownPictures]) -> JoinedPictures:
        """Of at least one source."""
        hands = [part.hands for part in parts]
        named = [
            replace(some.keypoints, ids=tuple(f"{i}:{name}" for name in some.keypoints.ids))
            for i, some in enumerate(hands)
        ]
        params = zip(*(some.params.tensors() for some in hands), strict=True)
        whole = LabelledHands(
            Keypoints.concatenate(named),
            Camera.concatenate([some.camera for some in hands]),
            torch.cat([some.joints for some in hands]),
            HandParams(*(torch.cat(group) for group in params)),
            torch.cat([some.box for some in hands]),
        )
        return cls(tuple(parts), whole)

    @property
    def count(self) -> int:
        """See `PictureSource`."""
        return len(self.hands)

    def draw(self, numbers: Sequence[int]) -> DrawnPictures:
        """See `PictureSource`."""
        first = [0, *accumulate(len(part.hands) for part in self.parts)]
        drawn = []
        for number in numbers:
            part = bisect_right(first, number) - 1
            drawn.append(self.parts[part].draw([number - first[part]]))
        pictures = [one.pictures[0] for one in drawn]
        return DrawnPictures(sized(self.hands, numbers, pictures), pictures, [one.masks[0] for one in drawn])
