"""The one mistake that no error shows: an image that reaches the network otherwise than in training.

Each stage hands in the function that it prepares images with, before it reads the first one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from trt_qat.errors import ConsistencyError
from trt_qat.vision.letterbox import LetterboxTransform
from trt_qat.vision.size import ImageSize

Preprocess = Callable[[NDArray[np.uint8], ImageSize], tuple[NDArray[np.float32], LetterboxTransform]]

_SIDE, _HEIGHT, _TOP = 64, 32, 16
_BLUE, _GREEN, _RED, _GRAY = 0, 128, 255, 114


def check_preprocessing(preprocess: Preprocess) -> None:
    """Prepare an image whose network input follows by hand, and take a box back to it.

    The image is 64 x 32 pixels of one colour with a white dot, so that nothing is resized: 16 gray rows, the image,
    16 gray rows; red, green, blue; 255 is 1.

    Args:
        preprocess: as :func:`trt_qat.vision.letterbox.network_input`.

    Raises:
        ConsistencyError: the network would see something else.
    """
    image = np.full((_HEIGHT, _SIDE, 3), (_BLUE, _GREEN, _RED), dtype=np.uint8)
    image[5, 10] = 255
    expected = np.full((3, _SIDE, _SIDE), _GRAY / 255, dtype=np.float32)
    colour = np.array([_RED, _GREEN, _BLUE], dtype=np.float32) / 255
    expected[:, _TOP : _TOP + _HEIGHT] = colour[:, None, None]
    expected[:, _TOP + 5, 10] = 1
    found, transform = preprocess(image, (_SIDE, _SIDE))
    if found.shape != (1, *expected.shape) or not np.allclose(found[0], expected, atol=1e-6):
        pixel = np.round(found.reshape(-1, *found.shape[-2:])[:3, _TOP + 1, 1].astype(float), 2).tolist()
        raise ConsistencyError(
            "Images are not prepared as the network was trained: a test pixel of red, green, blue = "
            f"{np.round(colour, 2).tolist()} arrives as {pixel}, or aside from its place. Nothing was computed; "
            "the installation is damaged."
        )
    box = np.array([[10, _TOP + 5, 11, _TOP + 6]], dtype=np.float32)
    back = transform.boxes_to_image(box)[0].tolist()
    if not np.allclose(back, [10, 5, 11, 6], atol=1e-3):
        raise ConsistencyError(
            f"Boxes do not come back to where they are: one at [10, 5, 11, 6] is reported at {back}. Nothing was "
            "computed; the installation is damaged."
        )
