"""What several deployments write: the model itself, labels, a script that builds the engine."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import onnx

from trt_qat.deploy.detector_file import DetectorFile
from trt_qat.engine.engine_file import sidecar_path
from trt_qat.onnx_reading import read_onnx


def write_file(path: Path, text: str) -> None:
    """A UTF-8 file with Unix line ends, which every system here runs on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def copy_model(file: DetectorFile, out: Path, sidecar: bool = False) -> None:
    """The model as it is, in one file; weights that stand beside an ONNX file are taken into it.

    Args:
        sidecar: copy that of a plan, too.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    external = file.kind == "onnx" and _has_external_data(file.path)
    if external:
        onnx.save(read_onnx(file.path, external_data=True), str(out))
    else:
        shutil.copyfile(file.path, out)
    if sidecar and file.kind == "plan":
        shutil.copyfile(sidecar_path(file.path), sidecar_path(out))


def _has_external_data(path: Path) -> bool:
    model = read_onnx(path)
    return any(onnx.external_data_helper.uses_external_data(tensor) for tensor in model.graph.initializer)


def labels(file: DetectorFile) -> str:
    """One class name per line; a name holds no line break (checked when the file was read)."""
    return "".join(f"{name}\n" for name in file.class_names)


def engine_script(file: DetectorFile) -> str:
    """Shell script that builds NAME.engine from NAME.onnx beside it, with the TensorRT of the machine."""
    shapes = [
        f"--{which}Shapes={file.input_name}:{batch}x3x{file.size[0]}x{file.size[1]}"
        for which, batch in zip(("min", "opt", "max"), file.batches, strict=True)
    ]
    options = [f"--onnx={file.name}.onnx", "--stronglyTyped", *(shapes if file.dynamic else [])]
    lines = [*(shlex.quote(option) for option in options), f"--saveEngine={file.name}.engine"]
    return f"""#!/bin/sh
# Builds the engine on the GPU that will run it. Precision is what the ONNX file says, {file.precision}: the network
# must be strongly typed. Builders that are not, as those inside of DeepStream and Isaac ROS, do not keep it.
# trtexec is part of TensorRT (samples/trtexec); from TensorRT 11 on every network is strongly typed: if it refuses
# --stronglyTyped, leave it out.
set -eu
cd "$(dirname "$0")"
"${{TRTEXEC:-/usr/src/tensorrt/bin/trtexec}}" \\
    {f" {chr(92)}{chr(10)}    ".join(lines)}
"""
