"""OpenPose's JSON: missing hands, confidences, scales, short hands, folders, names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handloop.formats import ReadOptions, read_keypoints

WriteJson = Any
HAND = [v for i in range(21) for v in (100.0 + i, 200.0 + 2 * i, 0.5)]


def people(*hands: dict[str, object]) -> dict[str, object]:
    return {"version": 1.3, "people": list(hands)}


def person(left: object = None, right: object = None, **body: object) -> dict[str, object]:
    return {"hand_left_keypoints_2d": left, "hand_right_keypoints_2d": right, **body}


def test_two_hands_with_side_ids_points_and_confidence(write_json: WriteJson) -> None:
    right = [v + 1 for v in HAND]
    path = write_json("a_keypoints.json", people(person(HAND, right)))
    result = read_keypoints([path])
    assert result.problems == () and result.notes == ()
    assert result.keypoints.ids == ("a:left", "a:right")
    assert result.keypoints.is_right.tolist() == [False, True]
    np.testing.assert_array_equal(result.keypoints.xy[0].numpy(), np.reshape(HAND, (21, 3))[:, :2])
    assert result.keypoints.conf[0].tolist() == [0.5] * 21
    # Confidences above 1 occur and are cut.
    assert result.keypoints.conf[1].tolist() == [1.0] * 21
    assert result.camera is None and result.truth_joints is None


@pytest.mark.parametrize("missing", [[], [0] * 63, None])
def test_a_missing_hand_is_no_error(write_json: WriteJson, missing: object) -> None:
    result = read_keypoints([write_json("a.json", people(person(HAND, missing)))])
    assert result.keypoints.ids == ("a:left",)
    assert result.problems == ()
    assert result.hands_empty == (1 if missing else 0)


def test_files_without_hands_are_counted(write_json: WriteJson, tmp_path: Path) -> None:
    write_json("a.json", people())
    write_json("b.json", people(person([], [])))
    write_json("c.json", people(person([0] * 63, [0] * 63)))
    write_json("d.json", people({"pose_keypoints_2d": [1] * 75}))
    result = read_keypoints([tmp_path])
    assert (result.files_read, result.files_without_hands, result.hands_empty) == (4, 4, 2)
    assert len(result.keypoints) == 0 and result.problems == ()


def test_zero_triplets_are_missing_points_and_min_conf_adds_more(write_json: WriteJson) -> None:
    hand = list(HAND)
    hand[9:12] = [0, 0, 0]
    hand[12:15] = [5.0, 6.0, 0.1]
    path = write_json("a.json", people(person(hand)))
    assert read_keypoints([path]).keypoints.conf[0, 3:5].tolist() == [0.0, 0.1]
    assert read_keypoints([path], ReadOptions(min_conf=0.2)).keypoints.conf[0, 3:5].tolist() == [0.0, 0.0]


def test_version_1_0_keys_and_several_people(write_json: WriteJson) -> None:
    old = {"hand_left_keypoints": HAND, "hand_right_keypoints": []}
    result = read_keypoints([write_json("a.json", people(old, person(None, HAND)))])
    assert result.keypoints.ids == ("a:p0:left", "a:p1:right")


def test_coordinates_outside_the_picture_stay(write_json: WriteJson, tmp_path: Path) -> None:
    hand = list(HAND)
    hand[0:3] = [-20.0, 1070.0, 0.9]
    Image.new("RGB", (768, 1024)).save(tmp_path / "a.jpg")
    result = read_keypoints([write_json("a_keypoints.json", people(person(hand)))])
    assert result.keypoints.xy[0, 0].tolist() == [-20.0, 1070.0]
    assert result.keypoints.image_size.tolist() == [[768.0, 1024.0]]
    assert result.keypoints.image == (str(tmp_path / "a.jpg"),)


def test_hands_of_20_points_take_the_body_wrist(write_json: WriteJson) -> None:
    short = HAND[3:]
    body = [0.0] * 75
    body[21:24] = [90.0, 190.0, 0.7]
    body[12:15] = [91.0, 191.0, 0.8]
    result = read_keypoints([write_json("a.json", people(person(short, short, pose_keypoints_2d=body)))])
    assert result.keypoints.xy[:, 0].tolist() == [[90.0, 190.0], [91.0, 191.0]]
    assert result.keypoints.conf[:, 0].tolist() == [0.7, 0.8]
    assert result.keypoints.xy[0, 1].tolist() == HAND[3:5]
    assert "20 points" in result.notes[0]
    result = read_keypoints([write_json("a.json", people(person(short, short)))])
    assert result.keypoints.conf[:, 0].tolist() == [0.0, 0.0]


def unit_hand(size: tuple[int, int], signed: bool) -> list[float]:
    xyc = np.reshape(HAND, (21, 3)).copy()
    xyc[:, :2] /= np.array(size) - 1
    if signed:
        xyc[:, :2] = 2 * xyc[:, :2] - 1
    return [float(v) for v in xyc.ravel()]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("by_picture", [False, True])
def test_normalised_scales_are_recognised(
    write_json: WriteJson, tmp_path: Path, signed: bool, by_picture: bool
) -> None:
    size = (640, 480)
    path = write_json("a_keypoints.json", people(person(unit_hand(size, signed))))
    if by_picture:
        Image.new("RGB", size).save(tmp_path / "a.png")
    result = read_keypoints([path], ReadOptions(image_size=None if by_picture else size))
    np.testing.assert_allclose(result.keypoints.xy[0].numpy(), np.reshape(HAND, (21, 3))[:, :2], atol=1e-9)
    assert ("[-1, 1]" if signed else "[0, 1]") in result.notes[0]


def test_normalised_without_size_asks_for_it(write_json: WriteJson) -> None:
    result = read_keypoints([write_json("a.json", people(person(unit_hand((640, 480), False))))])
    assert len(result.keypoints) == 0
    assert "--image-size W H" in result.problems[0].message


def test_the_scale_option_overrides(write_json: WriteJson) -> None:
    path = write_json("a.json", people(person(unit_hand((640, 480), True))))
    result = read_keypoints([path], ReadOptions(scale="unit", image_size=(101, 101)))
    np.testing.assert_allclose(result.keypoints.xy[0, 0, 0], 100 * unit_hand((640, 480), True)[0])
    assert read_keypoints([path], ReadOptions(scale="pixels")).problems == ()


def test_a_stray_hand_in_the_corner_does_not_change_the_unit(write_json: WriteJson, tmp_path: Path) -> None:
    for i in range(60):
        write_json(f"v_{i:04d}_keypoints.json", people(person(HAND)))
    write_json("v_0060_keypoints.json", people(person([1.0, 1.0, 0.01] + [0] * 60)))
    result = read_keypoints([tmp_path])
    assert result.problems == () and len(result.keypoints) == 61


def test_video_frames_sort_as_numbers_and_keep_them(write_json: WriteJson, tmp_path: Path) -> None:
    for i in (10, 2, 0, 1):
        write_json(f"clip_{i}_keypoints.json", people(person(HAND)))
    write_json("clip_000000000012_keypoints.json", people(person(HAND)))
    result = read_keypoints([tmp_path])
    assert result.keypoints.frame.tolist() == [0, 1, 2, 10, 12]
    assert result.keypoints.ids[-1] == "clip_000000000012:left"


def test_equal_names_in_two_folders_get_the_folder(write_json: WriteJson, tmp_path: Path) -> None:
    write_json("x/a_keypoints.json", people(person(HAND)))
    write_json("y/a_keypoints.json", people(person(HAND)))
    write_json("y/b_keypoints.json", people(person(HAND)))
    result = read_keypoints([tmp_path])
    assert result.keypoints.ids == ("x/a:left", "y/a:left", "b:left")
    both = read_keypoints([tmp_path / "x", tmp_path / "y"])
    assert len(set(both.keypoints.ids)) == 3


def test_a_file_named_twice_is_read_once(write_json: WriteJson, tmp_path: Path) -> None:
    path = write_json("a.json", people(person(HAND)))
    result = read_keypoints([path, tmp_path])
    assert len(result.keypoints) == 1 and "read once" in result.notes[0]


def test_pictures_from_another_folder(write_json: WriteJson, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (320, 200)).save(tmp_path / "pictures" / "a.PNG")
    path = write_json("k/a_keypoints.json", people(person(HAND)))
    result = read_keypoints([path], ReadOptions(images=tmp_path / "pictures"))
    assert result.keypoints.image_size.tolist() == [[320.0, 200.0]]


def test_exif_orientation_turns_the_size(write_json: WriteJson, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (400, 300)).save(tmp_path / "a.jpg", exif=exif)
    result = read_keypoints([write_json("a_keypoints.json", people(person(HAND)))])
    assert result.keypoints.image_size.tolist() == [[300.0, 400.0]]


def test_points_far_outside_their_pictures_are_mentioned(write_json: WriteJson, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    result = read_keypoints([write_json("a_keypoints.json", people(person(HAND)))])
    assert "pictures of another size" in result.notes[0]


def test_the_side_option_overrides_loudly(write_json: WriteJson) -> None:
    path = write_json("a.json", people(person(HAND, HAND)))
    result = read_keypoints([path], ReadOptions(side="right"))
    assert result.keypoints.is_right.tolist() == [True, True]
    assert result.notes == ("--hand right overrides 1 hands that the files call left.",)


@pytest.mark.parametrize(
    ("hand", "words"),
    [
        (HAND[:62], "people[0].hand_left_keypoints_2d holds 62 numbers, expected 63"),
        (["a"] * 63, "something other than numbers"),
        (["1.5"] * 63, "something other than numbers"),
        ([HAND, HAND[:4]], "rows differ in length"),
        ([[v] for v in HAND], "expected 63"),
        ("text", "is the text 'text', expected a list of numbers"),
        ([True] * 63, "something other than numbers"),
    ],
)
def test_bad_numbers_are_named(write_json: WriteJson, hand: object, words: str) -> None:
    result = read_keypoints([write_json("a.json", people(person(hand)))])
    assert len(result.problems) == 1 and words in result.problems[0].message


def test_points_that_are_not_finite_are_missing(write_json: WriteJson) -> None:
    hand: list[Any] = list(HAND)
    hand[3], hand[7], hand[9] = float("nan"), float("inf"), None
    result = read_keypoints([write_json("a.json", people(person(hand)))])
    assert result.keypoints.conf[0, :5].tolist() == [0.5, 0.0, 0.0, 0.0, 0.5]
    assert "not finite" in result.notes[0]


def test_a_hand_out_of_any_picture_is_left_out_and_named(write_json: WriteJson) -> None:
    hand = list(HAND)
    hand[0] = 5e9
    result = read_keypoints([write_json("a.json", people(person(hand, HAND)))])
    assert result.keypoints.ids == ("a:right",)
    assert "hand 'left' has a point 5e+09 px out" in result.problems[0].message


def test_coincident_points_are_left_to_the_fit(write_json: WriteJson) -> None:
    assert len(read_keypoints([write_json("a.json", people(person([50.0, 50.0, 1.0] * 21)))]).keypoints) == 1
