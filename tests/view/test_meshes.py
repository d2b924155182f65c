from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import trimesh

from handloop.core.errors import InputError
from handloop.view.meshes import write_glb, write_obj

TURN = np.array([1.0, -1.0, -1.0])


@pytest.mark.parametrize("y_up", [False, True])
def test_obj_holds_the_vertices_in_order_and_faces_outward(blob, make_result, tmp_path, y_up):
    result = make_result(5)
    export = write_obj(result, blob.faces, blob.faces_left, tmp_path, y_up=y_up)
    assert export.skipped == ("000002",)
    assert [p.name for p in export.paths] == ["000000.obj", "000001.obj", "000003.obj", "000004.obj"]
    vertices = result.vertices().numpy() * (TURN if y_up else 1)
    for path, row in zip(export.paths, (0, 1, 3, 4), strict=True):
        mesh = trimesh.load(path, process=False, maintain_order=True)
        assert np.abs(mesh.vertices - vertices[row]).max() < 1e-6
        assert mesh.volume > 0  # Negative where faces point inward.


@pytest.mark.parametrize("y_up", [False, True])
def test_glb_has_a_node_per_hand_of_a_picture(blob, make_result, tmp_path, y_up):
    result = make_result(6, image=["x/one.jpg"] * 4 + ["y/one.jpg", ""])
    export = write_glb(result, blob.faces, blob.faces_left, tmp_path, y_up=y_up)
    assert export.skipped == ("000002",)
    assert [p.name for p in export.paths] == ["one.glb", "one_000004.glb", "000005.glb"]
    vertices = result.vertices().numpy() * (TURN if y_up else 1)
    for path, rows in zip(export.paths, ((0, 1, 3), (4,), (5,)), strict=True):
        scene = trimesh.load(path, process=False)
        assert sorted(scene.graph.nodes_geometry) == [f"{row:06d}" for row in rows]
        for row in rows:
            matrix, name = scene.graph[f"{row:06d}"]
            mesh = scene.geometry[name]
            assert np.array_equal(matrix, np.eye(4))
            assert np.abs(mesh.vertices - vertices[row]).max() < 1e-6
            assert mesh.volume > 0
            assert mesh.metadata["side"] == ("right" if result.keypoints.is_right[row] else "left")


def test_hands_under_different_cameras_do_not_share_a_file(blob, make_result, tmp_path):
    result = make_result(2, image="one.jpg")
    focal = result.camera.focal * torch.tensor([[1.0], [1.1]])
    result = dataclasses.replace(result, camera=dataclasses.replace(result.camera, focal=focal))
    assert len(write_glb(result, blob.faces, blob.faces_left, tmp_path).paths) == 2


def test_video_frames_get_a_file_each(blob, make_result, tmp_path):
    result = make_result(2, image="film.mp4")
    result = dataclasses.replace(result, keypoints=dataclasses.replace(result.keypoints, frame=torch.tensor([7, 8])))
    assert len(write_glb(result, blob.faces, blob.faces_left, tmp_path).paths) == 2


def test_one_glb_per_hand(blob, make_result, tmp_path):
    export = write_glb(make_result(4, image="a.jpg"), blob.faces, blob.faces_left, tmp_path, per="hand")
    assert len(export.paths) == 3
    with pytest.raises(InputError, match="per 'room' were asked for"):
        write_glb(make_result(4), blob.faces, blob.faces_left, tmp_path, per="room")


def test_the_same_result_gives_the_same_bytes(blob, make_result, tmp_path):
    for kind in (write_obj, write_glb):
        a, b = (kind(make_result(4, image="p.png"), blob.faces, blob.faces_left, tmp_path / n).paths for n in "ab")
        assert [p.read_bytes() for p in a] == [p.read_bytes() for p in b]


def test_a_result_without_any_fit_writes_nothing(blob, make_result, tmp_path):
    result = make_result(3)
    for kind in (write_obj, write_glb):
        export = kind(result, blob.faces, blob.faces_left, tmp_path, [2])
        assert export.paths == () and export.skipped == ("000002",)
