"""A recipe of your own, for a coarse detector that now and then puts a point far off: noise, kernel and more terms."""

from pathlib import Path

import numpy as np

import handloop
from handloop.core.joint_noise import JOINT_NOISE

data = np.load(Path(__file__).resolve().parent / "data" / "hands.npz")
rng, spread = np.random.default_rng(0), np.array(JOINT_NOISE["coco_wholebody"])[:, None]
keypoints = data["keypoints_2d"].astype(np.float64)
box = np.ptp(keypoints[..., :2], axis=1).max(1)[:, None, None]
keypoints[..., :2] += 8 / 224 * box * spread * rng.normal(size=(24, 21, 2))
keypoints[..., :2] += np.where(rng.random((24, 21, 1)) < 0.05, 80 * rng.normal(size=(24, 21, 2)), 0)

mine = handloop.Recipe(
    name="mine",
    noise_px=8.0,  # At a hand box of 224 px.
    joint_noise="coco_wholebody",  # Tips are found less exactly than knuckles.
    kernel="cauchy",  # A far point pulls less and less, but never quite lets go.
    robust=2.0,  # sigmas, from where on.
    coupling_sigma_deg=10.0,  # A DIP follows its PIP.
    spread=True,  # Bent knuckles do not spread.
)
for recipe in (handloop.RECIPES["default"], mine):
    found = handloop.fit(keypoints, data["K"], is_right=data["is_right"], recipe=recipe).joints.numpy()
    off = np.linalg.norm((found - found[:, :1]) - (data["joints_3d"] - data["joints_3d"][:, :1]), axis=-1)
    print(f"{recipe.name:<8}: joints {1000 * off.mean():4.1f} mm off, wrist on wrist (mean)")
