"""OpenVINO: an ONNX file that plain ``read_model`` computes right, or the IR folder that ``YOLO(folder)`` loads."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from trt_qat.config import ExportSection
from trt_qat.runtime.packages import import_openvino
from trt_qat.targets.base import Arrays, Form, Target
from trt_qat.targets.onnx_file import compute_ultralytics, write_unsigned

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model

IR_SUFFIX = "_openvino_model"  # by which Ultralytics knows an OpenVINO folder


def write_ir(model: Model, out: Path, section: ExportSection) -> None:
    """Write ``STEM_openvino_model/`` with STEM.xml, STEM.bin and metadata.yaml; one FakeQuantize per quantizer."""
    from trt_qat.exporter.onnx_export import file_metadata  # loads torch
    from trt_qat.runtime.openvino import fuse_quantize_dequantize_

    openvino = import_openvino()
    out.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        onnx = Path(folder) / "model.onnx"
        write_unsigned(model, onnx, section)
        network = openvino.Core().read_model(onnx)
        fuse_quantize_dequantize_(network)
        # precision is what the graph says; OpenVINO would store float weights as FP16 by default
        openvino.save_model(network, out / f"{out.name.removesuffix(IR_SUFFIX)}.xml", compress_to_fp16=False)
        del network  # it maps the ONNX file
    content = yaml.safe_dump(file_metadata(model, section), sort_keys=False, allow_unicode=True)
    (out / "metadata.yaml").write_text(content, encoding="utf-8")


def compute(file: Path, batches: Arrays) -> Arrays:
    """A plain ``openvino.Core().read_model(file)`` on the CPU, no option set."""
    core = import_openvino().Core()
    compiled = core.compile_model(core.read_model(file), "CPU")
    return [np.array(compiled(batch)[0], dtype=np.float32) for batch in batches]  # copies: it reuses the memory


TARGET = Target(
    name="openvino",
    client="OpenVINO",
    summary="read_model of the ONNX file, or an IR folder that YOLO(folder) loads too.",
    precision="int8+fp32",
    zero_points=True,
    forms={
        "onnx": Form(".onnx", write_unsigned, compute),
        "openvino": Form(IR_SUFFIX, write_ir, compute_ultralytics),
    },
)
