"""What a run has finished, and from what: a stage whose inputs and files are as they were is not done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from trt_qat.artifacts import file_sha256, write_json
from trt_qat.errors import ArtifactError
from trt_qat.progress import SILENT, Noting
from trt_qat.reading import FileModel, checked, read_json

FILE = "manifest.json"
_ADVICE = "Every stage is done anew."


class Stage(FileModel):
    """A finished stage.

    Args:
        inputs: everything that decides its files: hashes of files, settings, versions.
        files: what it wrote, relative to the run's folder, and the hash of each.
        seconds: how long it took.
        notes: what the user was told while it was done.
    """

    inputs: dict[str, JsonValue]
    files: dict[str, str]
    seconds: Annotated[float, Field(ge=0)] | None = None  # files up to 0.1 do not say it
    notes: tuple[str, ...] = ()


class ManifestFile(FileModel):
    """The content of ``manifest.json``."""

    format: Literal["trt_qat-manifest-1"] = "trt_qat-manifest-1"
    stages: dict[str, Stage] = Field(default_factory=dict)


class Manifest:
    """The finished stages of the run in a folder, rewritten after each.

    Args:
        folder: of the run; the caller holds its lock.
        progress: told which stage is reused; what it is told while a stage is done is kept with that stage.
        anew: forget what is there.
    """

    def __init__(self, folder: Path, progress: Noting | None = None, *, anew: bool = False) -> None:
        self._folder = folder
        self._progress = progress or Noting(SILENT)
        self._file = ManifestFile() if anew else self._read()

    def stage(
        self, name: str, inputs: Mapping[str, JsonValue], files: Sequence[Path], make: Callable[[], object]
    ) -> None:
        """Call ``make`` unless the stage is finished with these inputs and its files are as it left them.

        Args:
            inputs: everything that decides the files.
            files: what ``make`` writes, whole or not at all each.
        """
        wanted = dict(inputs)
        found = self._file.stages.get(name)
        if found is not None and found.inputs == wanted and found.files == self._hashes(files):
            self._progress.shown.note(f"Reusing {name}: {', '.join(file.name for file in files)}.")
            return
        start, told = time.monotonic(), len(self._progress.lines)
        make()
        seconds, notes = round(time.monotonic() - start, 1), tuple(self._progress.lines[told:])
        del self._progress.lines[told:]  # they are the stage's now: a run that reuses it is told nothing else
        stages = {
            **self._file.stages,
            name: Stage(inputs=wanted, files=self._hashes(files), seconds=seconds, notes=notes),
        }
        self._file = ManifestFile(stages=stages)
        write_json(self._folder / FILE, self._file.model_dump(mode="json"))

    @property
    def stages(self) -> Mapping[str, Stage]:
        """The finished stages by name, in the order in which they were first done."""
        return self._file.stages

    def _hashes(self, files: Sequence[Path]) -> dict[str, str]:
        """The hash of each file, ``""`` where it is not there."""
        return {
            file.relative_to(self._folder).as_posix(): file_sha256(file) if file.is_file() else "" for file in files
        }

    def _read(self) -> ManifestFile:
        path = self._folder / FILE
        if not path.exists():
            return ManifestFile()
        try:
            return checked(ManifestFile, read_json(path, "Manifest"), path, _ADVICE)
        except ArtifactError as exc:
            self._progress.note(str(exc) if str(exc).endswith(_ADVICE) else f"{exc} {_ADVICE}")
            return ManifestFile()
