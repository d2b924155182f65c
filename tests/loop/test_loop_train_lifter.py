"""Training a lifter: it learns, a seed names the weights, an interruption changes nothing, calibration."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from handloop.core.errors import FileFormatError, InputError
from handloop.hand.load import embedded_hand
from handloop.loop import train_lifter
from handloop.loop.supervise import standardised
from handloop.loop.train_lifter import LifterTraining, Progress, TrainOptions, calibrate
from handloop.regressors.network import NetworkSize
from handloop.synth.keypoints import KeypointNoise, SynthOptions

TINY = TrainOptions(steps=4, batch=16, size=NetworkSize(24, 1))


@pytest.fixture(autouse=True)
def short_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_lifter, "_CALIBRATION_HANDS", 300)


def weights(training: LifterTraining) -> list[torch.Tensor]:
    return list(training.network.state_dict().values())


def test_it_learns_eight_hands_by_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise, eight hands seen over and over are met to a millimetre or two."""
    quiet = KeypointNoise(jitter=(1e-6, 1e-6), dropout=0, hidden_finger=0, swap=0, outlier=0)
    size = NetworkSize(128, 2)
    options = TrainOptions(steps=200, batch=8, size=size, learning_rate=5e-3, synth=SynthOptions(noise=quiet), ema=0.9)
    training = LifterTraining(embedded_hand().right, options)
    same = training.synth.draw(8, torch.Generator().manual_seed(1))
    monkeypatch.setattr(type(training.synth), "draw", lambda self, n, g: same)
    monkeypatch.setattr(train_lifter, "calibrate", lambda *_: None)
    seen: list[Progress] = []
    training.run(None, seen.append)
    assert seen[0].error_mm > 40
    assert seen[-1].error_mm < 4
    with torch.no_grad():
        out = training.network(same.rays, same.conf, same.offsets, same.mean_betas)
    depth = (out.root[:, 2] / same.root[:, 2]).log().abs()
    assert float(depth.max()) < 0.03


def test_a_seed_names_the_weights() -> None:
    hand = embedded_hand().right
    a, b, c = (LifterTraining(hand, replace(TINY, seed=seed)) for seed in (1, 1, 2))
    torch.manual_seed(99)  # Nothing outside may matter.
    for training in (a, b, c):
        training.run()
    assert all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(weights(a), weights(c), strict=True))


def test_a_resumed_training_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_lifter, "_SAVE_EVERY", 2)
    hand, file = embedded_hand().right, tmp_path / "w.checkpoint"

    class Interrupted(Exception):
        pass

    def stop(at: Progress) -> None:
        if at.step == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        LifterTraining(hand, TINY).run(file, stop)
    second = LifterTraining(hand, TINY)
    second.resume(file)
    assert second.step == 2
    whole = LifterTraining(hand, TINY)
    a, b = second.run(), whole.run()
    for x, y in zip(a.network.state_dict().values(), b.network.state_dict().values(), strict=True):
        assert torch.equal(x, y)


def test_checkpoints_of_others_are_refused(tmp_path: Path) -> None:
    hand, file = embedded_hand().right, tmp_path / "w.checkpoint"
    training = LifterTraining(hand, TINY)
    training.save(file)
    with pytest.raises(InputError, match="another model or other options"):
        LifterTraining(hand, replace(TINY, seed=5)).resume(file)
    file.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(FileFormatError, match="checkpoint"):
        training.resume(file)
    torch.save({"format": "other"}, file)
    with pytest.raises(FileFormatError, match="not a checkpoint of a lifter"):
        training.resume(file)
    with pytest.raises(InputError, match="at least 1 step"):
        replace(TINY, steps=0)


def test_calibration_makes_one_sigma_hold_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of an untrained network: its errors are large, and then so are its deviations."""
    monkeypatch.setattr(train_lifter, "_CALIBRATION_HANDS", 3000)
    training = LifterTraining(embedded_hand().right, TINY)
    network, synth = training.network, training.synth
    calibrate(network, synth, torch.Generator().manual_seed(3))
    batch = synth.draw(3000, torch.Generator().manual_seed(4))
    with torch.no_grad():
        z = standardised(network(batch.rays, batch.conf, batch.offsets, batch.mean_betas), batch)
    inside = torch.stack([(each.abs() < 1).double().mean() for each in z])
    assert len(inside) == 28
    assert float((inside - math.erf(math.sqrt(0.5))).abs().max()) < 0.04


def test_the_untrained_network_answers_with_the_usual_pose() -> None:
    training = LifterTraining(embedded_hand().right, TINY)
    batch = training.synth.draw(32, torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = training.network(batch.rays, batch.conf, batch.offsets, batch.mean_betas)
        mean = train_lifter.so3_exp(training.synth.prior.mean.reshape(15, 3))
        angle = torch.linalg.matrix_norm(out.rotations[:, 1:] - mean)
    assert float(angle.mean()) < 0.4
