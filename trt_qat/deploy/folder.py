"""The folder of a deployment: whole or not there, and never over anything that is not ours.

A file in it says what was written. Where all of that is still so, and nothing else is there, the same deployment may be
written again; the old folder then goes in one step. An engine that was built in it, for one, is of the old model, so a
folder with anything more is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from trt_qat.artifacts import atomic_path, file_sha256, write_json
from trt_qat.errors import ArtifactError
from trt_qat.reading import FileModel, checked, read_json

RECORD: Final = "trt_qat_deploy.json"
_ADVICE: Final = "Give a new or empty folder, or remove this one."


class Record(FileModel):
    """What was deployed into a folder.

    Args:
        target, name: of the deployment and of the model in it.
        model_sha256: of the file that was deployed.
        files: SHA-256 by path in the folder.
    """

    target: str
    name: str
    model_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    files: dict[str, str]


def check_folder(folder: Path, target: str, name: str) -> Path:
    """Prove that a deployment may be written to ``folder``.

    Returns:
        The folder itself, behind any link.

    Raises:
        ArtifactError: a file, a folder that this process stands in, or one that holds something else.
    """
    folder = Path(os.path.realpath(folder))  # unlike resolve(), it knows loops of links
    if not os.path.lexists(folder):
        return folder
    if not folder.is_dir():
        raise ArtifactError(f"'{folder}' is a file. Give a new or empty folder.")
    if Path.cwd().is_relative_to(folder):
        raise ArtifactError(f"'{folder}' is the folder that this command runs in. Give a folder in it.")
    first = min(folder.iterdir(), default=None)
    if first is None:
        return folder
    if not (folder / RECORD).exists():  # said before a large folder is walked through
        raise ArtifactError(f"'{folder}' holds '{first.name}', which `trt-qat deploy` did not write. {_ADVICE}")
    record = checked(Record, read_json(folder / RECORD, "Record"), folder / RECORD, _ADVICE)
    if (record.target, record.name) != (target, name):
        raise ArtifactError(f"'{folder}' holds model '{record.name}' for target '{record.target}'. {_ADVICE}")
    for path in sorted(folder.rglob("*")):
        file = _inside(path, folder)
        if file == RECORD or (path.is_dir() and not path.is_symlink()):
            continue
        if file not in record.files:
            raise ArtifactError(f"'{folder}' holds '{file}', which `trt-qat deploy` did not write. {_ADVICE}")
        if path.is_symlink() or not path.is_file() or file_sha256(path) != record.files[file]:
            raise ArtifactError(f"'{folder}' holds '{file}', which was changed since it was written. {_ADVICE}")
    return folder


@contextmanager
def written(folder: Path, target: str, name: str, model_sha256: str) -> Iterator[Path]:
    """Yield an empty folder that becomes ``folder``, with its record, once all is written; else nothing is left.

    Args:
        folder: as :func:`check_folder` returned it.
    """
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        yield temporary
        files = {_inside(file, temporary): file_sha256(file) for file in files_in(temporary)}
        record = Record(target=target, name=name, model_sha256=model_sha256, files=files)
        write_json(temporary / RECORD, record.model_dump())
        if folder.is_dir():  # check_folder allows it to be replaced
            folder.replace(temporary.parent / "replaced")


def files_in(folder: Path) -> list[Path]:
    """Every file in a folder and those in it, by name."""
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _inside(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()
