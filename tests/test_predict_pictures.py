"""`handloop train image` and `predict` on pictures, end to end with a tiny network on 32 tiny pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from handloop.cli import main
from handloop.core.errors import InputError
from handloop.core.results import Status
from handloop.formats.options import ReadOptions
from handloop.hand.load import embedded_hand
from handloop.picture_start import PictureStart, is_image_weights
from handloop.synth.picture import PictureOptions
from handloop.synth.produce import Order, produce

TRAIN = [
    "--mano",
    "embedded",
    "--size",
    "32",
    "--steps",
    "3",
    "--batch",
    "4",
    "--held-out",
    "8",
    "--workers",
    "0",
    "--precision",
    "fp32",
]


@pytest.fixture(autouse=True)
def quiet_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No MANO file of whoever runs the tests; messages on one line each."""
    monkeypatch.delenv("HANDLOOP_MANO", raising=False)
    monkeypatch.setenv("COLUMNS", "4000")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    produce(Order(folder, 32, PictureOptions(size=224, hand="right", occluders=0), "embedded", "freihand", 1))
    return folder


@pytest.fixture(scope="module")
def weights(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learned nothing yet, made by the command."""
    path = tmp_path_factory.mktemp("image") / "w.safetensors"
    assert main(["train", "image", str(pictures), "--out", str(path), *TRAIN]) == 0
    return path


def run(*args: object) -> int:
    return main(["predict", *map(str, args), "--device", "cpu", "--report-hands", "0", "--mano", "embedded"])


def test_training_writes_weights_a_description_and_a_log(weights: Path) -> None:
    assert {p.name for p in weights.parent.iterdir()} == {"w.safetensors", "w.json", "w.jsonl"}
    assert is_image_weights(weights)
    (line,) = [json.loads(text) for text in weights.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    assert line["step"] == 3 and line["pa_mm"] > 0 and line["points"] > 0
    # The embedded hand's data set comes without its parameters: joints alone teach.
    assert "fingers" in line and line["fingers"] == 0


def test_predict_and_refine(pictures: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(pictures, "--weights", weights, "--out", tmp_path / "p") == 0
    assert "32 of 32 hands predicted" in capsys.readouterr().err
    predicted = np.load(tmp_path / "p" / "results.npz")
    assert (predicted["status"] == Status.PREDICTED).all() and np.isfinite(predicted["energy"]).all()
    assert run(pictures, "--weights", weights, "--out", tmp_path / "r", "--refine") == 0
    refined = np.load(tmp_path / "r" / "results.npz")
    # From hands that look anywhere a fit may end at a wrong one, but at a better one.
    assert (refined["steps"] > 0).all() and (refined["rms_px"] < predicted["rms_px"]).mean() > 0.9
    assert run(pictures, "--weights", weights, "--out", tmp_path / "q") == 0
    assert (tmp_path / "p" / "results.npz").read_bytes() == (tmp_path / "q" / "results.npz").read_bytes()


def test_boxes_stand_in_for_keypoints(
    pictures: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same boxes as from the keypoints give the same hands; pictures that cannot be read are reported."""
    assert run(pictures, "--weights", weights, "--out", tmp_path / "p") == 0
    predicted = np.load(tmp_path / "p" / "results.npz")
    points = predicted["keypoints_2d"][:3, :, :2].astype(float)
    entries: list[dict[str, object]] = [
        {"image": f"{i:08d}.jpg", "box": [*points[i].min(0), *points[i].max(0)], "is_right": True} for i in range(3)
    ]
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    entries.append({"image": str(tmp_path / "broken.jpg"), "box": [0, 0, 9, 9], "is_right": True})
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps(entries), encoding="utf-8")
    camera = tmp_path / "camera.json"
    K = np.zeros((3, 3))
    K[0, 0], K[1, 1] = predicted["focal_length"][0]
    K[:2, 2], K[2, 2] = predicted["princpt"][0], 1
    camera.write_text(json.dumps({"K": K.tolist()}), encoding="utf-8")
    folder = pictures / "training" / "rgb"
    args = (folder, "--boxes", boxes, "--camera", camera, "--weights", weights, "--out", tmp_path / "b")
    capsys.readouterr()
    assert run(*args, "--refine") == 1
    said = capsys.readouterr().err
    assert "3 of 3 hands predicted" in said and "without keypoints" in said and "broken.jpg" in said
    found = np.load(tmp_path / "b" / "results.npz")
    assert (found["status"] == Status.PREDICTED).all() and np.isnan(found["energy"]).all()
    np.testing.assert_allclose(found["hand_pose"][0], predicted["hand_pose"][0], atol=1e-3)
    np.testing.assert_allclose(found["transl"][0], predicted["transl"][0], atol=1e-3)
    np.testing.assert_allclose(found["joints"][0], predicted["joints"][0], atol=1e-3)


def test_what_cannot_be_done_is_said(
    pictures: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "image", str(tmp_path / "no"), "--out", str(tmp_path / "w.safetensors"), *TRAIN]) == 2
    assert "no is no folder; give one that handloop synth wrote" in capsys.readouterr().err
    assert main(["train", "image", str(pictures), "--out", str(tmp_path / "w.pt"), *TRAIN]) == 2
    assert "expected a name that ends in .safetensors" in capsys.readouterr().err
    assert run(pictures, "--boxes", tmp_path / "b.json", "--out", tmp_path / "p") == 2
    assert "--boxes is for image regressors" in capsys.readouterr().err
    start = PictureStart(weights, None)
    (tmp_path / "note.txt").write_text("hello")
    assert run(tmp_path / "note.txt", "--weights", weights, "--out", tmp_path / "p") == 2
    assert "note.txt: files of the kind .txt are not keypoints that can be read" in capsys.readouterr().err
    np.savez(tmp_path / "hands.npz", keypoints_2d=np.random.default_rng(0).uniform(0, 99, (2, 21, 2)))
    with pytest.raises(InputError, match="2 hands come without a picture"):
        start.read([tmp_path / "hands.npz"], ReadOptions())
    produce(Order(tmp_path / "tar", 1, PictureOptions(size=32), "embedded", workers=1))
    with pytest.raises(InputError, match=r"holds the tar files of `handloop synth`.*--layout freihand"):
        start.read([tmp_path / "tar"], ReadOptions())
    assert not is_image_weights(tmp_path / "gone.safetensors")
    assert embedded_hand().right.digest


def test_an_interrupted_training_goes_on(pictures: Path, weights: Path, tmp_path: Path) -> None:
    """From the checkpoint of a run that was stopped: the same weights as without a stop."""
    from handloop.loop import train_image

    class Stop(Exception):
        pass

    path = tmp_path / "w.safetensors"
    whole = train_image.ImageTraining.save
    command = ["train", "image", str(pictures), "--out", str(path), *TRAIN, "--measure-every", "2"]

    def save_and_stop(self: train_image.ImageTraining, target: Path) -> None:
        whole(self, target)
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_image.ImageTraining, "save", save_and_stop)
        with pytest.raises(Stop):
            main(command)
    assert not path.exists() and (tmp_path / "w.safetensors.checkpoint").exists()
    assert main([*command, "--resume"]) == 0
    assert not (tmp_path / "w.safetensors.checkpoint").exists()
    straight = tmp_path / "s.safetensors"
    assert main(["train", "image", str(pictures), "--out", str(straight), *TRAIN, "--measure-every", "2"]) == 0
    assert straight.read_bytes() == path.read_bytes()
