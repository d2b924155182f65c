"""The defects of SPIN's dictionary of fits (Kolotouros et al. 2019, `fits_dict.py`, `trainer.py`), each shown absent.

Those of its data loader and its optimiser (order of samples after a resume, random numbers in workers, untyped options)
belong to other parts; what they do to the memory is here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from handloop.core.errors import InputError
from handloop.core.results import FitResult, Status
from handloop.loop.accept import Decision
from handloop.loop.cache import FitCache
from handloop.loop.cached_fits import Origin

Make = Callable[..., FitResult]
START, LATER = Origin("static"), Origin("regressor", weights="w1", epoch=3)
IDS = ["a", "b", "c"]


def test_defect_1_fits_are_saved_on_one_exit_path_only(tmp_path: Path, make: Make) -> None:
    """SPIN, and mmhuman3d even more so, forgets all fits unless the run ends by its time limit."""
    for ending in (signal.SIGTERM, signal.SIGKILL, None):
        folder = tmp_path / str(ending)
        pid = os.fork()
        if pid == 0:
            try:
                FitCache.open(folder).put(IDS, make(IDS), START, 1, 0)
                if ending is not None:
                    os.kill(os.getpid(), ending)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        with FitCache.open(folder) as cache:
            assert bool(cache.get(IDS).found.all())


def test_defect_1_a_resumed_run_starts_from_the_static_fits_again(tmp_path: Path, make: Make) -> None:
    with FitCache.open(tmp_path) as cache:
        cache.put(IDS, make(IDS, energy=50.0), START, 0, 0)
        cache.put(IDS, make(IDS, energy=20.0, seed=1), LATER, 7, 0)
        cache.checkpoint(7)
        cache.put(IDS, make(IDS, energy=10.0, seed=2), LATER, 8, 0)
    with FitCache.open(tmp_path) as cache:  # The run died; the network resumes at step 7.
        cache.rollback(7)
        fits = cache.get(IDS)
        assert fits.energy.tolist() == [20.0] * 3 and {origin.start for origin in fits.origin if origin} == {
            "regressor"
        }
        assert fits.params.hand_pose.equal(make(IDS, seed=1).params.hand_pose)


def test_defect_2_a_resumed_run_goes_another_way(tmp_path: Path, make: Make) -> None:
    ends = []
    for folder, interrupted in (("straight", False), ("resumed", True)):
        with FitCache.open(tmp_path / folder) as cache:
            for step in (1, 2):
                cache.put(IDS, make(IDS, energy=30.0 - step, seed=step), LATER, step, 0)
            cache.checkpoint(2)
            if interrupted:
                cache.put(IDS, make(IDS, energy=5.0, seed=99), LATER, 3, 0)
                cache.rollback(2)
            cache.put(IDS, make(IDS, energy=[20.0, 40.0, 20.0], seed=3), LATER, 3, 0)
            fits = cache.get(IDS)
            ends.append((fits.params.hand_pose.tolist(), fits.energy.tolist(), fits.improvements.tolist()))
    assert ends[0] == ends[1]


def test_defect_3_inputs_are_changed_through_views(tmp_path: Path, make: Make) -> None:
    result, untouched = make(IDS), make(IDS)
    with FitCache.open(tmp_path) as cache:
        cache.put(IDS, result, START, 1, 0)
        assert result.keypoints.conf.equal(untouched.keypoints.conf)
        assert result.params.hand_pose.equal(untouched.params.hand_pose)
        fits = cache.get(IDS)
        fits.params.hand_pose.zero_()
        fits.keypoints_2d.zero_()
        assert cache.get(IDS).params.hand_pose.equal(untouched.params.hand_pose)
        assert bool((cache.get(IDS).keypoints_2d[..., 2] == 1).all())


def test_defect_4_the_last_of_duplicates_wins_although_worse(tmp_path: Path, make: Make) -> None:
    with FitCache.open(tmp_path) as cache:
        cache.put(["a"], make(["a"], energy=50.0), START, 0, 0)
        found = cache.put(["a", "a"], make(["a", "a"], energy=[10.0, 40.0], seed=1), LATER, 1, 0)
        assert found.decision.tolist() == [Decision.IMPROVED, Decision.DUPLICATE]
        assert cache.get(["a"]).energy.tolist() == [10.0]


def test_defect_5_the_held_error_differs_with_every_crop(tmp_path: Path, make: Make) -> None:
    result = make(IDS)
    width = result.keypoints.image_size[:, 0]
    keypoints = result.keypoints
    crop = replace(keypoints, xy=(keypoints.xy - 50) * 1.2)
    mirrored = replace(keypoints, xy=torch.stack([width[:, None] - 1 - keypoints.xy[..., 0], keypoints.xy[..., 1]], -1))
    flipped = replace(keypoints, is_right=~keypoints.is_right)
    with FitCache.open(tmp_path) as cache:
        cache.put(IDS, result, START, 0, 0)
        for other, match in ((crop, "other keypoints"), (mirrored, "other keypoints"), (flipped, "the other side")):
            with pytest.raises(InputError, match=rf"the fit of 'a' .*{match} .* expected fits in the original picture"):
                cache.put(IDS, replace(make(IDS, energy=1.0), keypoints=other), LATER, 1, 0)
        # What is compared is the stored energy, whatever else is in the batch.
        assert cache.get(IDS).energy.tolist() == result.energy.tolist()


def test_defect_5_the_camera_of_the_best_fit_is_thrown_away(tmp_path: Path, make: Make) -> None:
    result = make(IDS, dist=5)
    with FitCache.open(tmp_path) as cache:
        cache.put(IDS, result, START, 0, 0)
        camera = cache.get(IDS).camera()
    assert camera.focal.equal(result.camera.focal) and camera.princpt.equal(result.camera.princpt)
    assert camera.dist is not None and result.camera.dist is not None and camera.dist.equal(result.camera.dist)
    assert camera.is_known().equal(result.camera.is_known())


def test_defect_6_nan_gets_in(tmp_path: Path, make: Make) -> None:
    nan = float("nan")
    result = make(IDS, energy=1.0)
    broken = [
        replace(result, params=replace(result.params, hand_pose=result.params.hand_pose * nan)),
        replace(result, params=replace(result.params, transl=result.params.transl / 0)),
        replace(result, energy=result.energy * nan),
        replace(result, energy_terms={**result.energy_terms, "limits": result.energy * nan}),
        replace(result, joints=result.joints * nan),
        make(IDS, energy=1.0, status=Status.FAILED),
        make(IDS, energy=1.0, status=Status.TOO_FEW_POINTS),
    ]
    with FitCache.open(tmp_path) as cache:
        for step, held in enumerate((False, True)):
            for fits in broken:
                found = cache.put(IDS, fits, LATER, step, 0)
                assert found.decision.tolist() == [Decision.NOT_USABLE] * 3
            assert len(cache) == (3 if held else 0)
            cache.put(IDS, make(IDS, energy=50.0), START, step, 0)
        # A rotation by zero is no special case.
        still = replace(result, params=replace(result.params, hand_pose=torch.zeros(3, 45, dtype=torch.float64)))
        assert cache.put(IDS, still, LATER, 2, 0).rate() == 1
        assert cache.get(IDS).params.hand_pose.abs().tolist() == torch.zeros(3, 45).tolist()


def test_defect_7_nothing_says_why_a_fit_is_invalid_or_where_it_is_from(tmp_path: Path, make: Make) -> None:
    with FitCache.open(tmp_path) as cache:
        cache.put(IDS, make(IDS, plausible=[True, False, True]), LATER, 5, 0)
        fits = cache.get(IDS)
        assert fits.doubts == ("", "the shape is an outlier", "") and fits.plausible.tolist() == [True, False, True]
        assert (
            fits.origin == (replace(LATER, recipe="default", handloop_version="0.0.0"),) * 3
            and fits.found_step.tolist() == [5] * 3
        )
        refused = cache.put(["b", "c"], make(["b", "c"], energy=99.0, plausible=[False, True]), LATER, 6, 0)
        assert [text.partition(":")[0] for text in refused.reasons()] == ["rejected"] * 2


def test_defect_7_a_new_data_set_cannot_be_started(tmp_path: Path, make: Make) -> None:
    """SPIN needs a file of static fits for every data set; here an empty cache is as good as a filled one."""
    with FitCache.open(tmp_path / "new folder" / "any name") as cache:
        fits = cache.get(IDS)
        assert not bool(fits.found.any()) and bool(torch.isnan(fits.params.hand_pose).all())
        assert cache.put(IDS, make(IDS), Origin("search"), 0, 0).rate() == 1


def test_defect_8_chance_or_the_process_decides_where_a_sample_is(tmp_path: Path) -> None:
    code = "from handloop.loop.shards import rank_of; print([rank_of(str(i), 16) for i in range(50)])"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_an_implausible_fit_that_reprojects_better_does_not_win_forever(tmp_path: Path, make: Make) -> None:
    """SPIN compares the reprojection alone: a broken hand that meets the keypoints is never replaced."""
    with FitCache.open(tmp_path) as cache:
        cache.put(["a"], make(["a"], energy=20.0), START, 0, 0)
        found = cache.put(["a"], make(["a"], energy=1.0, plausible=False), LATER, 1, 0)
        assert found.decision.tolist() == [Decision.IMPLAUSIBLE] and cache.get(["a"]).energy.tolist() == [20.0]
        cache.put(["b"], make(["b"], energy=1.0, plausible=False), LATER, 1, 0)
        found = cache.put(["b"], make(["b"], energy=20.0), LATER, 2, 0)
        assert found.decision.tolist() == [Decision.REPAIRED] and cache.get(["b"]).plausible.tolist() == [True]


def test_the_whole_energy_decides_not_the_reprojection(tmp_path: Path, make: Make) -> None:
    held = make(["a"], energy=10.0)
    prior = {"reprojection": held.energy * 0.1, "pose_prior": held.energy * 1.5, "limits": held.energy * 0.4}
    closer = replace(make(["a"], energy=20.0, seed=1), energy_terms=prior, rms_px=held.rms_px / 10)
    with FitCache.open(tmp_path) as cache:
        cache.put(["a"], held, START, 0, 0)
        assert cache.put(["a"], closer, LATER, 1, 0).decision.tolist() == [Decision.NO_BETTER]


def test_samples_are_known_by_name_not_by_row(tmp_path: Path, make: Make) -> None:
    """SPIN's rows are numbers in a data set: another order of the files gives every picture another's hand."""
    with FitCache.open(tmp_path) as cache:
        cache.put(IDS, make(IDS, energy=[1.0, 2.0, 3.0]), START, 0, 0)
        assert cache.get(["c", "a", "b"]).energy.tolist() == [3.0, 1.0, 2.0]
