"""Which runtime runs a file: the one that was asked for, or the fastest one that works here.

A runtime is a row of :data:`trt_qat.registry.RUNTIMES`; its class says which files it takes. Nothing here knows a
runtime by name but TensorRT, whose plan may stand beside the ONNX file that it was built from (one folder, one stem):
either can then stand in for the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from trt_qat.artifacts import existing_file, file_sha256
from trt_qat.engine.engine_file import read_sidecar
from trt_qat.errors import ArtifactError, MissingDependency, RunnerError
from trt_qat.registry import RUNTIMES
from trt_qat.runtime.runner import Mode, Runner


class Runtime(Protocol):
    """The class that a row of ``RUNTIMES`` names. Its module loads the runtime's package when a file is opened.

    Attributes:
        suffixes: how the name of a file or folder that it takes ends, in lower case.
    """

    suffixes: tuple[str, ...]

    def __call__(self, path: Path, threads: int = 0, mode: Mode = "latency", device: str = "auto") -> Runner:
        """Open a file.

        Args:
            threads: CPU threads, 0 for the runtime's own choice; one on a GPU ignores it.
            mode: what it is opened for.
            device: "auto", "cpu" or "cuda:N"; a runtime that does not compute there refuses it.

        Raises:
            ArtifactError: the file cannot be read.
            MissingDependency: the runtime's package is missing.
            RunnerError: it cannot run this file, or not on this machine.
        """


def open_runner(model: Path, runtime: str, threads: int = 0, mode: Mode = "latency", device: str = "auto") -> Runner:
    """Open a file with the given runtime.

    Args:
        model: a file or folder that the runtime takes.
        runtime: a name of ``RUNTIMES``.
        threads, mode, device: see :class:`Runtime`.

    Raises:
        RunnerError: unknown runtime, or one that cannot run this kind of file or on this machine.
        ArtifactError: the file cannot be read.
        MissingDependency: the runtime's package is missing.
    """
    if runtime not in RUNTIMES.rows:
        raise RunnerError(f"Runtime '{runtime}' cannot run exported files. Known: {', '.join(RUNTIMES.rows)}.")
    _check_exists(model)
    if not _takes(runtime, model):
        others = " or ".join(runtimes_for(model))
        hint = f"That one runs on {others}." if others else "No runtime takes that one."
        raise RunnerError(f"Runtime '{runtime}' needs {_endings(runtime)}, found '{model}'. {hint}")
    return _class(runtime)(model, threads, mode, device)


def runtimes_for(model: Path) -> list[str]:
    """The runtimes that take this kind of file, the preferred one first; installed here or not."""
    return [name for name in RUNTIMES.rows if _takes(name, model)]


def runtime_for(model: Path, preferred: str) -> str:
    """``preferred`` where it takes this kind of file or none does, else the first that does."""
    names = runtimes_for(model)
    return preferred if preferred in names or not names else names[0]


def choose_runner(model: Path, threads: int = 0, mode: Mode = "latency", device: str = "auto") -> tuple[Runner, str]:
    """Open a file, or the plan that was built from it, with the first runtime that works here.

    Returns:
        The runner and one line that says which file runs on what, and why.

    Raises:
        RunnerError: none works, or none takes this kind of file.
        ArtifactError, MissingDependency: as :func:`open_runner`.
    """
    _check_exists(model)
    if not runtimes_for(model):
        raise RunnerError(f"A model must be one of {known_endings()}, found '{model}'.")
    plan, onnx = model.with_suffix(".plan"), model.with_suffix(".onnx")
    if model.suffix.lower() == ".plan":
        return _plan_or_its_onnx(model, onnx, threads, mode, device)
    if model.suffix.lower() != ".onnx":
        return _first_that_works(model, "it was given", threads, mode, device)
    if not plan.is_file():
        return _first_that_works(model, "there is no plan beside it", threads, mode, device)
    try:
        if _built_from(plan, model):
            return _with_reason(
                open_runner(plan, "tensorrt", threads, mode, device), plan, f"it was built from '{model.name}'"
            )
        note = f"'{plan.name}' was built from another version of it"
    except (ArtifactError, MissingDependency, RunnerError) as exc:
        note = f"'{plan.name}' does not run here: {_first_sentence(exc)}"
    return _first_that_works(model, note, threads, mode, device)


def known_endings() -> str:
    """How the names of all files and folders end that some runtime takes, for messages."""
    return ", ".join(dict.fromkeys(f"*{suffix}" for name in RUNTIMES.rows for suffix in _class(name).suffixes))


def _plan_or_its_onnx(plan: Path, onnx: Path, threads: int, mode: Mode, device: str) -> tuple[Runner, str]:
    try:
        return _with_reason(open_runner(plan, "tensorrt", threads, mode, device), plan, "it is the plan that was given")
    except (MissingDependency, RunnerError) as exc:
        if not onnx.is_file():
            raise
        if not _built_from(plan, onnx):
            note = f"'{onnx.name}' beside it cannot stand in, the side-car names another ONNX file as its source."
            raise type(exc)(f"{exc} {note}") from exc
        return _first_that_works(
            onnx, f"'{plan.name}' does not run here: {_first_sentence(exc)}", threads, mode, device
        )


def _first_that_works(model: Path, why: str, threads: int, mode: Mode, device: str) -> tuple[Runner, str]:
    failures: list[MissingDependency | RunnerError] = []
    for runtime in runtimes_for(model):
        try:
            runner = open_runner(model, runtime, threads, mode, device)
        except (MissingDependency, RunnerError) as exc:
            failures.append(exc)
            continue
        return _with_reason(runner, model, "; ".join((why, *map(_first_sentence, failures))))
    raise failures[0]


def _class(runtime: str) -> Runtime:
    found: Runtime = RUNTIMES.load(runtime)
    return found


def _takes(runtime: str, model: Path) -> bool:
    return model.name.lower().endswith(_class(runtime).suffixes)


def _endings(runtime: str) -> str:
    return " or ".join(f"*{suffix}" for suffix in _class(runtime).suffixes)


def _check_exists(model: Path) -> None:
    if not model.is_dir():  # some runtimes take a folder
        existing_file(model, "Model")


def _built_from(plan: Path, onnx: Path) -> bool:
    return read_sidecar(plan).onnx_sha256 == file_sha256(onnx)


def _first_sentence(exc: Exception) -> str:
    return str(exc).split(". ")[0].rstrip(".")


def _with_reason(runner: Runner, model: Path, reason: str) -> tuple[Runner, str]:
    return runner, f"'{model}' runs on {runner.name} ({runner.device}): {reason}."
