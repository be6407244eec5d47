"""What a deployment is: a system that runs exported files, and the folder that it needs for one.

The keys and layouts of each system are those of its own code or documentation; every module here names the project,
the file and the commit, and so do the files that it writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trt_qat.config import InferSection
from trt_qat.deploy.detector_file import DetectorFile, Kind
from trt_qat.errors import ConfigError
from trt_qat.registry import DEPLOYMENTS

Writer = Callable[[DetectorFile, InferSection, Path], None]
"""Writes all files of a deployment into an empty folder.

Raises ConfigError or ArtifactError, in one line, where the system cannot run this detector.
"""


@dataclass(frozen=True)
class Deployment:
    """A system that a detector is handed to.

    Args:
        name: as in :data:`trt_qat.registry.DEPLOYMENTS`.
        summary: one line for the help.
        takes: kinds of files.
        write: see :data:`Writer`.
        next_step: what the user does with the folder; one line.
        not_run: what was not tried when trt_qat was made; one line, said after writing.
    """

    name: str
    summary: str
    takes: tuple[Kind, ...]
    write: Writer
    next_step: str
    not_run: str


def deployment_from_name(name: str) -> Deployment:
    """The deployment of a name.

    Raises:
        ConfigError: there is none.
    """
    found: Deployment = DEPLOYMENTS.load(name)
    return found


def check_takes(deployment: Deployment, file: DetectorFile) -> None:
    """Refuse a file of a kind that the system does not take.

    Raises:
        ConfigError: see above.
    """
    if file.kind not in deployment.takes:
        allowed = " or ".join(f"*.{kind}" for kind in deployment.takes)
        raise ConfigError(f"Target '{deployment.name}' takes {allowed}, found '{file.path}'.")
