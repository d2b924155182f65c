"""mmpose's predictions, COCO-style results, and advice on files of other kinds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from handloop.formats import ReadOptions, read_keypoints

WriteJson = Callable[[str, object], Path]


def instance(n: int, start: float = 30.0) -> dict[str, object]:
    """Point i lies at (start + i, start + 2 i) with a score that falls with i."""
    points = [[start + i, start + 2 * i] for i in range(n)]
    # mmpose's trailing comma makes a tuple of the box.
    return {"keypoints": points, "keypoint_scores": [1 - 0.001 * i for i in range(n)], "bbox": [[0, 0, 9, 9]]}


def test_hands_of_a_picture(write_json: WriteJson) -> None:
    path = write_json("a.json", [instance(21), instance(21, 90.0)])
    result = read_keypoints([path])
    assert result.problems == () and result.keypoints.ids == ("a:p0", "a:p1")
    assert result.keypoints.xy[1, 3].tolist() == [93, 96]
    np.testing.assert_allclose(result.keypoints.conf[0].numpy(), 1 - 0.001 * np.arange(21))
    assert any("2 right hands assumed" in note for note in result.notes)
    left = read_keypoints([path], ReadOptions(side="left"))
    assert not left.keypoints.is_right.any()


@pytest.mark.parametrize(("n", "left"), [(133, 91), (134, 92), (136, 94)])
def test_hands_of_whole_bodies(write_json: WriteJson, n: int, left: int) -> None:
    result = read_keypoints([write_json("a.json", [instance(n)])])
    assert result.keypoints.ids == ("a:left", "a:right") and result.keypoints.is_right.tolist() == [False, True]
    assert result.keypoints.xy[:, 0, 0].tolist() == [30 + left, 30 + left + 21]


def test_interhand_models_predict_from_the_tips(write_json: WriteJson) -> None:
    result = read_keypoints([write_json("a.json", [instance(42)])])
    assert result.keypoints.is_right.tolist() == [True, False]
    # Wrist, thumb base, thumb tip, index base.
    assert result.keypoints.xy[0, [0, 1, 4, 5], 0].tolist() == [50, 33, 30, 37]
    assert result.keypoints.xy[1, [0, 1, 4, 5], 0].tolist() == [71, 54, 51, 58]


@pytest.mark.parametrize("wrap", ["list", "instance_info", "predictions"])
def test_frames_of_a_video(write_json: WriteJson, wrap: str) -> None:
    frames = [{"frame_id": 4, "instances": [instance(21)]}, {"frame_id": 9, "instances": []}]
    frames.append({"frame_id": 10, "instances": [instance(21), instance(133)]})
    value: object = frames if wrap == "list" else {wrap: frames, "meta_info": {}}
    result = read_keypoints([write_json("v.json", value)])
    assert result.problems == () and result.keypoints.frame.tolist() == [4, 10, 10, 10]
    assert result.keypoints.ids == ("v:000004", "v:000010:p0", "v:000010:p1:left", "v:000010:p1:right")


def test_batches_of_the_inferencer(write_json: WriteJson) -> None:
    result = read_keypoints([write_json("a.json", {"predictions": [[instance(21)]], "visualization": []})])
    assert result.keypoints.ids == ("a",)


def test_coco_results(write_json: WriteJson) -> None:
    flat = [float(v) for i in range(21) for v in (30 + i, 40, 0.5)]
    people = [{"image_id": 12, "category_id": 1, "keypoints": [0.0] * 51, "lefthand_kpts": flat, "score": 0.9}]
    result = read_keypoints([write_json("r.json", people)])
    assert result.keypoints.ids == ("r:12:left",) and (result.keypoints.conf == 0.5).all()
    body = [{"image_id": 1, "keypoints": [1.0, 2.0, 1.0] * 17}]
    result = read_keypoints([write_json("b.json", body)], ReadOptions(format="coco"))
    assert result.problems == () and result.files_without_hands == 1


def test_damaged_instances_and_annotations(write_json: WriteJson, tmp_path: Path) -> None:
    good = {"image_id": 1, "keypoints": [5.0, 6.0, 1.0] * 21}
    cases: dict[str, object] = {
        "308 points, among which no hands are known": [instance(308)],
        "hold 20 values for 21 points": [instance(21) | {"keypoint_scores": [1] * 20}],
        "keypoints of instance 0 is null": [instance(21) | {"keypoints": None}],
        "an instance is the text 'x'": {"instances": ["x"]},
        "no annotation could be read; annotation 0: keypoints has shape (4,)": [good | {"keypoints": [1, 2, 3, 4]}],
    }
    for words, value in cases.items():
        result = read_keypoints([write_json("a.json", value)])
        assert len(result.problems) == 1 and words in result.problems[0].message, (words, result.problems)
    # One damaged annotation does not take the others with it.
    result = read_keypoints([write_json("c.json", [good, good | {"image_id": 2, "keypoints": [1, 2]}])])
    assert len(result.keypoints) == 1 and any("1 annotations could not be read" in note for note in result.notes)


def test_named_formats_refuse_others(write_json: WriteJson) -> None:
    path = write_json("a.json", {"people": []})
    for name, words in (("mmpose", "mmpose's instances"), ("coco", "COCO's images"), ("interhand", "InterHand2.6M's")):
        assert words in read_keypoints([path], ReadOptions(format=name)).problems[0].message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.pose", "(pose-format files are not read: save body.data"),
        ("a.pkl", "(pickles can run code and are never loaded"),
        ("a.MP4", "(videos hold no keypoints yet"),
        ("a.bvh", "fit_joints"),
        ("a.odd", "files of the kind .odd are not keypoints that can be read; expected JSON"),
    ],
)
def test_advice_on_other_kinds(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04]\x94.")
    assert words in read_keypoints([tmp_path / name]).problems[0].message


def test_advice_on_folders_of_other_kinds(tmp_path: Path) -> None:
    for name in ("a.pose", "b.pose", "c.png"):
        (tmp_path / name).write_bytes(b"x")
    message = read_keypoints([tmp_path]).problems[0].message
    assert "(3 files of other kinds)" in message and message.endswith(".") and ".pose: pose-format files" in message
