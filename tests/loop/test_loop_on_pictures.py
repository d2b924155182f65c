"""The loop on pictures: the way between crops and pictures, what it learns from, and that it can be interrupted."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handloop.core.augmentation import AugmentOptions, draw_augmentation
from handloop.core.camera import Camera
from handloop.core.errors import InputError
from handloop.core.layout import KeypointLayout
from handloop.core.params import HandParams
from handloop.hand.kinematics import Kinematics
from handloop.hand.load import embedded_hand
from handloop.hand.model import HandPair
from handloop.loop.batches import proposal_of, without_labels
from handloop.loop.config import PRESETS, FitOptions, ImageOptions, LoopConfig, PriorOptions, config_json, read_config
from handloop.loop.hand_data import HandData
from handloop.loop.image_loop import ImageLoop, data_of
from handloop.loop.joined_pictures import JoinedPictures, RelabelledPictures
from handloop.loop.log import read_log
from handloop.loop.loop_pictures import turn_into, turned, turned_labels, with_parameters
from handloop.loop.picture_source import KnownPictures, ShardSource, no_params
from handloop.loop.run import Progress
from handloop.regressors.backbones import BackboneOptions
from handloop.regressors.image import ImageRegressor
from handloop.regressors.image_network import ImageNetworkOptions
from handloop.regressors.network import Lifted
from handloop.synth.picture import PictureOptions
from handloop.synth.produce import Order, produce
from handloop.synth.shard_index import index_pictures

from .loop_hands import drawn, seen

FORK = multiprocessing.get_context("fork")
AUGMENT = AugmentOptions(rotation_deg=180, scale=0.4, shift=0.1, flip="to-right", occlusion=0.5)
NETWORK = ImageNetworkOptions(BackboneOptions("small", 4), size=32, width=8, rounds=1)
TINY = LoopConfig(
    steps=4,
    batch=8,
    views=0,
    synthetic=0,
    log_every=1,
    save_every=2,
    fit=FitOptions(refine_steps=3),
    prior=PriorOptions(every=1, rounds=1, uncertain=40),
    image=ImageOptions(NETWORK, AUGMENT),
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pair() -> HandPair:
    return embedded_hand()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, pair: HandPair) -> ShardSource:
    folder = tmp_path_factory.mktemp("pictures")
    produce(Order(folder, 40, PictureOptions(size=48, seed=3), "embedded", workers=1))
    return ShardSource(index_pictures(folder), (pair.right.digest, pair.left.digest))


def bare(full: ShardSource, known: int = 0) -> RelabelledPictures:
    """The first `known` hands keep their joints and parameters."""
    hands, gone = full.hands, torch.arange(full.count) >= known
    joints = hands.joints.masked_fill(gone[:, None, None], float("nan"))
    params = HandParams(*(t.masked_fill(gone[:, None], float("nan")) for t in hands.params.tensors()))
    return RelabelledPictures(full, replace(hands, joints=joints, params=params))


@pytest.mark.parametrize("crop", ["look-at", "affine"])
def test_there_and_back_is_exact(pair: HandPair, crop: Any) -> None:
    """Through rotations, scales, shifts and flips, for hands of both sides, judged by pixels and by points."""
    hands = drawn(60)
    keypoints, camera, joints = seen(hands, 0.0)
    is_right = keypoints.is_right
    box = torch.cat([keypoints.box()[:, :2] - 20, keypoints.box()[:, :2] + 220], 1)
    g = torch.Generator().manual_seed(1)
    options = replace(AUGMENT, crop=crop)
    view = draw_augmentation(camera, box, 96, keypoints.image_size, is_right, options, g).view
    turn = turn_into(view, is_right)
    assert int((~is_right).sum()) == 20 and bool((torch.linalg.det(turn) > 0.999).all())
    there = Lifted(hands.rotations.double(), hands.betas.double(), hands.root.double(), torch.zeros(60, 28))
    here = turned(there, turn)
    kinematics = Kinematics.from_hand(pair.right)
    # In the crop's frame the hand projects to where the pixels of the picture are mapped.
    points = kinematics.points(here.rotations, here.betas, here.root)
    torch.testing.assert_close(points, view.points(joints), rtol=0, atol=2e-6)
    torch.testing.assert_close(view.camera_out.project(points), view.pixels(camera.project(joints)), rtol=0, atol=5e-3)
    # And back: what the fits start from is the hand of its own side in the picture's own camera.
    back = turned(here, turn.mT)
    torch.testing.assert_close(back.rotations, there.rotations, rtol=0, atol=1e-12)
    torch.testing.assert_close(back.root, there.root, rtol=0, atol=1e-12)
    proposal = proposal_of(back, kinematics, is_right, camera)
    by_view = view.inverse().params(
        HandParams.from_rotation_matrices(here.rotations, here.betas, here.root - kinematics.root_offset(here.betas)),
        kinematics.root_offset(here.betas),
    )
    for ours, theirs in zip(proposal.params.tensors(), by_view.tensors(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    own = proposal.params
    for right in (True, False):
        rows = is_right == right
        side = Kinematics.from_hand(pair.side(right))
        some = own.select(rows)
        root = some.transl + side.root_offset(some.betas)
        found = side.points(some.rotation_matrices(), some.betas, root)
        torch.testing.assert_close(found, joints[rows], rtol=0, atol=2e-6)


def test_labels_are_carried_into_the_crops(pair: HandPair) -> None:
    hands = drawn(30)
    keypoints, camera, joints = seen(hands, 2.0)
    joints[10:] = float("nan")
    data = HandData.of(keypoints, camera, joints, held_out=0.0)
    box = torch.cat([keypoints.box()[:, :2] - 20, keypoints.box()[:, :2] + 220], 1)
    view = draw_augmentation(
        *(camera, box, 96, keypoints.image_size, keypoints.is_right, AUGMENT, torch.Generator().manual_seed(2))
    ).view
    true = without_labels(data, torch.arange(30), KeypointLayout.identity())
    here = turned_labels(true, turn_into(view, keypoints.is_right))
    expected = (view.keypoints(keypoints).xy - view.camera_out.princpt[:, None]) / view.camera_out.focal[:, None]
    torch.testing.assert_close(here.seen.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(here.hands.rays, here.seen)
    torch.testing.assert_close(here.hands.points[:10].double(), view.points(joints)[:10], rtol=0, atol=1e-5)
    assert torch.equal(here.points_weight, true.points_weight) and float(true.points_weight.sum()) == 210


def test_known_parameters_are_the_labels(full: ShardSource, pair: HandPair, tmp_path: Path) -> None:
    source = bare(full, known=10)
    training = ImageLoop(tmp_path, source, pair, replace(TINY, mode="off", held_out=0.0))
    seen_hands = training.pictures.plain(torch.arange(20))
    labels = turned_labels(without_labels(training.data, seen_hands.rows, training.layout), seen_hands.turn)
    true = with_parameters(labels, seen_hands.batch, training.kinematics)
    assert true.exact.tolist() == [True] * 10 + [False] * 10
    assert true.params_weight.tolist() == true.depth_weight.tolist() == [1.0] * 10 + [0.0] * 10
    points = training.kinematics.points(true.hands.rotations, true.hands.betas, true.hands.root)
    torch.testing.assert_close(points[:10], true.hands.points[:10], rtol=0, atol=1e-5)
    projected = true.hands.points[..., :2] / true.hands.points[..., 2:]
    torch.testing.assert_close(projected[:10], true.seen[:10], rtol=0, atol=1e-4)
    # Of a hand without joints, the points follow from its parameters.
    blind = replace(seen_hands.batch, joints_weight=torch.zeros(20, 21))
    again = with_parameters(labels, blind, training.kinematics)
    torch.testing.assert_close(again.hands.points[:10], true.hands.points[:10], rtol=0, atol=1e-5)
    training.close()


@pytest.mark.parametrize("mode", ["in_loop", "static", "off"])
def test_each_mode(full: ShardSource, pair: HandPair, tmp_path: Path, mode: Any) -> None:
    training = ImageLoop(tmp_path, bare(full), pair, replace(TINY, mode=mode, steps=2))
    regressor = training.run()
    fits = training.memory.cache.get([training.data.keypoints.ids[i] for i in training.data.train.tolist()])
    lines = read_log(tmp_path)
    assert [line["step"] for line in lines] == [1, 2] and all(line["loss_located"] > 0 for line in lines)
    assert (lines[-1]["loss_rotations"] > 0) == (mode != "off")
    assert "loss_usual_betas" in lines[-1] and "held_out_network_rms_percent" in lines[-1]
    if mode == "off":
        assert not bool(fits.found.any())
    else:
        starts = {origin.start for origin in fits.origin if origin is not None}
        assert starts == {"static"} if mode == "static" else starts <= {"regressor", "cached"}
        # Fits never see an augmented frame: their keypoints and cameras are the pictures' own.
        rows = training.data.train[fits.found]
        known = full.hands.select(rows)
        some = fits.select(fits.found)
        torch.testing.assert_close(some.keypoints_2d[..., :2].double(), known.keypoints.xy, rtol=1e-6, atol=1e-4)
        assert torch.equal(some.focal, known.camera.focal) and torch.equal(some.princpt, known.camera.princpt)
        assert torch.equal(some.is_right, known.keypoints.is_right) and not bool(some.is_right.all())
        # And they are of the hands in the pictures.
        found = 1000 * (some.keypoints_3d - some.keypoints_3d[:, :1] - known.joints + known.joints[:, :1])
        assert float(found.norm(dim=2).mean(1).median()) < 25
    names = {path.name for path in tmp_path.iterdir()}
    assert {"weights.safetensors", "weights.json", "prior.npz", "layout.json", "config.json", "checkpoint.pt"} <= names
    assert ("results.npz" in names) == (mode != "off")
    again = ImageRegressor.load(tmp_path / "weights.safetensors", pair)
    assert torch.equal(again.network.usual, regressor.network.usual) and bool(again.network.log_sd_scale.isnan().all())
    training.close()


def run(folder: Path, source: KnownPictures, config: LoopConfig, stop_after: int = -1) -> ImageLoop:
    """To the end, or until the process is killed by itself after a step."""
    training = ImageLoop(folder, source, embedded_hand(), config)

    def look(at: Progress) -> None:
        if at.step == stop_after:
            os.kill(os.getpid(), signal.SIGKILL)

    training.run(look)
    return training


def everything(training: ImageLoop, content: Any) -> tuple[Any, ...]:
    """All that must be the same: weights, their mean, the optimiser's moments, fits, prior, log."""
    lines = [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in read_log(training.folder)]
    moments = training.learner.optimiser.state_dict()["state"]
    return (
        [t.nan_to_num(-1).tolist() for t in training.learner.network.state_dict().values()],
        [t.nan_to_num(-1).tolist() for t in training.learner.mean.state_dict().values()],
        [t.tolist() for group in moments.values() for t in group.values()],
        training.memory.prior.means.tolist(),
        content(training.memory.cache.path),
        json.dumps(lines),
        (training.folder / "weights.safetensors").read_bytes(),
    )


def test_a_killed_run_goes_on_to_the_same_bits(full: ShardSource, tmp_path: Path, content: Any) -> None:
    """With an attempt at a prior in between, hands with and without 3D, batches across the ends of epochs."""
    source, config = bare(full, known=10), replace(TINY, batch=20)
    whole = run(tmp_path / "whole" / "a", source, config)
    assert any("prior_update" in line for line in read_log(whole.folder))
    folder = tmp_path / "killed" / "a"
    child = FORK.Process(target=run, args=(folder, source, config, 3))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    again = ImageLoop(folder, source, embedded_hand(), config)
    assert again.step == 2
    again.run()
    for one, other in zip(everything(whole, content), everything(again, content), strict=True):
        assert one == other
    with pytest.raises(InputError, match="another configuration"):
        ImageLoop(folder, source, embedded_hand(), replace(config, seed=5))
    for training in (whole, again):
        training.close()


def test_keypoints_and_fits_teach_the_network(full: ShardSource, pair: HandPair, tmp_path: Path) -> None:
    """True joints, never shown, come nearer."""
    network = replace(NETWORK, backbone=BackboneOptions("small", 8), width=64)
    still = ImageOptions(network, AugmentOptions(rotation_deg=0, scale=0, shift=0, flip="to-right", colour=0))
    config = replace(TINY, steps=50, batch=12, held_out=0.0, learning_rate=5e-3, ema=0.5, save_every=99, image=still)
    some = bare(full)
    source = RelabelledPictures(full, some.hands.select(torch.arange(12)))
    training = ImageLoop(tmp_path, source, pair, replace(config, prior=PriorOptions(every=0)))
    truth = full.hands.params.rotation_matrices()[:12, 0]

    def angle() -> float:
        found = training._propose(torch.arange(12)).params.rotation_matrices()[:, 0]
        return float(((found * truth).sum((1, 2)) - 1).div(2).clamp(-1, 1).arccos().mean())

    before = angle()
    training.run()
    assert angle() < 0.5 * before
    training.close()


def test_processes_and_a_start_change_nothing_but_the_start(full: ShardSource, pair: HandPair, tmp_path: Path) -> None:
    config = replace(TINY, mode="off", steps=1, batch=4)
    regressor = run(tmp_path / "a", bare(full), config).run()
    begun = ImageLoop(tmp_path / "b", bare(full), pair, config, regressor, workers=1)
    for ours, theirs in zip(begun.learner.network.parameters(), regressor.network.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours.requires_grad
    wrong = replace(regressor, hand=replace(regressor.hand, name="another"))
    with pytest.raises(InputError, match=r"trained with the hand model 'another', not with"):
        object.__setattr__(wrong.hand, "digest", "other")
        ImageLoop(tmp_path / "d", bare(full), pair, config, wrong)


def test_joined_pictures_are_those_of_their_sources(full: ShardSource) -> None:
    other = bare(full)
    joined = JoinedPictures.of([full, other])
    assert joined.count == 80 and joined.hands.keypoints.ids[41] == f"1:{full.hands.keypoints.ids[1]}"
    drawn_pictures = joined.draw([41, 3, 40])
    for place, row in enumerate((1, 3, 0)):
        assert np.array_equal(drawn_pictures.pictures[place], full.pictures.rgb(row))
    hands = drawn_pictures.hands
    assert hands.keypoints.image_size.tolist() == [[48.0, 48.0]] * 3
    assert hands.joints.isnan().all(1).any(1).tolist() == [True, False, True]
    assert torch.equal(hands.camera.focal, full.hands.camera.focal[[1, 3, 0]])
    assert data_of(joined, 0.0).points_3d is not None and data_of(other, 0.0).points_3d is None
    distorted = Camera(torch.ones(1, 2), torch.zeros(1, 2), torch.full((1, 5), 0.5))
    both = Camera.concatenate([distorted, Camera(torch.ones(1, 2), torch.zeros(1, 2), torch.full((1, 4), 0.25))])
    assert both.dist is not None and both.dist.tolist() == [[0.5] * 5, [0.25] * 4 + [0.0]]


def test_configurations(full: ShardSource, pair: HandPair, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(config_json(TINY))
    assert read_config(path) == TINY
    path.write_text(json.dumps({"preset": "image-loop", "image": {"network": {"head": "attention"}}}))
    assert read_config(path) == replace(
        PRESETS["image-loop"], image=ImageOptions(ImageNetworkOptions(head="attention", width=64))
    )
    for change, message in (
        ({"views": 8}, "0 of the others, which are keypoints alone"),
        ({"image": {"augment": {"flip": "random"}}}, "right hands only"),
        ({"image": {"located": -1}}, "negative"),
        ({"accumulate": 2}, "in one part"),
    ):
        path.write_text(json.dumps({"preset": "image-loop", **change}))
        with pytest.raises(InputError, match=message):
            read_config(path)
    with pytest.raises(InputError, match="begin with the preset image-loop"):
        ImageLoop(tmp_path / "run", full, pair, LoopConfig())
    nothing = replace(full.hands, params=no_params(40))
    assert not bool(torch.isfinite(nothing.params.betas).any())


def test_points_alone_teach_the_lifting_head_its_maps(full: ShardSource, pair: HandPair, tmp_path: Path) -> None:
    """Without fits and 3D labels, heat-maps and the direction of the fingers still have something to learn from."""
    head = replace(NETWORK, head="lifting")
    config = replace(TINY, mode="off", steps=1, image=replace(TINY.image or ImageOptions(), network=head))
    run = ImageLoop(tmp_path, bare(full), pair, config)
    before = {name: p.detach().clone() for name, p in run.learner.network.named_parameters()}
    run.run()
    run.close()
    line = read_log(tmp_path)[-1]
    assert line["loss_heat"] > 0 and line["loss_heading"] > 0
    moved = {name for name, p in run.learner.network.named_parameters() if not torch.equal(p, before[name])}
    assert any(name.startswith("upright.") for name in moved) and any(name.startswith("backbone.") for name in moved)
    assert line["loss_depths"] == 0 and "head.depth" not in moved


def test_depths_are_learned_from_fits(full: ShardSource, pair: HandPair, tmp_path: Path) -> None:
    head = replace(NETWORK, head="lifting")
    config = replace(TINY, steps=2, log_every=1, image=replace(TINY.image or ImageOptions(), network=head))
    run = ImageLoop(tmp_path, bare(full), pair, replace(config, prior=replace(TINY.prior, every=0)))
    before = {name: p.detach().clone() for name, p in run.learner.network.named_parameters()}
    run.run()
    run.close()
    assert read_log(tmp_path)[0]["loss_depths"] > 0
    moved = {name for name, p in run.learner.network.named_parameters() if not torch.equal(p, before[name])}
    assert "head.depth" in moved
