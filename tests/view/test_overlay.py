from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from handloop.core.camera import Camera
from handloop.core.errors import InputError
from handloop.view import overlay
from handloop.view.frame import crop_frame, whole_frame
from handloop.view.names import file_names
from handloop.view.overlay import draw_overlay, write_overlays
from handloop.view.pictures import load_picture
from handloop.view.strokes import FINGER_COLOURS

CAMERA = Camera(torch.tensor([[500.0, 500.0]]).double(), torch.tensor([[319.5, 239.5]]).double())


def _hand(blob, place=(0.0, 0.0, 0.6)):
    vertices = blob.template + place
    joints = CAMERA.project(torch.from_numpy(blob.points + place)[None])[0].numpy()
    return vertices, joints, np.column_stack([joints, np.ones(21)])


def _gray(height=480, width=640):
    return np.full((height, width, 3), 128, np.uint8)


@pytest.mark.parametrize("dist", [None, [-0.25, 0.05, 0.001, 0.001]])
def test_frame_and_camera_agree(dist):
    camera = Camera(CAMERA.focal, CAMERA.princpt, None if dist is None else torch.tensor([dist]).double())
    points = torch.rand(1, 50, 3).double() * torch.tensor([0.3, 0.3, 0.2]) + torch.tensor([-0.15, -0.15, 0.5])
    frame = crop_frame(np.array([[100.0, 50], [333, 171]]), np.zeros((0, 2)), 200)
    assert np.allclose(
        frame.camera(camera).project(points)[0], frame.points(camera.project(points)[0].numpy()), atol=1e-9
    )


def test_picture_and_points_share_the_frame():
    """A bright dot of the picture is found where its pixel is mapped to, for enlarging and shrinking crops."""
    for span, size in ((40.0, 400), (300.0, 200)):
        picture = _gray() // 4
        picture[198:203, 298:303] = 255
        frame = crop_frame(
            np.array([[300 - span / 2, 190.0], [300 + span / 2, 215.0]]), np.zeros((0, 2)), size, (640, 480)
        )
        canvas = frame.canvas(picture, (0, 0, 0), (0, 0, 0)).astype(float)[..., 0] - 32
        weights = np.clip(canvas, 0, None)
        rows, columns = np.indices(weights.shape)
        found = np.array([(weights * columns).sum(), (weights * rows).sum()]) / weights.sum()
        assert np.abs(found - frame.points(np.array([[300.0, 200.0]]))[0]).max() < 0.05


def test_crop_is_1_6_times_the_box_and_has_the_size(blob):
    vertices, joints, points = _hand(blob)
    drawing = draw_overlay(_gray(), vertices, blob.faces, joints, points, CAMERA, True, 300)
    assert max(drawing.shape[:2]) == 300 and drawing.dtype == np.uint8
    span = np.ptp(joints, axis=0)
    frame = crop_frame(joints, joints, 300, (640, 480))
    assert frame.size[1] / frame.scale[1] == pytest.approx(1.6 * span.max(), rel=0.01)


def test_the_whole_picture_is_shrunk_never_enlarged(blob):
    args = _hand(blob)
    drawing = draw_overlay(_gray(), args[0], blob.faces, args[1], args[2], CAMERA, True, 320, whole_picture=True)
    assert drawing.shape == (240, 320, 3)
    drawing = draw_overlay(_gray(), args[0], blob.faces, args[1], args[2], CAMERA, True, 1000, whole_picture=True)
    assert drawing.shape == (480, 640, 3)
    assert whole_frame(640, 480, 320).points(np.array([[-0.5, -0.5]])) == pytest.approx(-0.5)


def test_joints_have_their_fingers_colour_at_their_pixel(blob):
    vertices, joints, _ = _hand(blob)
    joints = np.stack([200 + 10 * np.arange(21.0), 200 + 40 * (np.arange(21.0) % 4)], 1)
    nothing = np.zeros((21, 3))
    drawing = draw_overlay(_gray(), vertices, blob.faces, joints, nothing, CAMERA, True, 640, whole_picture=True)
    for k in (4, 8, 12, 16, 20):
        x, y = joints[k].astype(int)
        assert np.abs(drawing[y, x].astype(int) - FINGER_COLOURS[(k - 1) // 4]).max() <= 3


def test_missing_points_are_not_drawn(blob):
    vertices, joints, points = _hand(blob)
    points[5] = np.array([330.0, 250.0, 0.0])
    first = draw_overlay(_gray(), vertices, blob.faces, joints, points, CAMERA, True)
    points[5] = np.nan
    assert np.array_equal(first, draw_overlay(_gray(), vertices, blob.faces, joints, points, CAMERA, True))
    points[5] = np.array([330.0, 250.0, 1.0])
    assert not np.array_equal(first, draw_overlay(_gray(), vertices, blob.faces, joints, points, CAMERA, True))


def test_the_inputs_are_left_alone(blob):
    picture, (vertices, joints, points) = _gray(), _hand(blob)
    before = [a.copy() for a in (picture, vertices, joints, points)]
    draw_overlay(picture, vertices, blob.faces, joints, points, CAMERA, False)
    assert all(np.array_equal(a, b) for a, b in zip(before, (picture, vertices, joints, points), strict=True))


def _odd_hands(blob):
    vertices, joints, points = _hand(blob)
    nan = np.full((21, 2), np.nan)
    yield "no fit", vertices * np.nan, nan, points
    yield "no vertices", np.zeros((0, 3)), nan, points
    yield "nothing", vertices * np.nan, nan, points * 0
    yield "only a fit", vertices, joints, points * 0
    yield "huge fit", vertices * 1e12, joints * 1e12, points
    yield "infinite fit", np.full_like(vertices, np.inf), np.full_like(joints, np.inf), points
    yield "huge points", vertices, joints, points * [1e15, -1e15, 1]
    far = points.copy()
    far[3, :2] = 1e6
    yield "one point astray", vertices, joints, far
    yield (
        "outside the picture",
        vertices + np.array([9, 0, 0]),
        joints + np.array([7500, 0]),
        points + np.array([7500, 0, 0]),
    )
    yield "tiny", vertices, joints, points * [1e-7, 1e-7, 1]
    yield "one point", vertices, joints, points * (np.arange(21) == 4)[:, None]
    yield "behind", vertices - [0, 0, 2], nan, points
    yield "at the camera", vertices - [0, 0, 0.6], nan, points


@pytest.mark.parametrize("dist", [None, [-0.9, 0.0, 0.0, 0.0]])
@pytest.mark.parametrize("with_picture", [True, False])
def test_odd_numbers_draw_something(blob, with_picture, dist):
    camera = Camera(CAMERA.focal, CAMERA.princpt, None if dist is None else torch.tensor([dist]).double())
    for name, vertices, joints, points in _odd_hands(blob):
        for whole in (False, True):
            picture = _gray() if with_picture else None
            drawing = draw_overlay(
                picture, vertices, blob.faces, joints, points, camera, True, 128, whole_picture=whole
            )
            assert drawing.dtype == np.uint8 and max(drawing.shape[:2]) == 128, name


def test_a_point_astray_does_not_shrink_the_hand(blob):
    _, joints, points = _hand(blob)
    near = crop_frame(points[:, :2], joints, 512)
    points[3, :2] = 1e6
    assert crop_frame(points[:, :2], joints, 512).scale[0] == pytest.approx(near.scale[0], rel=0.2)


def test_wrong_shapes_are_refused(blob):
    vertices, joints, points = _hand(blob)
    with pytest.raises(InputError, match="joints_px has shape"):
        draw_overlay(None, vertices, blob.faces, joints[:20], points, CAMERA, True)
    two = CAMERA.select(torch.tensor([0, 0]))
    with pytest.raises(InputError, match="2 cameras were given, expected the one"):
        draw_overlay(None, vertices, blob.faces, joints, points, two, True)
    with pytest.raises(InputError, match="a drawing of 3 px"):
        draw_overlay(None, vertices, blob.faces, joints, points, CAMERA, True, 3)


def test_write_overlays_reads_each_picture_once(blob, make_result, picture, tmp_path, monkeypatch):
    other = tmp_path / "other.png"
    Image.open(picture).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(other)
    result = make_result(6, image=[str(picture), str(other)] * 3, ids=["a/b", "a:b", "c", "D", "d", "con"])
    read = []
    monkeypatch.setattr(overlay, "load_picture", lambda *a: read.append(a[0]) or load_picture(*a))
    paths = write_overlays(result, blob.faces, blob.faces_left, tmp_path / "out", [5, 0, 1, 2, 3], 160, ".jpg")
    assert sorted(read) == sorted([str(picture), str(other)])
    assert [p.name.split("-")[0] for p in paths] == ["hand_con", "a_b", "a_b", "c.jpg", "D"]
    assert len({p.name.casefold() for p in paths}) == 5
    for path in paths:
        with Image.open(path) as drawing:
            assert max(drawing.size) == 160
    again = write_overlays(result, blob.faces, blob.faces_left, tmp_path / "again", [0], 160, ".jpg")
    assert again[0].name == paths[1].name and again[0].read_bytes() == paths[1].read_bytes()


def test_rows_and_suffixes_that_do_not_exist_are_refused(blob, make_result, tmp_path):
    with pytest.raises(InputError, match="hand 3 was asked for, expected rows 0 to 2"):
        write_overlays(make_result(3), blob.faces, blob.faces_left, tmp_path, [3])
    with pytest.raises(InputError, match=r"'\.bmp' were asked for"):
        write_overlays(make_result(3), blob.faces, blob.faces_left, tmp_path, suffix=".bmp")


def test_pictures_that_cannot_be_read_are_named_not_raised(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    nan = float("nan")
    assert load_picture("", (nan, nan)).remark == ""
    assert load_picture(str(tmp_path / "none.png"), (nan, nan)).remark == "picture not found"
    assert load_picture(str(tmp_path / "broken.png"), (nan, nan)).remark == "picture not readable"
    assert load_picture(str(tmp_path), (nan, nan)).remark == "picture not readable"


def test_orientation_follows_the_size_the_points_refer_to(tmp_path):
    path = str(tmp_path / "turned.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(path, exif=exif)
    assert load_picture(path, (float("nan"), float("nan"))).pixels.shape == (60, 40, 3)
    assert load_picture(path, (40.0, 60.0)).pixels.shape == (60, 40, 3)
    assert load_picture(path, (60.0, 40.0)).pixels.shape == (40, 60, 3)
    assert load_picture(path, (400.0, 600.0)).pixels.shape == (600, 400, 3)
    assert load_picture(path, (50.0, 50.0)).remark == "picture is 40x60 px, the points are for 50x50"


def test_file_names():
    names = file_names(["plain_1.a", "../../etc/passwd", "a", "A", "", "nul.txt", "ä" * 300, "x\udcff"])
    assert names[0] == "plain_1.a"
    assert len(set(map(str.casefold, names))) == 8
    assert all(set(n) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") for n in names)
    assert not any(n.startswith(".") or len(n) > 100 for n in names)
    assert names == file_names(["plain_1.a", "../../etc/passwd", "a", "A", "", "nul.txt", "ä" * 300, "x\udcff"])
