"""Ultralytics' dataset class, given its images, labels and pixels: its augmentations on what our reader reads.

Left to itself it unpickles and writes ``labels/*.cache`` in the user's folders, reads and deletes ``*.npy`` there,
rewrites JPEGs, and letterboxes with another rounding. Here only :mod:`trt_qat.vision.image` opens a file of a dataset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ultralytics.data import YOLODataset

from trt_qat.data.labelled import LabelledImage
from trt_qat.vision.image import decode_image_bgr
from trt_qat.vision.letterbox import fit
from trt_qat.vision.size import ImageSize

_SizeHw = tuple[int, int]


class GivenDataset(YOLODataset):  # type: ignore[misc]  # ultralytics has no types
    """A detection dataset of given images. Without augmentation an item is letterboxed as in deployment, bit for bit.

    Args:
        images: checked, with their labels.
        imgsz: height and width of the network's input, pixels; mosaics are for squares only.
        arguments: Ultralytics' training arguments: the augmentations' settings.
        data: needs ``names`` and ``channels``.
        augment: whether to apply the augmentations.
        batch: images per batch; decides how many are held for mosaics.
        stride: the network's.
    """

    def __init__(
        self,
        images: Sequence[LabelledImage],
        imgsz: ImageSize,
        arguments: Any,
        data: Mapping[str, Any],
        *,
        augment: bool,
        batch: int | None,
        stride: int,
    ) -> None:
        self._images = tuple(images)
        self._imgsz = imgsz
        super().__init__(
            img_path="",
            data=dict(data),
            imgsz=max(imgsz),
            augment=augment,
            hyp=arguments,
            batch_size=batch or 1,
            stride=stride,
            single_cls=bool(arguments.single_cls),
            classes=arguments.classes,
        )

    def get_img_files(self, img_path: str) -> list[str]:
        """The given files."""
        del img_path
        return [str(image.image) for image in self._images]

    def get_labels(self) -> list[dict[str, Any]]:
        """The given labels as Ultralytics holds them."""
        return [
            {
                "im_file": str(image.image),
                "cls": image.labels.class_ids.astype(np.float32)[:, None],
                "bboxes": image.labels.boxes_cxcywh.copy(),
                "segments": [],
                "keypoints": None,
                "normalized": True,
                "bbox_format": "xywh",
            }
            for image in self._images
        ]

    def update_labels_info(self, label: dict[str, Any]) -> dict[str, Any]:
        """With the size of the rectangle, where Ultralytics' transforms look for that of a batch of one shape."""
        info: dict[str, Any] = super().update_labels_info(label)
        if self._imgsz[0] != self._imgsz[1]:
            info["rect_shape"] = self._imgsz
        return info

    def load_image(
        self, i: int, rect_mode: bool = True, resize_short: bool = False
    ) -> tuple[NDArray[np.uint8], _SizeHw, _SizeHw]:
        """Image ``i`` as BGR as large as it fits into ``imgsz``, the size it was shown in and the size it has, (h, w).

        The other ways of resizing belong to other tasks than detection.
        """
        if not rect_mode or resize_short:
            raise NotImplementedError("a detection dataset keeps the aspect ratio and fits the longer side")
        if self.ims[i] is not None:
            return self.ims[i], self.im_hw0[i], self.im_hw[i]
        image = decode_image_bgr(self._images[i].image)
        resized = fit(image, self._imgsz)
        original_hw, resized_hw = image.shape[:2], resized.shape[:2]
        if self.augment:
            self.ims[i], self.im_hw0[i], self.im_hw[i] = resized, original_hw, resized_hw
            self._hold(i)
        return resized, original_hw, resized_hw

    def _hold(self, index: int) -> None:
        """Keep an image for the mosaics to come, and let go of the oldest where there are enough."""
        self.buffer.append(index)
        if 1 < len(self.buffer) >= self.max_buffer_length:
            oldest = self.buffer.pop(0)
            self.ims[oldest] = self.im_hw0[oldest] = self.im_hw[oldest] = None
