"""Unsound ONNX files are refused with one line before a runtime, the lint or a builder sees them."""

from __future__ import annotations

import copy
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import write_tiny_detector

from trt_qat.cli import cli
from trt_qat.errors import ArtifactError, RunnerError
from trt_qat.linter.report import lint
from trt_qat.onnx_reading import read_detector, read_onnx
from trt_qat.runtime.detector import Detector

Change = Callable[[onnx.ModelProto], object]


def changed(path: Path, change: Change) -> Path:
    """The tiny detector with a change."""
    model = onnx.load(write_tiny_detector(path))
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def _stored(model: onnx.ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def _store(name: str, value: np.ndarray) -> Change:
    return lambda model: _stored(model, name).CopyFrom(numpy_helper.from_array(value, name))


def _dims(*sizes: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].ClearField("dims")
        model.graph.initializer[0].dims.extend(sizes)

    return change


def _stored_type(number: int) -> Change:
    return lambda model: setattr(model.graph.initializer[0], "data_type", number)


def _input(shape: list[int | str | None], kind: int = TensorProto.FLOAT) -> Change:
    return lambda model: model.graph.input[0].CopyFrom(helper.make_tensor_value_info("images", kind, shape))


def _attribute(node: int, name: str, value: object) -> Change:
    def change(model: onnx.ModelProto) -> None:
        kept = [entry for entry in model.graph.node[node].attribute if entry.name != name]
        model.graph.node[node].ClearField("attribute")
        model.graph.node[node].attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def _instead(op: str, *inputs: str, domain: str = "", **attributes: object) -> Change:
    node = helper.make_node(op, inputs or ["colours"], ["scores"], domain=domain, **attributes)
    return lambda model: model.graph.node[2].CopyFrom(node)


def _metadata(key: str, value: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.ClearField("metadata_props")
        helper.set_model_props(model, {key: value})

    return change


def _external(location: str, **entries: object) -> Change:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=str(value))

    return change


def _chain(length: int, op: str = "Identity", start: str = "maps") -> Change:
    def change(model: onnx.ModelProto) -> None:
        names = [start, *(f"chain{number}" for number in range(length))]
        last = copy.deepcopy(model.graph.node[-1])
        last.input[0] = names[-1]
        del model.graph.node[-1]
        model.graph.node.extend(helper.make_node(op, [a], [b]) for a, b in itertools.pairwise(names))
        model.graph.node.append(last)

    return change


def _qdq_chain(pairs: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        for name, value in (("s", np.float32(0.1)), ("z", np.int8(0))):
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        last = copy.deepcopy(model.graph.node[-1])
        del model.graph.node[-1]
        tensor = "maps"
        for number in range(pairs):
            model.graph.node.append(helper.make_node("QuantizeLinear", [tensor, "s", "z"], [f"q{number}"]))
            model.graph.node.append(helper.make_node("DequantizeLinear", [f"q{number}", "s", "z"], [f"d{number}"]))
            tensor = f"d{number}"
        last.input[0] = tensor
        model.graph.node.append(last)

    return change


def _constant_chain(length: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        nodes = list(model.graph.node)
        names = ["grid", *(f"chain{number}" for number in range(length))]
        nodes[3].input[1] = names[-1]
        moved = [copy.deepcopy(node) for node in nodes]
        model.graph.ClearField("node")
        model.graph.node.extend(helper.make_node("Identity", [a], [b]) for a, b in itertools.pairwise(names))
        model.graph.node.extend(moved)

    return change


def _functions(levels: int, recursive: bool = False) -> Change:
    """Each function calls the one before it twice."""

    def change(model: onnx.ModelProto) -> None:
        opsets = [helper.make_opsetid("", 19), helper.make_opsetid("f", 1)]
        for level in range(levels):
            called = ("Relu", "") if level == 0 and not recursive else (f"F{max(0, level - 1)}", "f")
            nodes = [
                helper.make_node(called[0], ["x"], ["t"], domain=called[1]),
                helper.make_node(called[0], ["t"], ["y"], domain=called[1]),
            ]
            model.functions.append(helper.make_function("f", f"F{level}", ["x"], ["y"], nodes, opsets))
        model.opset_import.append(helper.make_opsetid("f", 1))
        _instead(f"F{levels - 1}", domain="f")(model)

    return change


def _nested(model: onnx.ModelProto) -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["colours"], ["i"])],
        "g",
        [],
        [helper.make_tensor_value_info("i", TensorProto.FLOAT, None)],
    )
    for number in range(9):
        node = helper.make_node("If", ["yes"], [f"n{number}"], then_branch=inner, else_branch=inner)
        output = helper.make_tensor_value_info(f"n{number}", TensorProto.FLOAT, None)
        inner = helper.make_graph([node], "g", [], [output])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    _instead("If", "yes", then_branch=inner, else_branch=inner)(model)


def _cast_output(model: onnx.ModelProto, kind: int) -> None:
    model.graph.node.append(helper.make_node("Cast", ["output0"], ["x"], to=kind))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("x", kind, None))


def _fill(name: str, value: float) -> Change:
    def change(model: onnx.ModelProto) -> None:
        array = numpy_helper.to_array(_stored(model, name)).copy()
        array.flat[-1] = value
        _stored(model, name).CopyFrom(numpy_helper.from_array(array, name))

    return change


def _without(field: str, node: int) -> Change:
    return lambda model: model.graph.node[node].ClearField(field)


UNSOUND: dict[str, tuple[Change, str]] = {
    "negative size": (_dims(-1, 3, 1, 1), "has sizes [-1, 3, 1, 1]"),
    "huge size": (_dims(10**18), "has sizes [1000000000000000000]"),
    "sizes of more data": (_dims(7, 3, 5, 5), "takes 2100 bytes, 84 are there"),
    "sizes of no data": (_dims(0), "takes 0 bytes, 84 are there"),
    "text weights": (_stored_type(TensorProto.STRING), "holds strings"),
    "unknown type": (_stored_type(99), "unknown type 99"),
    "another type": (_stored_type(TensorProto.DOUBLE), "takes 168 bytes, 84 are there"),
    "circle": (lambda m: m.graph.node[0].input.__setitem__(0, "maps"), "reads 'maps', which nothing before it"),
    "reads itself": (lambda m: m.graph.node[2].input.__setitem__(0, "scores"), "reads 'scores', which nothing"),
    "made twice": (lambda m: m.graph.node[2].output.__setitem__(0, "colours"), "'colours' is made twice"),
    "no output": (lambda m: m.graph.output[0].CopyFrom(onnx.ValueInfoProto(name="x")), "no node makes the output 'x'"),
    "no input of a node": (_without("input", 1), "is a Conv with 0 inputs, it takes 2 to 3"),
    "no output of a node": (_without("output", 1), "no operator or no output"),
    "attribute of another type": (_attribute(0, "kernel_shape", "text"), "whose kernel_shape has the wrong type"),
    "missing attribute": (_without("attribute", 0), "is a AveragePool without kernel_shape"),
    "stride of 0": (_attribute(0, "strides", [0, 0]), "strides = [0, 0]"),
    "negative padding": (_attribute(0, "pads", [-100, 0, 0, 0]), "pads = [-100, 0, 0, 0]"),
    "no groups": (_attribute(1, "group", 0), "group = [0]"),
    "operator set": (lambda m: setattr(m.opset_import[0], "version", 2**40), "operator set"),
    "no operator set": (lambda m: m.ClearField("opset_import"), "operator set"),
    "IR version": (lambda m: setattr(m, "ir_version", -1), "IR version is -1"),
    "functions that unfold": (_functions(40), "with its functions written out has"),
    "function that calls itself": (_functions(1, recursive=True), "function 'F0' calls itself"),
    "nested graphs": (_nested, "nested more than 8 deep"),
    "external above": (_external("../../etc/passwd"), "outside of the file's folder"),
    "external elsewhere": (_external("/etc/passwd"), "outside of the file's folder"),
    "external on a drive": (_external("C:/w.bin"), "outside of the file's folder"),
    "external nowhere": (_external(""), "outside of the file's folder"),
    "external link": (_external("link.bin"), "a link out of the file's folder"),
    "external loop": (_external("loop.bin"), "levels of symbolic links"),
    "external missing": (_external("none.bin"), "does not exist"),
    "external pipe": (_external("pipe.bin"), "is a pipe, not a file"),
    "external behind the end": (_external("w.bin", offset=50, length=84), "takes 84 bytes at 50"),
    "external offset": (_external("w.bin", offset=-1), "offset '-1'"),
    "50,000 nodes": (_chain(50_000), "has 50,005 nodes, the limit is 20,000"),
}
NO_DETECTOR: dict[str, tuple[Change, str]] = {
    "text input": (
        _input([1, 3, 64, 64], TensorProto.STRING),
        "one float input, the images in [0, 1]; found images: s",
    ),
    "uint8 input": (_input([1, 3, 64, 64], TensorProto.UINT8), "found images: uint8"),
    "two inputs": (lambda m: m.graph.input.append(helper.make_tensor_value_info("b", 1, [1])), "has 2 inputs"),
    "text output": (lambda m: _cast_output(m, TensorProto.STRING), "must have numbers as output; found x: string"),
    "complex output": (lambda m: _cast_output(m, TensorProto.COMPLEX64), "found x: complex64"),
    "rank": (_input([1, 3, 64]), "must be (batch, 3, height, width), found (1, 3, 64)"),
    "grey": (_input([1, 1, 64, 64]), "it has 1 channel."),
    "huge input": (_input([1, 3, 10**9, 10**9]), "32 to 8192 are allowed"),
    "small input": (_input([1, 3, 8, 8]), "32 to 8192 are allowed"),
    "empty input": (_input([1, 3, 0, 0]), "32 to 8192 are allowed"),
    "shapes that do not fit": (_input([1, 3, 96, 96]), "its shapes do not fit"),
    "axis": (_instead("Softmax", axis=99), "its shapes do not fit"),
    "permutation": (_instead("Transpose", perm=[0, 1, 9, -4]), "its shapes do not fit"),
    "reshape to more": (_store("shape", np.array([10**18, 10**18, 1])), "its shapes do not fit"),
    "reshape to less": (_store("shape", np.array([0, 0, 0])), "reshapes 448 values to 56"),
    "NaN weight": (_fill("weights", float("nan")), "'weights' holds NaN or infinity"),
    "infinite weight": (_fill("grid", float("inf")), "'grid' holds NaN or infinity"),
    "names": (_metadata("names", "-" * 20_000), "'names'"),
    "imgsz": (_metadata("imgsz", "1000000000"), "imgsz"),
    "stride": (_metadata("stride", "0"), "stride"),
    "task": (_metadata("task", "classify"), "task"),
    "row": (_chain(600), "603 operators in a row without a convolution"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "w.bin").write_bytes(bytes(84))
    (tmp_path / "secret.bin").write_bytes(bytes(84))
    (tmp_path / "in" / "link.bin").symlink_to(tmp_path / "secret.bin")
    (tmp_path / "in" / "loop.bin").symlink_to("loop.bin")
    os.mkfifo(tmp_path / "in" / "pipe.bin")
    return tmp_path / "in"


def _one_line(text: str) -> bool:
    return "\n" not in text and len(text) < 800


@pytest.mark.parametrize(("change", "found"), UNSOUND.values(), ids=UNSOUND)
def test_an_unsound_file_is_refused(change: Change, found: str, folder: Path) -> None:
    file = changed(folder / "x.onnx", change)
    for read in (read_onnx, read_detector, lint):
        with pytest.raises(ArtifactError) as caught:
            read(file)
        assert found in str(caught.value)
        assert str(file) in str(caught.value) or "data of tensor" in str(caught.value)
        assert _one_line(str(caught.value))


@pytest.mark.parametrize(("change", "found"), NO_DETECTOR.values(), ids=NO_DETECTOR)
def test_a_sound_file_that_is_no_detector_is_refused_by_runtimes_alone(
    change: Change, found: str, folder: Path
) -> None:
    file = changed(folder / "x.onnx", change)
    assert read_onnx(file).graph.node
    with pytest.raises(ArtifactError) as caught:
        read_detector(file)
    assert found in str(caught.value)
    assert _one_line(str(caught.value))


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "auto"])
@pytest.mark.parametrize("name", ["text input", "reshape to less", "names", "rank"])
def test_infer_says_it_in_one_line(name: str, runtime: str, folder: Path) -> None:
    file = changed(folder / "x.onnx", NO_DETECTOR[name][0])
    done = CliRunner().invoke(cli, ["infer", str(folder / "none.png"), "--model", str(file), "--runtime", runtime])
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_an_output_that_is_no_number_is_not_no_detection(runtime: str, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "zero"))
        _instead("Div", "colours", "zero")(model)

    file = changed(tmp_path / "x.onnx", change)
    with Detector(file, runtime=runtime) as detect, pytest.raises(RunnerError, match="holds NaN or infinity"):
        detect(np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_an_output_of_another_rank_is_refused(runtime: str, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        del model.graph.node[-1]
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("maps", TensorProto.FLOAT, None))

    file = changed(tmp_path / "x.onnx", change)
    with Detector(file, runtime=runtime) as detect, pytest.raises(RunnerError, match=r"has shape \(1, 7, 8, 8\)"):
        detect(np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(share: float, tmp_path: Path) -> None:
    content = write_tiny_detector(tmp_path / "x.onnx").read_bytes()
    (tmp_path / "x.onnx").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ArtifactError, match=r"x.onnx'"):
        read_detector(tmp_path / "x.onnx")


@pytest.mark.parametrize("name", [b"images", b"conv", b"colours", b"weights", b"kernel_shape", b"imgsz"])
def test_a_name_that_is_not_utf8_is_refused(name: bytes, tmp_path: Path) -> None:
    content = write_tiny_detector(tmp_path / "x.onnx").read_bytes()
    (tmp_path / "x.onnx").write_bytes(content.replace(name, b"\xff" + name[1:]))
    for read in (read_detector, lint):
        with pytest.raises(ArtifactError, match="is not UTF-8"):
            read(tmp_path / "x.onnx")


def test_weights_beside_the_file_are_read_by_the_lint_only(folder: Path) -> None:
    value = np.arange(21, dtype=np.float32)
    (folder / "w.bin").write_bytes(bytes(4) + value.tobytes())
    file = changed(folder / "x.onnx", _external("w.bin", offset=4, length=84))
    assert not read_detector(file).graph.initializer[0].raw_data
    stored = read_onnx(file, external_data=True).graph.initializer[0]
    np.testing.assert_array_equal(numpy_helper.to_array(stored).ravel(), value)


@pytest.mark.parametrize("batch", [1, None])
def test_sound_files_pass(batch: int | None, tmp_path: Path) -> None:
    assert read_detector(write_tiny_detector(tmp_path / "x.onnx", batch)).graph.node


@pytest.mark.parametrize(
    "change",
    [_chain(19_000), _chain(19_000, "MaxPool"), _constant_chain(9_000), _qdq_chain(400)],
    ids=["copies", "pools", "constants", "pairs"],
)
def test_the_lint_of_a_long_chain_ends(change: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_file = tmp_path / "x.onnx"

    def with_attributes(model: onnx.ModelProto) -> None:
        change(model)
        for node in model.graph.node:
            if node.op_type == "MaxPool":
                node.attribute.append(helper.make_attribute("kernel_shape", [1, 1]))

    started = time.monotonic()
    report = lint(changed(model_file, with_attributes))
    assert report.counts.convs == 1
    assert time.monotonic() - started < 20


def test_the_lint_counts_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRT_QAT_MAX_LINT_STEPS", "1000")
    file = changed(tmp_path / "x.onnx", _qdq_chain(400))
    with pytest.raises(ArtifactError, match=r"the limit is 1,000. .*TRT_QAT_MAX_LINT_STEPS=\d+"):
        lint(file)


def test_the_lint_computes_no_huge_constant(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for name, shape in (("row", (1, 20_000)), ("column", (20_000, 1))):
            model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
        nodes = [copy.deepcopy(node) for node in model.graph.node]
        model.graph.ClearField("node")
        model.graph.node.append(helper.make_node("Mul", ["row", "column"], ["scale"]))
        model.graph.node.append(helper.make_node("DequantizeLinear", ["eight", "scale"], ["used"]))
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.int8), "eight"))
        model.graph.node.extend(nodes)

    with pytest.raises(ArtifactError, match="TRT_QAT_MAX_CONSTANT_VALUES=400000000"):
        lint(changed(tmp_path / "x.onnx", change))
