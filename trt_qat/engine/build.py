"""ONNX to a plain TensorRT plan with a JSON side-car that says what it is.

Every build runs in a child process (``build_process.py``): Polygraphy chooses between TensorRT and
TensorRT-RTX once, when it is imported, so one process cannot build both; and TensorRT is native
code, whose crash then becomes an error message and not the end of a pipeline.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trt_qat.artifacts import EngineArtifact, atomic_path, existing_file, file_sha256, writable_folder
from trt_qat.config import EngineSection, Flavor, FlavorChoice
from trt_qat.engine.child import ask_child
from trt_qat.engine.engine_file import check_engine_name, prepend_header, sidecar_path, write_sidecar
from trt_qat.engine.flags import check_flags, mixes_turing
from trt_qat.engine.flavor import INSTALL_HINTS, MODULES
from trt_qat.engine.gpu import gpu_names
from trt_qat.engine.profiles import check_batches
from trt_qat.errors import ArtifactError, ConfigError, EngineError, MissingDependency
from trt_qat.progress import SILENT, Progress

_CHILD_MODULE = "trt_qat.engine.build_process"


def build_engine(onnx: Path, out: Path, section: EngineSection, progress: Progress = SILENT) -> EngineArtifact:
    """Build an engine from an ONNX file; it appears whole or not at all.

    Precision is what the ONNX file says (strongly typed network). ``tensorrt`` needs a GPU; ``tensorrt-rtx`` builds
    without one; ``auto`` is ``tensorrt`` where it and a GPU are there, and the progress is told which it took and why.

    Args:
        out: ``*.plan``, a plain plan with a side-car (``out`` with suffix ``.json``) that describes it; or
            ``*.engine``, the plan behind Ultralytics' header, which holds the metadata (few other tools read that).

    Raises:
        ArtifactError: the ONNX file is missing or empty, or ``out`` cannot be written.
        ConfigError: the shapes of the optimization profile are not in order or contradict the ONNX file, or the
            flavor or version of TensorRT does not have a setting.
        MissingDependency: the TensorRT package is not installed.
        EngineError: no GPU for flavor ``tensorrt``, the parser or the builder refuses the ONNX file: the line names
            the PyTorch module and what to try.
    """
    existing_file(onnx, "ONNX file")
    check_engine_name(out)
    flavor, why = choose_flavor(section.flavor)
    if out.suffix == ".engine" and flavor != "tensorrt":
        if section.flavor == "auto":
            raise EngineError(
                f"'{out.name}' is for Ultralytics, which runs TensorRT: {why}. Build it on the GPU that will run it, "
                "or give --flavor tensorrt-rtx for trt_qat's own runner, or a *.plan."
            )
        progress.note("Ultralytics runs engines of flavor tensorrt only; this one runs in trt_qat.")
    _check_section(section, flavor)
    _check_flavor(flavor)
    progress.note(f"Building with {flavor}: {why}.")
    if mixes_turing(section):
        progress.note(
            "The oldest GPU generation decides the kernels for all: with 75 in engine.compute_capabilities the others "
            "get Turing's. Build a plan of its own for 75."
        )
    sidecar = sidecar_path(out)
    started = time.perf_counter()
    with contextlib.ExitStack() as files:
        plan_part = files.enter_context(atomic_path(out))
        described = _run_child(onnx, plan_part, section, flavor)
        _note_form(described["metadata"], flavor, progress)
        content = {
            "onnx": onnx.name,
            "onnx_sha256": file_sha256(onnx),
            "flavor": flavor,
            **described,
            "size_bytes": plan_part.stat().st_size,
            "plan_sha256": file_sha256(plan_part),
            "build_seconds": round(time.perf_counter() - started, 3),
        }
        if out.suffix == ".engine":
            prepend_header(plan_part, content)
        else:
            write_sidecar(files.enter_context(atomic_path(sidecar)), content)
    return EngineArtifact(path=out, sidecar=sidecar if out.suffix == ".plan" else None, flavor=flavor)


def _note_form(metadata: Mapping[str, str], flavor: Flavor, progress: Progress) -> None:
    """Say it where INT8 is built by the compiler that its file was not written for."""
    target = metadata.get("target")
    int8 = metadata["precision"].startswith("int8")
    if int8 and target in ("tensorrt", "tensorrt-rtx") and target != flavor:
        progress.note(f"The file was exported for {target}; `export --target {flavor}` writes the form for {flavor}.")


def choose_flavor(wanted: FlavorChoice) -> tuple[Flavor, str]:
    """The flavor to build with, and why that one."""
    if wanted != "auto":
        return wanted, "it was asked for"
    installed = importlib.util.find_spec(MODULES["tensorrt"]) is not None
    gpus = gpu_names()
    if installed and gpus:
        return "tensorrt", f"the package tensorrt and a GPU ({gpus[0]}) are here"
    missing = [what for what, there in (("package tensorrt", installed), ("GPU", bool(gpus))) if not there]
    return "tensorrt-rtx", f"tensorrt needs its package and a GPU, here is no {' and no '.join(missing)}"


def _check_section(section: EngineSection, flavor: Flavor) -> None:
    check_batches(section)
    check_flags(section, flavor)
    if section.timing_cache not in ("", "auto"):
        cache = Path(section.timing_cache)
        if cache.suffix != ".cache":  # it is written after the build, whatever it held before
            raise ConfigError(f"engine.timing_cache = '{cache}': the file must be named *.cache.")
        writable_folder(cache.parent)


def _check_flavor(flavor: str) -> None:
    if importlib.util.find_spec(MODULES[flavor]) is None:
        raise MissingDependency(f"Flavor '{flavor}' needs the package '{flavor}': {INSTALL_HINTS[flavor]}.")
    if flavor == "tensorrt" and not gpu_names():
        raise EngineError(
            "No NVIDIA GPU found: flavor 'tensorrt' times its kernels on the target GPU. "
            "Build there, or use --flavor tensorrt-rtx."
        )


def _run_child(onnx: Path, plan: Path, section: EngineSection, flavor: Flavor) -> dict[str, Any]:
    request = {
        "onnx": str(onnx),
        "plan": str(plan),
        "timing_folder": _timing_folder(),
        "flavor": flavor,
        "section": section.model_dump(),
    }
    what = f"TensorRT could not build '{onnx.name}'"
    return ask_child(_CHILD_MODULE, request, plan.with_suffix(".report.json"), flavor, what)


def _timing_folder() -> str | None:
    """Where kernel timings are kept by default: in the user's cache, because they fit every project's builds."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        return str(writable_folder(cache / "trt_qat" / "timing"))
    except ArtifactError:
        return None  # a build without a cache is slower, nothing else
