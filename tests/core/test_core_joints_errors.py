"""Joint orders by name, and the errors' family."""

from __future__ import annotations

import pickle

import pytest

from handloop.core import joints
from handloop.core.errors import (
    FileFormatError,
    HandloopError,
    InputError,
    ModelError,
    UnsafePickleError,
    check_shape,
)


def _canonical_name(mano: str) -> str:
    """The canonical name of a MANO joint or an appended fingertip."""
    if mano == "wrist":
        return mano
    finger, part = mano[:-1], mano[-1]
    parts = (
        {"1": "cmc", "2": "mcp", "3": "ip", "t": "tip"} if finger == "thumb" else dict(zip("123t", PARTS, strict=True))
    )
    return f"{finger}_{parts[part]}"


PARTS = ("mcp", "pip", "dip", "tip")
# conventions.md, B1: 16 joints, then the tips of thumb, index, middle, ring and pinky.
MANO_WITH_TIPS = (*joints.MANO_JOINT_NAMES, "thumbt", "indext", "middlet", "ringt", "pinkyt")


def test_names_follow_openpose() -> None:
    assert len(joints.JOINT_NAMES) == 21 == len(set(joints.JOINT_NAMES))
    assert joints.JOINT_NAMES[:6] == ("wrist", "thumb_cmc", "thumb_mcp", "thumb_ip", "thumb_tip", "index_mcp")
    for i, finger in enumerate(("thumb", "index", "middle", "ring", "pinky")):
        assert [name.split("_")[0] for name in joints.JOINT_NAMES[1 + 4 * i : 5 + 4 * i]] == [finger] * 4


def test_names_follow_mano() -> None:
    """smplx joint_names: wrist, index1-3, middle1-3, pinky1-3, ring1-3, thumb1-3."""
    expected = (
        "wrist index1 index2 index3 middle1 middle2 middle3 pinky1 pinky2 pinky3 ring1 ring2 ring3 thumb1 thumb2 thumb3"
    )
    assert list(joints.MANO_JOINT_NAMES) == expected.split()


def test_canonical_from_mano_maps_names_to_names() -> None:
    reordered = [_canonical_name(MANO_WITH_TIPS[i]) for i in joints.CANONICAL_FROM_MANO]
    assert tuple(reordered) == joints.JOINT_NAMES


def test_the_two_skeletons_agree() -> None:
    """A joint's parent is the same joint in either order."""
    mano_of = dict(enumerate(joints.CANONICAL_FROM_MANO))
    for point, parent in enumerate(joints.PARENT_POINT):
        if mano_of[point] < 16:
            expected = joints.MANO_PARENTS[mano_of[point]]
            assert (mano_of[parent] if parent >= 0 else -1) == expected
        else:
            assert joints.JOINT_NAMES[point] == joints.JOINT_NAMES[parent].rsplit("_", 1)[0] + "_tip"
            assert parent == point - 1


def test_bones_are_a_tree_over_all_points() -> None:
    assert len(joints.BONES) == 20
    assert sorted(child for _, child in joints.BONES) == list(range(1, 21))
    for parent, child in joints.BONES:
        assert parent < child and joints.PARENT_POINT[child] == parent
        finger = joints.JOINT_NAMES[child].split("_")[0]
        assert joints.JOINT_NAMES[parent] == "wrist" or joints.JOINT_NAMES[parent].startswith(finger)
    assert sum(parent == 0 for parent, _ in joints.BONES) == 5


def test_palm_points_are_wrist_and_knuckles() -> None:
    names = [joints.JOINT_NAMES[i] for i in joints.PALM_POINTS]
    assert names == ["wrist", "index_mcp", "middle_mcp", "ring_mcp", "pinky_mcp"]


def test_tip_sets_equal_the_tools_own_lists() -> None:
    """Written down from smplx vertex_ids.py, FreiHAND mano_utils.py, manopth manolayer.py, HO-3D setup_mano.py."""
    smplx = {"thumb": 744, "index": 320, "middle": 443, "ring": 554, "pinky": 671}
    assert joints.TIP_SETS["smplx"] == tuple(smplx[finger] for finger in joints.FINGERS)
    # Minimal-hand lists them as index, middle, little, ring, thumb; HO-3D uses the same vertices.
    index, middle, little, ring, thumb = 333, 444, 672, 555, 744
    assert joints.TIP_SETS["ho3d"] == (thumb, index, middle, ring, little)
    assert joints.TIP_SETS["freihand"] == (744, 320, 443, 555, 672)
    assert joints.TIP_SETS["manopth"] == (745, 317, 444, 556, 673)
    assert joints.TIP_SETS["manopth-left"] == (745, 317, 445, 556, 673)
    assert joints.TIP_SETS["contactpose"] == (745, 333, 444, 555, 672)
    assert all(len(set(tips)) == 5 and max(tips) < 778 for tips in joints.TIP_SETS.values())


def test_sigmas_equal_coco_wholebodys_left_hand() -> None:
    published = (
        ".029 .022 .035 .037 .047 .026 .025 .024 .035 .018 .024 .022 .026 .017 .021 .021 .032 .020 .019 .022 .031"
    )
    assert list(joints.COCO_WHOLEBODY_SIGMAS) == [float(s) for s in published.split()]


def test_one_except_clause_catches_every_error() -> None:
    for kind in (InputError, FileFormatError, ModelError, UnsafePickleError):
        assert issubclass(kind, HandloopError) and issubclass(kind, ValueError)
    assert issubclass(FileFormatError, InputError) and issubclass(UnsafePickleError, ModelError)
    assert not issubclass(HandloopError, ValueError)
    assert isinstance(pickle.loads(pickle.dumps(ModelError("a"))), ModelError)  # noqa: S301 (for worker processes)


@pytest.mark.parametrize(
    ("shape", "expected"), [((2, 3), (2, 3)), ((7, 3), (None, 3)), ((), ()), ((0,), (None,)), ((4, 5), (None, None))]
)
def test_check_shape_accepts(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> None:
    check_shape("x", shape, expected)


@pytest.mark.parametrize(
    ("shape", "expected", "text"),
    [
        ((2, 4), (2, 3), "points has shape (2, 4), expected (2, 3)."),
        ((2, 4), (None, 3), "points has shape (2, 4), expected (N, 3)."),
        ((2,), (2, 3), "points has shape (2,), expected (2, 3)."),
        ((2, 3, 1), (2, 3), "points has shape (2, 3, 1), expected (2, 3)."),
        ((), (None,), "points has shape (), expected (N)."),
        ((0, 3), (1, 3), "points has shape (0, 3), expected (1, 3)."),
    ],
)
def test_check_shape_refuses(shape: tuple[int, ...], expected: tuple[int | None, ...], text: str) -> None:
    with pytest.raises(InputError) as error:
        check_shape("points", shape, expected)
    assert str(error.value) == text
