"""Pictures through crops: drawn dots stay under their keypoints, shrinking averages, what lies outside is black."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from handloop.core.augmentation import Augmentation, AugmentOptions, draw_augmentation
from handloop.core.camera import Camera
from handloop.core.crop import affine_crop, look_at_crop
from handloop.core.errors import InputError
from handloop.core.view_change import ViewChange
from handloop.formats.crops import augment_picture, warp_picture

Crop = Callable[..., ViewChange]
WIDTH, HEIGHT = 320, 240


def camera(dist: bool = False) -> Camera:
    lens = torch.tensor([[-0.2, 0.05, 0.0, 0.0]], dtype=torch.float64) if dist else None
    return Camera(torch.full((1, 2), 300.0).double(), torch.tensor([[150.0, 130.0]]).double(), lens)


def view_of(
    crop: Crop, side: float, size: int, angle: float = 0.0, flip: bool = False, dist: bool = False
) -> ViewChange:
    box = torch.tensor([[220 - side / 2, 80 - side / 2, 220 + side / 2, 80 + side / 2]]).double()
    image_size = torch.tensor([[float(WIDTH), float(HEIGHT)]])
    return crop(camera(dist), box, size, image_size, torch.tensor([angle]), torch.tensor([flip]))


def dot(x: float, y: float, sigma: float) -> np.ndarray:
    """A white blob around (x, y) on black."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    blob = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return np.repeat(np.round(blob)[..., None], 3, 2).astype(np.uint8)


def centroid(picture: np.ndarray) -> np.ndarray:
    weight = picture[..., 0].astype(float)
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


@pytest.mark.parametrize("crop", [affine_crop, look_at_crop])
@pytest.mark.parametrize(("side", "size"), [(100.0, 224), (100.0, 100), (100.0, 37)])
@pytest.mark.parametrize(("angle", "flip", "dist"), [(0.0, False, False), (0.7, False, True), (-2.0, True, False)])
def test_a_dot_stays_under_its_keypoint(
    crop: Crop, side: float, size: int, angle: float, flip: bool, dist: bool
) -> None:
    view = view_of(crop, side, size, angle, flip, dist)
    for x, y in ((220.0, 80.0), (238.0, 68.0), (199.5, 95.25)):
        picture = warp_picture(dot(x, y, 2.5), view)
        expected = view.pixels(torch.tensor([[[x, y]]]).double())[0, 0].numpy()
        assert picture.shape == (size, size, 3)
        assert np.abs(centroid(picture) - expected).max() < 0.12


def test_the_whole_picture_comes_back() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    box = torch.tensor([[-0.5, -0.5, 63.5, 63.5]]).double()
    cam = Camera(torch.full((1, 2), 90.0).double(), torch.full((1, 2), 31.5).double())
    bent = Camera(cam.focal, cam.princpt, torch.zeros(1, 4).double())
    size = torch.tensor([[64.0, 64.0]])
    quarter = torch.tensor([np.pi / 2], dtype=torch.float64)
    # A lens of no distortion takes the other path, which must show the same; Pillow rounds down.
    for one in (cam, bent):
        for angle, flip, expected in (
            (None, None, picture),
            (None, torch.tensor([True]), picture[:, ::-1]),
            (quarter, None, np.rot90(picture, -1)),
        ):
            crop = warp_picture(picture, affine_crop(one, box, 64, size, angle, flip))
            assert np.abs(crop.astype(int) - expected).max() <= 1


def test_shrinking_averages_instead_of_picking() -> None:
    """A checkerboard of single pixels becomes grey, not a pattern."""
    board = (np.indices((HEIGHT, WIDTH)).sum(0) % 2 * 255).astype(np.uint8)
    crop = warp_picture(np.repeat(board[..., None], 3, 2), view_of(affine_crop, 150.0, 30))
    assert abs(float(crop.mean()) - 127.5) < 3 and crop.std() < 12


def test_outside_is_black() -> None:
    white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    crop = warp_picture(white, view_of(affine_crop, 400.0, 100))
    # The box reaches from x = 20 to 420 of 320 and from y = -120 to 280 of 240.
    assert crop[50, 10].tolist() == [255] * 3 and crop[50, 90].tolist() == [0] * 3 and crop[10, 10].tolist() == [0] * 3
    assert crop[50, 73].max() > 0 and crop[50, 77].max() == 0
    far = torch.tensor([[5000.0, 5000.0, 5100.0, 5100.0]]).double()
    view = affine_crop(camera(), far, 20, torch.tensor([[float(WIDTH), float(HEIGHT)]]))
    assert not warp_picture(white, view).any()


def test_wrong_pictures_are_named() -> None:
    view = view_of(affine_crop, 100.0, 20)
    with pytest.raises(InputError, match="expected \\(H, W, 3\\) uint8"):
        warp_picture(np.zeros((HEIGHT, WIDTH), np.uint8), view)
    with pytest.raises(InputError, match="made for one of 320 x 240"):
        warp_picture(np.zeros((WIDTH, HEIGHT, 3), np.uint8), view)


def test_augmented_pictures_and_keypoints_move_together() -> None:
    n = 20
    cameras = Camera(torch.full((n, 2), 300.0).double(), torch.full((n, 2), 150.0).double())
    box = torch.tensor([[170.0, 30.0, 270.0, 130.0]]).double().repeat(n, 1)
    sizes = torch.tensor([[float(WIDTH), float(HEIGHT)]]).repeat(n, 1)
    options = AugmentOptions(flip="random", colour=0, shift=0.1)
    drawn = draw_augmentation(cameras, box, 96, sizes, torch.ones(n).bool(), options, torch.Generator().manual_seed(0))
    at = torch.tensor([[[226.0, 75.0]]]).double().repeat(n, 1, 1)
    expected = drawn.view.pixels(at)[:, 0].numpy()
    for row in range(n):
        picture = augment_picture(dot(226.0, 75.0, 2.0), drawn, row)
        assert np.abs(centroid(picture) - expected[row]).max() < 0.15
    assert drawn.view.flip.any() and len(drawn) == n
    torch.testing.assert_close(drawn.inverse().pixels(drawn.view.pixels(at)), at, rtol=0, atol=1e-9)


def test_colours_and_patches() -> None:
    view = view_of(affine_crop, 100.0, 50)
    nan = [float("nan")] * 4
    drawn = Augmentation(
        view,
        torch.tensor([[0.5, 1.0, 2.0]]).double(),
        torch.tensor([[[9.5, 19.5, 29.5, 39.5], nan]]).double(),
        torch.tensor([[[0.0, 1.0, 0.2], [1.0, 1.0, 1.0]]]).double(),
    )
    crop = augment_picture(np.full((HEIGHT, WIDTH, 3), 200, np.uint8), drawn)
    assert crop[0, 0].tolist() == [100, 200, 255]
    hidden = (crop == np.array([0, 255, 51])).all(-1)
    assert hidden[20:40, 10:30].all() and hidden.sum() == 400
