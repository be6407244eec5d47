"""The verb: an exported file and the name of a system, a folder out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trt_qat.config import EngineSection, InferSection
from trt_qat.deploy.base import Deployment, check_takes, deployment_from_name
from trt_qat.deploy.detector_file import read_detector_file
from trt_qat.deploy.folder import check_folder, files_in, written


@dataclass(frozen=True)
class Deployed:
    """What was written.

    Args:
        folder: where.
        files: paths in the folder.
        deployment: for which system.
    """

    folder: Path
    files: tuple[str, ...]
    deployment: Deployment


def deploy(
    model: Path,
    target: str,
    folder: Path,
    *,
    name: str | None = None,
    infer: InferSection | None = None,
    engine: EngineSection | None = None,
) -> Deployed:
    """Write what a system needs to run an exported detector.

    Args:
        model: ``*.onnx``, or ``*.plan`` with its side-car where the system takes one.
        target: a name of :data:`trt_qat.registry.DEPLOYMENTS`.
        folder: new or empty, or holding the same deployment unchanged.
        name: what the model is called there [the file's name].
        infer: thresholds.
        engine: the batches that a file with a dynamic batch is built for.

    Raises:
        ConfigError: no such target, or one that cannot run this model.
        ArtifactError: the model cannot be read, or the folder holds something else or cannot be written.
    """
    deployment = deployment_from_name(target)
    file = read_detector_file(model, engine or EngineSection(), name)
    check_takes(deployment, file)
    place = check_folder(folder, target, file.name)
    with written(place, target, file.name, file.sha256) as temporary:
        deployment.write(file, infer or InferSection(), temporary)
    return Deployed(folder, tuple(path.relative_to(place).as_posix() for path in files_in(place)), deployment)
