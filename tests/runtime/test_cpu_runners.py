from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import NAMES, write_tiny_detector, write_unknown_operator

from trt_qat.errors import ArtifactError, RunnerError
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner
from trt_qat.runtime.openvino import OpenVinoRunner
from trt_qat.runtime.runner import Mode, Runner, class_names, image_size

OPENERS: list[Callable[[Path], Runner]] = [
    OpenVinoRunner,
    OnnxRuntimeRunner,
    lambda path: OnnxRuntimeRunner(path, threads=1, optimize=False),
]


@pytest.fixture(params=OPENERS, ids=["openvino", "onnxruntime", "onnxruntime-unoptimized"])
def opener(request: pytest.FixtureRequest) -> Callable[[Path], Runner]:
    return request.param


def _batch(count: int = 1) -> np.ndarray:
    return np.random.default_rng(0).random((count, 3, 64, 64), dtype=np.float32)


def test_attributes_and_result(tmp_path: Path, opener: Callable[[Path], Runner]) -> None:
    with opener(write_tiny_detector(tmp_path / "tiny.onnx")) as runner:
        assert isinstance(runner, Runner)
        assert runner.input_shape == (1, 3, 64, 64)
        assert class_names(runner.metadata) == NAMES
        assert image_size(runner.metadata, runner.input_shape) == (64, 64)
        assert runner.device
        red = np.zeros((1, 3, 64, 64), np.float32)
        red[0, 0, 8:16, 16:24] = 1
        (output,) = runner.infer(red)
        assert output.dtype == np.float32
        assert output.shape == (1, 7, 64)
        np.testing.assert_allclose(output[0, :, 8 + 2], [20, 12, 8, 8, 1, 0, 0], atol=1e-5)


def test_results_of_two_calls_do_not_share_memory(tmp_path: Path, opener: Callable[[Path], Runner]) -> None:
    with opener(write_tiny_detector(tmp_path / "tiny.onnx")) as runner:
        first = runner.infer(np.zeros((1, 3, 64, 64), np.float32))[0]
        before = first.copy()
        runner.infer(_batch())
        np.testing.assert_array_equal(first, before)


def test_dynamic_batch(tmp_path: Path, opener: Callable[[Path], Runner]) -> None:
    with opener(write_tiny_detector(tmp_path / "tiny.onnx", batch=None)) as runner:
        assert runner.input_shape == (None, 3, 64, 64)
        batch = _batch(3)
        together = runner.infer(batch)[0]
        assert together.shape == (3, 7, 64)
        np.testing.assert_allclose(together[1], runner.infer(batch[1:2])[0][0], atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (_batch(2), r"takes shape \(1, 3, 64, 64\), found \(2, 3, 64, 64\)"),
        (_batch()[0], r"found \(3, 64, 64\)"),
        (_batch()[:0], r"found \(0, 3"),
        (_batch().astype(np.float64), "float32 array, found float64"),
        ([1.0], "float32 array, found list"),
    ],
)
def test_wrong_batch(tmp_path: Path, opener: Callable[[Path], Runner], batch: np.ndarray, message: str) -> None:
    with opener(write_tiny_detector(tmp_path / "tiny.onnx")) as runner, pytest.raises(RunnerError, match=message):
        runner.infer(batch)


def test_use_after_exit(tmp_path: Path, opener: Callable[[Path], Runner]) -> None:
    with opener(write_tiny_detector(tmp_path / "tiny.onnx")) as runner:
        pass
    with pytest.raises(RunnerError, match="closed"):
        runner.infer(_batch())
    with pytest.raises(RunnerError, match="closed"), runner:
        pass


@pytest.mark.parametrize("runner_class", [OpenVinoRunner, OnnxRuntimeRunner])
@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_any_number_of_threads_may_call_at_once(
    tmp_path: Path, runner_class: type[OpenVinoRunner | OnnxRuntimeRunner], mode: Mode
) -> None:
    batches = [np.random.default_rng(seed).random((1, 3, 64, 64), dtype=np.float32) for seed in range(24)]
    with runner_class(write_tiny_detector(tmp_path / "tiny.onnx"), mode=mode) as runner, ThreadPoolExecutor(8) as pool:
        assert (runner.parallel > 1) == (mode == "throughput")
        alone = [runner.infer(batch)[0] for batch in batches]
        for expected, (output,) in zip(alone, pool.map(runner.infer, batches), strict=True):
            np.testing.assert_array_equal(output, expected)
    with ThreadPoolExecutor(8) as pool:
        for call in [pool.submit(runner.infer, batch) for batch in batches]:
            with pytest.raises(RunnerError, match="the runner is closed"):
                call.result(timeout=10)


def test_broken_files(tmp_path: Path, opener: Callable[[Path], Runner]) -> None:
    whole = write_tiny_detector(tmp_path / "tiny.onnx").read_bytes()
    for content in (whole[: len(whole) // 2], b"hello world\n" * 20, b"\x00\x01"):
        (tmp_path / "broken.onnx").write_bytes(content)
        with pytest.raises(ArtifactError, match="not an ONNX file"):
            opener(tmp_path / "broken.onnx")
    with pytest.raises(ArtifactError, match="does not exist"):
        opener(tmp_path / "none.onnx")
    with pytest.raises(RunnerError, match=r"cannot run .*Mystery") as caught:
        opener(write_unknown_operator(tmp_path / "unknown.onnx"))
    assert "\n" not in str(caught.value)


def _write_ir(folder: Path) -> Path:
    """The tiny detector as an IR folder; returns its xml."""
    core = openvino.Core()
    folder.mkdir()
    openvino.save_model(core.read_model(write_tiny_detector(folder.parent / "tiny.onnx")), folder / "tiny.xml")
    return folder / "tiny.xml"


def test_an_input_that_is_no_float_is_refused(tmp_path: Path, opener: Callable[[Path], Runner]) -> None:
    """A graph that casts and scales by itself would get pixels in [0, 1] cut to 0 and 1."""
    values = [
        helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 3, 8, 8]),
        helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 3, 8, 8]),
    ]
    node = helper.make_node("Cast", ["images"], ["out"], to=TensorProto.FLOAT)
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), tmp_path / "u8.onnx")
    with pytest.raises(ArtifactError, match=r"u8.onnx' must have (a|one) float input, the images"):
        opener(tmp_path / "u8.onnx")


def test_openvino_takes_its_own_ir(tmp_path: Path) -> None:
    xml = _write_ir(tmp_path / "tiny_openvino_model")
    (xml.parent / "metadata.yaml").write_text("names: {0: red, 1: green, 2: blue}\nimgsz: [64, 64]\n", encoding="utf-8")
    with OpenVinoRunner(tmp_path / "tiny.onnx") as runner:
        expected = runner.infer(_batch())[0]
    for model in (xml, xml.parent):
        with OpenVinoRunner(model) as runner:
            assert class_names(runner.metadata) == NAMES
            assert image_size(runner.metadata, runner.input_shape) == (64, 64)
            np.testing.assert_allclose(runner.infer(_batch())[0], expected, atol=1e-5)
    (xml.parent / "metadata.yaml").unlink()
    with OpenVinoRunner(xml) as runner:
        assert runner.metadata == {}


def test_openvino_folders_that_are_none(tmp_path: Path) -> None:
    xml = _write_ir(tmp_path / "ir")
    (xml.parent / "metadata.yaml").write_text("- a list\n", encoding="utf-8")
    with pytest.raises(ArtifactError, match="not a mapping"):
        OpenVinoRunner(xml)
    (xml.parent / "metadata.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(ArtifactError, match="not valid YAML"):
        OpenVinoRunner(xml)
    (xml.parent / "metadata.yaml").unlink()
    xml.with_suffix(".bin").unlink()
    with pytest.raises(ArtifactError, match=r"tiny\.bin' does not exist"):
        OpenVinoRunner(xml.parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"must hold one OpenVINO IR \(\*\.xml\), found 0"):
        OpenVinoRunner(tmp_path / "empty")
    (tmp_path / "x.plan").write_bytes(b"plan")
    with pytest.raises(ArtifactError, match=r"needs an ONNX file, an IR"):
        OpenVinoRunner(tmp_path / "x.plan")


def test_openvino_computes_any_pair(tmp_path: Path) -> None:
    """Strangers' pairs: a zero point in the middle of nowhere, and a dequantizer with a scale of its own."""
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["one"]),
        helper.make_node("DequantizeLinear", ["q", "s2", "z2"], ["other"]),
        helper.make_node("Concat", ["one", "other"], ["output0"], axis=1),
    ]
    constants = {"s": np.float32(0.01), "z": np.uint8(37), "s2": np.float32(0.5), "z2": np.uint8(3)}
    shape = [1, 3, 64, 64]
    graph = helper.make_graph(
        nodes,
        "pairs",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 6, 64, 64])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    path = tmp_path / "pairs.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    with OpenVinoRunner(path) as runner, OnnxRuntimeRunner(path, optimize=False) as reference:
        np.testing.assert_allclose(runner.infer(_batch())[0], reference.infer(_batch())[0], atol=1e-4)


@pytest.mark.parametrize("text", ["nonsense(", "12", "{0: 'a'", "{'a': 'b'}"])
def test_class_names_that_are_none(text: str) -> None:
    with pytest.raises(RunnerError, match="names"):
        class_names({"names": text})


def test_class_names_forms() -> None:
    assert class_names({}) == {}
    assert class_names({"names": "['a', 'b']"}) == {0: "a", 1: "b"}


def test_image_size_rules() -> None:
    assert image_size({"imgsz": "[640, 640]"}, (1, 3, 320, 320)) == (320, 320)
    assert image_size({"imgsz": "[416, 416]"}, (None, 3, None, None)) == (416, 416)
    assert image_size({"imgsz": "416"}, (None, 3, None, None)) == (416, 416)
    assert image_size({}, (None, 3, None, None)) == (640, 640)
    assert image_size({"imgsz": "[384, 640]"}, (1, 3, 320, 640)) == (320, 640)
    assert image_size({"imgsz": "[384, 640]"}, (1, 3, None, None)) == (384, 640)
    assert image_size({"imgsz": "[384, 640]"}, (1, 3, None, 320)) == (384, 320)
    for shape in ((1, 3, 640), (1, 1, 640, 640)):
        with pytest.raises(RunnerError, match="The model's input must"):
            image_size({}, shape)
    with pytest.raises(RunnerError, match="imgsz"):
        image_size({"imgsz": "big"}, (1, 3, None, None))
