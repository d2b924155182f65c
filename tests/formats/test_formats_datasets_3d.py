"""Picture data sets with 3D, laid out as published, from named joints and known cameras: orders, units, axes, sides."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from scipy.spatial.transform import Rotation

from handloop.core.errors import FileFormatError, ModelError
from handloop.core.params import HandParams
from handloop.evaluation.truth import read_truth
from handloop.formats import PictureSet, open_pictures, read_keypoints
from handloop.hand.kinematics import Kinematics
from handloop.hand.load import embedded_hand
from handloop.hand.model import Hand, HandPair

K = np.array([[480.0, 0, 111.0], [0, 470.0, 113.0], [0, 0, 1]])

FINGERS = ("thumb", "index", "middle", "ring", "little")
CANONICAL = ("wrist", *(f"{finger}{i}" for finger in FINGERS for i in (1, 2, 3, 4)))
"""OpenPose's order; 1 is a finger's base, 4 its tip."""

Named = dict[str, np.ndarray]


def named(points: np.ndarray) -> Named:
    """(21, c) canonical points by name."""
    return dict(zip(CANONICAL, points, strict=True))


def in_order(hand: Named, names: Iterable[str]) -> np.ndarray:
    return np.stack([hand[name] for name in names])


@cache
def model(is_right: bool) -> tuple[Hand, Kinematics]:
    hand = embedded_hand().side(is_right)
    return hand, Kinematics.from_hand(hand)


def hands_in_camera(n: int, is_right: bool, seed: int = 0) -> np.ndarray:
    """(n, 21, 3) m, camera frame: bent hands of one side about 0.5 m away."""
    rng = np.random.default_rng(seed)
    hand, kin = model(is_right)
    orient = rng.normal(size=(n, 3))
    pose = np.tile(hand.hands_mean, (n, 1)) * rng.uniform(0.3, 1, (n, 1))
    place = np.stack([rng.uniform(-0.05, 0.05, n), rng.uniform(-0.05, 0.05, n), rng.uniform(0.45, 0.6, n)], 1)
    zeros = np.zeros((n, 10))
    params = HandParams(*(torch.from_numpy(a) for a in (orient, pose, zeros, np.zeros((n, 3)))))
    points = kin.points(params.rotation_matrices(), params.betas, torch.from_numpy(place)).numpy()
    return np.asarray(points + place[:, None] - points.mean(1, keepdims=True))


def pinhole(points: np.ndarray, k: np.ndarray) -> np.ndarray:
    """(..., 3) m to (..., 2) px, written out."""
    u = k[0, 0] * points[..., 0] / points[..., 2] + k[0, 2]
    v = k[1, 1] * points[..., 1] / points[..., 2] + k[1, 2]
    return np.stack([u, v], -1)


def write_picture(path: Path, size: tuple[int, int], colour: tuple[int, int, int] = (10, 20, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


TIP_FIRST = [f"{finger}{i}" for finger in FINGERS for i in (4, 3, 2, 1)]
INTERHAND = [*TIP_FIRST, "wrist"]
RHD = ["wrist", *TIP_FIRST]
STB = ["palm", *(f"{finger}{i}" for finger in reversed(FINGERS) for i in (1, 2, 3, 4))]
MANO_FINGERS = ("index", "middle", "little", "ring", "thumb")
MANO = ["wrist", *(f"{f}{i}" for f in MANO_FINGERS for i in (1, 2, 3)), *(f"{f}4" for f in FINGERS)]


def dump(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def close(got: torch.Tensor, expected: np.ndarray, atol: float = 1e-9) -> None:
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=atol)


def seen(pictures: PictureSet) -> torch.Tensor:
    return (pictures.keypoints.conf > 0).sum(1)


# FreiHAND.


def freihand(folder: Path, n: int = 2) -> np.ndarray:
    joints = hands_in_camera(n, True)
    dump(folder / "training_K.json", [K.tolist()] * n)
    dump(folder / "training_xyz.json", joints.tolist())
    vectors = np.random.default_rng(0).normal(size=(n, 61))
    dump(folder / "training_mano.json", [[v] for v in vectors.tolist()])
    for i in range(2 * n):
        write_picture(folder / f"training/rgb/{i:08d}.jpg", (224, 224))
    for i in range(n):
        write_picture(folder / f"training/mask/{i:08d}.jpg", (224, 224))
    dump(folder / "evaluation_K.json", [K.tolist()])
    write_picture(folder / "evaluation/rgb/00000000.jpg", (224, 224))
    return joints


def test_freihand(tmp_path: Path) -> None:
    joints = freihand(tmp_path)
    pictures = open_pictures(tmp_path)
    assert pictures.dataset == "FreiHAND" and pictures.problems == () and len(pictures) == 5
    assert pictures.keypoints.ids[:3] == ("training/00000000", "training/00000001", "training/00000002")
    # Four pictures show two hands.
    assert pictures.hand.tolist() == [0, 1, 0, 1, 2] and pictures.split[3:] == ("training", "evaluation")
    close(pictures.joints[:4], np.concatenate([joints, joints]))
    close(pictures.keypoints.xy[:4], pinhole(np.concatenate([joints, joints]), K))
    close(pictures.K, np.stack([K] * 5))
    assert seen(pictures).tolist() == [21, 21, 21, 21, 0] and torch.isnan(pictures.joints[4]).all()
    assert pictures.keypoints.is_right.all() and pictures.side_known.all()
    assert pictures.mask[2].endswith("training/mask/00000000.jpg") and pictures.mask[4] == ""
    assert pictures.keypoints.image[3].endswith("training/rgb/00000003.jpg")
    assert any("evaluation_xyz.json is not there" in note for note in pictures.notes)
    assert not any("WARNING" in note for note in pictures.notes)
    vectors = np.random.default_rng(0).normal(size=(2, 61))
    assert pictures.mano is not None and pictures.mano.mean_relative
    close(pictures.mano.params.hand_pose[:2], vectors[:, 3:48])
    close(pictures.mano.params.betas[2:4], vectors[:, 48:58])
    assert torch.isnan(pictures.mano.params.transl).all() and torch.isnan(pictures.mano.params.betas[4]).all()
    assert len(pictures.only("evaluation")) == 1


def test_a_freihand_folder_is_input_of_a_fit_each_hand_once(tmp_path: Path) -> None:
    joints = freihand(tmp_path)
    result = read_keypoints([tmp_path])
    assert result.problems == () and result.keypoints.ids == ("00000000", "00000001")
    assert result.truth_joints is not None and result.camera is not None and result.camera.known is not None
    close(result.truth_joints, joints)
    close(result.camera.project(result.truth_joints), result.keypoints.xy.numpy(), 1e-8)
    assert any("this is FreiHAND: 2 hands" in note for note in result.notes)
    # `handloop eval` pairs results with the truth by these names.
    assert read_truth(tmp_path).ids == result.keypoints.ids


def test_damaged_freihand_files_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    freihand(tmp_path)
    (tmp_path / "training_mano.json").write_text("[[1, 2")
    dump(tmp_path / "evaluation_xyz.json", [[[0.0] * 3] * 20])
    pictures = open_pictures(tmp_path)
    assert [Path(p.path).name for p in pictures.problems] == ["training_mano.json", "evaluation_xyz.json"]
    assert "truncated" in pictures.problems[0].message and "expected (1, 21, 3)" in pictures.problems[1].message
    assert len(pictures) == 5 and pictures.mano is None


def test_cameras_that_are_none_are_left_out_and_named(tmp_path: Path) -> None:
    freihand(tmp_path)
    dump(tmp_path / "training_K.json", [K.tolist(), np.diag([0.0, 0, 1]).tolist()])
    pictures = open_pictures(tmp_path)
    assert torch.isnan(pictures.K[1]).all() and any("2 hands have a K that is no" in note for note in pictures.notes)
    result = read_keypoints([tmp_path])
    assert result.camera is not None and result.camera.is_known().tolist() == [True, False]


# InterHand2.6M.


def interhand(folder: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """One picture of both hands with two joints missing, one of a left hand; their joints and the camera."""
    right, left = hands_in_camera(1, True)[0], hands_in_camera(2, False, 3)
    turn, place = Rotation.from_rotvec([0.4, -0.7, 0.2]).as_matrix(), np.array([0.3, -1.1, 0.6])

    def world(cam: np.ndarray) -> np.ndarray:
        return np.asarray((cam @ turn + place) * 1000)

    both = np.concatenate([in_order(named(world(h)), INTERHAND) for h in (right, left[0])])
    valid = np.ones(42, dtype=bool)
    valid[[20, 24]] = False  # The right wrist and the base of the left thumb.
    both[~valid] = 1.0
    lone = np.concatenate([np.ones((21, 3)), in_order(named(world(left[1])), INTERHAND)])
    images = [
        {"id": i, "file_name": f"Capture0/ROM/cam400/image{10 + i}.png", "width": 334, "height": 512}
        | {"capture": 0, "subject": 1, "seq_name": "ROM", "camera": "400", "frame_idx": 10 + i}
        for i in range(2)
    ]
    annotations = [{"id": i, "image_id": i, "bbox": [5.0, 6.0, 70.0, 80.0], "hand_type": "right"} for i in range(2)]
    camera = {"campos": {"400": (place * 1000).tolist()}, "camrot": {"400": turn.tolist()}}
    camera |= {"focal": {"400": [480.0, 470.0]}, "princpt": {"400": [111.0, 113.0]}}
    frames = {
        "10": {"world_coord": both.tolist(), "joint_valid": valid[:, None].tolist()},
        "11": {"world_coord": lone.tolist(), "joint_valid": [[0]] * 21 + [[1]] * 21},
    }
    place_of = folder / "annotations/train"
    dump(place_of / "InterHand2.6M_train_data.json", {"images": images, "annotations": annotations})
    dump(place_of / "InterHand2.6M_train_camera.json", {"0": camera})
    dump(place_of / "InterHand2.6M_train_joint_3d.json", {"0": frames})
    for image in images:
        write_picture(folder / "images/train" / str(image["file_name"]), (334, 512))
    return np.stack([right, *left]), turn, {"place": place}


def test_interhand(tmp_path: Path) -> None:
    joints, _, _ = interhand(tmp_path)
    pictures = open_pictures(tmp_path)
    assert pictures.dataset == "InterHand2.6M" and pictures.problems == () and pictures.notes == ()
    names = [i.rpartition("/")[2] for i in pictures.keypoints.ids]
    assert names == ["image10:right", "image10:left", "image11:left"]
    assert pictures.keypoints.is_right.tolist() == [True, False, False]
    assert seen(pictures).tolist() == [20, 20, 21]
    assert pictures.keypoints.conf[0, 0] == 0 and pictures.keypoints.conf[1, CANONICAL.index("thumb1")] == 0
    expected = joints.copy()
    expected[0, 0] = expected[1, 1] = np.nan
    close(pictures.joints, expected)
    there = pictures.keypoints.conf > 0
    close(pictures.keypoints.xy[there], pinhole(joints, K)[there.numpy()])
    assert pictures.split == ("train",) * 3 and pictures.keypoints.frame.tolist() == [10, 10, 11]
    assert torch.isnan(pictures.box[:2]).all() and pictures.box[2].tolist() == [5, 6, 75, 86]
    assert pictures.picture(2).shape == (512, 334, 3)


def test_interhand_files_are_keypoint_files_too(tmp_path: Path) -> None:
    joints, _, _ = interhand(tmp_path)
    result = read_keypoints([tmp_path])
    assert result.problems == () and len(result.keypoints) == 3 and result.files_without_hands == 2
    assert result.truth_joints is not None and Path(result.keypoints.image[0]).is_file()
    close(result.truth_joints[2], joints[2])
    (tmp_path / "annotations/train/InterHand2.6M_train_camera.json").unlink()
    result = read_keypoints([tmp_path])
    assert "InterHand2.6M_train_camera.json, which is not beside" in result.problems[0].message
    (tmp_path / "annotations/train/InterHand2.6M_train_data.json").unlink()
    result = read_keypoints([tmp_path])
    assert "needs InterHand2.6M_train_data.json beside it" in result.problems[0].message


def test_damaged_interhand_pictures_are_left_out(tmp_path: Path) -> None:
    interhand(tmp_path)
    path = tmp_path / "annotations/train/InterHand2.6M_train_joint_3d.json"
    frames = json.loads(path.read_text())
    frames["0"]["10"]["world_coord"].pop()
    dump(path, frames)
    pictures = open_pictures(tmp_path)
    assert len(pictures) == 1 and "1 pictures lack a camera or joints" in pictures.notes[0]
    assert "image10.png (world_coord has shape (41, 3)" in pictures.notes[0]
    frames["0"].pop("11")
    dump(path, frames)
    with pytest.raises(FileFormatError, match=r"no hand of InterHand2\.6M could be read"):
        open_pictures(tmp_path)


def licensed(pair: HandPair) -> HandPair:
    """The embedded hand passed off as MANO, with unequal means."""
    left = dataclasses.replace(pair.left, licensed=True)
    return HandPair(dataclasses.replace(pair.right, licensed=True), left)


def test_interhand_mano_parameters_pose_the_hand_in_the_camera(tmp_path: Path) -> None:
    _, turn, extra = interhand(tmp_path)
    place = extra["place"]
    rng = np.random.default_rng(5)
    sides = {"right": True, "left": False}
    given = {s: [rng.normal(size=k) * 0.3 for k in (48, 10, 3)] for s in sides}
    frames = {
        "10": {s: dict(zip(("pose", "shape", "trans"), map(list, given[s]), strict=True)) for s in sides},
        "11": {"right": None, "left": None},
    }
    dump(tmp_path / "annotations/train/InterHand2.6M_train_MANO_NeuralAnnot.json", {"0": frames})
    pictures = open_pictures(tmp_path)
    assert pictures.mano is not None
    hands = licensed(embedded_hand())
    params = pictures.mano.in_camera(hands, pictures.keypoints.is_right)
    for row, (side, is_right) in enumerate(sides.items()):
        pose, betas, transl = (torch.from_numpy(a)[None] for a in given[side])
        hand = hands.side(is_right)
        kin = Kinematics.from_hand(hand)
        # smplx with use_pca=False adds the mean pose; all of it in the world's frame.
        whole = HandParams(pose[:, :3], pose[:, 3:] + torch.from_numpy(hand.hands_mean), betas, transl)
        world = kin.points(whole.rotation_matrices(), betas, kin.root_offset(betas) + transl)[0].numpy()
        mine = params.select(torch.tensor([row]))
        cam = kin.points(mine.rotation_matrices(), betas, kin.root_offset(betas) + mine.transl)[0]
        close(cam, (world - place) @ turn.T)
    assert torch.isnan(params.global_orient[2]).all()
    with pytest.raises(ModelError, match="load MANO_RIGHT"):
        pictures.mano.in_camera(embedded_hand(), pictures.keypoints.is_right)


# HO-3D.


def pickled(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol=2))
    return path


def ho3d(folder: Path) -> np.ndarray:
    """Two annotated frames, one without annotation, one for evaluation; (3, 21, 3) joints in OpenCV axes."""
    joints = hands_in_camera(3, True)
    opengl = joints * [1, -1, -1]
    for i in range(3):
        content: dict[str, object] = {"camMat": K, "objName": "003_cracker_box", "objLabel": 3, "objTrans": None}
        if i < 2:
            content["handJoints3D"] = in_order(named(opengl[i]), MANO)
            content["handPose"], content["handBeta"] = np.full(48, 0.1 * i), np.arange(10.0)
            content["handTrans"] = np.array([0.01, 0.02, -0.5])
        else:
            content["handJoints3D"] = content["handPose"] = None
        pickled(folder / f"train/ABF10/meta/{i:04d}.pkl", content)
        write_picture(folder / f"train/ABF10/rgb/{i:04d}.png", (640, 480))
    write_picture(folder / "train/ABF10/seg/0001.png", (320, 240))
    only = {"camMat": K, "handJoints3D": opengl[2, 0], "handBoundingBox": [1.0, 2.0, 33.0, 44.0]}
    pickled(folder / "evaluation/SM1/meta/0007.pkl", only)
    write_picture(folder / "evaluation/SM1/rgb/0007.jpg", (640, 480))
    (folder / "train.txt").write_text("ABF10/0000\nABF10/0001\nABF10/0002\n../../etc/passwd\n")
    return joints


def test_ho3d(tmp_path: Path) -> None:
    joints = ho3d(tmp_path)
    pictures = open_pictures(tmp_path)
    assert pictures.dataset == "HO-3D" and pictures.problems == ()
    assert pictures.keypoints.ids == ("train/ABF10/0000", "train/ABF10/0001", "evaluation/SM1/0007")
    close(pictures.joints[:2], joints[:2])
    close(pictures.keypoints.xy[:2], pinhole(joints[:2], K))
    # Evaluation frames tell the wrist and a box.
    assert seen(pictures).tolist() == [21, 21, 1]
    close(pictures.keypoints.xy[2, 0], pinhole(joints[2, 0], K))
    assert pictures.box[2].tolist() == [1, 2, 33, 44] and torch.isnan(pictures.box[:2]).all()
    assert pictures.mask[1].endswith("seg/0001.png") and pictures.mask[0] == ""
    assert pictures.keypoints.image[2].endswith("0007.jpg") and pictures.keypoints.frame.tolist() == [0, 1, 7]
    assert any("1 frames come without annotation" in note for note in pictures.notes)
    assert pictures.mano is not None and not pictures.mano.mean_relative
    assert pictures.mano.params.hand_pose[1, 0] == 0.1 and torch.isnan(pictures.mano.params.betas[2]).all()


def test_ho3d_parameters_turn_from_opengl_to_the_camera(tmp_path: Path) -> None:
    ho3d(tmp_path)
    pictures = open_pictures(tmp_path, "train")
    hands = licensed(embedded_hand())
    assert pictures.mano is not None
    given, params = pictures.mano.params, pictures.mano.in_camera(hands, pictures.keypoints.is_right)
    kin = Kinematics.from_hand(hands.right)
    opengl, cam = (
        kin.points(p.rotation_matrices(), p.betas, kin.root_offset(p.betas) + p.transl) for p in (given, params)
    )
    close(cam, opengl.numpy() * [1, -1, -1])


def test_pickles_of_data_sets_are_never_executed(tmp_path: Path) -> None:
    ho3d(tmp_path)

    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    pickled(tmp_path / "train/ABF10/meta/0000.pkl", {"camMat": K, "handJoints3D": Bomb()})
    whole = (tmp_path / "train/ABF10/meta/0001.pkl").read_bytes()
    (tmp_path / "train/ABF10/meta/0001.pkl").write_bytes(whole[: len(whole) // 2])
    pickled(tmp_path / "evaluation/SM1/meta/0007.pkl", {"camMat": K[:2], "handJoints3D": np.zeros(3)})
    with pytest.raises(FileFormatError, match=r"no hand of HO-3D could be read.*0000\.pkl.*nothing was executed"):
        open_pictures(tmp_path)
    assert not (tmp_path / "exploded").exists()
    joints = np.zeros((21, 3))
    pickled(tmp_path / "train/ABF10/meta/0002.pkl", {"camMat": K, "handJoints3D": joints + [0, 0, -1.0]})
    pictures = open_pictures(tmp_path)
    assert len(pictures) == 1 and [Path(p.path).name for p in pictures.problems] == ["0000.pkl", "0001.pkl", "0007.pkl"]
    words = ("nothing was executed", "ends too early", "expected numbers of the shape (3, 3)")
    assert all(word in p.message for word, p in zip(words, pictures.problems, strict=True))
    assert not any(p.message.startswith(str(tmp_path)) for p in pictures.problems)


# RHD and STB.


def test_rhd(tmp_path: Path) -> None:
    left, right = hands_in_camera(2, False), hands_in_camera(2, True, 1)
    content = {}
    for number in (0, 41):
        i = number > 0
        both = np.concatenate([in_order(named(h[int(i)]), RHD) for h in (left, right)])
        visible = np.ones((42, 1))
        visible[3] = 0
        visible[21:] *= not i
        uv = np.concatenate([pinhole(both, K), visible], 1).astype(np.float32)
        content[number] = {"uv_vis": uv, "xyz": both.astype(np.float32), "K": K.astype(np.float32)}
        write_picture(tmp_path / f"training/color/{number:05d}.png", (320, 320))
        write_picture(tmp_path / f"training/mask/{number:05d}.png", (320, 320))
    pickled(tmp_path / "training/anno_training.pickle", content)
    pictures = open_pictures(tmp_path)
    assert pictures.dataset == "RHD" and pictures.problems == () and pictures.notes == ()
    assert pictures.keypoints.ids == ("training/00000:left", "training/00000:right", "training/00041:left")
    assert pictures.keypoints.is_right.tolist() == [False, True, False]
    expected = np.stack([left[0], right[0], left[1]])
    close(pictures.joints, expected, 1e-6)
    close(pictures.keypoints.xy, pinhole(expected, K), 1e-3)
    # The third point of the file is the thumb's third joint from the tip inwards.
    assert seen(pictures).tolist() == [20, 21, 20] and pictures.keypoints.conf[0, CANONICAL.index("thumb2")] == 0
    assert (pictures.keypoints.image_size == 320).all() and pictures.mask[2].endswith("mask/00041.png")
    content[7] = {"uv_vis": np.zeros((41, 3)), "xyz": np.zeros((42, 3)), "K": K}  # type: ignore[dict-item]
    pickled(tmp_path / "training/anno_training.pickle", content)
    pictures = open_pictures(tmp_path)
    assert len(pictures) == 3 and "1 annotations of anno_training.pickle are damaged, the first: 7" in pictures.notes[0]


def stb(folder: Path, n: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Joints in the left stereo camera's frame and in the colour camera's."""
    out = []
    for kind, seed in (("BB", 0), ("SK", 1)):
        joints = hands_in_camera(n, False, seed)
        stored = joints
        if kind == "SK":
            # The readme: rotation and translation take colour to depth coordinates.
            turn = Rotation.from_rotvec([0.00531, -0.01196, 0.00301]).as_matrix()
            stored = joints @ turn.T + np.array([-24.0381, -0.4563, -1.2326]) / 1000
        hands = [named(h) for h in stored]
        table = np.stack([in_order(h | {"palm": (h["wrist"] + h["middle1"]) / 2}, STB) for h in hands])
        (folder / "labels").mkdir(parents=True, exist_ok=True)
        savemat(folder / f"labels/B1Counting_{kind}.mat", {"handPara": 1000 * table.transpose(2, 1, 0)})
        out.append(joints)
    for i in range(n):
        for view in ("BB_left", "BB_right", "SK_color"):
            write_picture(folder / f"images/B1Counting/{view}_{i}.png", (640, 480))
    return out[0], out[1]


def test_stb(tmp_path: Path) -> None:
    stereo, colour = stb(tmp_path)
    pictures = open_pictures(tmp_path)
    assert pictures.dataset == "STB" and pictures.problems == () and len(pictures) == 9
    assert not pictures.keypoints.is_right.any() and pictures.side_known.all() and set(pictures.split) == {"test"}
    views = dict(zip(pictures.keypoints.ids, range(9), strict=True))
    k_stereo = np.array([[822.79041, 0, 318.47345], [0, 822.79041, 250.31296], [0, 0, 1]])
    k_colour = np.array([[607.92271, 0, 314.78337], [0, 607.88192, 236.42484], [0, 0, 1]])
    cases = (
        ("BB_left", stereo, k_stereo),
        ("BB_right", stereo - [0.120054, 0, 0], k_stereo),
        ("SK_color", colour, k_colour),
    )
    for view, joints, matrix in cases:
        for i in range(3):
            row = views[f"B1Counting/{view}_{i}"]
            close(pictures.joints[row, 1:], joints[i, 1:], 1e-8)
            close(pictures.keypoints.xy[row, 1:], pinhole(joints[i, 1:], matrix), 1e-4)
            # The palm's middle is no wrist.
            assert (
                pictures.keypoints.conf[row].tolist() == [0] + [1] * 20 and torch.isnan(pictures.joints[row, 0]).all()
            )
    assert any("palm's middle" in note for note in pictures.notes)
    (tmp_path / "labels/B1Counting_BB.mat").write_bytes(b"MATLAB 5.0 junk" * 20)
    savemat(tmp_path / "labels/B2Random_SK.mat", {"handPara": np.zeros((3, 20, 2))})
    pictures = open_pictures(tmp_path)
    assert len(pictures) == 3 and [Path(p.path).name for p in pictures.problems] == [
        "B1Counting_BB.mat",
        "B2Random_SK.mat",
    ]
    assert "damaged" in pictures.problems[0].message and "(3, 21, frames)" in pictures.problems[1].message


def test_wrong_sides_are_noticed(tmp_path: Path) -> None:
    joints = hands_in_camera(4, False)
    freihand(tmp_path, 4)
    dump(tmp_path / "training_xyz.json", joints.tolist())
    assert any("contradicts the side in" in note for note in open_pictures(tmp_path).notes)


@pytest.mark.parametrize("right_first", [False, True])
def test_hiu(tmp_path: Path, right_first: bool) -> None:
    """Which half is which side is not told; the thumbs of the 3D decide."""
    for i in range(4):
        first, second = hands_in_camera(1, right_first, i)[0], hands_in_camera(1, not right_first, 9 + i)[0]
        solid = np.concatenate([first, second])
        there = [1, 1] if i == 0 else [0, 1]
        flat = np.where(np.repeat(there, 21)[:, None] > 0, pinhole(solid, K), 2.0)
        content = {"hand_type": there, "pts2d_2hand": flat.tolist(), "pts3d_2hand": solid.tolist()}
        dump(tmp_path / f"train/n{i}.json", content)
        write_picture(tmp_path / f"train/n{i}.jpg", (200, 100))
        write_picture(tmp_path / f"train/n{i}_mask.jpg", (200, 100))
    dump(tmp_path / "train/ids.json", ["n0", "n1"])
    dump(tmp_path / "train/n9.json", {"pts2d_2hand": [[1, 2]], "hand_type": [1, 0]})
    pictures = open_pictures(tmp_path)
    assert pictures.dataset == "HIU-DMTL" and len(pictures) == 5 and len(pictures.problems) == 1
    assert pictures.keypoints.is_right.tolist() == [right_first, *[not right_first] * 4]
    assert pictures.keypoints.ids[:2] == ("train/n0:0", "train/n0:1") and seen(pictures).tolist() == [21] * 5
    assert f"as the {'right' if right_first else 'left'} hand, from the thumbs" in pictures.notes[0]
    assert pictures.mask[0].endswith("n0_mask.jpg") and pictures.keypoints.image[0].endswith("n0.jpg")
