"""Files: reading back, runs that were killed, FreiHAND's layout, the command."""

from __future__ import annotations

import hashlib
import json
import tarfile
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from handloop import synth_job
from handloop.cli import main
from handloop.core.errors import FileFormatError, HandloopError, InputError
from handloop.evaluation.truth import read_truth
from handloop.formats.datasets.open import open_pictures
from handloop.hand.mesh import regressed_joints, skin
from handloop.hand.model import HandPair
from handloop.synth import PictureOptions, Renderer, read_pictures
from handloop.synth import produce as job
from handloop.synth.produce import Order, produce
from handloop.synth.sheet import write_sheet

SMALL = PictureOptions(size=48, seed=9, hand="right")


@pytest.fixture(autouse=True)
def embedded(monkeypatch: pytest.MonkeyPatch, pair: HandPair) -> None:
    monkeypatch.setattr(job, "PART", 4)
    # One object for all tests: skin is baked once per model.
    monkeypatch.setattr(job, "load_hand", lambda mano: pair)
    monkeypatch.setattr(synth_job, "load_hand", lambda mano: pair)


@pytest.fixture
def renderer(pair: HandPair) -> Renderer:
    return Renderer(pair, SMALL)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def order(folder: Path, count: int = 10) -> Order:
    return Order(folder, count, SMALL, workers=1)


def test_what_is_read_is_what_was_rendered(tmp_path: Path, renderer: Renderer) -> None:
    done = produce(order(tmp_path))
    assert (done.rendered, done.kept) == (10, 0)
    stored = list(read_pictures(tmp_path))
    assert [s.index for s in stored] == list(range(10))
    for s in stored:
        picture = renderer.render(s.index)
        np.testing.assert_array_equal(s.mask, picture.mask)
        np.testing.assert_array_equal(s.visibility, picture.visibility)
        # 16 bits in steps of 0.1 mm.
        assert np.abs(s.depth - picture.depth).max() <= 0.5e-4 + 1e-6
        assert np.abs(s.rgb.astype(int) - picture.rgb).mean() < 6  # JPEG of a grainy picture.
        np.testing.assert_allclose(s.keypoints_3d, picture.truth.keypoints_3d, atol=1e-7)
        projected = s.camera.project(torch.from_numpy(s.keypoints_3d)[None])[0].numpy()
        assert np.abs(projected - s.keypoints_2d).max() < 0.05
        np.testing.assert_allclose(s.keypoints_2d, picture.truth.keypoints_2d, atol=1e-3)
        vertices, _ = skin(renderer.pair.side(s.is_right), *s.params.tensors())
        np.testing.assert_allclose(vertices[0].numpy(), picture.truth.vertices, atol=1e-6)


def test_a_killed_run_is_completed_with_the_same_bytes(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    produce(order(whole))
    produce(order(broken))
    before = digests(whole)
    assert digests(broken) == before and len(before) == 4
    parts = sorted(broken.glob("*.tar"))
    # What a kill leaves: a part that was never begun, and one that was half written under its temporary name.
    half = parts[1].read_bytes()[:5000]
    parts[1].unlink()
    parts[2].unlink()
    (broken / (parts[1].name + ".partial")).write_bytes(half)
    untouched = parts[0].stat().st_mtime_ns
    assert len(list(read_pictures(broken))) == 4
    done = produce(order(broken))
    assert (done.rendered, done.kept) == (6, 4)
    assert digests(broken) == before
    assert parts[0].stat().st_mtime_ns == untouched


def test_more_pictures_are_added_without_repeats(tmp_path: Path) -> None:
    produce(order(tmp_path / "a", 6))
    done = produce(order(tmp_path / "a", 10))
    assert (done.rendered, done.kept) == (6, 4)  # The part of two became one of four.
    produce(order(tmp_path / "b", 10))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert [s.index for s in read_pictures(tmp_path / "a")] == list(range(10))
    with pytest.raises(InputError, match="holds 10 pictures already, more than the 5 asked for"):
        produce(order(tmp_path / "a", 5))


def test_other_settings_need_another_folder(tmp_path: Path) -> None:
    produce(order(tmp_path, 2))
    with pytest.raises(InputError, match=r"other settings \(seed\); name another folder"):
        produce(Order(tmp_path, 2, replace(SMALL, seed=1), workers=1))


def test_members_are_webdatasets(tmp_path: Path, pair: HandPair) -> None:
    produce(order(tmp_path, 2))
    with tarfile.open(tmp_path / "pictures-00000000-00000001.tar") as archive:
        names = archive.getnames()
        assert all(member.mtime == 0 and member.uid == 0 for member in archive)
        file = archive.extractfile("00000001.json")
        assert file is not None
        values = json.loads(file.read())
    assert names[:4] == ["00000000.jpg", "00000000.mask.png", "00000000.depth.png", "00000000.json"]
    assert len(names) == 8
    assert values["is_right"] is True and len(values["visibility"]) == 21
    assert values["hand_model"] == pair.right.digest


def test_damaged_parts_are_named(tmp_path: Path) -> None:
    produce(order(tmp_path, 2))
    path = tmp_path / "pictures-00000000-00000001.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        between = archive.getmember("00000001.jpg").offset
    for length in (100, between // 2, between, between + 700):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match=r"00000001\.tar: not a whole part of handloop synth; remove it"):
            list(read_pictures(tmp_path))
    with pytest.raises(InputError, match=r"holds no pictures-\*\.tar"):
        list(read_pictures(tmp_path / "none"))


def test_freihand_layout(tmp_path: Path, renderer: Renderer) -> None:
    wanted = Order(tmp_path, 6, SMALL, layout="freihand", workers=1)
    produce(wanted)
    truth = read_truth(tmp_path)
    assert truth.is_freihand and len(truth) == 6 and truth.camera is not None
    sides = open_pictures(tmp_path).keypoints.image_size
    assert sides.tolist() == [[float(SMALL.size)] * 2] * 6, "not FreiHAND's own 224 px"
    values = {name: json.loads((tmp_path / f"training_{name}.json").read_text()) for name in ("mano", "K", "scale")}
    assert np.array(values["mano"]).shape == (6, 1, 61) and np.array(values["K"]).shape == (6, 3, 3)
    hand = renderer.pair.right
    for index in range(6):
        picture = renderer.render(index)
        with Image.open(tmp_path / "training" / "rgb" / f"{index:08d}.jpg") as file:
            assert file.size == (48, 48)
        with Image.open(tmp_path / "training" / "mask" / f"{index:08d}.jpg") as file:
            assert ((np.asarray(file) > 127) == picture.mask).mean() > 0.995
        # FreiHAND's own recipe (freihand/utils/model.py): the mesh of the parameters, moved so that point 9 lies where
        # uv_root and scale put it.
        row = np.array(values["mano"][index][0])
        k = np.array(values["K"][index])
        pose = torch.from_numpy(row[3:48] + hand.hands_mean)[None]
        vertices, _ = skin(hand, torch.from_numpy(row[None, :3]), pose, torch.from_numpy(row[None, 48:58]), _zero())
        points = regressed_joints(hand, vertices)[0].numpy()
        uv, scale = row[58:60], row[60]
        root = np.append((uv - k[:2, 2]) / scale, (k[0, 0] + k[1, 1]) / 2 / scale)
        moved = vertices[0].numpy() + root - points[4]  # MANO's joint 4 is canonical point 9.
        np.testing.assert_allclose(moved, picture.truth.vertices, atol=2e-6)
        np.testing.assert_allclose(truth.joints[index][9].numpy(), root, atol=2e-6)
        np.testing.assert_allclose(truth.joints[index][16].numpy(), picture.truth.vertices[555], atol=2e-6)
        distance = float((truth.joints[index][9] - truth.joints[index][10]).norm())
        assert values["scale"][index] == pytest.approx(distance, abs=1e-6)
    before = digests(tmp_path)
    (tmp_path / "parts" / "labels-00000004-00000005.npz").unlink()
    (tmp_path / "training" / "rgb" / "00000005.jpg").unlink()
    (tmp_path / "training_K.json").unlink()
    assert produce(wanted).rendered == 2
    assert digests(tmp_path) == before


def _zero() -> torch.Tensor:
    return torch.zeros(1, 3, dtype=torch.float64)


def test_processes_write_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Spawned processes know nothing of a patch.
    monkeypatch.setenv("HANDLOOP_MANO", "embedded")
    produce(order(tmp_path / "one", 8))
    produce(replace(order(tmp_path / "two", 8), workers=2))
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert len(digests(tmp_path / "one")) == 3


def test_a_process_that_dies_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dying(ThreadPoolExecutor):
        def __init__(self, workers: int, context: object) -> None:
            super().__init__(workers)

        def submit(self, *arguments: object, **_: object) -> Future[None]:  # type: ignore[override]
            task: Future[None] = Future()
            task.set_exception(BrokenProcessPool("killed"))
            return task

    monkeypatch.setattr(job, "ProcessPoolExecutor", Dying)
    with pytest.raises(HandloopError, match=r"a process died .* give the same command again, with fewer workers"):
        produce(replace(order(tmp_path, 8), workers=2))
    assert produce(order(tmp_path, 8)).rendered == 8


def test_orders_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 pictures were asked for"):
        order(tmp_path, 0)
    with pytest.raises(InputError, match="0 workers"):
        Order(tmp_path, 1, SMALL, workers=0)
    with pytest.raises(InputError, match="right hands only"):
        Order(tmp_path, 1, PictureOptions(), layout="freihand")
    with pytest.raises(InputError, match="the layout 'zip' is unknown"):
        Order(tmp_path, 1, SMALL, layout="zip")  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        produce(order(tmp_path / "file" / "below"))


def test_sheet(tmp_path: Path, renderer: Renderer) -> None:
    write_sheet(tmp_path / "sheet.png", [renderer.render(k) for k in range(5)])
    with Image.open(tmp_path / "sheet.png") as file:
        assert file.size == (8 * 48, 2 * 48)
        pixels = np.asarray(file)
    np.testing.assert_array_equal(pixels[:48, 96:144], renderer.render(1).rgb)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["synth", "--out", str(tmp_path / "o"), "--count", "3", "--size", "48", "--workers", "1"]
    assert main([*arguments, "--hand", "right", "--sheet", "--mano", "embedded"]) == 0
    assert "3 pictures rendered" in capsys.readouterr().err
    assert (tmp_path / "o" / "sheet.png").is_file()
    assert len(list(read_pictures(tmp_path / "o"))) == 3
    assert main([*arguments, "--hand", "right", "--mano", "embedded"]) == 0
    assert "0 pictures rendered" in capsys.readouterr().err
    assert main([*arguments, "--hand", "left", "--layout", "freihand"]) == 2
    assert "right hands only" in capsys.readouterr().err
