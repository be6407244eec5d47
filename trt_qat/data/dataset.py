"""Where the images are: an Ultralytics ``data.yaml``, or a folder in YOLO layout, as one frozen value.

Images are listed here and nowhere else; every stage, Ultralytics' trainer included, is handed these files.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from trt_qat.data.images import evenly_spaced
from trt_qat.errors import DatasetError
from trt_qat.limits import CLASSES, LIST_MEGABYTES, LISTED_FILES
from trt_qat.reading import file_name, read_bytes, read_yaml, shortened
from trt_qat.results import Measure
from trt_qat.vision.image import IMAGE_SUFFIXES

_YAML_SUFFIXES = (".yaml", ".yml")
_KERNEL_FOLDERS = ("/proc", "/sys", "/dev")
_CLASS_ID = re.compile(r"\d{1,9}$", re.ASCII)
_LONGEST_NAME = 200
_MANY = 10**18  # what a message can print
LabelledBy = Literal["people", "model"]


@dataclass(frozen=True)
class Dataset:
    """A detection dataset.

    Args:
        source: the data.yaml or the folder it was read from.
        train: sorted absolute image files.
        val: sorted absolute image files; equal to ``train`` if the dataset has one split only.
        names: class id to name, ids 0 to n - 1.
        labelled_by: "model" where the labels are what the FP32 model itself detected (``labelled_by: model`` in the
            data.yaml): what is measured against them is agreement with that model, never mAP.
        weights_sha256: of the weights that labelled, where the data.yaml says it.
    """

    source: Path
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    names: Mapping[int, str]
    labelled_by: LabelledBy = "people"
    weights_sha256: str = ""

    @property
    def measure(self) -> Measure:
        """What counting detections against its labels gives."""
        return "agreement" if self.labelled_by == "model" else "mAP"


def load_dataset(path: Path, names: Mapping[int, str] | None = None) -> Dataset:
    """Read a dataset description and list its images.

    Args:
        path: a data.yaml, a folder that holds exactly one YAML file, or a folder with ``images/`` and ``labels/``.
        names: the model's class names, used where the dataset brings none.

    Raises:
        DatasetError: missing path, broken YAML, no names, no split, or a split without images.
    """
    try:
        return _load(path, names)
    except (OSError, ValueError, RuntimeError) as exc:  # a name too long or with a NUL, no permission, a loop of links
        raise DatasetError(f"Dataset '{path}' cannot be read: {getattr(exc, 'strerror', None) or exc}.") from exc


def _load(path: Path, names: Mapping[int, str] | None) -> Dataset:
    if not path.exists():
        raise DatasetError(f"Dataset '{path}' does not exist. Give a data.yaml or a folder with images/ and labels/.")
    path = path.absolute()
    if not path.is_dir():
        return _from_yaml(path, names)
    yamls = sorted(file for file in path.iterdir() if file.suffix.lower() in _YAML_SUFFIXES and file.is_file())
    if len(yamls) == 1:
        return _from_yaml(yamls[0], names)
    if not (path / "images").is_dir():
        found = f"{len(yamls)} YAML files, give one of them" if yamls else "neither a data.yaml nor a folder images/"
        raise DatasetError(f"Dataset folder '{path}' holds {found}.")
    if names is None:
        raise DatasetError(f"Dataset folder '{path}' has no class names. Add a data.yaml with 'names'.")
    train, val = _layout_splits(path / "images")
    return _assemble(path, train, val, checked_names(names, path))


def label_path(image: Path) -> Path:
    """The label file of an image: the last ``/images/`` becomes ``/labels/``, the suffix ``.txt``."""
    head, separator, tail = str(image).rpartition(f"{os.sep}images{os.sep}")
    moved = f"{head}{os.sep}labels{os.sep}{tail}" if separator else tail
    return Path(moved).with_suffix(".txt")


def check_classes(dataset: Dataset, names: Mapping[int, str]) -> None:
    """Refuse a dataset whose classes are not the model's: another number of them, or one of them at another place.

    Names that only one of them has may be translations and are let through.

    Raises:
        DatasetError: the numbers differ, or the order does.
    """
    if len(dataset.names) != len(names):
        raise DatasetError(
            f"'{dataset.source}' has {_count(dataset.names)}, the model {_count(names)}. "
            "Use weights trained on these classes, or the dataset the model was trained on."
        )
    ours, theirs = ({name.strip().casefold(): index for index, name in each.items()} for each in (dataset.names, names))
    for name in ours.keys() & theirs.keys() if len(ours) == len(theirs) == len(names) else ():
        if ours[name] != theirs[name]:
            raise DatasetError(
                f"Class '{dataset.names[ours[name]]}' is number {ours[name]} in '{dataset.source}' and number "
                f"{theirs[name]} in the model: the order of the classes differs. Put 'names' and the labels in the "
                "model's order."
            )


def calibration_images(dataset: Dataset, count: int) -> list[Path]:
    """``count`` training images, evenly spaced over the sorted list; all of them if there are fewer.

    Raises:
        DatasetError: ``count`` is below 1.
    """
    if count < 1:
        raise DatasetError(f"{count} calibration images are not possible. Ask for 1 or more.")
    return evenly_spaced(dataset.train, count)


def _from_yaml(path: Path, names: Mapping[int, str] | None) -> Dataset:
    content = _read_yaml(path)
    root = _root(path, content.get("path"))
    train, val = content.get("train"), content.get("val") or content.get("validation")
    if not (train or val):
        raise DatasetError(
            f"'{path}' has neither 'train' nor 'val'. Add the folder of images, e.g. train: images/train."
        )
    entries = {key: _entries(path, root, key, value) for key, value in (("train", train), ("val", val)) if value}
    return _assemble(
        path,
        entries.get("train") or entries["val"],
        entries.get("val") or entries["train"],
        _yaml_names(path, content, names),
        _labelled_by(path, content.get("labelled_by", "people")),
        str(content.get("weights_sha256", "")),
    )


def _labelled_by(path: Path, value: Any) -> LabelledBy:
    for known in get_args(LabelledBy):
        if value == known:
            return known  # type: ignore[no-any-return]
    raise DatasetError(f"'labelled_by: {shortened(value)}' in '{path}' must be people or model.")


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.suffix.lower() not in _YAML_SUFFIXES:
        raise DatasetError(f"Dataset '{path}' is neither a .yaml file nor a folder.")
    content = read_yaml(path, "Dataset", DatasetError)
    if not isinstance(content, dict):
        raise DatasetError(f"'{path}' must hold the keys path, train, val and names, found {type(content).__name__}.")
    return content


def _root(path: Path, given: Any) -> Path:
    if given is None or given == "":
        return path.parent
    if not isinstance(given, str):
        raise DatasetError(f"'path: {shortened(given)}' in '{path}' must be a folder.")
    folder = file_name(given)
    candidates = [path.parent / folder, Path.cwd() / folder]  # an absolute path overrides the first part
    for candidate in candidates:
        if candidate.is_dir():
            return candidate.resolve()
    tried = " nor ".join(f"'{candidate}'" for candidate in dict.fromkeys(candidates))
    raise DatasetError(f"'path: {given}' in '{path}' does not exist: neither {tried}. Correct or remove 'path'.")


def _entries(path: Path, root: Path, key: str, value: Any) -> list[Path]:
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in items):
        raise DatasetError(f"'{key}: {shortened(value)}' in '{path}' must be a folder, a .txt list, or a list of them.")
    resolved = []
    for item in dict.fromkeys(items):  # a folder that stands there twice is walked once
        item = file_name(item)
        entry = Path(os.path.realpath(root / item))  # unlike resolve(), it knows loops
        if not entry.exists() and item.startswith("../"):  # Roboflow writes '../train/images' for './train/images'
            entry = Path(os.path.realpath(root / item[3:]))
        if not entry.exists():
            raise DatasetError(f"'{key}: {item}' in '{path}' does not exist: '{entry}'. Correct 'path' or '{key}'.")
        if entry == Path(entry.anchor):
            raise DatasetError(f"'{key}: {item}' in '{path}' is the whole file system. Give the folder of the images.")
        resolved.append(entry)
    return list(dict.fromkeys(resolved))


def _yaml_names(path: Path, content: Mapping[str, Any], fallback: Mapping[int, str] | None) -> dict[int, str]:
    given, count = content.get("names"), content.get("nc")
    if given is None and count is None:
        if fallback is None:
            raise DatasetError(f"'{path}' has no class names. Add 'names', e.g. names: [car, sign].")
        return checked_names(fallback, path)
    if count is not None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise DatasetError(f"'nc: {shortened(count)}' in '{path}' must be a whole number of classes, 1 or more.")
        CLASSES.check(min(count, _MANY), f"'{path}'", DatasetError)
    if given is None:
        return {index: f"class_{index}" for index in range(count or 0)}
    if isinstance(given, list):
        given = dict(enumerate(given))
    if not isinstance(given, dict):
        raise DatasetError(f"'names: {shortened(given)}' in '{path}' must be a list, or a mapping of class id to name.")
    named = checked_names(given, path)
    if count is not None and count != len(named):
        raise DatasetError(f"'{path}' says nc: {count} but names {len(named)} classes. Correct one of them.")
    return named


def checked_names(names: Mapping[Any, Any], path: Path) -> dict[int, str]:
    """Class id to name, in order.

    Args:
        names: of a file that somebody wrote.
        path: the file.

    Raises:
        DatasetError: too many, ids that are not 0 to n - 1, or names that cannot be printed in a line.
    """
    CLASSES.check(len(names), f"'{path}'", DatasetError)
    named: dict[int, str] = {}
    for key, value in names.items():
        if isinstance(key, bool) or not (isinstance(key, int) or (isinstance(key, str) and _CLASS_ID.match(key))):
            raise DatasetError(f"The class ids of 'names' for '{path}' must be whole numbers: found {shortened(key)}.")
        name = str(value) if isinstance(value, str | int | float) else ""
        if not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
            raise DatasetError(
                f"The name of class {shortened(key)} for '{path}' must be one line of 1 to {_LONGEST_NAME} printable "
                f"characters, found {shortened(value)}."
            )
        named[int(key)] = name
    if not named or sorted(named) != list(range(len(names))):
        found = shortened(sorted(named)[:20])
        raise DatasetError(f"The class ids of 'names' for '{path}' must run from 0 without a gap, found {found}.")
    return dict(sorted(named.items()))


def _layout_splits(images: Path) -> tuple[list[Path], list[Path]]:
    folders = sorted(entry for entry in images.iterdir() if entry.is_dir())
    train = [folder for folder in folders if folder.name.startswith("train")]
    val = [folder for folder in folders if folder.name.startswith("val")]
    if not (train or val):
        train = [images]
    return train or val, val or train


def _assemble(
    source: Path,
    train: Sequence[Path],
    val: Sequence[Path],
    names: dict[int, str],
    labelled_by: LabelledBy = "people",
    weights_sha256: str = "",
) -> Dataset:
    return Dataset(
        source=source,
        train=_images(train, "train", source),
        val=_images(val, "val", source),
        names=names,
        labelled_by=labelled_by,
        weights_sha256=weights_sha256,
    )


def _images(entries: Sequence[Path], split: str, source: Path) -> tuple[Path, ...]:
    files: set[str] = set()
    for entry in entries:
        if entry.is_dir():
            files.update(_walk(str(entry), f"Split '{split}' of '{source}'"))
        elif entry.suffix.lower() == ".txt":
            files.update(_listed(entry))
        else:
            raise DatasetError(f"Split '{split}' of '{source}' must be a folder or a .txt list, found '{entry}'.")
        LISTED_FILES.check(len(files), f"Split '{split}' of '{source}'", DatasetError)
    images = sorted(file for file in files if Path(file).suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        where = ", ".join(f"'{entry}'" for entry in entries)
        raise DatasetError(
            f"Split '{split}' of '{source}' has no image in {where}. Allowed: {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    if not any(os.path.exists(image) for image in images):  # noqa: PTH110  # a folder's first image does
        raise DatasetError(
            f"Split '{split}' of '{source}' lists {len(images)} images, and none exists, e.g. '{images[0]}'. Lines of "
            "a list are absolute, relative to the working folder, or relative to the list where they begin with './'."
        )
    return tuple(Path(image) for image in images)


def _walk(folder: str, what: str) -> list[str]:
    """The image files below a folder, whatever kind of file they turn out to be.

    As Ultralytics walks: it follows linked folders and skips hidden files. Not a folder within itself, nor the files
    that a kernel makes up.

    Raises:
        DatasetError: more entries than the limit; a folder cannot be read.
    """
    found: list[str] = []
    entries = 0
    not_entered = frozenset(_identity(place) for place in _KERNEL_FOLDERS if os.path.isdir(place))  # noqa: PTH112
    waiting = [(folder, not_entered)]
    while waiting:
        current, outside = waiting.pop()
        try:
            identity = _identity(current)
            if identity in outside:
                continue
            with os.scandir(current) as listing:
                for entry in listing:
                    entries += 1
                    LISTED_FILES.check(entries, what, DatasetError)
                    if entry.name.startswith("."):
                        continue
                    if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122
                        found.append(entry.path)
                    if entry.is_dir():
                        waiting.append((entry.path, outside | {identity}))
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ELOOP):  # removed meanwhile; a link that leads nowhere
                continue
            raise DatasetError(f"Folder '{current}' cannot be read: {exc.strerror or exc}.") from exc
    return found


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)  # noqa: PTH116  # a quarter of a large listing's time is spent on Path objects
    return status.st_dev, status.st_ino


def _listed(file: Path) -> list[str]:
    raw = read_bytes(file, "Image list", LIST_MEGABYTES, DatasetError).removeprefix(codecs.BOM_UTF8)
    # './' means beside the list, everything else the working folder: Ultralytics' rule.
    # Links stay links: a label lies beside the link, not beside its target.
    return [
        os.path.abspath(file.parent / line[2:] if line.startswith("./") else line)  # noqa: PTH100
        for line in (os.fsdecode(part).strip() for part in raw.splitlines())  # names need not be UTF-8
        if line
    ]


def _count(names: Mapping[int, str]) -> str:
    shown = ", ".join(list(names.values())[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {'class' if len(names) == 1 else 'classes'} ({shown})"
