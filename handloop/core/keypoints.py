"""`Keypoints`: 21 two-dimensional points per hand, with what is known about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from handloop.core.errors import InputError, check_shape


@dataclass(frozen=True)
class Keypoints:
    """N hands of 21 points in the canonical (OpenPose) order. Build one with `Keypoints.from_arrays`."""

    xy: Tensor
    """(N, 21, 2) float64, px; (0, 0) is the centre of the top-left pixel. Anything finite where `conf` is 0."""
    conf: Tensor
    """(N, 21) float64 in 0..1; 0 means missing."""
    is_right: Tensor
    """(N,) bool, the person's own side."""
    image_size: Tensor
    """(N, 2) float64 width and height in px; NaN where unknown."""
    ids: tuple[str, ...]
    """N stable names, unique within a run."""
    source: tuple[str, ...]
    """N file names the hands came from ("" for arrays)."""
    frame: Tensor
    """(N,) int64 frame number in a video, -1 for none."""
    image: tuple[str, ...]
    """N paths of the pictures the points were found in ("" for none): used for overlays only."""

    def __len__(self) -> int:
        return self.xy.shape[0]

    @classmethod
    def from_arrays(
        cls,
        points: np.ndarray | Tensor,
        is_right: np.ndarray | Tensor | bool = True,
        image_size: np.ndarray | Tensor | Sequence[float] | None = None,
        ids: Sequence[str] | None = None,
        source: Sequence[str] | str = "",
        frame: np.ndarray | Tensor | None = None,
        image: Sequence[str] | str = "",
    ) -> Keypoints:
        """Check and complete arrays.

        Points that are not finite, and confidences that are NaN or negative, become missing (confidence 0);
        confidences above 1 become 1.

        Args:
            points: (N, 21, 2) or (N, 21, 3) px; the third column is the confidence, 1 when absent.
            is_right: one side for all, or (N,) bool.
            image_size: (w, h), or (N, 2); None when unknown.
            ids: N unique names; numbered when absent.
            source: one file name for all, or N.
            frame: (N,) frame numbers.
            image: one picture for all, or N paths.

        Raises:
            InputError: wrong shapes or lengths, repeated ids.
        """
        # In numpy, which takes a third of torch's time for a few numbers: much of a fit of one hand is its input's.
        try:
            array = np.asarray(points.numpy(force=True) if torch.is_tensor(points) else points, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"keypoints are {type(points).__name__} and no array of numbers, expected (N, 21, 2) or (N, 21, 3); "
                "files are read by handloop.formats.read_keypoints."
            ) from error
        if array.ndim != 3 or array.shape[1] != 21 or array.shape[2] not in (2, 3):
            raise InputError(
                f"keypoints have shape {tuple(array.shape)}, expected (N, 21, 2) or (N, 21, 3): "
                "x, y in px and an optional confidence for 21 points in OpenPose order."
            )
        n = array.shape[0]
        finite = np.isfinite(array[..., 0]) & np.isfinite(array[..., 1])
        given = array[..., 2] if array.shape[2] == 3 else np.ones((n, 21))
        conf = np.where(finite & (given > 0), np.minimum(given, 1.0), 0.0)
        xy = np.where(finite[..., None], array[..., :2], 0.0)
        sides = _one_or_many("is_right", is_right, n, np.bool_)
        size = np.full((n, 2), np.nan)
        if image_size is not None:
            given = np.asarray(image_size.numpy(force=True) if torch.is_tensor(image_size) else image_size, np.float64)
            if given.shape not in ((2,), (n, 2)):
                raise InputError(
                    f"image_size has shape {tuple(given.shape)}, expected (2,) or ({n}, 2): width, height."
                )
            size[:] = given
            if (size <= 0).any():
                raise InputError("image_size holds a width or height that is not positive.")
        names = tuple(ids) if ids is not None else tuple(f"{i:06d}" for i in range(n))
        if len(names) != n or len(set(names)) != n:
            raise InputError(f"ids must be {n} different names, got {len(names)} with {len(set(names))} different.")
        frames = _one_or_many("frame", np.array(-1) if frame is None else frame, n, np.int64)
        return cls(
            *(torch.from_numpy(xy), torch.from_numpy(conf), torch.from_numpy(sides), torch.from_numpy(size)),
            *(names, _texts("source", source, n), torch.from_numpy(frames), _texts("image", image, n)),
        )

    def box(self) -> Tensor:
        """Tight box of the visible points: (N, 4) x0, y0, x1, y1 in px; zeros for hands without points.

        Points that lie more than six times as far from the middle as the median point are left out: one stray point
        would otherwise set a hand's scale, and with it its noise level and assumed camera. In a whole hand the farthest
        point is not three times as far out as the median one.
        """
        return self._box.clone()

    @cached_property
    @np.errstate(all="ignore")
    def _box(self) -> Tensor:
        xy, visible = self.xy.numpy(force=True), self.conf.numpy(force=True) > 0
        # Sorted, what is missing comes last: the lower median of the rest.
        rows, half = np.arange(len(xy)), (visible.sum(1) - 1) // 2
        middle = np.sort(np.where(visible[..., None], xy, np.nan), 1)[rows, half]
        x, y = (xy - middle[:, None]).transpose(2, 0, 1)
        away = np.sqrt(x * x + y * y)
        usual = np.sort(np.where(visible, away, np.nan), 1)[rows, half][:, None]
        seen = (visible & ~((away > 6 * usual) & (usual > 0)))[..., None]
        low, high = np.where(seen, xy, np.inf).min(1), np.where(seen, xy, -np.inf).max(1)
        return torch.from_numpy(np.where(seen.any(1), np.concatenate([low, high], 1), 0.0))

    def box_size(self) -> Tensor:
        """(N,) the longer side of `box`, px."""
        box = self._box.numpy()
        return torch.from_numpy(np.maximum(box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]))

    def select(self, index: Tensor | np.ndarray | Sequence[int]) -> Keypoints:
        """The hands named by an integer or boolean index of shape (M,) or (N,)."""
        at = torch.as_tensor(np.asarray(index) if not torch.is_tensor(index) else index)
        at = at.nonzero()[:, 0] if at.dtype == torch.bool else at.to(torch.int64)
        rows = at.tolist()
        return Keypoints(
            self.xy[at],
            self.conf[at],
            self.is_right[at],
            self.image_size[at],
            tuple(self.ids[i] for i in rows),
            tuple(self.source[i] for i in rows),
            self.frame[at],
            tuple(self.image[i] for i in rows),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Keypoints]) -> Keypoints:
        """Several sets behind each other; ids must stay unique.

        Raises:
            InputError: an id occurs twice.
        """
        if not parts:
            return cls.from_arrays(np.zeros((0, 21, 3)))
        ids = tuple(i for p in parts for i in p.ids)
        if len(set(ids)) != len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise InputError(f"the id {twice!r} occurs more than once; ids must be unique within a run.")
        return cls(
            torch.cat([p.xy for p in parts]),
            torch.cat([p.conf for p in parts]),
            torch.cat([p.is_right for p in parts]),
            torch.cat([p.image_size for p in parts]),
            ids,
            tuple(s for p in parts for s in p.source),
            torch.cat([p.frame for p in parts]),
            tuple(s for p in parts for s in p.image),
        )


def _one_or_many(name: str, value: np.ndarray | Tensor | bool, n: int, dtype: type[np.generic]) -> np.ndarray:
    given = np.asarray(value.numpy(force=True) if torch.is_tensor(value) else value)
    if given.dtype.kind not in "biuf" or (dtype is np.bool_ and not ((given == 0) | (given == 1)).all()):
        what = "True or False" if dtype is np.bool_ else "a number"
        raise InputError(f"{name} holds {given.flat[0]!r}, expected {what} for all hands or for each.")
    array = given.astype(dtype)
    if array.ndim == 0:
        return np.full(n, array)
    check_shape(name, array.shape, (n,))
    return array


def _texts(name: str, value: Sequence[str] | str, n: int) -> tuple[str, ...]:
    texts = (value,) * n if isinstance(value, str) else tuple(value)
    if len(texts) != n:
        raise InputError(f"{name} names {len(texts)} hands, expected {n}.")
    return texts
