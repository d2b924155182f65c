"""results.npz and summary.json: contents, bytes, atomic writing, refusal of what is damaged or unsafe."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.errors import FileFormatError, InputError
from handloop.core.keypoints import Keypoints
from handloop.core.params import HandParams
from handloop.core.results import STATUS_HELP, FitResult, Status, load_npz, merge_arrays, save_npz, write_text

F64 = torch.float64


class _Points:
    """Stands in for a hand model: every vertex is the wrist's translation, x turned round on left hands."""

    def vertices(self, params: HandParams, is_right: Tensor) -> Tensor:
        sign = torch.where(is_right, 1.0, -1.0)[:, None, None]
        return params.transl[:, None].expand(-1, 778, 3) * sign

    def provenance(self) -> Mapping[str, str]:
        return {"hand_model": "points"}


def _result(dist: bool = False) -> FitResult:
    """Five hands: three fitted (one of them at the step limit), one with too few points, one failed."""
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(0, 400, (5, 21, 2)), np.ones((5, 21, 1))], -1)
    points[2, 3, 2] = 0
    keypoints = Keypoints.from_arrays(
        points, [True, False, True, False, False], (640, 480), ids=["a", "b", "c", "déjà", "e"], source="x.json"
    )
    status = torch.tensor([Status.CONVERGED, Status.MAX_STEPS, Status.TOO_FEW_POINTS, Status.CONVERGED, Status.FAILED])
    bad = (status == Status.TOO_FEW_POINTS) | (status == Status.FAILED)
    arrays = [torch.from_numpy(rng.normal(size=(5, k))) for k in (3, 45, 10, 3)]
    rms = torch.tensor([1.0, 4.0, float("nan"), 2.0, float("nan")], dtype=F64)
    parts = {name: torch.from_numpy(rng.uniform(size=5)) for name in ("points", "prior")}
    return FitResult(
        params=HandParams(*(torch.where(bad[:, None], torch.nan, a) for a in arrays)),
        joints=torch.from_numpy(rng.normal(size=(5, 21, 3))),
        keypoints_3d=torch.from_numpy(rng.normal(size=(5, 21, 3))),
        keypoints_3d_sd=torch.from_numpy(rng.uniform(size=(5, 21, 3))),
        depth_sd=torch.from_numpy(rng.uniform(size=5)),
        expected_error_mm=torch.from_numpy(rng.uniform(size=5)),
        weakest=("distance", "", "", "tilt, then curl", ""),
        plausible=torch.tensor([True, False, False, True, False]),
        doubts=("", "far off", "", "", ""),
        keypoints=keypoints,
        camera=Camera(
            torch.full((5, 2), 600.0, dtype=F64),
            torch.full((5, 2), 300.0, dtype=F64),
            torch.full((5, 5), 0.01, dtype=F64) if dist else None,
            torch.tensor([True, True, False, False, True]),
        ),
        keypoints_2d_fit=torch.from_numpy(rng.normal(size=(5, 21, 2))),
        energy=parts["points"] + parts["prior"],
        energy_terms=parts,
        rms_px=rms,
        status=status,
        steps=torch.arange(5),
        hypothesis_gap=torch.tensor([1.0, float("inf"), 0, 2, 3], dtype=F64),
        hand=_Points(),
        provenance={"version": "0", "recipe": "standard"},
    )


def test_every_status_has_help() -> None:
    assert set(STATUS_HELP) == set(Status)
    assert [s.value for s in Status] == [0, 1, 2, 3, 4]  # Stored in files: never renumber.


def test_vertices_ask_the_model_with_each_hands_side() -> None:
    result = _result()
    got = result.vertices()
    expected = result.params.transl.numpy() * np.array([1, -1, 1, -1, -1])[:, None]
    np.testing.assert_array_equal(got[:, 5].numpy(), expected)


def test_file_holds_what_the_result_holds(tmp_path: Path) -> None:
    result = _result(dist=True)
    path = result.save(tmp_path / "deep" / "out")
    assert path == tmp_path / "deep" / "out" / "results.npz"
    assert sorted(os.listdir(path.parent)) == ["results.npz", "summary.json"]
    data = load_npz(path)
    kp = result.keypoints
    expected = {
        "global_orient": result.params.global_orient,
        "hand_pose": result.params.hand_pose,
        "betas": result.params.betas,
        "transl": result.params.transl,
        "is_right": kp.is_right,
        "joints": result.joints,
        "keypoints_3d": result.keypoints_3d,
        "keypoints_3d_sd": result.keypoints_3d_sd,
        "joints_sd": result.keypoints_3d_sd,
        "depth_sd": result.depth_sd,
        "expected_error_mm": result.expected_error_mm,
        "plausible": result.plausible,
        "keypoints_2d_fit": result.keypoints_2d_fit,
        "focal_length": result.camera.focal,
        "princpt": result.camera.princpt,
        "image_size": kp.image_size,
        "camera_known": torch.tensor([True, True, False, False, True]),
        "distortion": torch.full((5, 5), 0.01, dtype=F64),
        "energy": result.energy,
        "energy_points": result.energy_terms["points"],
        "energy_prior": result.energy_terms["prior"],
        "rms_px": result.rms_px,
        "status": result.status,
        "steps": result.steps,
        "hypothesis_gap": result.hypothesis_gap,
        "frame": kp.frame,
    }
    for key, tensor in expected.items():
        assert data[key].dtype == tensor.numpy().dtype, key
        np.testing.assert_array_equal(data[key], tensor.numpy(), err_msg=key)
    assert data["keypoints_2d"].dtype == np.float32
    np.testing.assert_array_equal(data["keypoints_2d"][..., :2], kp.xy.numpy().astype(np.float32))
    np.testing.assert_array_equal(data["keypoints_2d"][..., 2], kp.conf.numpy())
    assert data["id"].tolist() == ["a", "b", "c", "déjà", "e"]
    assert data["source"].tolist() == ["x.json"] * 5 and data["image"].tolist() == [""] * 5
    assert str(data["recipe"]) == "standard" and str(data["version"]) == "0"
    assert tuple(data["weakest"].tolist()) == result.weakest and tuple(data["doubts"].tolist()) == result.doubts
    texts = {"id", "source", "image", "recipe", "version", "weakest", "doubts"}
    assert set(data) == {*expected, *texts, "keypoints_2d"}


def test_without_a_lens_there_is_no_distortion_key() -> None:
    assert "distortion" not in _result().arrays()
    camera = replace(_result().camera, known=None)
    assert replace(_result(), camera=camera).arrays()["camera_known"].tolist() == [True] * 5


@pytest.mark.parametrize("dist", [False, True])
def test_a_result_comes_back_from_its_file(tmp_path: Path, dist: bool) -> None:
    result = _result(dist)
    # A text with the beginning of the energies' names is no energy.
    result = replace(result, provenance={**result.provenance, "energy_settings": "geman_mcclure 8"})
    back = FitResult.from_arrays(load_npz(result.save(tmp_path)), _Points())
    before, after = result.arrays(), back.arrays()
    assert list(after) == list(before)
    for key, array in before.items():
        assert after[key].dtype == array.dtype, key
        np.testing.assert_array_equal(after[key], array, err_msg=key)
    assert len(back) == 5 and back.keypoints.ids == result.keypoints.ids
    assert back.keypoints.source == result.keypoints.source and back.keypoints.image == result.keypoints.image
    assert back.provenance == result.provenance
    # Points are stored in single precision.
    torch.testing.assert_close(back.keypoints.xy, result.keypoints.xy, rtol=1e-7, atol=0)
    assert back.keypoints.xy.dtype == F64 and back.fitted().equal(result.fitted())
    torch.testing.assert_close(back.vertices(), result.vertices(), rtol=0, atol=0, equal_nan=True)


def test_a_file_that_lacks_a_key_is_no_result() -> None:
    arrays = _result().arrays()
    del arrays["joints"]
    with pytest.raises(FileFormatError) as error:
        FitResult.from_arrays(arrays, _Points())
    assert str(error.value) == "the results lack 'joints'; expected a results.npz written by handloop fit."


def test_tensors_with_a_graph_can_be_saved(tmp_path: Path) -> None:
    result = _result()
    joints = result.joints.clone().requires_grad_() * 1
    data = load_npz(replace(result, joints=joints).save(tmp_path))
    np.testing.assert_array_equal(data["joints"], result.joints.numpy())


def test_summary_against_numpy(tmp_path: Path) -> None:
    result = _result()
    result.save(tmp_path)
    got = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    fitted = [0, 1, 3]
    boxes = [float(np.ptp(result.keypoints.xy[i].numpy(), axis=0).max()) for i in fitted]
    relative = np.median(np.array([1.0, 4.0, 2.0]) / boxes)
    assert got.pop("rms_relative_to_box_median") == pytest.approx(relative, rel=1e-12)
    assert got.pop("rms_px_p90") == pytest.approx(np.quantile([1.0, 4.0, 2.0], 0.9), rel=1e-12)
    expected = np.median(result.expected_error_mm.numpy()[fitted])
    assert got.pop("expected_error_mm_median") == pytest.approx(expected, rel=1e-12)
    assert got == {
        "plausible": 2,
        "hands": 5,
        "fitted": 3,
        "left": 3,
        "status": {"converged": 2, "max_steps": 1, "too_few_points": 1, "failed": 1, "predicted": 0},
        "rms_px_median": 2.0,
        "camera_known": 3,
        "version": "0",
        "recipe": "standard",
    }
    assert result.fitted().tolist() == [True, True, False, True, False]


def test_median_of_an_even_number_of_hands_is_the_middle() -> None:
    result = replace(_result(), status=torch.tensor([0, 0, 3, 3, 3]))
    assert result.summary()["rms_px_median"] == 2.5


def test_summary_without_any_fit_is_valid_json(tmp_path: Path) -> None:
    result = replace(_result(), status=torch.full((5,), int(Status.FAILED)))
    result.save(tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    got = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert got["fitted"] == 0
    assert got["rms_px_median"] is got["rms_px_p90"] is got["rms_relative_to_box_median"] is None


# Bytes and safety.


def test_identical_content_gives_identical_bytes(tmp_path: Path) -> None:
    first, second = _result().save(tmp_path / "1"), _result().save(tmp_path / "2")
    assert first.read_bytes() == second.read_bytes()
    assert (tmp_path / "1/summary.json").read_bytes() == (tmp_path / "2/summary.json").read_bytes()
    # The clock must not be inside: a second run may come years later.
    with zipfile.ZipFile(first) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    other = replace(_result(), energy=_result().energy + 1e-12).save(tmp_path / "3")
    assert other.read_bytes() != first.read_bytes()


def test_plain_numpy_reads_the_file_without_pickle(tmp_path: Path) -> None:
    arrays = {"file": np.arange(3), "allow_pickle": np.array(1.5), "text": np.array("ä"), "empty": np.zeros((0, 21, 3))}
    path = tmp_path / "a.npz"
    save_npz(path, arrays)
    with np.load(path, allow_pickle=False) as data:
        assert data.files == list(arrays)
        for key, array in arrays.items():
            assert data[key].dtype == array.dtype and data[key].shape == array.shape
            np.testing.assert_array_equal(data[key], array)


def test_saving_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for value in (1, 2):
        save_npz(path, {"x": np.array(value)})
        assert os.listdir(tmp_path) == ["a.npz"] and load_npz(path)["x"] == value


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save_npz(path, {"x": np.arange(4)})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"[Oo]bject"):
        save_npz(path, {"x": np.arange(5), "bad": np.array([{}], dtype=object)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.npz"]


def test_the_name_appears_only_when_the_file_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    rename = os.replace

    def spy(source: Path, target: Path) -> None:
        assert not target.exists()
        with zipfile.ZipFile(source) as archive:
            seen.append(archive.testzip() is None and archive.namelist() == ["x.npy"])
        rename(source, target)

    monkeypatch.setattr(os, "replace", spy)
    save_npz(tmp_path / "a.npz", {"x": np.zeros(1000)})
    assert seen == [True] and (tmp_path / "a.npz").exists()


def test_write_text_replaces_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_text(path, "eins ä\n")
    write_text(path, "zwei ß\n")
    assert path.read_bytes() == "zwei ß\n".encode()
    assert os.listdir(tmp_path) == ["a.json"]

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "drei")
    assert path.read_bytes() == "zwei ß\n".encode()


class _Trap:
    """Creates a file when unpickled."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (self.mark,))


def test_object_arrays_are_refused_and_not_executed(tmp_path: Path) -> None:
    path, mark = tmp_path / "evil.npz", tmp_path / "executed"
    np.savez(path, good=np.arange(3), evil=np.array([_Trap(str(mark))], dtype=object))
    with pytest.raises(FileFormatError) as error:
        load_npz(path)
    reason = "Object arrays cannot be loaded when allow_pickle=False"
    assert str(error.value) == f"{path}: not a readable npz file ({reason})."
    assert not mark.exists()
    np.load(path, allow_pickle=True)["evil"]
    assert mark.exists()  # The trap works.


def test_a_bare_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    path, mark = tmp_path / "evil.npz", tmp_path / "executed"
    path.write_bytes(pickle.dumps(_Trap(str(mark))))
    with pytest.raises(FileFormatError) as error:
        load_npz(path)
    assert str(error.value) == f"{path}: not an npz file."
    assert not mark.exists()


def test_files_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    texts: dict[str, bytes] = {
        "empty": b"",
        "text": b"hello, world, this is not an archive",
        "png": b"\x89PNG\r\n\x1a\n",
    }
    for content in texts.values():
        path.write_bytes(content)
        with pytest.raises(FileFormatError) as error:
            load_npz(path)
        assert str(error.value) == f"{path}: not an npz file."
    with open(path, "wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(FileFormatError) as error:
        load_npz(path)
    assert str(error.value) == f"{path}: a single array (npy), expected an npz with named arrays."
    torch.save({"x": torch.zeros(3)}, path)
    with pytest.raises(FileFormatError) as error:
        load_npz(path)
    assert str(error.value) == f"{path}: a zip file with other things than arrays, expected an npz."


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.npz", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(FileFormatError) as error:
            load_npz(path)
        assert str(error.value) == f"{path}: cannot be read ({reason})."


@pytest.mark.parametrize("damage", ["cut", "flipped", "header"])
def test_damaged_files_give_one_sentence(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.npz"
    save_npz(path, {"x": np.arange(1000.0), "y": np.arange(10)})
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[4000] ^= 0xFF
    else:
        at = content.index(b"'descr'")
        content[at : at + 7] = b"!!!!!!!"
    path.write_bytes(bytes(content))
    with pytest.raises(FileFormatError) as error:
        load_npz(path)
    message = str(error.value)
    assert message.startswith(f"{path}: not a readable npz file (") and message.endswith(").")
    assert "\n" not in message and len(message) < len(str(path)) + 100


# Joining.


def _parts() -> list[dict[str, np.ndarray]]:
    result = _result(dist=True).arrays()
    rows = [slice(0, 2), slice(2, 2), slice(2, 5)]
    return [{key: array[row] if array.ndim else array for key, array in result.items()} for row in rows]


def test_parts_join_to_the_whole() -> None:
    whole, merged = _result(dist=True).arrays(), merge_arrays(_parts())
    assert list(merged) == list(whole)
    for key, array in whole.items():
        assert merged[key].dtype == array.dtype
        np.testing.assert_array_equal(merged[key], array, err_msg=key)


def test_joining_texts_of_other_lengths_cuts_none() -> None:
    merged = merge_arrays([{"id": np.array(["a", "bb"])}, {"id": np.array(["a long one"])}])
    assert merged["id"].tolist() == ["a", "bb", "a long one"]


def test_joining_refuses_what_does_not_belong_together() -> None:
    def changed(**changes: np.ndarray) -> list[dict[str, np.ndarray]]:
        parts = _parts()
        parts[2] = parts[2] | changes
        return parts

    lacking = _parts()
    del lacking[0]["distortion"]
    cases = [
        (
            changed(recipe=np.array("spin")),
            "the parts differ in 'recipe': they come from runs with different settings.",
        ),
        (
            changed(distortion=np.zeros((3, 8))),
            "the parts differ in 'distortion': they come from runs with different settings.",
        ),
        (changed(extra=np.zeros(3)), "some parts lack 'extra': they come from runs with different settings."),
        (lacking, "some parts lack 'distortion': they come from runs with different settings."),
        ([], "there are no parts to join."),
    ]
    for parts, expected in cases:
        with pytest.raises(InputError) as error:
            merge_arrays(parts)
        assert str(error.value) == expected
