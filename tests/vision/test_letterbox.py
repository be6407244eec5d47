from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from ultralytics.data.augment import LetterBox

from trt_qat.vision.letterbox import LetterboxTransform, letterbox, network_input

SIZES_WH = [(640, 480), (481, 640), (333, 777), (1, 1), (7, 5), (64, 64), (65, 63), (1920, 1080), (1000, 1), (3, 2000)]

SIZES = [(64, 64), (96, 96), (320, 320), (64, 96), (96, 64), (192, 320), (32, 320)]


def _noise(size_wh: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (size_wh[1], size_wh[0], 3), dtype=np.uint8)


@pytest.mark.parametrize("imgsz", SIZES)
@pytest.mark.parametrize("size_wh", SIZES_WH)
def test_equals_ultralytics_bit_for_bit(size_wh: tuple[int, int], imgsz: tuple[int, int]) -> None:
    image = _noise(size_wh)
    expected = LetterBox(new_shape=imgsz, auto=False, scaleup=True, center=True)(image=image)
    found, _ = letterbox(image, imgsz)
    assert found.shape == (*imgsz, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("imgsz", SIZES)
@pytest.mark.parametrize("size_wh", SIZES_WH)
def test_the_input_is_the_letterbox_over_255(size_wh: tuple[int, int], imgsz: tuple[int, int]) -> None:
    """Bit for bit; into a batch that is there already as well, over whatever it holds."""
    image = _noise(size_wh)
    padded, transform = letterbox(image, imgsz)
    expected = padded[..., ::-1].transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    made, its_transform = network_input(image, imgsz)
    np.testing.assert_array_equal(made[0], expected)
    assert its_transform == transform
    batch = np.full((2, 3, *imgsz), np.nan, np.float32)
    filled, _ = network_input(image, imgsz, batch[1])
    assert np.shares_memory(filled, batch)
    np.testing.assert_array_equal(batch[1], expected)
    assert np.isnan(batch[0]).all()


def test_every_byte_over_255() -> None:
    values = np.arange(256, dtype=np.uint8).repeat(12).reshape(32, 32, 3)  # 256 values x 12 = 32 x 32 x 3
    batch, _ = network_input(values, (32, 32))
    assert sorted(set(batch.ravel().tolist())) == [float(np.float32(value) / np.float32(255)) for value in range(256)]


def test_padding_is_gray_and_an_odd_rest_goes_right_and_down() -> None:
    square, transform = letterbox(_noise((63, 21)), (64, 64))
    top, height = transform.pad_top, round(21 * 64 / 63)
    assert (top, height, 64 - height - top) == (21, 21, 22)
    assert (square[:top] == 114).all()
    assert (square[top + height :] == 114).all()
    assert not (square[top : top + height] == 114).all()


@pytest.mark.parametrize("size_wh", [(640, 480), (333, 777), (64, 64), (20, 30)])
def test_boxes_to_image_inverts_the_transform(size_wh: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    corners = np.sort(rng.random((50, 2, 2)), axis=1) * size_wh
    boxes = corners.reshape(50, 4).astype(np.float32)
    _, transform = letterbox(_noise(size_wh), (96, 128))
    pad = np.array([transform.pad_left, transform.pad_top] * 2)
    back = transform.boxes_to_image((boxes * (transform.ratio_wh * 2) + pad).astype(np.float32))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, boxes, atol=2e-3)


def test_boxes_to_image_clips_to_the_image() -> None:
    transform = LetterboxTransform(ratio_wh=(0.5, 0.5), pad_left=10, pad_top=0, size_wh=(100, 60))
    boxes = np.array([[-50, -50, 500, 500], [10, 0, 60, 30]], dtype=np.float32)
    assert transform.boxes_to_image(boxes).tolist() == [[0, 0, 100, 60], [0, 0, 100, 60]]
    assert transform.boxes_to_image(np.zeros((0, 4), np.float32)).shape == (0, 4)


def test_a_pixel_lands_where_the_transform_says() -> None:
    image = np.zeros((50, 100, 3), np.uint8)
    image[20:30, 60:80] = 255
    square, transform = letterbox(image, (200, 200))
    rows, columns = np.nonzero(square[..., 0] == 255)
    found = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
    np.testing.assert_allclose(transform.boxes_to_image(found), [[60, 20, 80, 30]], atol=1)


@pytest.mark.parametrize("imgsz", [(320, 320), (192, 320), (320, 192)])
@pytest.mark.parametrize("size_wh", [(333, 250), (250, 333), (500, 333), (1000, 1)])
def test_the_corners_of_the_picture_map_to_the_corners_of_the_image(
    size_wh: tuple[int, int], imgsz: tuple[int, int]
) -> None:
    """Also where the shorter side was rounded."""
    square, transform = letterbox(np.zeros((size_wh[1], size_wh[0], 3), np.uint8), imgsz)
    rows, columns = np.nonzero(square[..., 0] == 0)
    corners = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
    np.testing.assert_allclose(transform.boxes_to_image(corners), [[0, 0, *size_wh]], atol=1e-3)


def test_network_input_layout() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[:] = (255, 0, 51)  # blue, green, red
    batch, transform = network_input(image, (32, 32))
    assert batch.shape == (1, 3, 32, 32)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    red, green, blue = batch[0]
    assert (red == np.float32(0.2)).all()
    assert (green == 0).all()
    assert (blue == 1).all()
    assert transform == LetterboxTransform((1.0, 1.0), 0, 0, (32, 32))


def test_network_input_keeps_rows_as_rows() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[5, :] = 255
    batch, _ = network_input(image, (32, 32))
    assert (batch[0, :, 5, :] == 1).all()
    assert batch[0, :, :, 5].sum() == 3
