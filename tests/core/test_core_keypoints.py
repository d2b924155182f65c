"""Keypoints: what is completed, what counts as missing, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from handloop.core.errors import InputError
from handloop.core.keypoints import Keypoints

NAN, INF = float("nan"), float("inf")


def _points(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.uniform(0, 500, (n, 21, 2)), rng.uniform(0.1, 1, (n, 21, 1))], -1)


def test_plain_arrays_are_completed() -> None:
    points = _points(3)
    kp = Keypoints.from_arrays(points[..., :2])
    assert len(kp) == 3
    np.testing.assert_array_equal(kp.xy.numpy(), points[..., :2])
    assert kp.conf.tolist() == [[1.0] * 21] * 3
    assert kp.is_right.tolist() == [True] * 3
    assert torch.isnan(kp.image_size).all() and kp.image_size.shape == (3, 2)
    assert kp.ids == ("000000", "000001", "000002")
    assert kp.source == kp.image == ("", "", "")
    assert kp.frame.tolist() == [-1, -1, -1] and kp.frame.dtype == torch.int64
    assert kp.xy.dtype == kp.conf.dtype == kp.image_size.dtype == torch.float64


def test_everything_given_is_kept() -> None:
    points = _points(2)
    kp = Keypoints.from_arrays(
        torch.from_numpy(points).float(),
        is_right=np.array([0, 1]),
        image_size=np.array([[640, 480], [NAN, NAN]]),
        ids=["a", "b"],
        source="x.json",
        frame=torch.tensor([7, 9]),
        image=["p.png", "q.png"],
    )
    np.testing.assert_array_equal(kp.conf.numpy(), points[..., 2].astype(np.float32))
    assert kp.is_right.tolist() == [False, True] and kp.is_right.dtype == torch.bool
    np.testing.assert_array_equal(kp.image_size.numpy(), [[640, 480], [NAN, NAN]])
    assert (kp.ids, kp.source, kp.image) == (("a", "b"), ("x.json", "x.json"), ("p.png", "q.png"))
    assert kp.frame.tolist() == [7, 9]
    both = Keypoints.from_arrays(points, is_right=False, image_size=(640, 480))
    assert both.is_right.tolist() == [False, False] and both.image_size.tolist() == [[640, 480], [640, 480]]


@pytest.mark.parametrize(
    ("given", "conf", "xy"),
    [
        ([10.0, 20.0, 0.7], 0.7, [10.0, 20.0]),
        ([NAN, 20.0, 0.7], 0.0, [0.0, 0.0]),
        ([10.0, INF, 0.7], 0.0, [0.0, 0.0]),
        ([-INF, 20.0, 0.7], 0.0, [0.0, 0.0]),
        ([10.0, 20.0, NAN], 0.0, [10.0, 20.0]),
        ([10.0, 20.0, -0.2], 0.0, [10.0, 20.0]),
        ([10.0, 20.0, 0.0], 0.0, [10.0, 20.0]),
        ([10.0, 20.0, 1.3], 1.0, [10.0, 20.0]),
        ([10.0, 20.0, INF], 1.0, [10.0, 20.0]),
        ([-30.0, 9999.0, 1.0], 1.0, [-30.0, 9999.0]),
    ],
)
def test_what_counts_as_missing(given: list[float], conf: float, xy: list[float]) -> None:
    points = _points(2)
    expected = points.copy()
    points[1, 4], expected[1, 4] = given, [*xy, conf]
    kp = Keypoints.from_arrays(points)
    np.testing.assert_array_equal(kp.xy.numpy(), expected[..., :2])
    np.testing.assert_array_equal(kp.conf.numpy(), expected[..., 2])


def test_a_nan_point_without_confidences_is_missing() -> None:
    points = _points(1)[..., :2]
    points[0, 20, 1] = NAN
    kp = Keypoints.from_arrays(points)
    assert kp.conf[0].tolist() == [1.0] * 20 + [0.0]
    assert torch.isfinite(kp.xy).all()


@pytest.mark.parametrize("tensor", [False, True])
def test_nothing_is_shared_with_the_caller(tensor: bool) -> None:
    points, side, size = _points(2), np.array([True, False]), np.array([[640.0, 480.0]] * 2)
    given = [torch.from_numpy(a) if tensor else a for a in (points, side, size)]
    kp = Keypoints.from_arrays(*given)
    before = (kp.xy.clone(), kp.conf.clone(), kp.is_right.clone(), kp.image_size.clone())
    points[:], side[:], size[:] = -5, False, -5
    for old, new in zip(before, (kp.xy, kp.conf, kp.is_right, kp.image_size), strict=True):
        assert torch.equal(old, new)


def test_input_with_a_graph_is_detached() -> None:
    assert not Keypoints.from_arrays(torch.rand(1, 21, 3, requires_grad=True)).xy.requires_grad


def test_box_is_tight_around_visible_points() -> None:
    points = _points(3)
    points[0, 5, 2] = 0
    points[0, 5, :2] = 1e5  # Missing, so it must not count.
    points[1, :, 2] = 0
    points[2, 1:, 2] = 0
    kp = Keypoints.from_arrays(points)
    seen = np.delete(points[0, :, :2], 5, axis=0)
    single = points[2, 0, :2]
    expected = np.stack([np.r_[seen.min(0), seen.max(0)], np.zeros(4), np.r_[single, single]])
    np.testing.assert_array_equal(kp.box().numpy(), expected)
    np.testing.assert_array_equal(kp.box_size().numpy(), [np.ptp(seen, axis=0).max(), 0, 0])


def test_box_of_negative_coordinates() -> None:
    points = -_points(1)[..., :2] - 1
    points[0, 0] = np.nan  # Kept as 0, 0, which lies outside.
    kp = Keypoints.from_arrays(points)
    np.testing.assert_array_equal(kp.box().numpy(), [[*points[0, 1:].min(0), *points[0, 1:].max(0)]])


def _named(n: int, prefix: str, seed: int) -> Keypoints:
    return Keypoints.from_arrays(
        _points(n, seed),
        is_right=np.arange(n) % 2 == 0,
        image_size=np.arange(2 * n).reshape(n, 2) + 1.0,
        ids=[f"{prefix}{i}" for i in range(n)],
        source=[f"{prefix}{i}.json" for i in range(n)],
        frame=np.arange(n),
        image=[f"{prefix}{i}.png" for i in range(n)],
    )


def _rows(kp: Keypoints) -> list[tuple[object, ...]]:
    return [
        (
            kp.xy[i].tolist(),
            kp.conf[i].tolist(),
            bool(kp.is_right[i]),
            kp.image_size[i].tolist(),
            kp.ids[i],
            kp.source[i],
            int(kp.frame[i]),
            kp.image[i],
        )
        for i in range(len(kp))
    ]


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        ([3, 0, 3], [3, 0, 3]),
        (torch.tensor([1]), [1]),
        (np.array([True, False, False, True]), [0, 3]),
        (torch.tensor([False, True, True, False]), [1, 2]),
        (np.array([-1, 2]), [3, 2]),
        ([], []),
    ],
)
def test_select_takes_whole_rows(index: object, rows: list[int]) -> None:
    kp = _named(4, "a", 1)
    assert _rows(kp.select(index)) == [_rows(kp)[i] for i in rows]  # type: ignore[arg-type]


def test_concatenate_puts_rows_behind_each_other() -> None:
    parts = [_named(2, "a", 1), _named(0, "n", 2), _named(3, "b", 3)]
    assert _rows(Keypoints.concatenate(parts)) == [row for part in parts for row in _rows(part)]
    assert _rows(Keypoints.concatenate(parts).select([1, 4])) == [_rows(parts[0])[1], _rows(parts[2])[2]]


def test_no_hands_at_all() -> None:
    for kp in (Keypoints.concatenate([]), Keypoints.from_arrays(np.zeros((0, 21, 3)))):
        assert len(kp) == 0 and kp.ids == () and kp.box().shape == (0, 4) and kp.box_size().shape == (0,)


def test_concatenate_refuses_repeated_ids() -> None:
    with pytest.raises(InputError) as error:
        Keypoints.concatenate([_named(2, "a", 1), _named(1, "b", 2), _named(2, "a", 3)])
    assert str(error.value) == "the id 'a0' occurs more than once; ids must be unique within a run."


SHAPE_TAIL = "expected (N, 21, 2) or (N, 21, 3): x, y in px and an optional confidence for 21 points in OpenPose order."


@pytest.mark.parametrize("shape", [(21, 2), (21, 3), (2, 20, 3), (2, 21, 4), (2, 21, 1), (2, 3, 21), (1, 2, 21, 3)])
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as error:
        Keypoints.from_arrays(np.zeros(shape))
    assert str(error.value) == f"keypoints have shape {shape}, {SHAPE_TAIL}"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"ids": ["a"]}, "ids must be 2 different names, got 1 with 1 different."),
        ({"ids": ["a", "a"]}, "ids must be 2 different names, got 2 with 1 different."),
        ({"is_right": np.array([True] * 3)}, "is_right has shape (3,), expected (2)."),
        ({"frame": np.array([1])}, "frame has shape (1,), expected (2)."),
        ({"source": ["x"] * 3}, "source names 3 hands, expected 2."),
        ({"image": ["x"]}, "image names 1 hands, expected 2."),
        ({"image_size": 640}, "image_size has shape (), expected (2,) or (2, 2): width, height."),
        ({"image_size": (640, 480, 3)}, "image_size has shape (3,), expected (2,) or (2, 2): width, height."),
        ({"image_size": np.ones((3, 2))}, "image_size has shape (3, 2), expected (2,) or (2, 2): width, height."),
        ({"image_size": (640, 0)}, "image_size holds a width or height that is not positive."),
        ({"image_size": (-1, 480)}, "image_size holds a width or height that is not positive."),
    ],
)
def test_other_bad_options(options: dict[str, object], expected: str) -> None:
    with pytest.raises(InputError) as error:
        Keypoints.from_arrays(_points(2), **options)  # type: ignore[arg-type]
    assert str(error.value) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"points": "hands.json"}, "keypoints are str and no array of numbers"),
        ({"points": [[[1.0, 2.0]], [[1.0]]]}, "keypoints are list and no array of numbers"),
        ({"is_right": None}, "is_right holds None, expected True or False"),
        ({"is_right": ["right", "left"]}, "is_right holds .*'right'.*, expected True or False"),
        ({"is_right": [1.0, NAN]}, "is_right holds .*1.0.*, expected True or False"),
        ({"frame": ["a", "b"]}, "frame holds .*'a'.*, expected a number"),
    ],
)
def test_what_is_no_number_is_refused_in_words(given: dict[str, object], said: str) -> None:
    """None and names of sides would otherwise count as left and right."""
    with pytest.raises(InputError, match=said):
        Keypoints.from_arrays(**{"points": _points(2), **given})  # type: ignore[arg-type]
