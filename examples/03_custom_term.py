"""A term of your own: the index fingertip lies on a known plane, here the screen it points at.

One view says little about depth; one measured distance mends that. A term is a function from a posed hand to residuals
in standard deviations. Its Jacobian comes from automatic differentiation.
"""

from pathlib import Path

import numpy as np
import torch

import handloop
from handloop.core.terms import PosedHand

INDEX_TIP = 8
SIGMA = 0.002
"""m, how well the plane is known."""

data = np.load(Path(__file__).resolve().parent / "data" / "hands.npz")
truth = torch.from_numpy(data["joints_3d"]).double()
plane_z = truth[:, INDEX_TIP, 2]


def on_plane(posed: PosedHand, z: torch.Tensor) -> torch.Tensor:
    """(B, 1) residuals: how far the tip is from its plane, in sigmas."""
    return (posed.points[:, INDEX_TIP, 2:] - z[:, None]) / SIGMA


# `data` holds one row per hand, and left hands are fitted in a mirror: x changes sign there, y and z do not.
term = handloop.AutoTerm("tip_on_plane", on_plane, data=(plane_z,))

for recipe in (handloop.Recipe(), handloop.Recipe(extra_terms=(term,))):
    result = handloop.fit(data["keypoints_2d"], data["K"], is_right=data["is_right"], recipe=recipe)
    off_plane = (result.joints[:, INDEX_TIP, 2] - plane_z).abs().median() * 1000
    error = (result.joints - truth).norm(dim=-1).mean(1).median() * 1000
    name = "with the plane" if recipe.extra_terms else "without it"
    print(f"{name:<14}: tip {off_plane:5.1f} mm off the plane, joints {error:5.1f} mm off (medians)")
