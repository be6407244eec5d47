"""What is in a release: the wheel holds the package as git tracks it, the source archive all that git tracks.

python scripts/release_contents.py dist/*.whl dist/*.tar.gz    run in the clone; a line per difference, and exit 1
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

PACKAGE = "trt_qat"


def tracked(root: Path) -> set[str]:
    """Files that git tracks and that are there, relative to ``root``, with slashes."""
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.split("\0") if name and (root / name).is_file()}


def wheel_differences(wheel: Path, files: Iterable[str]) -> list[str]:
    """How the wheel differs from the package's tracked files; its own ``*.dist-info`` apart."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.partition("/")[0].endswith(".dist-info")}
    return _differences(wheel, held, {file for file in files if file.startswith(f"{PACKAGE}/")})


def source_differences(archive: Path, files: Iterable[str]) -> list[str]:
    """How the source archive differs from the tracked files; what setuptools writes into it apart."""
    with tarfile.open(archive) as opened:
        held = {member.name.partition("/")[2] for member in opened if member.isfile()}
    made = {"PKG-INFO", "setup.cfg", *(name for name in held if name.startswith(f"{PACKAGE}.egg-info/"))}
    return _differences(archive, held - made, set(files))


def _differences(release: Path, held: set[str], expected: set[str]) -> list[str]:
    missing = [f"{release.name} lacks {name}" for name in sorted(expected - held)]
    return missing + [f"{release.name} holds {name}, which it should not" for name in sorted(held - expected)]


def main(wheel: Path, source: Path) -> int:
    """Print every difference; the exit code."""
    files = tracked(Path.cwd())
    differences = [*wheel_differences(wheel, files), *source_differences(source, files)]
    print("\n".join(differences) if differences else f"{wheel.name} and {source.name} hold what git tracks.")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
