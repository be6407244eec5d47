"""ONNX to a plain TensorRT plan with a JSON side-car that says what it is.

Every build runs in a child process (``build_process.py``): Polygraphy chooses between TensorRT and
TensorRT-RTX once, when it is imported, so one process cannot build both; and TensorRT is native
code, whose crash then becomes an error message and not the end of a pipeline.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trt_qat import errors
from trt_qat.artifacts import EngineArtifact, atomic_path, existing_file, file_sha256, writable_folder, write_json
from trt_qat.config import EngineSection
from trt_qat.engine.flavor import INSTALL_HINTS, MODULES
from trt_qat.engine.gpu import gpu_names
from trt_qat.errors import ArtifactError, ConfigError, EngineError, MissingDependency, TrtQatError
from trt_qat.progress import SILENT, Progress

_CHILD_MODULE = "trt_qat.engine.build_process"


def build_engine(onnx: Path, out: Path, section: EngineSection, progress: Progress = SILENT) -> EngineArtifact:
    """Build ``out`` (a plain plan) and ``out`` with suffix ``.json`` (the side-car) from an ONNX file.

    Precision is what the ONNX file says (strongly typed network). Both files appear whole or not at
    all. ``tensorrt`` needs a GPU; ``tensorrt-rtx`` builds without one.

    Raises:
        ArtifactError: the ONNX file is missing or empty, or ``out`` cannot be written.
        ConfigError: the batch sizes of the optimization profile are not in order.
        MissingDependency: the TensorRT package is not installed.
        EngineError: no GPU for flavor ``tensorrt``, the parser or the builder refuses the ONNX file.
    """
    existing_file(onnx, "ONNX file")
    if out.suffix != ".plan":
        raise EngineError(f"An engine file must be named *.plan, found '{out}'.")
    _check_section(section)
    _check_flavor(section.flavor)
    sidecar = sidecar_path(out)
    started = time.perf_counter()
    with atomic_path(sidecar) as sidecar_part, atomic_path(out) as plan_part:
        described = _run_child(onnx, plan_part, section)
        content = {
            "onnx": onnx.name,
            "onnx_sha256": file_sha256(onnx),
            "flavor": section.flavor,
            **described,
            "size_bytes": plan_part.stat().st_size,
            "build_seconds": round(time.perf_counter() - started, 3),
        }
        content["metadata"] = content.pop("metadata")  # the longest value stands last
        write_json(sidecar_part, content)
    return EngineArtifact(path=out, sidecar=sidecar, flavor=section.flavor)


def sidecar_path(plan: Path) -> Path:
    """The JSON file that describes a plan."""
    return plan.with_suffix(".json")


def read_sidecar(plan: Path) -> dict[str, Any]:
    """The description of a plan: the keys that :func:`build_engine` writes.

    Raises:
        ArtifactError: it is missing, not JSON, or describes something else.
    """
    return _read_description(sidecar_path(plan))


def _read_description(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ArtifactError(f"Side-car '{path}' of the TensorRT plan does not exist. Build the engine again.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ArtifactError(f"Side-car '{path}' cannot be read: {exc}. Build the engine again.") from exc
    if not isinstance(content, dict) or content.get("flavor") not in MODULES:
        raise ArtifactError(f"'{path}' does not describe a TensorRT plan. Build the engine again.")
    return content


def ultralytics_engine_from_plan(plan: Path, sidecar: Path, out: Path) -> Path:
    """Write Ultralytics' ``.engine`` file: 4-byte little-endian length, JSON metadata, plan.

    Raises:
        ArtifactError: an input is missing or ``out`` cannot be written.
    """
    existing_file(plan, "Plan")
    header = json.dumps(_read_description(sidecar).get("metadata", {})).encode("utf-8")
    with atomic_path(out) as temporary, temporary.open("wb") as stream:
        stream.write(struct.pack("<i", len(header)))
        stream.write(header)
        stream.write(plan.read_bytes())
    return out


def _check_section(section: EngineSection) -> None:
    if not section.min_batch <= section.opt_batch <= section.max_batch:
        raise ConfigError(
            f"engine.min_batch={section.min_batch}, opt_batch={section.opt_batch}, max_batch={section.max_batch}: "
            "they must be in ascending order."
        )
    if section.compute_capabilities and section.flavor != "tensorrt-rtx":
        raise ConfigError("engine.compute_capabilities works with --flavor tensorrt-rtx only. Leave it empty.")
    if section.timing_cache:
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


def _run_child(onnx: Path, plan: Path, section: EngineSection) -> dict[str, Any]:
    report = plan.with_suffix(".report.json")
    request = {"onnx": str(onnx), "plan": str(plan), "report": str(report), "section": section.model_dump()}
    child = subprocess.run(
        [sys.executable, "-m", _CHILD_MODULE],
        input=json.dumps(request),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1" if section.flavor == "tensorrt-rtx" else "0"},
        check=False,
    )
    output = f"{child.stdout}\n{child.stderr}"
    if child.returncode != 0 or not report.is_file():
        raise EngineError(f"TensorRT could not build '{onnx.name}': {_ending(child.returncode)}. {_last_line(output)}")
    answer: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    if "error" in answer:
        kind: type[TrtQatError] = getattr(errors, answer["kind"])
        raise kind(answer["error"])
    return answer


def _ending(returncode: int) -> str:
    if returncode < 0:
        return f"the build process was ended by {signal.Signals(-returncode).name}"
    return f"the build process ended with exit code {returncode}"


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return f"Its last words: {lines[-1]}" if lines else "It said nothing."
