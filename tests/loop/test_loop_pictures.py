"""Pictures to training batches: labels that agree with each other, order, sources."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from handloop.core.augmentation import AugmentOptions
from handloop.core.errors import FileFormatError, InputError
from handloop.core.rotations import so3_log
from handloop.hand.kinematics import Kinematics
from handloop.hand.load import embedded_hand
from handloop.hand.mesh import skin
from handloop.loop.picture_batches import HELD_OUT_FROM, BatchOptions, PictureBatches, TrainingBatch, in_processes
from handloop.loop.picture_source import DatasetSource, RenderedSource, ShardSource, open_source
from handloop.synth.picture import PictureOptions
from handloop.synth.produce import Order, produce
from handloop.synth.shard_index import index_pictures
from handloop.synth.shards import read_pictures

COUNT = 24
OPTIONS = PictureOptions(size=64, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    produce(Order(path / "tar", COUNT, OPTIONS, "embedded", workers=1))
    produce(Order(path / "freihand", 4, replace(OPTIONS, hand="right"), "embedded", "freihand", 1))
    return path


def batches_of(source: object, batch: int = 8, held_out: int = 8, masks: bool = True) -> PictureBatches:
    wild = AugmentOptions(rotation_deg=180, scale=0.3, shift=0.1, flip="to-right", occlusion=0.5)
    options = BatchOptions(48, batch, 5, wild, masks, held_out=held_out)
    return PictureBatches.of(source, embedded_hand(), options)  # type: ignore[arg-type]


def equal(a: TrainingBatch, b: TrainingBatch) -> bool:
    return all(
        torch.equal(x.nan_to_num(-1), y.nan_to_num(-1)) for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


def checked(batch: TrainingBatch) -> None:
    """Parameters, joints and points are all of the same hand in the same frame."""
    kinematics = Kinematics.from_hand(embedded_hand().right)
    points = kinematics.points(batch.rotations.double(), batch.betas.double(), batch.root.double())
    torch.testing.assert_close(points, batch.joints.double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.camera().project(points), batch.points.double(), atol=2e-2, rtol=0)
    torch.testing.assert_close(torch.linalg.det(batch.rotations), torch.ones(len(batch), 16))


def test_labels_agree_after_augmentation(folder: Path) -> None:
    source = open_source(folder / "tar", embedded_hand(), "embedded", OPTIONS)
    assert isinstance(source, ShardSource) and source.count == COUNT
    assert 0 < int(source.pictures.is_right.sum()) < COUNT
    for batch in (batches_of(source)[0], *batches_of(source).held_out()):
        assert batch.crops.shape == (8, 3, 48, 48) and bool(batch.has_params.all()) and bool(batch.has_root.all())
        checked(batch)


def test_the_mask_lies_under_the_mesh(folder: Path) -> None:
    """Sampled pixels of the mask have a projected vertex near by."""
    source = open_source(folder / "tar", embedded_hand(), "embedded", OPTIONS)
    batch = batches_of(source)[1]
    kinematics = batches_of(source).right
    transl = batch.root.double() - kinematics.root_offset(batch.betas.double())
    pose = so3_log(batch.rotations.double()).flatten(1)
    vertices = skin(embedded_hand().right, pose[:, :3], pose[:, 3:], batch.betas.double(), transl)[0]
    px = batch.camera().project(vertices)
    for row in batch.has_mask.nonzero()[:, 0].tolist():
        apart = torch.cdist(batch.pixels[row].double(), px[row]).amin(1)
        assert float(apart.max()) < 3.5
        assert float(batch.field[row].min()) == 0
        at = batch.pixels[row].long()
        assert not batch.field[row][at[:, 1], at[:, 0]].any()


def test_a_batch_depends_on_its_number_alone(folder: Path) -> None:
    source = open_source(folder / "tar", embedded_hand(), "embedded", OPTIONS)
    batches, again = batches_of(source), copy.deepcopy(batches_of(source))
    assert equal(batches[3], again[3])
    assert not equal(batches[3], batches[4])
    # Every hand that is not held out comes once per epoch: two batches of eight.
    seen = [batches[step].betas for step in (0, 1)]
    assert len(torch.cat(seen).unique(dim=0)) == 16
    kept = torch.cat([b.betas for b in batches.held_out()])
    assert not any(bool((row == kept).all(1).any()) for row in torch.cat(seen))


def test_processes_make_the_same_batches_and_report_errors(folder: Path) -> None:
    source = open_source(folder / "freihand", embedded_hand(), "embedded", OPTIONS)
    assert isinstance(source, DatasetSource)
    whole = batches_of(source, 2, 0)
    lost = set(source.hands.keypoints.ids) - set(_ids(whole, 0))
    paths = zip(source.hands.keypoints.ids, source.hands.keypoints.image, strict=True)
    image = tuple(path + ".gone" if name in lost else path for name, path in paths)
    hands = replace(source.hands, keypoints=replace(source.hands.keypoints, image=image))
    found = in_processes(batches_of(replace(source, hands=hands), 2, 0), range(2), 1)
    assert equal(next(found), whole[0])
    with pytest.raises(FileFormatError, match=r"\.gone: the picture cannot be read \(\w+\)\.$"):
        next(found)


def _ids(batches: PictureBatches, step: int) -> list[str]:
    """Names of the hands in a batch, found by their joints."""
    assert isinstance(batches.source, DatasetSource)
    hands = batches.source.hands
    sizes = (hands.joints[:, 0] - hands.joints[:, 9]).norm(dim=1)
    there = (batches[step].joints[:, 0] - batches[step].joints[:, 9]).norm(dim=1)
    return [hands.keypoints.ids[int((sizes - size).abs().argmin())] for size in there]


def test_rendered_pictures_are_those_of_the_folder(folder: Path) -> None:
    rendered = RenderedSource(OPTIONS, "embedded")
    stored = open_source(folder / "tar", embedded_hand(), "embedded", OPTIONS)
    a, b = rendered.draw([2, 5]), stored.draw([2, 5])
    torch.testing.assert_close(a.hands.joints, b.hands.joints, atol=1e-6, rtol=0)
    torch.testing.assert_close(a.hands.params.hand_pose, b.hands.params.hand_pose, atol=1e-8, rtol=0)
    for ours, theirs in zip(a.pictures, b.pictures, strict=True):
        assert float(np.abs(ours.astype(float) - theirs).mean()) < 5
    assert rendered.count is None and next(iter(batches_of(rendered, 2, 2).held_out())).crops.shape[0] == 2
    assert HELD_OUT_FROM == 90_000_000


def test_a_data_set_gives_joints_without_parameters(folder: Path) -> None:
    source = open_source(folder / "freihand", embedded_hand(), "embedded", OPTIONS, "training")
    assert isinstance(source, DatasetSource) and source.count == 4
    batch = batches_of(source, 4, 0)[0]
    assert not batch.has_params.any() and bool(batch.has_root.all()) and bool(batch.has_mask.all())
    assert bool((batch.joints_weight == 1).all())
    torch.testing.assert_close(batch.camera().project(batch.joints.double()), batch.points.double(), atol=2e-2, rtol=0)
    torch.testing.assert_close(batch.root, batch.joints[:, 0])


def test_parameters_of_another_model_do_not_count(folder: Path) -> None:
    source = open_source(folder / "tar", embedded_hand(), "embedded", OPTIONS)
    assert isinstance(source, ShardSource)
    batch = batches_of(replace(source, digests=("x", "y")))[0]
    assert not batch.has_params.any() and bool((batch.joints_weight == 1).all())


def test_the_index_reads_what_the_reader_reads(folder: Path) -> None:
    index = index_pictures(folder / "tar")
    for row, picture in enumerate(read_pictures(folder / "tar")):
        assert np.array_equal(index.rgb(row), picture.rgb) and np.array_equal(index.mask(row), picture.mask)
        assert np.array_equal(index.keypoints_3d[row].numpy(), picture.keypoints_3d)
        assert torch.equal(index.params.transl[row], picture.params.transl[0])
        assert bool(index.is_right[row]) == picture.is_right and int(index.index[row]) == row
    assert len(index) == COUNT


def test_sources_that_are_none(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no known data set"):
        open_source(tmp_path, embedded_hand(), None, OPTIONS)
    with pytest.raises(InputError, match="have no parts"):
        open_source(folder / "tar", embedded_hand(), None, OPTIONS, "training")
    part = next((folder / "tar").glob("*.tar"))
    (tmp_path / part.name).write_bytes(part.read_bytes()[:20000])
    with pytest.raises(FileFormatError, match="not a whole part"):
        open_source(tmp_path, embedded_hand(), None, OPTIONS)
