"""COCO and Pascal VOC annotations to a YOLO folder that trains as it is.

Images are hard-linked where the disk allows and copied elsewhere; the output appears whole or not at all. Boxes are
those of the image as it is shown, with its EXIF orientation applied.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml

from trt_qat.data.dataset import checked_names
from trt_qat.data.folder import atomic_folder
from trt_qat.errors import DatasetError
from trt_qat.limits import ANNOTATION_MEGABYTES, LABEL_MEGABYTES
from trt_qat.reading import file_name, read_bytes, read_json, shortened
from trt_qat.vision.image import IMAGE_SUFFIXES, check_image, image_size

Box = tuple[float, float, float, float]

_LOG = logging.getLogger(__name__)
_MIN_SIDE = 1.0  # pixels; a thinner box is a slip of the mouse
_LARGEST_SIDE = 1_000_000  # pixels
_DEGENERATE = "degenerate boxes"


@dataclass
class _Picture:
    """One image on its way: source file, the name it gets, shown size, (class id, box_xyxy in pixels).

    ``turned``: the annotations gave width and height exchanged.
    """

    source: Path
    name: str
    size_wh: tuple[float, float]
    boxes: list[tuple[int, Box]] = field(default_factory=list)
    turned: bool = False


def yolo_from_coco(annotations: Path, images: Path, out: Path, val_fraction: float = 0.2, seed: int = 0) -> Path:
    """Convert a COCO instances JSON; return ``out/data.yaml``.

    Class ids follow the order of the category ids. Crowd annotations are skipped, boxes are clipped to the
    image, boxes thinner than a pixel and images without a file are dropped; the log says how many. A
    ``file_name`` may lack its suffix; an image without one is looked up by its id.

    Args:
        annotations: the JSON file.
        images: the folder with the images.
        out: the folder to become the dataset, missing or empty.
        val_fraction: share of the images for val, above 0 and below 1.
        seed: decides which images these are.

    Raises:
        DatasetError: the JSON is broken, no image is found, or ``out`` is not empty.
        ArtifactError: ``out`` cannot be written.
    """
    _check_arguments(images, out, val_fraction)
    content = _read_coco(annotations)
    try:
        categories = sorted(content["categories"], key=lambda category: int(category["id"]))
        class_ids = {int(category["id"]): index for index, category in enumerate(categories)}
        if len(class_ids) != len(categories):
            raise ValueError("two categories have one id")
        names = list(
            checked_names({i: category["name"] for i, category in enumerate(categories)}, annotations).values()
        )
        pictures, dropped = _coco_pictures(content["images"], images)
        _add_coco_boxes(content["annotations"], {int(i["id"]) for i in content["images"]}, pictures, class_ids, dropped)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as exc:
        what = f"{type(exc).__name__} {shortened(str(exc))[1:-1]}"
        raise DatasetError(f"'{annotations}' is not a COCO instances file ({what}). Check the entry.") from exc
    return _write_yolo(list(pictures.values()), names, out, val_fraction, seed, dropped)


def yolo_from_voc(
    annotations: Path,
    images: Path,
    out: Path,
    val_fraction: float = 0.2,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> Path:
    """Convert a folder of Pascal VOC XML files; return ``out/data.yaml``.

    VOC pixels count from 1 and include both ends. Objects marked difficult are skipped, as Ultralytics does;
    the rest as in :func:`yolo_from_coco`.

    Args:
        annotations: the folder with the XML files.
        images: the folder with the images.
        out: the folder to become the dataset, missing or empty.
        val_fraction: share of the images for val, above 0 and below 1.
        seed: decides which images these are.
        names: class names in order; by default those found, sorted.

    Raises:
        DatasetError: an XML file is broken, a class is not in ``names``, no image is found, or ``out`` is not empty.
        ArtifactError: ``out`` cannot be written.
    """
    _check_arguments(images, out, val_fraction)
    files = sorted(annotations.glob("*.xml"))
    if not files:
        raise DatasetError(f"'{annotations}' holds no .xml file. Give the folder with the VOC annotations.")
    parsed = [(file, _read_voc(file)) for file in files]
    found = sorted({name for _, (_, _, objects) in parsed for name, _, difficult in objects if not difficult})
    ordered = list(names) if names is not None else found
    if unknown := [name for name in found if name not in ordered]:
        raise DatasetError(f"'{annotations}' has classes that are not in names: {', '.join(unknown[:20])}. Add them.")
    if not ordered:
        raise DatasetError(f"'{annotations}' has no objects that are not difficult, so there are no classes.")
    checked_names(dict(enumerate(ordered)), annotations)
    pictures: list[_Picture] = []
    dropped: Counter[str] = Counter()
    taken: set[str] = set()
    for file, (named, size_wh, objects) in parsed:
        source = _usable(_find_image(images, named) or _find_image(images, file.stem), dropped)
        if source is None:
            continue
        picture = _picture(source, images, taken, size_wh)
        for name, box, difficult in objects:
            if difficult:
                dropped["difficult objects"] += 1
            else:
                _add_box(picture, ordered.index(name), box, dropped)
        pictures.append(picture)
    return _write_yolo(pictures, ordered, out, val_fraction, seed, dropped)


def _check_arguments(images: Path, out: Path, val_fraction: float) -> None:
    if not images.is_dir():
        raise DatasetError(f"Image folder '{images}' does not exist.")
    if not 0 < val_fraction < 1:
        raise DatasetError(f"val_fraction {val_fraction} is not possible. Allowed: above 0 and below 1.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DatasetError(f"'{out}' exists and is not an empty folder. Choose another --out or remove it.")


def _read_coco(path: Path) -> dict[str, Any]:
    content = read_json(path, "Annotations", ANNOTATION_MEGABYTES, DatasetError)
    needed = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in needed):
        raise DatasetError(f"'{path}' is not a COCO instances file: the lists {', '.join(needed)} are needed.")
    if not content["categories"]:
        raise DatasetError(f"'{path}' has no categories, so there are no classes.")
    return content


def _coco_pictures(entries: Sequence[Mapping[str, Any]], images: Path) -> tuple[dict[int, _Picture], Counter[str]]:
    pictures: dict[int, _Picture] = {}
    dropped: Counter[str] = Counter()
    taken: set[str] = set()
    for entry in entries:
        source = _usable(_find_image(images, str(entry.get("file_name") or entry["id"])), dropped)
        if source is None:
            continue
        size_wh = _given_size(float(entry.get("width") or 0), float(entry.get("height") or 0))
        pictures[int(entry["id"])] = _picture(source, images, taken, size_wh)
    return pictures, dropped


def _add_coco_boxes(
    annotations: Sequence[Mapping[str, Any]],
    image_ids: set[int],
    pictures: Mapping[int, _Picture],
    class_ids: Mapping[int, int],
    dropped: Counter[str],
) -> None:
    for annotation in annotations:
        image_id = int(annotation["image_id"])
        if image_id not in image_ids:
            raise ValueError(f"annotation {annotation.get('id')} belongs to image {image_id}, which is not listed")
        if annotation.get("iscrowd"):
            dropped["crowd annotations"] += 1
        elif image_id in pictures:
            x, y, width, height = (float(value) for value in annotation["bbox"])
            class_id = class_ids[int(annotation["category_id"])]
            _add_box(pictures[image_id], class_id, (x, y, x + width, y + height), dropped)


def _read_voc(path: Path) -> tuple[str, tuple[float, float] | None, list[tuple[str, Box, bool]]]:
    """File name, size (None if the file says 0) and objects as (class name, box_xyxy in pixels, difficult)."""
    raw = read_bytes(path, "Annotations", LABEL_MEGABYTES, DatasetError)
    try:
        root = ElementTree.fromstring(raw, ElementTree.XMLParser(target=_NoDocumentType()))
        size_wh = _given_size(*(float(root.findtext(f"size/{side}") or 0) for side in ("width", "height")))
        objects = [_voc_object(element) for element in root.iter("object")]
    except (ElementTree.ParseError, ValueError, LookupError) as exc:
        raise DatasetError(f"'{path}' is not a Pascal VOC file: {shortened(str(exc), 200)[1:-1]}.") from exc
    name = (root.findtext("filename") or "").strip() or path.stem
    return name, size_wh, objects


class _NoDocumentType(ElementTree.TreeBuilder):
    """VOC files declare no document type; its entities are how a hostile file fills the memory or asks for others."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Called before the first entity of it is declared."""
        del name, pubid, system
        raise ValueError("it declares a document type, which VOC files do not have. Remove it")


def _given_size(width: float, height: float) -> tuple[float, float] | None:
    """What annotations say, None if that is nothing."""
    if max(width, height) > _LARGEST_SIDE:
        raise ValueError(f"an image of {width:g} x {height:g} pixels; allowed are up to {_LARGEST_SIDE:,}")
    return (width, height) if width > 0 and height > 0 else None


def _voc_object(element: ElementTree.Element) -> tuple[str, Box, bool]:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object has no name")
    corners = []
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = element.findtext(f"bndbox/{key}")
        if text is None:
            raise ValueError(f"object '{name}' has no bndbox/{key}")
        corners.append(float(text))
    left, top, right, bottom = corners
    return name, (left - 1, top - 1, right, bottom), (element.findtext("difficult") or "0").strip() == "1"


def _usable(found: Path | None, dropped: Counter[str]) -> Path | None:
    if found is None:
        dropped["images without a file"] += 1
    elif not found.is_file():
        dropped["images that are pipes, devices or folders"] += 1
        return None
    return found


def _find_image(images: Path, name: str) -> Path | None:
    relative = PurePosixPath(file_name(name.replace("\\", "/")))
    if not relative.parts:
        return None
    if relative.is_absolute() or ".." in relative.parts or ":" in relative.parts[0]:
        relative = PurePosixPath(relative.name)  # a path of another machine
    for candidate in dict.fromkeys((images / relative, images / relative.name)):
        if candidate.suffix.lower() in IMAGE_SUFFIXES and _exists(candidate):
            return candidate
        for suffix in sorted(IMAGE_SUFFIXES):
            for spelled in (suffix, suffix.upper()):
                if _exists(file := candidate.with_name(candidate.name + spelled)):
                    return file
    return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long
        return False


def _picture(source: Path, images: Path, taken: set[str], given_wh: tuple[float, float] | None) -> _Picture:
    """An image with the size that its boxes are fractions of: what the annotations say, unless it lies on its side.

    Tools that ignore EXIF write the stored size of a photo that was annotated, and is read, upright. A size that
    differs otherwise is that of a larger or smaller copy, and its boxes fit it.
    """
    name = _free_name(source, images, taken)
    if given_wh is None:
        return _Picture(source, name, check_image(source))
    with contextlib.suppress(DatasetError):  # validation names unreadable images
        shown_wh = image_size(source)
        if given_wh != shown_wh and given_wh == shown_wh[::-1]:
            return _Picture(source, name, shown_wh, turned=True)
    return _Picture(source, name, given_wh)


def _free_name(source: Path, images: Path, taken: set[str]) -> str:
    """A flat file name; two sources never share a stem, because the label is found by it."""
    relative = source.relative_to(images).with_suffix("")
    stem = base = "_".join(relative.parts)
    number = 2
    while stem in taken:
        stem, number = f"{base}_{number}", number + 1
    taken.add(stem)
    return stem + source.suffix.lower()


def _add_box(picture: _Picture, class_id: int, box_xyxy: Box, dropped: Counter[str]) -> None:
    width, height = picture.size_wh
    left, right = (min(max(value, 0.0), width) for value in (box_xyxy[0], box_xyxy[2]))
    top, bottom = (min(max(value, 0.0), height) for value in (box_xyxy[1], box_xyxy[3]))
    # written so that NaN is dropped too
    if right - left >= _MIN_SIDE and bottom - top >= _MIN_SIDE:
        picture.boxes.append((class_id, (left, top, right, bottom)))
    else:
        dropped[_DEGENERATE] += 1


def _write_yolo(
    pictures: list[_Picture], names: list[str], out: Path, val_fraction: float, seed: int, dropped: Counter[str]
) -> Path:
    if len(pictures) < 2:
        missing = dropped["images without a file"]
        raise DatasetError(f"{len(pictures)} images found, {missing} missing; two are needed, for train and for val.")
    boxes = sum(len(picture.boxes) for picture in pictures)
    if not boxes and dropped[_DEGENERATE]:
        raise DatasetError(
            f"Not one of {dropped[_DEGENERATE]} boxes is left inside its image. Boxes must be in pixels of the images "
            "as they are shown."
        )
    pictures = sorted(pictures, key=lambda picture: picture.name)
    val_count = min(max(round(len(pictures) * val_fraction), 1), len(pictures) - 1)
    in_val = set(np.random.default_rng(seed).permutation(len(pictures))[:val_count].tolist())
    with atomic_folder(out) as folder:
        for split in ("train", "val"):
            (folder / "images" / split).mkdir(parents=True)
            (folder / "labels" / split).mkdir(parents=True)
        for index, picture in enumerate(pictures):
            split = "val" if index in in_val else "train"
            _link_or_copy(picture.source, folder / "images" / split / picture.name)
            label = (folder / "labels" / split / picture.name).with_suffix(".txt")
            label.write_text(_label_text(picture), encoding="utf-8")
        content = {"path": ".", "train": "images/train", "val": "images/val", "names": dict(enumerate(names))}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (folder / "data.yaml").write_text(text, encoding="utf-8")
    _LOG.info("%d train and %d val images, %d boxes", len(pictures) - val_count, val_count, boxes)
    if turned := sum(picture.turned for picture in pictures):
        _LOG.warning(
            "%d images are listed with width and height exchanged: boxes are taken as in the shown image", turned
        )
    if lost := {what: count for what, count in dropped.items() if count}:
        _LOG.warning("left out: %s", ", ".join(f"{count} {what}" for what, count in lost.items()))
    return out / "data.yaml"


def _label_text(picture: _Picture) -> str:
    width, height = picture.size_wh
    lines = []
    for class_id, (left, top, right, bottom) in picture.boxes:
        values = (
            (left + right) / 2 / width,
            (top + bottom) / 2 / height,
            (right - left) / width,
            (bottom - top) / height,
        )
        lines.append(f"{class_id} " + " ".join(f"{value:.6f}" for value in values) + "\n")
    return "".join(lines)


def _link_or_copy(source: Path, target: Path) -> None:
    real = source.resolve()  # a hard link to a symbolic link would be a symbolic link
    with contextlib.suppress(OSError):  # another file system, or one without hard links
        os.link(real, target)
        return
    shutil.copyfile(real, target)
