"""Noise presets: 21 numbers in OpenPose order whose root mean square is one."""

from __future__ import annotations

import numpy as np
import pytest

from handloop.core.joint_noise import JOINT_NOISE
from handloop.core.joints import JOINT_NAMES


@pytest.mark.parametrize("name", list(JOINT_NOISE))
def test_presets_keep_the_noise_level(name: str) -> None:
    ratios = np.array(JOINT_NOISE[name])
    assert ratios.shape == (21,) and (ratios > 0).all()
    assert np.sqrt(np.square(ratios).mean()) == pytest.approx(1)


def test_coco_wholebody() -> None:
    """The published figures of some joints, against each other: 0.047 thumb tip, 0.017 ring knuckle, 0.029 wrist."""
    by_name = dict(zip(JOINT_NAMES, JOINT_NOISE["coco_wholebody"], strict=True))
    ordered = list(by_name.values())
    assert ordered[4] == max(ordered) and ordered[13] == min(ordered)
    assert ordered[4] / ordered[13] == pytest.approx(47 / 17)
    assert ordered[0] / ordered[20] == pytest.approx(29 / 31) and ordered[8] / ordered[9] == pytest.approx(35 / 18)


def test_uniform() -> None:
    assert JOINT_NOISE["uniform"] == (1.0,) * 21
