"""Pose priors as files, and the poses they are learned from."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from handloop.core.errors import FileFormatError, InputError
from handloop.core.params import HandParams
from handloop.hand.load import embedded_hand
from handloop.hand.model import HandPair
from handloop.priors.gaussian import GaussianPosePrior
from handloop.priors.mixture import MixturePosePrior
from handloop.priors.pose_sources import PoseSet, join, own_poses, read_poses
from handloop.priors.prior_file import load_prior, save_prior

PAIR = embedded_hand()
LICENSED = HandPair(replace(PAIR.right, licensed=True), replace(PAIR.left, licensed=True))
POSES = PAIR.right.poses()[:40]
RIGHT = np.arange(40) % 3 > 0


def mixture() -> MixturePosePrior:
    scatter = np.cov(PAIR.right.poses().T) + 0.003 * np.eye(45)
    return MixturePosePrior.of(np.array([0.3, 0.7]), POSES[:2], np.stack([scatter, 2 * scatter]), "two poses", "abc")


def as_file() -> dict[str, np.ndarray]:
    """`POSES` as a file has them: left ones in the left hand's convention."""
    zeros = torch.zeros(40, 3, dtype=torch.float64)
    params = HandParams(zeros, torch.tensor(POSES), zeros.new_zeros(40, 10), zeros)
    own = np.where(RIGHT[:, None], POSES, params.mirrored().hand_pose.numpy())
    return {"hand_pose": own, "is_right": RIGHT}


def write(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    path = folder / "poses.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


# Files of priors.


def test_a_mixture_comes_back_as_it_was(tmp_path: Path) -> None:
    prior = mixture()
    save_prior(prior, tmp_path / "prior.npz")
    back = load_prior(tmp_path / "prior.npz")
    assert isinstance(back, MixturePosePrior) and (back.name, back.model_digest) == ("two poses", "abc")
    for name in ("means", "precision_factors", "offsets"):
        assert torch.equal(getattr(back, name), getattr(prior, name))


def test_a_gaussian_comes_back_as_it_was(tmp_path: Path) -> None:
    prior = GaussianPosePrior.from_hand(PAIR.right)
    save_prior(prior.to(torch.zeros(0, dtype=torch.float32)), tmp_path / "rounded.npz")
    save_prior(prior, tmp_path / "prior.npz")
    back = load_prior(tmp_path / "prior.npz")
    assert isinstance(back, GaussianPosePrior)
    assert (back.name, back.model_digest) == ("poses of the hand model", PAIR.right.digest)
    assert torch.equal(back.mean, prior.mean) and torch.equal(back.precision_factor, prior.precision_factor)
    assert load_prior(tmp_path / "rounded.npz").means.dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": np.array("else")}, "not a file of a pose prior; expected what handloop prior writes."),
        ({"version": np.array(2)}, "version 2 of the format, this handloop reads 1."),
        ({"offsets": None}, "offsets missing; write it again with handloop prior."),
        (
            {"means": np.zeros((3, 45))},
            "means (3, 45), precision_factors (2, 45, 45) and offsets (2,), expected (K, 45)",
        ),
        ({"means": np.full((2, 45), np.nan)}, "holds values that are not finite numbers"),
        ({"offsets": np.array([-1.0, 0.0])}, "no factors of precisions with offsets from 0 up"),
        ({"precision_factors": np.ones((2, 45, 45))}, "no factors of precisions with offsets from 0 up"),
        ({"precision_factors": np.zeros((2, 45, 45))}, "no factors of precisions with offsets from 0 up"),
    ],
)
def test_damaged_files(tmp_path: Path, change: dict[str, np.ndarray | None], message: str) -> None:
    path = tmp_path / "prior.npz"
    save_prior(mixture(), path)
    arrays = {**np.load(path), **change}
    np.savez(path, **{key: a for key, a in arrays.items() if a is not None})  # type: ignore[arg-type]
    with pytest.raises(FileFormatError, match=f"^{re.escape(f'{path}: {message}')}"):
        load_prior(path)


def test_no_file_and_pickled_objects(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="cannot be read"):
        load_prior(tmp_path / "none.npz")
    with pytest.raises(InputError, match="cannot be written"):
        save_prior(mixture(), tmp_path / "no folder" / "prior.npz")
    np.savez(tmp_path / "object.npz", format=np.array([{}], dtype=object))
    with pytest.raises(FileFormatError, match="not a readable npz file"):
        load_prior(tmp_path / "object.npz")


# Poses.


def test_both_sides_come_into_the_right_hands_convention(tmp_path: Path) -> None:
    found = read_poses(write(tmp_path, as_file()), PAIR)
    np.testing.assert_allclose(found.poses, POSES, atol=1e-12)
    assert found.model_digest == "" and found.notes == ("poses.npz: 40 of 40 poses.",)


@pytest.mark.parametrize("key", ["pose", "poses"])
def test_with_the_wrist_in_front(tmp_path: Path, key: str) -> None:
    wrist = np.full((40, 3), 9.0)
    path = write(tmp_path, {key: np.concatenate([wrist, POSES], 1), "right": np.ones(40)})
    np.testing.assert_allclose(read_poses(path, PAIR).poses, POSES, atol=1e-12)
    path = write(tmp_path, {key: POSES.reshape(40, 15, 3)})
    np.testing.assert_allclose(read_poses(path, PAIR, is_right=True).poses, POSES, atol=1e-12)
    turned = POSES * np.tile([1, -1, -1], 15)
    np.testing.assert_allclose(read_poses(path, PAIR, is_right=False).poses, turned, atol=1e-12)


def test_smplx_names_say_the_side(tmp_path: Path) -> None:
    given = as_file()["hand_pose"]
    path = write(tmp_path, {"left_hand_pose": given[~RIGHT], "right_hand_pose": given[RIGHT]})
    np.testing.assert_allclose(read_poses(path, PAIR).poses, np.concatenate([POSES[RIGHT], POSES[~RIGHT]]), atol=1e-12)


@pytest.mark.parametrize("flag", [{"flat_hand_mean": np.array(False)}, {"flat_hand_mean": np.array("False")}, {}])
def test_poses_relative_to_the_mean(tmp_path: Path, flag: dict[str, np.ndarray]) -> None:
    given = as_file()
    means = np.where(RIGHT[:, None], PAIR.right.hands_mean, PAIR.right.hands_mean * np.tile([1, -1, -1], 15))
    path = write(tmp_path, {**given, "hand_pose": given["hand_pose"] - means, **flag})
    found = read_poses(path, LICENSED, mean_relative=not flag)
    np.testing.assert_allclose(found.poses, POSES, atol=1e-9)
    with pytest.raises(InputError, match="relative to MANO's mean pose, which the embedded hand does not have; name"):
        read_poses(path, PAIR, mean_relative=not flag)


def test_the_file_is_believed_where_it_says_the_mean_is_flat(tmp_path: Path) -> None:
    path = write(tmp_path, {**as_file(), "flat_hand_mean": np.array("True")})
    np.testing.assert_allclose(read_poses(path, PAIR, mean_relative=True).poses, POSES, atol=1e-12)


def test_angles_beyond_pi_take_the_short_way(tmp_path: Path) -> None:
    long = POSES.copy().reshape(40, 15, 3)
    long[:, 4] = [4.0, 1.0, 0.5]
    found = read_poses(write(tmp_path, {"hand_pose": long, "is_right": np.array(True)}), PAIR).poses
    turn = Rotation.from_rotvec([4.0, 1.0, 0.5])
    np.testing.assert_allclose(found.reshape(40, 15, 3)[0, 4], turn.as_rotvec(), atol=1e-9)
    assert np.linalg.norm(turn.as_rotvec()) < np.pi


def test_only_plausible_converged_fits_count(tmp_path: Path) -> None:
    given = as_file()
    given["hand_pose"][5] = np.nan
    status, plausible = np.zeros(40, dtype=np.int64), np.ones(40, dtype=bool)
    status[[5, 6]] = 3, 2
    status[[7, 8, 9]] = 1
    plausible[[5, 6, 9, 10]] = False
    results = {"status": status, "plausible": plausible, "hand_model_digest": np.array("abc def")}
    found = read_poses(write(tmp_path, {**given, **results, "flat_hand_mean": np.array("True")}), PAIR)
    np.testing.assert_allclose(found.poses, np.delete(POSES, [5, 6, 7, 8, 9, 10], 0), atol=1e-12)
    assert found.model_digest == "abc"
    assert found.notes == ("poses.npz: 34 of 40 poses; left out: 2 not fitted, 3 not converged, 1 doubtful.",)


def test_missing_labels_are_left_out(tmp_path: Path) -> None:
    given = as_file()
    given["hand_pose"][0], given["hand_pose"][1, 7] = 0.0, np.inf
    found = read_poses(write(tmp_path, {**given, "has_hand_pose": np.arange(40) != 2}), PAIR)
    np.testing.assert_allclose(found.poses, POSES[3:], atol=1e-12)
    assert found.notes == ("poses.npz: 37 of 40 poses; left out: 1 unlabelled, 1 not finite, 1 zero throughout.",)


def test_sources_together() -> None:
    own = own_poses(PAIR.right)
    np.testing.assert_allclose(own.poses, PAIR.right.poses(), atol=1e-9)
    generic = PoseSet(POSES, "", ("a note",))
    both = join([generic, own])
    assert len(both.poses) == 40 + len(own.poses) and both.model_digest == PAIR.right.digest
    assert both.notes == ("a note",) and join([generic]).model_digest == ""
    with pytest.raises(InputError, match="the poses belong to different hand models"):
        join([own, PoseSet(POSES, "else")])
    with pytest.raises(InputError, match="no poses were given; name npz files with hand_pose"):
        join([])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"joints": POSES}, "has no hand_pose, pose, poses, right_hand_pose, left_hand_pose, only joints."),
        ({"hand_pose": POSES}, "has no is_right; say with --hand which side the poses are of."),
        ({"hand_pose": POSES[:, :12]}, "hand_pose has shape (40, 12), expected (M, 45) axis-angle numbers"),
        ({"hand_pose": POSES, "is_right": np.ones(39)}, "is_right has shape (39,), expected (40,) of true and false."),
        (
            {"hand_pose": POSES, "is_right": np.full(40, 2)},
            "is_right has shape (40,), expected (40,) of true and false.",
        ),
        (
            {"hand_pose": np.full((4, 45), 30.0), "is_right": np.ones(4)},
            "joint angles reach 52, expected axis-angle in",
        ),
        (
            {"hand_pose": POSES, "is_right": RIGHT, "flat_hand_mean": np.array([True, False])},
            "flat_hand_mean must be one true or false for all poses.",
        ),
        (
            {"hand_pose": POSES, "is_right": RIGHT, "status": np.zeros(3), "plausible": RIGHT},
            "status has shape (3,), expected (40,) numbers.",
        ),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = write(tmp_path, arrays)
    with pytest.raises(InputError, match=re.escape(f"{path}: {message}")):
        read_poses(path, PAIR)
