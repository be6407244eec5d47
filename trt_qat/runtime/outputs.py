"""What the SOURCE of ``infer`` names: images or a video, and where the annotated ones go by default."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from trt_qat.errors import ArtifactError, DatasetError
from trt_qat.limits import LISTED_FILES
from trt_qat.redact import redacted
from trt_qat.runtime.video import VIDEO_SUFFIXES
from trt_qat.vision.image import IMAGE_SUFFIXES

RESULTS = Path("runs/infer")
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # two letters at least: c:// is a drive
# a camera's number or device, standard input, a GStreamer pipeline
_NO_FILE = re.compile(r"^\d+$|^/dev/video|^-$| ! ")


@dataclass(frozen=True)
class Source:
    """Files that exist and whose names say what they are.

    Attributes:
        text: as it was given.
        path: the file or folder.
        images: the images, in order; None for a video.
    """

    text: str
    path: Path
    images: tuple[Path, ...] | None

    @property
    def is_folder(self) -> bool:
        """Whether there may be several images, whose results need a folder."""
        return self.path.is_dir()


def find_source(text: str) -> Source:
    """What a text names: an image, a folder (its images, not its sub-folders) or a video.

    It is not taken as a path, because a path turns ``rtsp://host`` into ``rtsp:/host``.

    Raises:
        DatasetError: a stream or a camera, or nothing that can be annotated.
    """
    path = Path(text)
    mode = _mode(path) if text else None
    device = mode is not None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))  # a camera, a pipe, a socket
    if _URL.match(text) or device or (mode is None and _NO_FILE.search(text)):
        raise DatasetError(
            f"Source '{redacted(text)}' cannot be read: streams and cameras are not supported yet. "
            "Record a video file and give that."
        )
    if mode is None:
        raise DatasetError(f"Source '{redacted(text)}' does not exist. Give an image, a folder of images or a video.")
    if stat.S_ISDIR(mode):
        return Source(text, path, _images_in(path))
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return Source(text, path, (path,))
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return Source(text, path, None)
    known = ", ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
    raise DatasetError(f"Source '{redacted(text)}' is neither an image nor a video by its name. Known: {known}.")


def target_of(source: Source, out: Path | None) -> Path:
    """The file to write for an image or a video, the folder for a folder.

    Args:
        out: a file, or a folder if it has no suffix; None is ``runs/infer/<name>``.

    Raises:
        ArtifactError: it is of another kind than the source, or the source itself.
    """
    if source.is_folder:
        target = out if out is not None else RESULTS / source.path.resolve().name
        if target.is_file():
            raise ArtifactError(f"--out '{target}' is a file; the results of a folder need a folder.")
    else:
        is_file = out is not None and bool(out.suffix) and not out.is_dir()
        target = out if out is not None and is_file else (out or RESULTS) / _name_of_result(source)
        if source.images is not None and target.suffix.lower() not in IMAGE_SUFFIXES:
            raise ArtifactError(f"--out '{target}' must be a folder or end in {', '.join(sorted(IMAGE_SUFFIXES))}.")
    if os.path.realpath(target) == os.path.realpath(source.path):  # unlike resolve(), it knows loops
        raise ArtifactError(f"--out '{target}' is the source itself. Choose another --out.")
    return target


def _name_of_result(source: Source) -> str:
    if source.images is not None:
        return source.path.name
    return f"{source.path.stem}{'.avi' if source.path.suffix.lower() == '.avi' else '.mp4'}"


def _images_in(folder: Path) -> tuple[Path, ...]:
    try:
        images = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        images = [path for path in images if not path.is_dir()]  # what else is no file is left out, and said
    except OSError as exc:
        raise DatasetError(f"Folder '{folder}' cannot be read: {exc.strerror or exc}.") from exc
    LISTED_FILES.check(len(images), f"Folder '{folder}'", DatasetError)
    if not images:
        raise DatasetError(f"Folder '{folder}' holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    return tuple(images)


def _mode(path: Path) -> int | None:
    """What kind of file it is, as in :mod:`stat`; None if it is not there or cannot be asked."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):  # also a name that is too long
        return None
