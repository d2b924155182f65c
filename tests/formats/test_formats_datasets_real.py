"""Real samples of the data sets, as mmpose ships them: counts, sides and reprojection as their README states them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from handloop.core.crop import keypoint_box, look_at_crop
from handloop.formats import PictureSet, open_pictures, read_keypoints
from handloop.formats.crops import warp_picture

pytestmark = pytest.mark.real


def sample(real_data: Path, name: str) -> PictureSet:
    pictures = open_pictures(real_data / "formats/mmpose" / name)
    assert pictures.problems == () and not any("WARNING" in note for note in pictures.notes)
    return pictures


def reprojection(pictures: PictureSet) -> torch.Tensor:
    away = (pictures.camera().project(pictures.joints) - pictures.keypoints.xy).norm(dim=-1)
    return away[(pictures.keypoints.conf > 0) & torch.isfinite(away)]


def test_interhand(real_data: Path) -> None:
    pictures = sample(real_data, "interhand2.6m")
    assert pictures.dataset == "InterHand2.6M" and len(pictures) == 6
    assert pictures.keypoints.is_right.tolist() == [True, False, True, False, False, True]
    inside = (pictures.keypoints.xy >= 0) & (pictures.keypoints.xy < pictures.keypoints.image_size[:, None])
    assert (pictures.keypoints.conf == 1).all() and inside.all()


def test_rhd(real_data: Path) -> None:
    """An independent check of the order: 2D and 3D are separate numbers in the file."""
    pictures = sample(real_data, "rhd")
    assert pictures.keypoints.is_right.tolist() == [False, False, True]
    assert reprojection(pictures).mean() < 0.05 and reprojection(pictures).max() < 0.09


@pytest.mark.parametrize(
    ("name", "visible", "known"),
    [("freihand", [21] * 8, False), ("onehand10k", [20, 7, 15, 21], False), ("panoptic", [21] * 4, True)],
)
def test_sets_of_2d(real_data: Path, name: str, visible: list[int], known: bool) -> None:
    pictures = sample(real_data, name)
    assert (pictures.keypoints.conf > 0).sum(1).tolist() == visible
    assert pictures.side_known.tolist() == [known] * len(visible)
    for row in range(len(pictures)):
        height, width = pictures.picture(row).shape[:2]
        assert [width, height] == pictures.keypoints.image_size[row].tolist()


def test_coco_wholebody(real_data: Path) -> None:
    pictures = sample(real_data, "coco")
    assert int(pictures.keypoints.is_right.sum()) == 5 and len(pictures) == 10
    assert pictures.picture(0).shape == (425, 640, 3)


def test_cmu_sides_come_from_the_names(real_data: Path) -> None:
    assert sample(real_data, "panoptic").keypoints.is_right.tolist() == [False, True, False, True]


def test_all_of_them_are_input_of_a_fit(real_data: Path) -> None:
    result = read_keypoints([real_data / "formats/mmpose"])
    assert result.problems == () and len(result.keypoints) == 48
    assert result.camera is not None and int(result.camera.is_known().sum()) == 6 + 3 + 2


def test_a_crop_of_a_real_picture_shows_the_hand(real_data: Path) -> None:
    """RHD's pictures are synthetic: the mean colour under the keypoints is skin in picture and crop alike."""
    pictures = sample(real_data, "rhd")
    camera, keypoints = pictures.camera(), pictures.keypoints
    view = look_at_crop(camera, keypoint_box(keypoints), 224, keypoints.image_size)
    moved = view.keypoints(keypoints)
    for row in range(len(pictures)):
        whole, crop = pictures.picture(row), warp_picture(pictures.picture(row), view, row)
        colours = []
        for picture, points in ((whole, keypoints.xy[row]), (crop, moved.xy[row])):
            at = points.round().long().numpy()
            colours.append(picture[at[:, 1], at[:, 0]].mean(0))
        assert abs(colours[0] - colours[1]).max() < 8
