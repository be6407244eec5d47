"""A whole folder appears at once or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from trt_qat.artifacts import atomic_path
from trt_qat.errors import ArtifactError


@contextlib.contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``out`` that takes its place on success; what was there is removed then.

    The caller checks beforehand that ``out`` may be replaced.

    Raises:
        ArtifactError: something cannot be written.
    """
    out = out.absolute()  # "." has no name of its own
    with atomic_path(out) as folder:
        try:
            folder.mkdir()
            yield folder
            if out.exists():  # a rename cannot replace a folder that holds files
                out.rename(folder.parent / f"{out.name}.replaced")
        except OSError as exc:
            raise ArtifactError(f"Cannot write '{out}': {exc}. Free some space or choose another --out.") from exc
