"""What the rule table says of a client is what that client does: the planted files are given to the clients."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import test_rules
from lint_graphs import IMAGE, SCALES, Net, detector, set_constant
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from trt_qat.linter.finding import Finding
from trt_qat.linter.report import lint

Array = NDArray[np.float32]
PICTURE = np.random.default_rng(3).random((1, 3, 16, 16), dtype=np.float32)
PLANTED = {plant.__name__: (plant, rule) for plant, rule, _, _ in test_rules.PLANTED}
# Right or wrong the client computes what such a file says; it is of no use whoever runs it.
WRONG_EVERYWHERE = {"pair-mismatch", "box-score-concat"}


def planted(name: str) -> onnx.ModelProto:
    model = detector()
    PLANTED[name][0](model)
    return model


def feeds(model: onnx.ModelProto) -> dict[str, Any]:
    return {entry.name: PICTURE if entry.name == IMAGE else np.array(SCALES["stem"], np.float32)
            for entry in model.graph.input}  # fmt: skip


def run_onnxruntime(model: onnx.ModelProto) -> Array:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    output: Array = session.run(None, feeds(model))[0]
    return output


def run_openvino(model: onnx.ModelProto, path: Path) -> Array:
    openvino = pytest.importorskip("openvino")
    onnx.save(model, path)
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(next(iter(compiled([PICTURE]).values())))


def error(found: Array, model: onnx.ModelProto) -> float:
    """The largest difference to what ONNX says the file computes, as a share of the largest value."""
    expected = ReferenceEvaluator(model).run(None, feeds(model))[0]
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def findings(model: onnx.ModelProto, path: Path, target: str) -> list[Finding]:
    onnx.save(model, path)
    return list(lint(path, target).findings)


def rules(found: list[Finding], severity: str) -> set[str]:
    return {finding.rule for finding in found if finding.severity == severity}


@pytest.mark.parametrize("name", PLANTED)
def test_onnxruntime_refuses_what_is_broken_there(name: str, tmp_path: Path) -> None:
    model = planted(name)
    refused = rules(findings(model, tmp_path / "x.onnx", "onnxruntime"), "broken") - WRONG_EVERYWHERE
    if refused or name == "empty_scale":  # that one is wrong everywhere, and here it does not even run
        with pytest.raises(Exception, match=r"Type Error|QuantizeLinear"):
            run_onnxruntime(model)
    else:
        tolerance = 0.1 if name == "requantized_directly" else 2e-2  # it drops the first of two roundings
        assert error(run_onnxruntime(model), model) < tolerance


def test_tensorrt_refuses_what_is_broken_there(tmp_path: Path) -> None:
    """TensorRT-RTX's parser needs no GPU. The rest of what is broken there is built, and computed wrongly or at all."""
    pytest.importorskip("tensorrt_rtx")
    accepted_but_wrong = {"uint8", "no_zero_point", "pair_mismatch", "quantized_result", "quantized_scores"}
    accepted_but_mixed = {"half_scale"}
    crashes = {"dynamic_scale"}
    for name in PLANTED.keys() - crashes:
        onnx.save(planted(name), tmp_path / f"{name}.onnx")
    parse = (
        "import json, pathlib, sys, tensorrt_rtx as trt\n"
        "refused, log = [], trt.Logger(trt.Logger.INTERNAL_ERROR)\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).glob('*.onnx')):\n"
        "    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)\n"
        "    network = trt.Builder(log).create_network(flags)\n"
        "    if not trt.OnnxParser(network, log).parse(path.read_bytes()):\n"
        "        refused.append(path.stem)\n"
        "print(json.dumps(refused))\n"
    )
    done = subprocess.run([sys.executable, "-c", parse, str(tmp_path)], capture_output=True, text=True, check=True)
    broken = {name for name in PLANTED if rules(findings(planted(name), tmp_path / "x.onnx", "tensorrt-rtx"), "broken")}
    refused = set(json.loads(done.stdout.splitlines()[-1]))
    assert refused == broken - accepted_but_wrong - accepted_but_mixed - crashes
    assert len(refused) == 7


def stem(net: Net) -> str:
    return net.block("model.0", net.qdq(IMAGE, 1 / 127), 3, 16, 3)


def behind_nothing(net: Net) -> str:
    return net.conv("model.1", net.qdq(stem(net), 0.03), 16, 32)


def behind_pool(net: Net) -> str:
    pooled = net.op("MaxPool", "p", [net.qdq(stem(net), 0.03)], kernel_shape=[3, 3], pads=[1] * 4)
    return net.conv("model.1", pooled, 16, 32)


def joined(net: Net) -> str:
    left = stem(net)
    right = net.block("model.9", net.qdq(left, 0.03), 16, 16)
    return net.op("Concat", "c", [f"{left}/DQ_output_0", net.qdq(right, 0.03)], axis=1)


def behind_concat(net: Net) -> str:
    return net.conv("model.1", joined(net), 32, 32)


def behind_concat_and_pool(net: Net) -> str:
    return net.conv("model.1", net.op("MaxPool", "p", [joined(net)], kernel_shape=[3, 3], pads=[1] * 4), 32, 32)


def behind_concat_and_relu(net: Net) -> str:
    return net.conv("model.1", net.qdq(net.op("Relu", "r", [joined(net)]), 0.03), 32, 32)


def behind_concat_and_sigmoid(net: Net) -> str:
    return net.conv("model.1", net.qdq(net.op("Sigmoid", "r", [joined(net)]), 0.01), 32, 32)


def behind_concat_of_floats(net: Net) -> str:
    left = net.silu(net.conv("model.0", IMAGE, 3, 16, int8=False))
    right = net.silu(net.conv("model.9", left, 16, 16, int8=False))
    return net.conv("model.1", net.qdq(net.op("Concat", "c", [left, right], axis=1), 0.03), 32, 32)


def float_behind_concat(net: Net) -> str:
    return net.conv("model.1", joined(net), 32, 32, int8=False)


RIGHT = [behind_nothing, behind_pool, float_behind_concat, behind_concat_and_sigmoid]
WRONG = [behind_concat, behind_concat_and_pool, behind_concat_and_relu, behind_concat_of_floats]


@pytest.mark.parametrize("build", [*RIGHT, *WRONG])
@pytest.mark.parametrize("zero_point", [np.int8(0), np.uint8(128)], ids=["signed", "unsigned"])
def test_openvino_computes_wrongly_what_is_broken_there(
    build: Callable[[Net], str], zero_point: np.generic, tmp_path: Path
) -> None:
    net = Net(zero_point=zero_point)
    model = net.model(build(net), [1, 32, 16, 16])
    found = findings(model, tmp_path / "x.onnx", "openvino")
    wrong = error(run_openvino(model, tmp_path / "x.onnx"), model) > 0.1
    assert wrong == (build in WRONG and zero_point == 0)
    assert rules(found, "broken") == ({"openvino-signed-concat"} if wrong else set())


def moved(op: str, with_q: bool, zero_point: np.generic, opset: int) -> onnx.ModelProto:
    net = Net(zero_point=zero_point)
    x = net.qdq(stem(net), 0.03)
    inputs, attributes = {
        "MaxPool": ([], {"kernel_shape": [1, 1]}),
        "Reshape": ([net.constant("shape", [1, 16, 16, 16])], {}),
        "Transpose": ([], {"perm": [0, 1, 3, 2]}),
        "Resize": (["", net.constant("twice", np.ones(4, np.float32))], {"mode": "nearest"}),
    }[op]
    y = net.op(op, "moved", [x, *inputs], **attributes)
    model = net.model(net.conv("model.1", net.qdq(y, 0.03) if with_q else y, 16, 32), [1, 32, 16, 16])
    model.opset_import[0].version, model.ir_version = opset, 10
    return model


@pytest.mark.parametrize(
    ("op", "with_q", "zero_point", "opset", "loads"),
    [
        ("MaxPool", False, np.int8(0), 20, True),
        ("MaxPool", False, np.int8(0), 21, False),
        ("MaxPool", False, np.int8(0), 23, False),
        ("MaxPool", True, np.int8(0), 21, True),
        ("MaxPool", False, np.uint8(128), 21, True),
        ("Reshape", False, np.int8(0), 21, False),
        ("Transpose", False, np.int8(0), 21, False),
        ("Resize", False, np.int8(0), 21, True),
    ],
)
@pytest.mark.parametrize("target", ["onnxruntime", "ultralytics"])
def test_onnxruntime_does_not_load_what_is_broken_there(
    op: str, with_q: bool, zero_point: np.generic, opset: int, loads: bool, target: str, tmp_path: Path
) -> None:
    model = moved(op, with_q, zero_point, opset)
    assert rules(findings(model, tmp_path / "x.onnx", target), "broken") == (set() if loads else {"onnxruntime-opset"})
    if loads:
        run_onnxruntime(model)
    else:
        with pytest.raises(Exception, match="does not match y_zero_point type"):
            run_onnxruntime(model)


@pytest.mark.parametrize(
    ("direct", "in_float"), [(True, ["/model.1/Conv"]), (False, ["/model.0/Conv", "/model.1/Conv"])]
)
def test_onnxruntime_computes_convolutions_in_float_without_a_q_behind(
    direct: bool, in_float: list[str], tmp_path: Path
) -> None:
    net = Net(zero_point=np.uint8(128))
    x = net.conv("model.0", net.qdq(IMAGE, 1 / 127), 3, 16)
    x = net.silu(net.qdq(x, 0.03)) if direct else net.silu(x)
    model = net.model(net.silu(net.conv("model.1", net.qdq(x, 0.03), 16, 32)), [1, 32, 16, 16])
    found = findings(model, tmp_path / "x.onnx", "onnxruntime")
    assert [finding.node for finding in found if finding.rule == "onnxruntime-float-conv"] == in_float
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    nodes = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert (nodes.count("QLinearConv"), nodes.count("Conv")) == (2 - len(in_float), len(in_float))


def for_ultralytics(free: tuple[int, ...], **entries: str) -> onnx.ModelProto:
    """The detector with these input dimensions free (0: batch, 2: height, 3: width), and Ultralytics' metadata."""
    model = detector()
    for axis in free:
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"free{axis}"
    if 0 in free:
        for name, sizes in {"dfl": (4, 16, 256), "box": (4, 256), "score": (20, 256)}.items():
            set_constant(model, f"{name}_shape", np.array([-1, *sizes]))
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "free0"
    for key, value in {"task": "detect", "stride": "8", "imgsz": "[16, 16]", "batch": "1", **entries}.items():
        model.metadata_props.add(key=key, value=value)
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("free", "runs"), [((), True), ((0,), False)])
def test_ultralytics_cannot_run_what_is_broken_there(free: tuple[int, ...], runs: bool, tmp_path: Path) -> None:
    ultralytics = pytest.importorskip("ultralytics")
    model = for_ultralytics(free, names=str({number: f"class {number}" for number in range(20)}))
    found = findings(model, tmp_path / "x.onnx", "ultralytics")
    assert rules(found, "broken") == (set() if runs else {"ultralytics-dynamic"})
    assert "ultralytics-names" not in rules(found, "warning")
    yolo = ultralytics.YOLO(tmp_path / "x.onnx", task="detect")
    wide = np.zeros((16, 40, 3), np.uint8)
    if runs:
        assert yolo.predict(wide, imgsz=16, verbose=False)[0].names[7] == "class 7"
    else:
        with pytest.raises(Exception, match="invalid dimensions"):
            yolo.predict(wide, imgsz=16, verbose=False)


def test_ultralytics_takes_free_height_and_width(tmp_path: Path) -> None:
    assert rules(findings(for_ultralytics((0, 2, 3)), tmp_path / "x.onnx", "ultralytics"), "broken") == set()


@pytest.mark.parametrize("names", ["", "{}", "not python", "[1]"])
def test_ultralytics_names(names: str, tmp_path: Path) -> None:
    found = findings(for_ultralytics((), names=names), tmp_path / "x.onnx", "ultralytics")
    assert "ultralytics-names" in rules(found, "warning")
