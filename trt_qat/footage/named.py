"""What ``--data`` names: a dataset with labels of people, or images and videos that the FP32 model labels itself."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trt_qat.data.dataset import Dataset
from trt_qat.errors import DatasetError
from trt_qat.limits import LISTED_FILES
from trt_qat.redact import redacted
from trt_qat.runtime.sources import LIST_SUFFIX, VIDEO_SUFFIXES, Named, sources_of
from trt_qat.vision.image import IMAGE_SUFFIXES

Data = str | Path | Dataset | Sequence[str | Path]
"""A data.yaml, a folder with images/ and labels/, or a dataset that is loaded already; or without labels: a folder of
images and videos, an image, a video, a pattern, a list (``*.txt``), or several of these."""

_YAML_SUFFIXES = (".yaml", ".yml")
_LIVE = re.compile(r"[a-z][a-z0-9+.-]+:/|\d{1,9}$|/dev/video\d+$", re.ASCII | re.IGNORECASE)
_PATTERN = {"*", "?", "["}
_MEDIA = IMAGE_SUFFIXES | VIDEO_SUFFIXES | {LIST_SUFFIX}


@dataclass(frozen=True)
class Footage:
    """Images and videos without labels; none is opened yet.

    Args:
        shown: as it was given, for messages.
        images: absolute files, sorted within each source.
        videos: absolute files.
    """

    shown: str
    images: tuple[Path, ...]
    videos: tuple[Path, ...]


def given_in(data: Data) -> tuple[str, ...]:
    """What was named as data, one or several."""
    if isinstance(data, Dataset):
        return (str(data.source),)
    return (str(data),) if isinstance(data, str | Path) else tuple(map(str, data))


def footage_in(data: Data, out: Path | None = None) -> Footage | None:
    """The images and videos that ``data`` names; None if it names a dataset.

    Args:
        out: where the dataset is written. What is in it does not count, nor what is beside it (the pictures of a run)
            in a folder that is given and has both within.

    Raises:
        DatasetError: there is no such thing, nothing that can be read, or a dataset among several.
    """
    if isinstance(data, Dataset):
        return None
    given = given_in(data)
    if not given:
        raise DatasetError("No data is given. Give a data.yaml, or images and videos.")
    for one in given:
        if _LIVE.match(one) and not os.path.exists(one):  # noqa: PTH110
            raise DatasetError(
                f"'{redacted(one)}' is live or on the network. Record some minutes of it and give the video."
            )
    if len(given) == 1 and is_dataset(given[0]):
        return None
    for one in given:
        if is_dataset(one):
            raise DatasetError(
                f"'{redacted(one)}' is no image or video, and one of {len(given)} that are given as data. Give a "
                "dataset alone, or several images, videos, folders of them, patterns and lists (*.txt)."
            )
    shown = redacted(given[0]) + (f" and {len(given) - 1} more" if len(given) > 1 else "")
    kinds: dict[str, dict[str, None]] = {"images": {}, "video": {}}
    for one in given:
        for named in _sources(one):
            if named.kind not in kinds:  # an address in a list
                raise DatasetError(f"'{redacted(named.text)}' is live or on the network. Give files.")
            files = sorted(os.path.abspath(path) for path in named.paths)  # noqa: PTH100  -- links stay links
            kinds[named.kind].update(dict.fromkeys(file for file in files if not _is_ours(file, one, out)))
    images, videos = (tuple(map(Path, kinds[kind])) for kind in ("images", "video"))
    LISTED_FILES.check(len(images) + len(videos), f"'{shown}'", DatasetError)
    if not images + videos:
        raise DatasetError(f"'{shown}' holds no images and no videos but those that were written for it.")
    return Footage(shown, images, videos)


def _sources(given: str) -> list[Named]:
    if not (_PATTERN & set(given) or os.path.exists(given)):  # noqa: PTH110  -- knows names that are too long
        raise DatasetError(
            f"'{redacted(given)}' does not exist. Give a dataset, or images, videos, folders of them, patterns and "
            "lists (*.txt)."
        )
    try:
        return sources_of(given, recursive=True)
    except DatasetError as exc:
        if exc.__cause__ is None and os.path.isdir(given):  # noqa: PTH112  -- a folder that could be read
            raise DatasetError(
                f"Folder '{redacted(given)}' holds neither a data.yaml nor a folder images/, and no images and no "
                "videos."
            ) from exc
        raise


def _is_ours(file: str, given: str, out: Path | None) -> bool:
    """Whether a file lies in the folder that is written, or beside it while what was given does not."""
    if out is None:
        return False
    within = [os.path.realpath(place) + os.sep for place in (file, given, out, out.absolute().parent)]
    file, given, folder, run = within
    return file.startswith(folder) or (file.startswith(run) and not given.startswith(run))


def is_dataset(text: str) -> bool:
    """Whether a text names a dataset with labels, or nothing that could be images or videos."""
    suffix = Path(text).suffix.lower()
    if os.path.isdir(text):  # noqa: PTH112  -- knows names that are too long and those with a NUL
        return _is_dataset_folder(Path(text))
    if os.path.exists(text):  # noqa: PTH110
        return suffix not in _MEDIA
    return suffix in _YAML_SUFFIXES or not (_PATTERN & set(text) or suffix in _MEDIA)


def _is_dataset_folder(folder: Path) -> bool:
    try:
        if any(file.suffix.lower() in _YAML_SUFFIXES and file.is_file() for file in folder.iterdir()):
            return True
        return (folder / "images").is_dir() and (folder / "labels").is_dir()
    except OSError:
        return True  # whoever loads it says why it cannot be read
