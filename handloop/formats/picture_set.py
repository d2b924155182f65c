"""`PictureSet`: the hands of a data set of pictures, in one order, unit and frame, whatever the data set's own are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.errors import FileFormatError, InputError, ModelError
from handloop.core.keypoints import Keypoints
from handloop.core.params import HandParams
from handloop.core.view_change import move_params
from handloop.formats.handedness import thumb_side
from handloop.formats.naming import unique_ids
from handloop.formats.options import Problem
from handloop.hand.model import HandPair


@dataclass(frozen=True, eq=False)
class ManoSample:
    """MANO parameters of one hand as published."""

    pose: np.ndarray
    """(48,) rad, wrist first."""
    betas: np.ndarray
    """(10,)"""
    transl: np.ndarray
    """(3,) m, NaN where the data set has none."""
    rotation: np.ndarray
    """(3, 3) from the parameters' frame to OpenCV camera axes."""
    offset: np.ndarray
    """(3,) m, added after the rotation."""


@dataclass(frozen=True, eq=False)
class PictureSample:
    """One hand in one picture."""

    id: str
    """Name, unique within its data set."""
    points: np.ndarray
    """(21, 3) x, y in px of the picture and confidence 0..1 (0 missing), canonical order."""
    is_right: bool | None
    """The person's own side, None where the data set does not say."""
    image: str = ""
    """Path of the picture, "" where there is none."""
    image_size: tuple[float, float] | None = None
    """Width and height, px."""
    matrix: np.ndarray | None = None
    """(3, 3) K, px."""
    joints: np.ndarray | None = None
    """(21, 3) m, OpenCV camera axes, canonical order; NaN where unknown."""
    box: np.ndarray | None = None
    """(4,) x0, y0, x1, y1 px, where the data set gives one."""
    mask: str = ""
    """Path of the segmentation picture, "" where there is none."""
    split: str = ""
    """Part of the data set, in its own words."""
    source: str = ""
    """File the annotation was read from."""
    frame: int = -1
    """Frame number in a video, -1 for none."""
    hand: str = ""
    """Name of the annotated hand where several pictures show the very same one; "" for `id`."""
    mano: ManoSample | None = None
    """Published MANO parameters."""


@dataclass(frozen=True, eq=False)
class ManoLabels:
    """Published MANO parameters of N hands, in the data set's own frame and pose convention."""

    params: HandParams
    """N hands as published; NaN rows where there are none."""
    rotation: Tensor
    """(N, 3, 3) from the parameters' frame to the camera's."""
    offset: Tensor
    """(N, 3) m, added after the rotation."""
    mean_relative: bool
    """True where the pose is relative to the model's mean pose (`flat_hand_mean=False`)."""

    def in_camera(self, hands: HandPair, is_right: Tensor) -> HandParams:
        """The parameters in camera frames with a flat mean, each in the convention of its own side.

        Args:
            hands: the MANO files: the mean pose and the rest wrist J_0(betas), about which hands turn, are theirs.
            is_right: (N,) bool.

        Raises:
            ModelError: another model than MANO; its parameters mean something else.
        """
        if not (hands.right.licensed and hands.left.licensed):
            raise ModelError(f"the labels are parameters of MANO, {hands.right.name!r} is not; load MANO_RIGHT.pkl.")
        rests, means = [], []
        for hand in (hands.left, hands.right):
            dirs = torch.from_numpy(hand.joints_shapedirs[0])
            rests.append(torch.from_numpy(hand.joints_rest[0]) + self.params.betas @ dirs.T)
            means.append(torch.from_numpy(hand.hands_mean))
        right = is_right[:, None]
        params = self.params
        if self.mean_relative:
            params = replace(params, hand_pose=params.hand_pose + torch.where(right, means[1], means[0]))
        return move_params(params, self.rotation, self.offset, torch.where(right, rests[1], rests[0]))


@dataclass(frozen=True, eq=False)
class PictureSet:
    """N hands of a data set, one row each. Pictures are loaded when asked for."""

    dataset: str
    """Its name."""
    keypoints: Keypoints
    """N hands: px, confidence, sides (right where unknown), picture sizes (NaN where unknown), ids, pictures' paths."""
    side_known: Tensor
    """(N,) bool, False where the data set does not say which side a hand is."""
    K: Tensor
    """(N, 3, 3) px, NaN where unknown."""
    joints: Tensor
    """(N, 21, 3) m, OpenCV camera axes; NaN where unknown."""
    box: Tensor
    """(N, 4) x0, y0, x1, y1 px as published; NaN where there is none (`core.crop.keypoint_box` makes one)."""
    hand: Tensor
    """(N,) int64, equal for rows whose pictures show the very same hand (FreiHAND's four backgrounds)."""
    mano: ManoLabels | None
    """MANO parameters, None where no hand has any."""
    mask: tuple[str, ...]
    """N paths of segmentation pictures, "" for none."""
    split: tuple[str, ...]
    """N parts of the data set, in its own words."""
    problems: tuple[Problem, ...]
    """Files that could not be used, each with the reason."""
    notes: tuple[str, ...]
    """What was assumed or looks odd."""

    def __len__(self) -> int:
        return len(self.keypoints)

    @classmethod
    def from_samples(
        cls,
        dataset: str,
        samples: Sequence[PictureSample],
        mean_relative: bool = False,
        problems: Sequence[Problem] = (),
        notes: Sequence[str] = (),
    ) -> PictureSet:
        """Stack samples; cameras are checked, and sides compared with the thumbs where there is 3D."""
        samples, odd = with_usable_cameras(samples)
        n = len(samples)
        joints = _stack([s.joints for s in samples], (n, 21, 3))
        keypoints = Keypoints.from_arrays(
            np.stack([s.points for s in samples]) if n else np.zeros((0, 21, 3)),
            np.array([s.is_right is not False for s in samples], dtype=bool),
            _stack([None if s.image_size is None else np.array(s.image_size) for s in samples], (n, 2)).numpy(),
            unique_ids([s.id for s in samples]),
            [s.source for s in samples],
            np.array([s.frame for s in samples], dtype=np.int64),
            [s.image for s in samples],
        )
        known = torch.tensor([s.is_right is not None for s in samples], dtype=torch.bool)
        numbers: dict[str, int] = {}
        hand = [numbers.setdefault(s.hand or f"{i} {s.id}", len(numbers)) for i, s in enumerate(samples)]
        return cls(
            dataset,
            keypoints,
            known,
            _stack([s.matrix for s in samples], (n, 3, 3)),
            joints,
            _stack([s.box for s in samples], (n, 4)),
            torch.tensor(hand, dtype=torch.int64),
            _labels(samples, mean_relative),
            tuple(s.mask for s in samples),
            tuple(s.split for s in samples),
            tuple(problems),
            (*notes, *odd, *_side_notes(joints, keypoints.is_right, known)),
        )

    def camera(self) -> Camera:
        """N cameras, assumed and marked so where K is unknown."""
        assumed = Camera.assumed(self.keypoints.image_size, self.keypoints.box())
        known = torch.isfinite(self.K).all(2).all(1)
        if not bool(known.any()):
            return assumed
        given = Camera.from_matrix(self.K[known])
        focal, princpt = assumed.focal.clone(), assumed.princpt.clone()
        focal[known], princpt[known] = given.focal, given.princpt
        return Camera(focal, princpt, known=known)

    def picture(self, row: int) -> np.ndarray:
        """The picture of a row, (H, W, 3) uint8 RGB, upright as tools that honour EXIF's orientation show it.

        Raises:
            FileFormatError: there is none, or it cannot be read.
        """
        return load_picture(self.keypoints.image[row], self.keypoints.ids[row])

    def select(self, index: Tensor) -> PictureSet:
        """The rows named by an integer or boolean index."""
        at = index.nonzero()[:, 0] if index.dtype == torch.bool else index
        rows = at.tolist()
        mano = self.mano
        if mano is not None:
            mano = ManoLabels(mano.params.select(at), mano.rotation[at], mano.offset[at], mano.mean_relative)
        return replace(
            self,
            keypoints=self.keypoints.select(at),
            side_known=self.side_known[at],
            K=self.K[at],
            joints=self.joints[at],
            box=self.box[at],
            hand=self.hand[at],
            mano=mano,
            mask=tuple(self.mask[i] for i in rows),
            split=tuple(self.split[i] for i in rows),
        )

    def only(self, split: str) -> PictureSet:
        """The rows of one part of the data set.

        Raises:
            InputError: there is no such part.
        """
        here = torch.tensor([s == split for s in self.split], dtype=torch.bool)
        if not bool(here.any()):
            parts = ", ".join(dict.fromkeys(self.split)) or "nothing"
            raise InputError(f"the part {split!r} of {self.dataset} was asked for, the folder holds {parts}.")
        return self.select(here)


def load_picture(path: str, name: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture file; `name` is the hand's, for messages."""
    if not path:
        raise FileFormatError(f"the hand {name!r} comes without a picture.")
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            return np.asarray((ImageOps.exif_transpose(picture) or picture).convert("RGB"))
    except Exception as error:  # Damaged pictures raise many kinds.
        raise FileFormatError(f"{path}: the picture cannot be read ({type(error).__name__}).") from error


def with_usable_cameras(samples: Sequence[PictureSample]) -> tuple[list[PictureSample], list[str]]:
    """The samples without those K that no pinhole camera has, and a note on how many there were."""
    bad = [s.matrix is not None and not _is_pinhole(s.matrix) for s in samples]
    kept = [replace(s, matrix=None) if wrong else s for s, wrong in zip(samples, bad, strict=True)]
    if not any(bad):
        return kept, []
    first = samples[bad.index(True)].id
    return kept, [f"{sum(bad)} hands have a K that is no pinhole camera's, which was left out; the first is {first}."]


def _is_pinhole(matrix: np.ndarray) -> bool:
    try:
        Camera.from_matrix(matrix)
    except InputError:
        return False
    return True


def project(joints: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(..., 21, 3) m and (..., 3, 3) K to (..., 21, 3) px and confidence: 1, or 0 behind the camera and for NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ray = joints @ np.swapaxes(matrix, -1, -2)
        uv = ray[..., :2] / ray[..., 2:]
        seen = np.isfinite(uv).all(-1) & (joints[..., 2] > 0)
    return np.concatenate([np.where(seen[..., None], uv, 0.0), seen[..., None].astype(np.float64)], -1)


def _stack(values: Sequence[np.ndarray | None], shape: tuple[int, ...]) -> Tensor:
    out = np.full(shape, np.nan)
    for i, value in enumerate(values):
        if value is not None:
            out[i] = value
    return torch.from_numpy(out)


def _labels(samples: Sequence[PictureSample], mean_relative: bool) -> ManoLabels | None:
    found = [s.mano for s in samples]
    n = len(found)
    if all(m is None for m in found):
        return None
    pose = _stack([None if m is None else m.pose for m in found], (n, 48))
    betas = _stack([None if m is None else m.betas for m in found], (n, 10))
    transl = _stack([None if m is None else m.transl for m in found], (n, 3))
    return ManoLabels(
        HandParams(pose[:, :3], pose[:, 3:], betas, transl),
        _stack([None if m is None else m.rotation for m in found], (n, 3, 3)),
        _stack([None if m is None else m.offset for m in found], (n, 3)),
        mean_relative,
    )


_CLEAR = 0.1
"""Sine of the thumb's angle to the palm from which the side counts as decided; as for keypoint files."""


def _side_notes(joints: Tensor, is_right: Tensor, known: Tensor) -> list[str]:
    """A sentence where the thumbs contradict the sides that a data set gives: wrong axes, order or sides."""
    sine = thumb_side(joints.numpy())
    decided = (np.abs(sine) > _CLEAR) & known.numpy()
    against = decided & ((sine > 0) != is_right.numpy())
    # A single wrong label is the data set's own; half of them are a misunderstanding.
    if against.sum() <= 0.5 * decided.sum():
        return []
    return [f"WARNING: the thumb contradicts the side in {int(against.sum())} of {int(decided.sum())} hands with 3D."]
