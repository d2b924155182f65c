"""The hands of benchmarks.loop: FPHA's, some to learn from as projections, others to measure; and spoiled keypoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.accuracy_cases import SEED, disturb
from handloop.core.camera import Camera
from handloop.core.errors import InputError
from handloop.core.keypoints import Keypoints
from handloop.core.layout import KeypointLayout
from handloop.core.results import FitResult
from handloop.evaluation.alignment import similarity
from handloop.fitting.learn_layout import learn_from_joints
from handloop.fitting.learn_layout_2d import learn_from_keypoints
from handloop.hand.load import embedded_hand
from handloop.loop.cache import FitCache

NOISE_PX = 2
"""Of all keypoints, at a box of 224 px."""
_LAYOUT_HANDS = 1000


@dataclass(frozen=True)
class Errors:
    """Of some hands against the truth."""

    pa: float
    """Mean error after similarity alignment, mm."""
    far: float
    """Share of the hands with more than 20 mm of it, %."""
    relative: float
    """Mean error relative to the wrist, mm: metric, without any alignment."""

    @classmethod
    def of(cls, found: Tensor, truth: Tensor) -> Errors:
        """Of points (N, 21, 3) m; hands that were not found count 100 mm."""
        aligned = 1000 * (similarity(found, truth).apply(found) - truth).norm(dim=-1).mean(1)
        relative = 1000 * ((found - found[:, :1]) - (truth - truth[:, :1])).norm(dim=-1).mean(1)
        aligned, relative = aligned.nan_to_num(100.0), relative.nan_to_num(100.0)
        far = 100 * float((aligned > 20).double().mean())
        return cls(float(aligned.mean()), far, float(relative.mean()))

    def __str__(self) -> str:
        return f"{self.pa:.2f} ({self.far:.1f}) {self.relative:.1f}"


class LoopHands:
    """FPHA's hands."""

    def __init__(self, path: Path, teach: Sequence[int], measure: Sequence[int], n: int, corrupt: float) -> None:
        """Draw them.

        Args:
            path: fpha.npz.
            teach, measure: subjects.
            n: hands to learn from.
            corrupt: share of these whose keypoints are spoiled.
        """
        self._data = np.load(path, allow_pickle=False)
        rng = np.random.default_rng(SEED)
        self._known = self._sample(rng, teach, _LAYOUT_HANDS)
        self.teaching_truth = self._sample(rng, teach, n)
        self.teaching = self._seen(self.teaching_truth, corrupt, 1)
        self.truth = self._sample(rng, measure, 1000)
        self.measured = self._seen(self.truth, 0.0, 2)

    def layout_from_3d(self) -> KeypointLayout:
        """From the joints of hands of the teaching subjects, others than those that teach."""
        known = torch.ones(len(self._known), dtype=torch.bool)
        return learn_from_joints(embedded_hand().right, self._known, known, "fpha").layout

    def layout_from_2d(self) -> KeypointLayout:
        """From the teaching keypoints alone, as `--learn-layout` does.

        Raises:
            InputError: they do not identify it.
        """
        keypoints, camera = self.teaching
        few = torch.linspace(0, len(keypoints) - 1, min(len(keypoints), _LAYOUT_HANDS)).round().long()
        found = learn_from_keypoints(embedded_hand().right, keypoints.select(few), camera.select(few), "fpha")
        if found.refused:
            raise InputError(f"no layout can be learned from these keypoints: {found.refused}")
        return found.layout

    def error(self, result: FitResult) -> Errors:
        """Of fits of the measured hands."""
        return Errors.of(result.keypoints_3d, self.truth)

    def labels_error(self, cache: FitCache) -> float:
        """Mean error of the cached fits of the hands to learn from, mm; NaN without any."""
        row = {name: i for i, name in enumerate(self.teaching[0].ids)}
        parts = [(part.keypoints_3d, self.teaching_truth[[row[name] for name in part.ids]]) for part in cache.batches()]
        if not parts:
            return float("nan")
        found, truth = (torch.cat(list(some)) for some in zip(*parts, strict=True))
        return Errors.of(found, truth).pa

    def _sample(self, rng: np.random.Generator, people: Sequence[int], count: int) -> Tensor:
        rows = np.flatnonzero(np.isin(self._data["subject"], people))
        chosen = np.sort(rng.choice(rows, count, replace=False))
        return torch.tensor(self._data["joints_cam_mm_x100"][chosen] / 1e5)

    def _seen(self, points: Tensor, corrupt: float, seed: int) -> tuple[Keypoints, Camera]:
        camera = Camera.from_matrix(self._data["K"]).select(torch.zeros(len(points), dtype=torch.int64))
        g = torch.Generator().manual_seed(seed)
        uv = disturb(camera.project(points), NOISE_PX, 0.0, g)
        return Keypoints.from_arrays(spoiled(uv, corrupt, g)), camera


def spoiled(uv: Tensor, share: float, g: torch.Generator) -> Tensor:
    """Keypoints (N, 21, 2) px, a share of the hands spoiled, a third of these each:

    * two fingers taken for each other;
    * the hand taken for one of the other side: a mirror image about the middle of its box;
    * a part of the hand, the points from a random one on, shifted by a box in a random direction, as when two hands'
      boxes are mixed up. (All points shifted would be a good hand in another place.)
    """
    n = len(uv)
    wrong = torch.rand(n, generator=g) < share
    kind = torch.randint(3, (n,), generator=g)
    column = torch.arange(21)
    finger = (column - 1).div(4, rounding_mode="floor")
    pair = torch.rand(n, 5, generator=g).argsort(1)[:, :2]
    first, second = (pair[:, i : i + 1] for i in range(2))
    other = column + 4 * (second - first) * (finger == first) + 4 * (first - second) * (finger == second)
    swapped = torch.gather(uv, 1, torch.where(column > 0, other, column)[..., None].expand(n, 21, 2))
    low, high = uv.amin(1), uv.amax(1)
    mirrored = torch.stack([(low + high)[:, None, 0] - uv[..., 0], uv[..., 1]], -1)
    angle = 2 * np.pi * torch.rand(n, 1, 1, generator=g, dtype=uv.dtype)
    shift = (high - low).amax(1)[:, None, None] * torch.cat([angle.cos(), angle.sin()], -1)
    shifted = uv + shift * (column >= torch.randint(1, 21, (n, 1), generator=g))[..., None]
    out = uv
    for index, value in enumerate((swapped, mirrored, shifted)):
        out = torch.where((wrong & (kind == index))[:, None, None], value, out)
    return out
