"""The lifter: its camera, mirroring, missing points, files, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from handloop.core.errors import FileFormatError, InputError
from handloop.core.layout import KeypointLayout
from handloop.core.proposal import Proposal
from handloop.hand.load import embedded_hand
from handloop.regressors.base import KeypointBatch
from handloop.regressors.lifter import Lifter, PairLifter
from handloop.regressors.network import LifterNetwork, NetworkSize
from handloop.regressors.view import HandView, look_at

Batches = Callable[..., KeypointBatch]
Points = Callable[..., torch.Tensor]


@pytest.fixture
def pair_lifter(lifter: Lifter) -> PairLifter:
    return lifter.for_pair(embedded_hand())


def tensors(p: Proposal) -> list[torch.Tensor]:
    return [*p.params.tensors(), p.rotations_sd, p.betas_sd, p.bearing_sd, p.log_depth_sd]


def test_one_hand_per_row(pair_lifter: PairLifter, batch_of: Batches, some_points: Points) -> None:
    for n in (0, 1, 5):
        found = pair_lifter.propose(batch_of(some_points(n)))
        assert len(found) == n and found.rotations_sd.shape == (n, 16) and found.betas_sd.shape == (n, 10)
        assert all(bool(t.isfinite().all()) and t.dtype == torch.float64 for t in tensors(found))
        assert bool((found.rotations_sd > 0).all()) and found.ids is not None and len(found.ids) == n
        wrist = found.params.transl + pair_lifter.kinematics.root_offset(found.params.betas)
        assert bool((wrist[:, 2] > 0).all())


def test_the_default_network_has_at_most_two_million_weights() -> None:
    assert sum(p.numel() for p in LifterNetwork(NetworkSize()).parameters()) <= 2_000_000


def test_a_left_hand_is_the_mirror_of_its_right_one(
    pair_lifter: PairLifter, batch_of: Batches, some_points: Points
) -> None:
    points = some_points(6)
    mirrored = points.clone()
    mirrored[..., 0] = 641.0 - points[..., 0]
    right, left = pair_lifter.propose(batch_of(points)), pair_lifter.propose(batch_of(mirrored, False))
    for a, b in zip(right.params.mirrored().tensors(), left.params.tensors(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(right.rotations_sd, left.rotations_sd)
    mixed = pair_lifter.propose(batch_of(torch.cat([points, mirrored]), torch.tensor([True] * 6 + [False] * 6)))
    assert torch.equal(mixed.params.transl[6:], left.params.transl)


def test_missing_points_may_lie_anywhere(pair_lifter: PairLifter, batch_of: Batches, some_points: Points) -> None:
    points = torch.cat([some_points(4), torch.ones(4, 21, 1)], 2)
    points[:, 5:9, 2] = 0
    points[1, 10:, 2] = 0
    elsewhere = points.clone()
    elsewhere[:, 5:9, :2] = 1e6
    a, b = pair_lifter.propose(batch_of(points)), pair_lifter.propose(batch_of(elsewhere))
    assert all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))
    none = pair_lifter.propose(batch_of(torch.zeros(2, 21, 3)))
    assert all(bool(t.isfinite().all()) for t in tensors(none))


def test_the_source_of_the_points_matters(pair_lifter: PairLifter, batch_of: Batches, some_points: Points) -> None:
    layout = KeypointLayout("shifted", torch.full((21, 3), 0.01).double(), torch.full((10,), 0.5).double())
    plain, other = (pair_lifter.propose(batch_of(some_points(3), True, k)) for k in (None, layout))
    assert bool((plain.params.hand_pose != other.params.hand_pose).any(1).all())
    foreign = replace(layout, model_digest="0123")
    with pytest.raises(InputError, match="learned with the hand model 0123"):
        pair_lifter.propose(batch_of(some_points(3), True, foreign))


def test_the_view_looks_at_the_box_with_the_fingers_up() -> None:
    """A flat hand drawn with the fingers to the right, far off the axis."""
    along = torch.tensor([-1.0, -0.7, -0.4, -0.2, 0.0, *[0.0, 0.3, 0.4, 0.5] * 4])
    across = torch.linspace(-0.3, 0.3, 21)
    rays = torch.stack([2 + 0.1 * along, 1 + 0.1 * across], 1)[None].double()
    view = HandView.of(rays, torch.ones(1, 21).double())
    middle = torch.stack([(rays.amin(1) + rays.amax(1))[0, 0] / 2, (rays.amin(1) + rays.amax(1))[0, 1] / 2])
    axis = view.turn[0, :, 2]
    torch.testing.assert_close(axis[:2] / axis[2], middle)
    torch.testing.assert_close(view.turn[0] @ view.turn[0].T, torch.eye(3).double())
    assert float(torch.linalg.det(view.turn[0])) == pytest.approx(1)
    assert float(view.points[0, 12, 1]) < -0.5 < 0.5 < float(view.points[0, 0, 1])
    assert float(view.points.square().sum(2).mean()) == pytest.approx(1)
    # Back through the turn, the points are the rays again.
    flat = torch.cat([view.points * view.scale[:, None, None], torch.ones(1, 21, 1).double()], 2) @ view.turn.mT
    torch.testing.assert_close(flat[..., :2] / flat[..., 2:], rays)


def test_the_view_does_not_follow_a_stray_point(some_points: Points) -> None:
    rays = (some_points(3) - 300) / 500
    with_stray = rays.clone()
    with_stray[:, 8] = 60.0
    without = torch.ones(3, 21).double()
    without[:, 8] = 0
    a, b = HandView.of(with_stray, torch.ones(3, 21).double()), HandView.of(rays, without)
    torch.testing.assert_close(a.turn, b.turn)
    torch.testing.assert_close(a.scale, b.scale)
    assert float(a.points.norm(dim=2).max()) < 4.0001


def test_look_at_turns_the_least() -> None:
    middle = torch.tensor([[0.3, -0.4], [0.0, 0.0]]).double()
    turn = look_at(middle)
    torch.testing.assert_close(turn[0, :2, 2] / turn[0, 2, 2], middle[0])
    angle = torch.acos((torch.einsum("bii->b", turn) - 1) / 2)
    torch.testing.assert_close(angle, torch.atan(torch.tensor([0.5, 0.0]).double()))


def test_a_file_keeps_every_bit(
    lifter: Lifter, pair_lifter: PairLifter, batch_of: Batches, some_points: Points, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    lifter.save(path)
    loaded = Lifter.load(path)
    state = loaded.network.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in lifter.network.state_dict().items())
    again = loaded.for_pair(embedded_hand()).propose(batch_of(some_points(4)))
    before = pair_lifter.propose(batch_of(some_points(4)))
    assert all(torch.equal(a, b) for a, b in zip(tensors(before), tensors(again), strict=True))
    lifter.save(tmp_path / "half.safetensors", half=True)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.7 * path.stat().st_size
    half = Lifter.load(tmp_path / "half.safetensors").for_pair(embedded_hand()).propose(batch_of(some_points(4)))
    torch.testing.assert_close(half.params.hand_pose, before.params.hand_pose, rtol=0, atol=0.02)


def test_another_hand_model_is_refused(lifter: Lifter) -> None:
    pair = embedded_hand("manopth")
    other = replace(pair, right=replace(pair.right, digest="feedbeef", name="somebody's hand"))
    with pytest.raises(InputError, match=r"\(feedbeef\); train one for it: handloop train lifter --mano"):
        lifter.for_pair(other)


def test_files_of_other_kinds_are_refused(lifter: Lifter, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"w\.pt does not end in \.safetensors"):
        lifter.save(tmp_path / "w.pt")
    path = tmp_path / "w.safetensors"
    with pytest.raises(FileFormatError, match=r"w\.json: the lifter's description cannot be read"):
        Lifter.load(path)
    lifter.save(path)
    about = json.loads(path.with_suffix(".json").read_text())
    for damage in (b"", b"\x80\x04K\x01.", path.read_bytes()[:-100]):
        path.write_bytes(damage)
        with pytest.raises(FileFormatError, match=r"not the weights that w\.json describes"):
            Lifter.load(path)
    lifter.save(path)
    path.with_suffix(".json").write_text(json.dumps({**about, "size": {"width": 64, "blocks": 2}}))
    with pytest.raises(FileFormatError, match=r"not the weights that w\.json describes"):
        Lifter.load(path)
    path.with_suffix(".json").write_text(json.dumps({**about, "format": "other"}))
    with pytest.raises(FileFormatError, match="not a lifter's description"):
        Lifter.load(path)
