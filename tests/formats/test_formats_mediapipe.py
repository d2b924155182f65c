"""MediaPipe's dumps: every form, corner-based coordinates, handedness, depth against confidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handloop.formats import ReadOptions, read_keypoints

WriteJson = Any
SIZE = ReadOptions(image_size=(640, 480))
WORLD = [{"x": -0.01 * i, "y": 0.01, "z": 0.0} for i in range(21)]


def flat(landmarks: Any) -> list[float]:
    return [p[a] for p in landmarks for a in "xyz"]


FORMS = {
    "tasks": lambda lm: {
        "handedness": [[{"index": 0, "score": 0.9, "display_name": "Left", "category_name": "Left"}]],
        "hand_landmarks": [lm],
        "hand_world_landmarks": [WORLD],
    },
    "javascript": lambda lm: {
        "landmarks": [lm],
        "worldLandmarks": [WORLD],
        "handednesses": [[{"score": 0.9, "index": 0, "categoryName": "Left", "displayName": "Left"}]],
    },
    "legacy": lambda lm: {
        "multi_hand_landmarks": [{"landmark": lm}],
        "multi_handedness": [{"classification": [{"index": 1, "score": 0.9, "label": "Left"}]}],
    },
    "legacy javascript": lambda lm: {"multiHandLandmarks": [lm], "multiHandedness": [{"label": "Left"}]},
    "record": lambda lm: {"handedness": "Left", "landmarks": lm},
    "record of lists": lambda lm: {"label": "left", "landmarks": [[p["x"], p["y"], p["z"]] for p in lm]},
    "record of numbers": lambda lm: {"hands": [{"hand": "Left", "landmarks": flat(lm)}]},
    "holistic": lambda lm: {"left_hand_landmarks": lm, "right_hand_landmarks": None, "face_landmarks": []},
    "holistic javascript": lambda lm: {"leftHandLandmarks": [lm], "rightHandLandmarks": []},
    "by side": lambda lm: {"Left": lm, "Right": []},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(write_json: WriteJson, landmarks: Any, right_hand: np.ndarray, form: str) -> None:
    result = read_keypoints([write_json("a.json", FORMS[form](landmarks))], SIZE)
    assert result.problems == ()
    assert result.keypoints.is_right.tolist() == [False]
    # Corner-based: 0 is the outer edge of the first pixel, whose centre is 0 for us.
    np.testing.assert_allclose(result.keypoints.xy[0].numpy(), right_hand[:, :2] * [640, 480] - 0.5)
    # z and the unset visibility are no confidences.
    assert result.keypoints.conf[0].tolist() == [1.0] * 21


def test_frames_of_a_video_with_gaps(write_json: WriteJson, landmarks: Any) -> None:
    tasks = FORMS["tasks"](landmarks)
    video = [tasks, None, {"hand_landmarks": [], "handedness": []}, tasks]
    result = read_keypoints([write_json("v.json", video)], SIZE)
    assert result.keypoints.frame.tolist() == [0, 3]
    assert result.keypoints.ids == ("v:000000", "v:000003")
    numbered = {"width": 640, "height": 480, "frames": [{**tasks, "frame": 7}, {**tasks, "frame": 9}]}
    result = read_keypoints([write_json("n.json", numbered)])
    assert result.keypoints.frame.tolist() == [7, 9]
    assert result.keypoints.image_size.tolist() == [[640.0, 480.0]] * 2


def test_two_hands_are_told_apart(write_json: WriteJson, landmarks: Any) -> None:
    two = {"hand_landmarks": [landmarks, landmarks], "handedness": [[{"category_name": s}] for s in ("Left", "Right")]}
    result = read_keypoints([write_json("a.json", two)], SIZE)
    assert result.keypoints.ids == ("a:h0", "a:h1")
    assert result.keypoints.is_right.tolist() == [False, True]


def test_tfjs_detections_are_pixels(write_json: WriteJson, right_hand: np.ndarray) -> None:
    keypoints = [{"x": float(x), "y": float(y), "name": "p"} for x, y in right_hand[:, :2] * 640]
    hand = {"score": 0.9, "handedness": "Right", "keypoints": keypoints, "keypoints3D": WORLD}
    result = read_keypoints([write_json("a.json", [hand])])
    np.testing.assert_allclose(result.keypoints.xy[0].numpy(), right_hand[:, :2] * 640)
    result = read_keypoints([write_json("v.json", [[hand], [], [hand, hand]])])
    assert result.keypoints.frame.tolist() == [0, 2, 2]


def test_handedness_is_checked_by_the_thumb(write_json: WriteJson, landmarks: Any, tmp_path: Path) -> None:
    for i in range(4):
        write_json(f"v{i}.json", FORMS["tasks"](landmarks))  # Right hands that are labelled left.
    result = read_keypoints([tmp_path], SIZE)
    assert not result.keypoints.is_right.any()
    assert any("0 of 4 hands" in note for note in result.notes)
    assert any("--mediapipe-handedness mirrored" in note and "4 of 4" in note for note in result.notes)
    mirrored = ReadOptions(image_size=(640, 480), mediapipe_handedness="mirrored")
    result = read_keypoints([tmp_path], mirrored)
    assert result.keypoints.is_right.all() and result.notes == ()


def test_mirrored_does_not_touch_holistic_sides(write_json: WriteJson, landmarks: Any) -> None:
    options = ReadOptions(image_size=(640, 480), mediapipe_handedness="mirrored")
    result = read_keypoints([write_json("a.json", FORMS["holistic"](landmarks))], options)
    assert result.keypoints.is_right.tolist() == [False]


def test_the_geometry_tells_left_from_right(write_json: WriteJson, right_hand: np.ndarray) -> None:
    left = right_hand * [-1, 1, 1] + [1, 0, 0]
    right_path = write_json("r.json", (right_hand * 500 - [0, 0, 1]).tolist())
    left_path = write_json("l.json", (left * 500 - [0, 0, 1]).tolist())
    result = read_keypoints([right_path, left_path])
    assert result.keypoints.is_right.tolist() == [True, False]
    assert any("the thumb shows 1 right and 1 left" in note for note in result.notes)


def test_an_unknown_size_is_assumed_loudly(write_json: WriteJson, landmarks: Any, tmp_path: Path) -> None:
    path = write_json("a.json", FORMS["tasks"](landmarks))
    result = read_keypoints([path])
    assert result.keypoints.image_size.tolist() == [[1000.0, 1000.0]]
    assert any("1000 x 1000 px was assumed" in n and "--image-size" in n and "a.json" in n for n in result.notes)
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    assert read_keypoints([path]).keypoints.image_size.tolist() == [[64.0, 48.0]]


def test_world_landmarks_alone_are_refused(write_json: WriteJson, right_hand: np.ndarray) -> None:
    assert "metres" in read_keypoints([write_json("a.json", {"hand_world_landmarks": [WORLD]})]).problems[0].message
    metres = (right_hand - right_hand.mean(0)) * 0.3
    assert "metres" in read_keypoints([write_json("b.json", metres.tolist())]).problems[0].message
    wrist = (right_hand - right_hand[0]) * 300
    assert "about the hand" in read_keypoints([write_json("c.json", wrist.tolist())]).problems[0].message


def test_the_third_column_is_depth_or_confidence(write_json: WriteJson, right_hand: np.ndarray) -> None:
    pixels = right_hand * 500
    pixels[:, 2] -= 3
    result = read_keypoints([write_json("z.json", [pixels.tolist()] * 3)])
    assert result.keypoints.conf.min() == 1 and "depth (z" in result.notes[0]
    assert result.keypoints.ids[2] == "z:000002" and result.keypoints.frame.tolist() == [0, 1, 2]
    pixels[:, 2] = np.linspace(0, 1, 21)
    result = read_keypoints([write_json("c.json", [pixels.tolist()] * 3)])
    np.testing.assert_allclose(result.keypoints.conf[0].numpy(), np.linspace(0, 1, 21))
    assert "as confidence" in result.notes[0]


def test_depth_that_is_never_negative_is_not_confidence(write_json: WriteJson, right_hand: np.ndarray) -> None:
    assert right_hand[:, 2].min() == 0
    assert read_keypoints([write_json("z.json", right_hand.tolist())]).keypoints.conf.min() == 1


def test_a_2d_hand_without_side_is_right_loudly(write_json: WriteJson, right_hand: np.ndarray) -> None:
    path = write_json("a.json", (right_hand[:, :2] * 500).tolist())
    result = read_keypoints([path])
    assert result.keypoints.is_right.tolist() == [True]
    assert "assumed, --hand left" in result.notes[0]
    result = read_keypoints([path], ReadOptions(side="left"))
    assert result.keypoints.is_right.tolist() == [False] and result.notes == ()


def test_npy_arrays_of_every_shape(tmp_path: Path, right_hand: np.ndarray) -> None:
    pixels = right_hand[:, :2] * 500
    arrays = (pixels, pixels[None], np.stack([pixels] * 5), np.stack([[pixels] * 2] * 3), pixels.ravel())
    for i, array in enumerate(arrays):
        path = tmp_path / f"{i}.npy"
        np.save(path, array.astype(np.float32))
        result = read_keypoints([path])
        assert len(result.keypoints) == array.size // 42 and result.problems == ()
    assert read_keypoints([tmp_path / "3.npy"]).keypoints.ids[:2] == ("3:000000:h0", "3:000000:h1")
    np.save(path, np.zeros((4, 20, 3)))
    assert "shape (4, 20, 3)" in read_keypoints([path]).problems[0].message


def test_holistic_vectors(tmp_path: Path, right_hand: np.ndarray) -> None:
    for i in (0, 1, 2, 10):
        vector = np.zeros(1662)
        vector[1599:1662] = right_hand.ravel()
        if i == 2:
            vector[1536:1599] = (right_hand * [-1, 1, 1] + [1, 0, 0]).ravel()
        if i == 10:
            vector[:] = 0
        np.save(tmp_path / f"{i}.npy", vector)
    result = read_keypoints([tmp_path], SIZE)
    assert result.keypoints.ids == ("0:right", "1:right", "2:left", "2:right")
    assert (result.files_read, result.files_without_hands, result.hands_empty) == (4, 1, 4)


def pbtxt(right_hand: np.ndarray, field: str) -> str:
    points = "".join(f"  landmark {{\n    x: {x:.6f}\n    y: {y:.6f}\n    z: {z:.6g}\n  }}\n" for x, y, z in right_hand)
    return f"# proto-message: X\n{field} {{\n{points}}}\n"


def test_protocol_buffer_text(tmp_path: Path, right_hand: np.ndarray) -> None:
    label = 'classifications {\n  classification {\n    score: 1.0\n    label: "Right"\n  }\n}\n'
    texts = {
        "result.pbtxt": label + pbtxt(right_hand, "landmarks") + pbtxt(right_hand * 0.1, "world_landmarks"),
        "holistic.pbtxt": pbtxt(right_hand, "left_hand_landmarks") + pbtxt(right_hand, "right_hand_landmarks"),
        "list.prototxt": "".join(f"landmark <x: {x:.6f}, y: {y:.6f}>\n" for x, y, _ in right_hand),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    result = read_keypoints([tmp_path], SIZE)
    assert result.problems == ()
    assert result.keypoints.ids == ("holistic:left", "holistic:right", "list", "result")
    assert result.keypoints.is_right.tolist() == [False, True, True, True]
    expected = right_hand[:, :2] * [640, 480] - 0.5
    np.testing.assert_allclose(result.keypoints.xy.numpy(), np.stack([expected] * 4), atol=1e-3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("landmark {\n x: 0.5\n", "truncated"),
        ("landmark {\n x: }\n", "the field 'x' has no value"),
        ("Just some words.\nMore.", "this is not protocol-buffer text"),
        ("a {" * 100, "nested too deeply"),
        ("landmark { x: 1 y: 2 }", "holds 1 points"),
        ("x: 1 x { y: 2 }", "both a message and a value"),
    ],
)
def test_bad_protocol_buffer_text(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.pbtxt"
    path.write_text(text)
    assert words in read_keypoints([path]).problems[0].message


def test_broken_results_are_named(write_json: WriteJson, landmarks: Any) -> None:
    bad = {
        "20 points": {"hand_landmarks": [landmarks[:20]], "handedness": [["Left"]]},
        "2 hands but 1 sides": {"hand_landmarks": [landmarks] * 2, "handedness": [["Left"]]},
        "an object with the keys 'images'": {"images": [], "annotations": []},
        "something other than numbers": {"hand_landmarks": [[{"x": "a", "y": 1}] * 21]},
        "expected an object with x and y": {"hand_landmarks": [[*landmarks[:20], {"x": 1}]]},
        "frame 1, hand 0": [{"hand_landmarks": [landmarks]}, {"hand_landmarks": [landmarks[:5]]}],
        "the file holds null": None,
        "the text 'abc'": "abc",
        "an empty object": {},
    }
    for words, value in bad.items():
        result = read_keypoints([write_json("a.json", value)])
        assert len(result.problems) == 1 and words in result.problems[0].message, words
