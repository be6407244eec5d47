"""A group taken out of a finished graph leaves what exporting without it would have written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from trt_qat.checkpoint import Model
from trt_qat.config import ExportSection
from trt_qat.exporter.float_groups import leave_float_
from trt_qat.exporter.onnx_export import export_onnx
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner


def exported(model: Model, path: Path, float_groups: list[str], precision: str = "int8+fp32") -> Path:
    mixed = model.require_quantized().leave_float(float_groups, "test")
    section = ExportSection.model_validate({"precision": precision})
    return export_onnx(model.with_quantized(mixed, "ptq", {}), path, section).path


@pytest.fixture(scope="module")
def whole(demo_int8: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(demo_int8, tmp_path_factory.mktemp("whole") / "whole.onnx", [])


@pytest.mark.parametrize("every", [2, pytest.param(3, marks=pytest.mark.slow), 1])
def test_like_an_export_without_these_groups(demo_int8: Model, whole: Path, tmp_path: Path, every: int) -> None:
    groups = demo_int8.require_quantized().placement.groups[:: every if every > 1 else 1]
    chosen = groups if every > 1 else groups[:-1]  # one stays: a network without quantizers is no INT8 model
    graph = gs.import_onnx(onnx.load(whole))
    leave_float_(graph, [conv for group in chosen for conv in group.convs])
    onnx.save(gs.export_onnx(graph), tmp_path / "taken.onnx")
    wanted = exported(demo_int8, tmp_path / "wanted.onnx", [group.name for group in chosen])

    def kinds(path: Path) -> Counter[str]:
        return Counter(node.op_type for node in onnx.load(path).graph.node)

    assert kinds(tmp_path / "taken.onnx") == kinds(wanted)
    image = np.random.default_rng(0).random((1, 3, 320, 320), dtype=np.float32)
    with OnnxRuntimeRunner(tmp_path / "taken.onnx", False) as taken, OnnxRuntimeRunner(wanted, False) as expected:
        # weights that go back to float are those of the grid, so the two agree as two quantizations do
        found, right = taken.infer(image)[0], expected.infer(image)[0]
    assert np.abs(found[:, 4:] - right[:, 4:]).max() < 0.05
