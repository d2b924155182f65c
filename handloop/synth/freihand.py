"""Pictures in FreiHAND's published folders and JSON lists."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from handloop.core.joints import CANONICAL_FROM_MANO, TIP_SETS
from handloop.core.results import load_npz, save_npz
from handloop.hand.mesh import regressed_joints
from handloop.hand.model import Hand
from handloop.synth.encode import mask_jpeg, rgb_jpeg
from handloop.synth.picture import Picture, Truth

_NAME = re.compile(r"labels-(\d{8})-(\d{8})\.npz")

_ROOT, _REFERENCE = 9, (9, 10)
"""Points that FreiHAND places a hand by, and whose distance it calls the scale (freihand/utils/model.py)."""


@dataclass(frozen=True)
class FreihandLayout:
    """training/rgb, training/mask and training_{K,xyz,mano,scale}.json; right hands only.

    As in FreiHAND, the joints are regressed from the posed mesh and the fingertips are its own vertices; they lie
    millimetres from the skinning joints that the default layout writes.
    """

    folder: Path
    """Where they lie."""
    hand: Hand
    """The right hand's model."""

    def path(self, indices: Sequence[int]) -> Path:
        """The labels of consecutive pictures, written after the pictures themselves."""
        return self.folder / "parts" / f"labels-{indices[0]:08d}-{indices[-1]:08d}.npz"

    def parts(self) -> list[tuple[Path, int]]:
        """Every finished part, in order, and the number of its last picture."""
        folder = self.folder / "parts"
        matches = [(path, _NAME.fullmatch(path.name)) for path in sorted(folder.iterdir())] if folder.is_dir() else []
        return [(path, int(match[2])) for path, match in matches if match]

    def write(self, pictures: Iterable[Picture], indices: Sequence[int]) -> None:
        """Write one part; it counts as done once its labels are there."""
        rgb, mask = self.folder / "training" / "rgb", self.folder / "training" / "mask"
        for place in (rgb, mask, self.folder / "parts"):
            place.mkdir(parents=True, exist_ok=True)
        rows = []
        for picture in pictures:
            (rgb / f"{picture.index:08d}.jpg").write_bytes(rgb_jpeg(picture))
            (mask / f"{picture.index:08d}.jpg").write_bytes(mask_jpeg(picture))
            rows.append(_labels(picture.truth, self.hand))
        names = ("K", "xyz", "mano", "scale")
        save_npz(self.path(indices), {name: np.stack([row[k] for row in rows]) for k, name in enumerate(names)})

    def finish(self) -> None:
        """Join the parts' labels into the four lists."""
        parts = [load_npz(path) for path, _ in self.parts()]
        for name, digits in (("K", 6), ("xyz", 7), ("mano", 7), ("scale", 7)):
            target = self.folder / f"training_{name}.json"
            temporary = target.with_name(target.name + ".partial")
            with open(temporary, "w", encoding="ascii") as file:
                separator = "["
                for part in parts:
                    for row in part[name]:
                        file.write(separator + json.dumps((np.round(row, digits) + 0.0).tolist()))
                        separator = ", "
                file.write("]\n")
            os.replace(temporary, target)


def _labels(truth: Truth, hand: Hand) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """K (3, 3), xyz (21, 3) m, mano (1, 61) and scale () m of one right hand."""
    joints = regressed_joints(hand, torch.from_numpy(truth.vertices)[None])[0].numpy()
    tips = truth.vertices[list(TIP_SETS["freihand"])]
    xyz = np.concatenate([joints, tips])[list(CANONICAL_FROM_MANO)]
    # The root in pixels from the principal point's origin, and pixels per metre at its depth.
    focal = (truth.K[0, 0] + truth.K[1, 1]) / 2
    scale = focal / xyz[_ROOT, 2]
    uv_root = xyz[_ROOT, :2] * scale + truth.K[:2, 2]
    pose = np.concatenate([truth.global_orient, truth.hand_pose - hand.hands_mean])
    mano = np.concatenate([pose, truth.betas, uv_root, [scale]])[None]
    return truth.K, xyz, mano, np.array(np.linalg.norm(xyz[_REFERENCE[1]] - xyz[_REFERENCE[0]]))
