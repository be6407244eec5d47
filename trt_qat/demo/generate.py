"""A generated set of street images with Vietnamese traffic signs, for trying everything without a download.

Image i of a split depends on the seed, the split and i only, so a longer set starts with the shorter one.
The signs are drawn in :mod:`trt_qat.demo.signs`, the streets in :mod:`trt_qat.demo.scene`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from trt_qat.data.folder import atomic_folder
from trt_qat.demo.scene import draw_street
from trt_qat.demo.signs import DEMO_NAMES, SignTile, render_sign
from trt_qat.errors import DatasetError
from trt_qat.progress import SILENT, Progress

__all__ = ["DEMO_NAMES", "generate_demo_image", "generate_demo_set"]

Label = tuple[int, float, float, float, float]

_GENERATOR_VERSION = 1
_OWN_ENTRIES = frozenset({"data.yaml", "demo.json", "images", "labels"})
_SPLIT_STREAMS = {"train": 0, "val": 1}
_SIZE_RANGE = (12.0, 80.0)  # pixels of a sign in an image whose shorter side is 320
_MAX_COVERED = 0.1
_JPEG_QUALITY = 92


def generate_demo_image(
    rng: np.random.Generator, size_wh: tuple[int, int] = (320, 320)
) -> tuple[NDArray[np.uint8], list[Label]]:
    """Draw one street image with 1 to 4 signs.

    Args:
        rng: the only source of variation; the same state gives the same image.
        size_wh: image size in pixels, at least 64 on each side.

    Returns:
        uint8 BGR, shape (h, w, 3), and one (class id, centre x, centre y, width, height) per sign, the last
        four as fractions of the image. At most a tenth of a box is covered by another.

    Raises:
        DatasetError: the size is too small.
    """
    if min(size_wh) < 64:
        raise DatasetError(f"Demo images of {size_wh[0]}x{size_wh[1]} pixels are too small. Use at least 64x64.")
    placed = _place_signs(rng, size_wh)
    poles = []
    for _, tile, (x, y) in placed:
        left, top, right, bottom = tile.box_xyxy
        if rng.random() < 0.8:  # the others hang overhead
            poles.append((x + (left + right) / 2, y + (top + bottom) / 2, max(1.0, (right - left) * 0.09)))
    image = draw_street(rng, size_wh, poles).astype(np.float32)
    _haze(rng, image)
    for _, tile, (x, y) in placed:
        height, width = tile.alpha.shape[:2]
        window = image[y : y + height, x : x + width]
        window *= 1 - tile.alpha
        window += tile.color_bgr
    return _photographed(rng, image), [_label(class_id, tile, corner, size_wh) for class_id, tile, corner in placed]


def generate_demo_set(
    out: Path,
    train: int = 256,
    val: int = 64,
    seed: int = 0,
    size_wh: tuple[int, int] = (320, 320),
    progress: Progress = SILENT,
) -> Path:
    """Write a demo set in YOLO layout, whole or not at all, and return its ``data.yaml``.

    A set that is already there is kept if it was made with the same parameters and replaced otherwise.

    Args:
        out: the folder to become the set.
        train: number of training images.
        val: number of validation images.
        seed: another seed, another set.
        size_wh: image size in pixels.
        progress: wraps the loop over the images of a split.

    Raises:
        DatasetError: a count below 1, a size below 64 pixels, or ``out`` holds something else.
        ArtifactError: ``out`` cannot be written.
    """
    if train < 1 or val < 1:
        raise DatasetError(f"A demo set of {train} train and {val} val images is not possible. Ask for 1 or more each.")
    parameters = {"version": _GENERATOR_VERSION, "train": train, "val": val, "seed": seed, "size_wh": list(size_wh)}
    if _is_demo_set(out) and _stored_parameters(out) == parameters:
        return out / "data.yaml"
    _check_replaceable(out)
    with atomic_folder(out) as folder:
        for split, count in (("train", train), ("val", val)):
            _write_split(folder, split, count, seed, size_wh, progress)
        names = dict(enumerate(DEMO_NAMES))
        content = {"path": ".", "train": "images/train", "val": "images/val", "names": names}
        (folder / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        (folder / "demo.json").write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")
    return out / "data.yaml"


def _is_demo_set(out: Path) -> bool:
    return (out / "data.yaml").is_file() and (out / "demo.json").is_file()


def _stored_parameters(out: Path) -> Any:
    try:
        return json.loads((out / "demo.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _check_replaceable(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise DatasetError(f"'{out}' is a file; the demo set needs a folder. Choose another --out.")
    entries = {entry.name for entry in out.iterdir()}
    if entries and not (_is_demo_set(out) and entries <= _OWN_ENTRIES):
        strange = ", ".join(sorted(entries - _OWN_ENTRIES)[:3] or sorted(entries)[:3])
        raise DatasetError(f"'{out}' holds files that are no demo set ({strange}). Choose another --out or empty it.")


def _write_split(folder: Path, split: str, count: int, seed: int, size_wh: tuple[int, int], progress: Progress) -> None:
    images, labels = folder / "images" / split, folder / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for index in progress.over(range(count), f"demo {split}"):
        rng = np.random.default_rng([seed, _SPLIT_STREAMS[split], index])
        image, boxes = generate_demo_image(rng, size_wh)
        _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        (images / f"{split}_{index:05d}.jpg").write_bytes(encoded.tobytes())
        lines = [f"{box[0]} " + " ".join(f"{value:.6f}" for value in box[1:]) + "\n" for box in boxes]
        (labels / f"{split}_{index:05d}.txt").write_text("".join(lines), encoding="utf-8")


def _place_signs(rng: np.random.Generator, size_wh: tuple[int, int]) -> list[tuple[int, SignTile, tuple[int, int]]]:
    """Signs with the pixel where the upper left corner of their tile goes; the tiles lie inside the image."""
    width, height = size_wh
    scale = min(size_wh) / 320
    placed: list[tuple[int, SignTile, tuple[int, int]]] = []
    for _ in range(int(rng.choice([1, 2, 3, 4], p=[0.3, 0.35, 0.2, 0.15]))):
        class_id = int(rng.integers(len(DEMO_NAMES)))
        size = scale * float(np.exp(rng.uniform(*np.log(_SIZE_RANGE))))
        tile = render_sign(rng, DEMO_NAMES[class_id], size)
        rows, columns = tile.alpha.shape[:2]
        for _ in range(20):
            x = int(rng.integers(0, width - columns + 1))
            y = int(rng.integers(0, max(1, int(height * 0.85) - rows + 1)))
            box = _shifted(tile, (x, y))
            if all(_covered(box, _shifted(other, corner)) <= _MAX_COVERED for _, other, corner in placed):
                placed.append((class_id, tile, (x, y)))
                break
    return placed


def _shifted(tile: SignTile, corner: tuple[int, int]) -> tuple[float, float, float, float]:
    left, top, right, bottom = tile.box_xyxy
    return left + corner[0], top + corner[1], right + corner[0], bottom + corner[1]


def _covered(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection over the smaller area: a small sign in front of a big one has a low IoU and still hides it."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _label(class_id: int, tile: SignTile, corner: tuple[int, int], size_wh: tuple[int, int]) -> Label:
    left, top, right, bottom = _shifted(tile, corner)
    width, height = size_wh
    return (
        class_id,
        (left + right) / 2 / width,
        (top + bottom) / 2 / height,
        (right - left) / width,
        (bottom - top) / height,
    )


def _haze(rng: np.random.Generator, image: NDArray[np.float32]) -> None:
    strength = np.float32(rng.uniform(0.0, 0.3))
    image += (np.float32(205) - image) * strength


def _photographed(rng: np.random.Generator, image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Lens blur, exposure, colour cast and sensor noise."""
    blur = rng.uniform(0.0, 0.9) * min(image.shape[:2]) / 320
    if blur > 0.3:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    gain = rng.uniform(0.55, 1.12) * rng.uniform(0.95, 1.05, 3)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    image = image * gain.astype(np.float32) + noise * np.float32(rng.uniform(1.0, 8.0))
    return np.clip(image, 0, 255).astype(np.uint8)
