"""Real files of the tools themselves: counts, sides and sizes as their README states them."""

from __future__ import annotations

from pathlib import Path

import pytest

from handloop.formats import ReadOptions, read_keypoints

pytestmark = pytest.mark.real


def test_openpose(real_data: Path) -> None:
    result = read_keypoints([real_data / "formats/openpose_json"])
    assert result.problems == () and result.notes == ()
    assert result.keypoints.is_right.tolist() == [False, False, True, False, True]
    assert result.hands_empty == 1 and (result.keypoints.image_size[:, 1] == 1024).all()
    assert result.keypoints.conf.max() == 1
    assert int((result.keypoints.xy[..., 1] > 1023.5).sum()) == 12


def test_mediapipe_text(real_data: Path) -> None:
    result = read_keypoints([real_data / "formats/mediapipe_pbtxt"])
    assert result.problems == () and result.files_read == 13 and len(result.keypoints) == 14
    assert any("the thumb agrees in 4 of 4 hands" in note for note in result.notes)
    assert not any("WARNING" in note for note in result.notes)


def test_a_video_of_one_right_hand(real_data: Path) -> None:
    result = read_keypoints([real_data / "formats/tfjs"], ReadOptions(image_size=(620, 1080)))
    assert len(result.keypoints) == 325 and result.keypoints.is_right.all()
    assert result.keypoints.frame.tolist() == list(range(325))
    assert len(result.problems) == 1 and "metres" in result.problems[0].message


def test_holistic_vectors(real_data: Path) -> None:
    result = read_keypoints([real_data / "formats/mp_holistic_npy"])
    counts: dict[tuple[str, bool], int] = {}
    for source, right in zip(result.keypoints.source, result.keypoints.is_right.tolist(), strict=True):
        word = Path(source).parts[-3]
        counts[word, right] = counts.get((word, right), 0) + 1
    assert counts == {("hello", True): 30, ("thanks", False): 5, ("thanks", True): 21, ("i love you", False): 30} | {
        ("i love you", True): 23
    }
    hello = [f for f, s in zip(result.keypoints.frame.tolist(), result.keypoints.source, strict=True) if "hello" in s]
    assert hello == list(range(30))
