"""Picture data sets with 2D only, laid out as published; folders that are no data set; pictures that do not load."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from handloop.core.errors import FileFormatError, InputError
from handloop.formats import PictureSet, open_pictures, read_keypoints
from handloop.formats.picture_set import load_picture

K = np.array([[480.0, 0, 111.0], [0, 470.0, 113.0], [0, 0, 1]])


def dump(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def write_picture(path: Path, size: tuple[int, int], colour: tuple[int, int, int] = (10, 20, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def seen(pictures: PictureSet) -> torch.Tensor:
    return (pictures.keypoints.conf > 0).sum(1)


def freihand(folder: Path) -> None:
    """Two training pictures."""
    dump(folder / "training_K.json", [K.tolist()] * 2)
    dump(folder / "training_xyz.json", (np.random.default_rng(0).normal(size=(2, 21, 3)) * 0.03 + [0, 0, 0.5]).tolist())
    for i in range(2):
        write_picture(folder / f"training/rgb/{i:08d}.jpg", (224, 224))


# Sets with 2D only.


def test_onehand10k(tmp_path: Path) -> None:
    points = np.arange(42).reshape(21, 2) + 5
    points[4] = -1
    lines = ["a.jpg,300,200,1," + ",".join(map(str, points.ravel())), "b.jpg,300,200,1,5,5", ""]
    (tmp_path / "Train").mkdir()
    (tmp_path / "Train/label_joint.txt").write_text("\n".join(lines))
    write_picture(tmp_path / "Train/source/a.jpg", (300, 200))
    write_picture(tmp_path / "Train/mask/a.png", (300, 200))
    pictures = open_pictures(tmp_path)
    assert pictures.dataset == "OneHand10K" and pictures.keypoints.ids == ("Train/a",)
    assert not pictures.side_known.any() and seen(pictures).tolist() == [20] and pictures.keypoints.conf[0, 4] == 0
    assert pictures.keypoints.xy[0, 5].tolist() == [15, 16] and pictures.keypoints.image_size.tolist() == [[300, 200]]
    assert pictures.mask[0].endswith("Train/mask/a.png") and torch.isnan(pictures.K).all()
    assert any("1 lines" in note and "line 2 (5 numbers behind the name" in note for note in pictures.notes)
    result = read_keypoints([tmp_path])
    assert result.camera is None and any("1 right hand assumed" in note for note in result.notes)


def test_panoptic(tmp_path: Path) -> None:
    points = [[float(i), 2.0 * i + 1, float(i != 3)] for i in range(21)]
    dump(tmp_path / "manual_train/015374503_01_l.json", {"hand_pts": points, "is_left": 1.0})
    dump(tmp_path / "manual_train/a.flv_000040_r.json", {"hand_pts": points, "hand_box_center": [1, 2]})
    dump(tmp_path / "manual_train/bad_l.json", {"hand_pts": points[:20], "is_left": 1})
    dump(tmp_path / "synth2/0001.json", {"hand_pts": points, "is_left": 0})
    for name in ("manual_train/015374503_01_l.jpg", "manual_train/a.flv_000040_r.jpg", "synth2/0001.jpg"):
        write_picture(tmp_path / name, (128, 96))
    root = [{"img_paths": "imgs/00000000.jpg", "img_width": 1920.0, "img_height": 1080.0, "joint_self": points}]
    dump(tmp_path / "hand143_panopticdb/hands_v143_14817.json", {"root": [*root, {"img_paths": "imgs/1.jpg"}]})
    write_picture(tmp_path / "hand143_panopticdb/imgs/00000000.jpg", (1920, 1080))
    pictures = open_pictures(tmp_path)
    assert pictures.dataset == "CMU Panoptic hands" and len(pictures) == 4
    assert pictures.keypoints.is_right.tolist() == [True, False, True, True]
    assert pictures.side_known.tolist() == [False, True, True, True]
    assert seen(pictures).tolist() == [20] * 4 and (pictures.keypoints.conf[:, 3] == 0).all()
    assert pictures.keypoints.image_size.tolist() == [[1920, 1080]] + [[128, 96]] * 3
    assert pictures.split == ("hand143", "manual_train", "manual_train", "synth2")
    assert [Path(p.path).name for p in pictures.problems] == ["bad_l.json"]
    assert any("1 entries" in note for note in pictures.notes)
    assert all(Path(image).is_file() for image in pictures.keypoints.image)
    # Each part by itself is recognised as well.
    assert [len(open_pictures(tmp_path / part)) for part in ("manual_train", "synth2", "hand143_panopticdb")] == [
        2,
        1,
        1,
    ]


def test_coco_wholebody_folder(tmp_path: Path) -> None:
    triplets = [v for i in range(21) for v in (10.0 + i, 20.0 + i, float(i % 3))]
    people = [
        {"image_id": 785, "id": 1, "lefthand_kpts": triplets, "lefthand_valid": True, "lefthand_box": [1, 2, 3, 4]}
        | {"righthand_kpts": [0] * 63, "righthand_valid": False, "keypoints": [0] * 51},
        {"image_id": 785, "id": 2, "righthand_kpts": triplets, "righthand_valid": True, "lefthand_kpts": triplets}
        | {"lefthand_valid": False},
    ]
    images = [{"id": 785, "file_name": "000000000785.jpg", "width": 640, "height": 425}]
    path = tmp_path / "annotations/coco_wholebody_val_v1.0.json"
    dump(path, {"images": images, "annotations": people, "categories": []})
    write_picture(tmp_path / "val2017/000000000785.jpg", (640, 425))
    pictures = open_pictures(tmp_path)
    assert pictures.dataset == "COCO-style hands" and pictures.split == ("val", "val")
    assert pictures.keypoints.ids == ("000000000785:p0:left", "000000000785:p1:right")
    assert seen(pictures).tolist() == [14, 14] and pictures.keypoints.is_right.tolist() == [False, True]
    # Labelled but hidden (1) and visible (2) are both labels.
    assert pictures.keypoints.conf[0, :3].tolist() == [0, 1, 1]
    assert pictures.box[0].tolist() == [1, 2, 4, 6] and pictures.picture(0).shape == (425, 640, 3)


# What is no data set.


def test_unknown_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"this is no known data set.*FreiHAND: training_K\.json.*STB: labels"):
        open_pictures(tmp_path)
    with pytest.raises(InputError, match="there is no such folder"):
        open_pictures(tmp_path / "nothing")
    freihand(tmp_path / "a/FreiHAND_pub_v2")
    assert open_pictures(tmp_path / "a").dataset == "FreiHAND"
    dump(tmp_path / "a/cmu/manual_test/b_l.json", {"hand_pts": [[1.0, 2.0, 1.0]] * 21})
    with pytest.raises(
        InputError, match=r"several data sets, FreiHAND_pub_v2 \(FreiHAND\), cmu \(CMU Panoptic hands\)"
    ):
        open_pictures(tmp_path / "a")
    with pytest.raises(InputError, match="the part 'val' of FreiHAND was asked for, the folder holds training"):
        open_pictures(tmp_path / "a/FreiHAND_pub_v2", "val")


def test_pictures_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    freihand(tmp_path)
    pictures = open_pictures(tmp_path)
    Path(pictures.keypoints.image[1]).write_bytes(b"junk")
    assert pictures.picture(0).shape == (224, 224, 3)
    with pytest.raises(FileFormatError, match=r"00000001\.jpg: the picture cannot be read"):
        pictures.picture(1)
    with pytest.raises(FileFormatError, match="'x' comes without a picture"):
        load_picture("", "x")


def test_an_unmarked_camera_is_assumed(tmp_path: Path) -> None:
    freihand(tmp_path)
    pictures = open_pictures(tmp_path)
    known = dataclasses.replace(pictures, K=pictures.K.clone())
    known.K[1] = float("nan")
    camera = known.camera()
    assert camera.is_known().tolist() == [True, False]
    np.testing.assert_allclose(camera.matrix()[0].numpy(), K)
