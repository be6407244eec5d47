"""Which runtime runs a file: the one that was asked for, or the fastest one that works here.

``.onnx`` runs on OpenVINO and ONNX Runtime, ``.plan`` on TensorRT. A plan and the ONNX file it was
built from share a folder and a stem, so that one can stand in for the other.
"""

from __future__ import annotations

from pathlib import Path

from trt_qat.artifacts import existing_file, file_sha256
from trt_qat.engine.engine_file import read_sidecar
from trt_qat.errors import ArtifactError, MissingDependency, RunnerError
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner
from trt_qat.runtime.openvino import OpenVinoRunner
from trt_qat.runtime.runner import Runner
from trt_qat.runtime.tensorrt import TensorRtRunner

_SUFFIXES = {"openvino": ".onnx", "onnxruntime": ".onnx", "tensorrt": ".plan"}


def open_runner(model: Path, runtime: str, threads: int = 0) -> Runner:
    """Open a file with the given runtime.

    Args:
        model: ``*.onnx`` for openvino and onnxruntime, ``*.plan`` for tensorrt.
        threads: CPU threads, 0 for the runtime's own choice; TensorRT ignores it.

    Raises:
        RunnerError: unknown runtime, or one that cannot run this kind of file or on this machine.
        ArtifactError: the file cannot be read.
        MissingDependency: the runtime's package is missing.
    """
    if runtime not in _SUFFIXES:
        raise RunnerError(f"Runtime '{runtime}' cannot run exported files. Known: {', '.join(_SUFFIXES)}.")
    existing_file(model, "Model")
    wanted = _SUFFIXES[runtime]
    if model.suffix.lower() != wanted:
        kind = "the ONNX file (*.onnx)" if wanted == ".onnx" else "a TensorRT plan (*.plan), built by 'trt-qat engine'"
        raise RunnerError(f"Runtime '{runtime}' needs {kind}, found '{model}'.")
    if runtime == "openvino":
        return OpenVinoRunner(model, threads)
    if runtime == "onnxruntime":
        return OnnxRuntimeRunner(model, threads)
    return TensorRtRunner(model)


def choose_runner(model: Path, threads: int = 0) -> tuple[Runner, str]:
    """Open a file with TensorRT where that works, else with OpenVINO.

    Returns:
        The runner and one line that says which file runs on what, and why.

    Raises:
        RunnerError: neither works, or the file is neither ``*.plan`` nor ``*.onnx``.
        ArtifactError, MissingDependency: as :func:`open_runner`.
    """
    existing_file(model, "Model")
    plan, onnx = model.with_suffix(".plan"), model.with_suffix(".onnx")
    if model.suffix == ".plan":
        try:
            return _with_reason(TensorRtRunner(model), model, "it is the plan that was given")
        except (MissingDependency, RunnerError) as exc:
            if not onnx.is_file() or not _same_model(model, onnx):
                raise
            return _with_reason(
                OpenVinoRunner(onnx, threads), onnx, f"'{model.name}' does not run here: {_first_sentence(exc)}"
            )
    if model.suffix.lower() != ".onnx":
        raise RunnerError(f"A model must be a *.plan or *.onnx file, found '{model}'.")
    if not plan.is_file():
        return _with_reason(OpenVinoRunner(model, threads), model, "there is no plan beside it")
    try:
        if _same_model(plan, model):
            return _with_reason(TensorRtRunner(plan), plan, f"it was built from '{model.name}'")
        reason = f"'{plan.name}' was built from another version of it"
    except (ArtifactError, MissingDependency, RunnerError) as exc:
        reason = f"'{plan.name}' does not run here: {_first_sentence(exc)}"
    return _with_reason(OpenVinoRunner(model, threads), model, reason)


def _same_model(plan: Path, onnx: Path) -> bool:
    return bool(read_sidecar(plan).get("onnx_sha256") == file_sha256(onnx))


def _first_sentence(exc: Exception) -> str:
    return str(exc).split(". ")[0].rstrip(".")


def _with_reason(runner: Runner, model: Path, reason: str) -> tuple[Runner, str]:
    return runner, f"'{model}' runs on {runner.name} ({runner.device}): {reason}."
