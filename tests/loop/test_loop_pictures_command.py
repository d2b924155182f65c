"""`handloop train loop` on pictures from end to end, and that its files are what the other commands take."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handloop.cli import main
from handloop.hand.load import embedded_hand
from handloop.loop.cache import FitCache
from handloop.loop.picture_source import open_source
from handloop.synth.picture import PictureOptions
from handloop.synth.produce import Order, produce

SETTINGS = {
    **{"preset": "image-loop", "steps": 2, "batch": 8, "log_every": 1, "save_every": 2, "prior": {"every": 0}},
    "image": {"network": {"size": 32, "width": 8, "rounds": 1, "backbone": {"width": 4}}},
}


@pytest.fixture(autouse=True)
def quiet_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HANDLOOP_MANO", raising=False)
    monkeypatch.setenv("COLUMNS", "4000")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered")
    produce(Order(folder, 24, PictureOptions(size=48, seed=3), "embedded", workers=1))
    return folder


@pytest.fixture(scope="module")
def files(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keypoints as OpenPose writes them, each beside its picture."""
    folder = tmp_path_factory.mktemp("files")
    drawn = open_source(rendered, embedded_hand(), "embedded", PictureOptions()).draw(range(16))
    for i, picture in enumerate(drawn.pictures):
        name = "hand_right_keypoints_2d" if bool(drawn.hands.keypoints.is_right[i]) else "hand_left_keypoints_2d"
        points = np.concatenate([drawn.hands.keypoints.xy[i].numpy(), np.ones((21, 1))], 1)
        person = {"person_id": [-1], name: points.ravel().tolist()}
        (folder / f"a{i:03d}_keypoints.json").write_text(json.dumps({"version": 1.3, "people": [person]}))
        Image.fromarray(picture).save(folder / f"a{i:03d}.png")
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(SETTINGS))
    return path


def test_the_command_from_end_to_end(
    tmp_path: Path, rendered: Path, files: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Keypoint files with their pictures, and rendered pictures with all their labels beside them."""
    out = tmp_path / "run"
    call = ["train", "loop", str(files), str(rendered), "--out", str(out), "--config", str(config), "--workers", "0"]
    assert main(call) == 0
    said = capsys.readouterr().err
    assert "36 hands to learn from, 4 held out; step 0 of 2" in said and "predict PICTURES --weights" in said
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "layout.json", "weights.safetensors", "weights.json", "prior.npz", "results.npz"} <= names
    assert json.loads((out / "config.json").read_text())["image"]["network"]["size"] == 32
    page = (out / "report.html").read_text()
    assert "Losses" in page and page.count("<img") >= 8 and "https://" not in page
    with FitCache.open(out / "fits", write=False) as cache:
        ids = [name for fits in cache.batches() for name in fits.ids]
    assert {name[:2] for name in ids} == {"0:", "1:"}
    # A second run in the folder must be asked for; it has nothing left to do.
    before = (out / "weights.safetensors").read_bytes()
    assert main(call) == 2 and "go on with --resume" in capsys.readouterr().err
    assert main([*call, "--resume"]) == 0 and "step 2 of 2" in capsys.readouterr().err
    assert (out / "weights.safetensors").read_bytes() == before
    # What it leaves is what the other commands take, and what another run begins with.
    weights = ["--weights", str(out / "weights.safetensors")]
    assert main(["predict", str(files), "--out", str(tmp_path / "p"), *weights, "--report-hands", "0"]) == 0
    assert len(np.load(tmp_path / "p" / "results.npz")["betas"]) == 16
    more = ["train", "loop", str(files), "--out", str(tmp_path / "more"), "--config", str(config), "--mode", "off"]
    assert main([*more, *weights, "--workers", "0"]) == 0


def test_a_data_set_and_its_parts(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "set", tmp_path / "run"
    produce(Order(folder, 12, PictureOptions(size=64, hand="right"), "embedded", "freihand", 1))
    call = ["train", "loop", str(folder), "--out", str(out), "--config", str(config), "--workers", "0", "--mode", "off"]
    assert main([*call, "--split", "training"]) == 0
    assert "11 hands to learn from, 1 held out" in capsys.readouterr().err
    assert main([*call, "--resume", "--split", "nothing"]) == 2 and "'nothing'" in capsys.readouterr().err


def test_wrong_use_is_explained(
    tmp_path: Path, rendered: Path, files: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "a_keypoints.json").write_text((files / "a000_keypoints.json").read_text())
    out, pictures = ["--out", str(tmp_path / "run")], ["--config", str(config)]
    for arguments, message in (
        ([str(bare), *pictures], "1 hands come without a picture"),
        ([str(rendered), *pictures, "--split", "training"], "no input is a picture data set"),
        ([str(rendered), *pictures, "--hand", "right"], "--camera, --hand and --images are for keypoint files"),
        ([str(rendered), *pictures, "--workers", "-1"], "0 to 256"),
        ([str(rendered), *pictures, "--fresh", "--weights", "w.safetensors"], "--fresh and --weights"),
        ([str(rendered), *pictures, "--weights", str(tmp_path / "w.safetensors")], "description cannot be read"),
        ([str(files), "--images", str(files)], "--config image-loop"),
    ):
        assert main(["train", "loop", *arguments, *out]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
