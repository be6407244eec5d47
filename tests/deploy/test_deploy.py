"""Each deployment as its user looks at it: key files parse, code runs, the model in it computes, nothing is lost."""

from __future__ import annotations

import ast
import configparser
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import yaml
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import CELL, NAMES, colour_image, write_free_size, write_tiny_detector, write_unknown_operator

from trt_qat.cli import cli
from trt_qat.config import EngineSection, InferSection
from trt_qat.deploy.base import deployment_from_name
from trt_qat.deploy.folder import RECORD
from trt_qat.deploy.write import deploy
from trt_qat.engine.engine_file import write_sidecar
from trt_qat.errors import ArtifactError, ConfigError, TrtQatError
from trt_qat.exporter.output_forms import with_nms
from trt_qat.onnx_reading import metadata_texts
from trt_qat.registry import DEPLOYMENTS
from trt_qat.runtime.detector import Detector
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner

ANCHORS_OF_640 = 8400


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The tiny detector, any batch, in a folder whose name has a space."""
    (tmp_path / "my models").mkdir()
    return write_tiny_detector(tmp_path / "my models" / "tiny.onnx", batch=None)


def raw_file(
    path: Path, names: dict[int, str] | None = None, batch: int | None = 1, size: tuple[int, int] = (640, 640)
) -> Path:
    """A detector of this height and width that only has the right shapes: (batch, 4 + 3, 8400) at 640x640 pixels."""
    height, width = size
    anchors = sum((height // stride) * (width // stride) for stride in (8, 16, 32))
    names = NAMES if names is None else names
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "shape"], ["one"]),
        helper.make_node("Mul", ["one", "ones"], ["output0"]),
    ]
    constants = {
        "axes": np.array([1, 2, 3], np.int64),
        "shape": np.array([-1, 1, 1], np.int64),
        "ones": np.ones((1, 4 + len(names), anchors), np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "raw",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, height, width])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [batch, 4 + len(names), anchors])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    helper.set_model_props(made, {"names": str(names), "imgsz": f"[{height}, {width}]"})
    onnx.save(made, str(path))
    return path


def plan_file(path: Path, flavor: str = "tensorrt", batch: int = -1) -> Path:
    """No plan, but a side-car that describes one of the tiny detector's shapes."""
    path.write_bytes(b"a plan")
    shape = [batch, 3, 64, 64]
    largest = {"min": [1, *shape[1:]], "opt": [2, *shape[1:]], "max": [4, *shape[1:]]}
    content = {
        "flavor": flavor,
        "inputs": [{"name": "images", "dtype": "float32", "shape": shape}],
        "outputs": [{"name": "output0", "dtype": "float32", "shape": [batch, 4 + len(NAMES), 64]}],
        "profiles": [{"images": largest}] if batch < 0 else [],
        "metadata": {"names": str(NAMES), "precision": "int8+fp16"},
    }
    write_sidecar(path.with_suffix(".json"), content)
    return path


def key_file(path: Path) -> configparser.ConfigParser:
    """As GLib reads one: comments are lines of their own, keys keep their case."""
    parser = configparser.ConfigParser(comment_prefixes=("#",), inline_comment_prefixes=(), delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text(encoding="utf-8"))
    return parser


def red_picture() -> NDArray[np.uint8]:
    """Two red cells and a blue one on gray, of the network's own size."""
    image = colour_image(64, 64)
    for row, column, bgr in ((1, 1, (0, 0, 255)), (4, 6, (0, 0, 255)), (6, 2, (255, 0, 0))):
        image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = bgr
    return image


# what is written ---------------------------------------------------------------------------------------------------


def test_deepstream(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "to deploy" / "ds"
    section = InferSection(conf=0.4, iou=0.6, max_det=50)
    done = deploy(model, "deepstream", folder, infer=section, engine=EngineSection(opt_batch=2, max_batch=4))
    assert set(done.files) == {
        "tiny.onnx", "labels.txt", "config_infer_primary.txt", "deepstream_app_config.txt", "build_engine.sh",
        "README.txt", RECORD,
    }  # fmt: skip
    infer = key_file(folder / "config_infer_primary.txt")
    keys = infer["property"]
    assert float(keys["net-scale-factor"]) == pytest.approx(1 / 255)
    assert {name: keys[name] for name in ("model-color-format", "maintain-aspect-ratio", "symmetric-padding")} == {
        "model-color-format": "0", "maintain-aspect-ratio": "1", "symmetric-padding": "1",
    }  # fmt: skip
    assert (folder / keys["onnx-file"]).is_file()
    assert (folder / keys["labelfile-path"]).read_text() == "red\ngreen\nblue\n"
    assert keys["num-detected-classes"] == "3"
    assert keys["batch-size"] == "2"
    assert keys["network-mode"] == "0"
    assert keys["parse-bbox-func-name"] == "NvDsInferParseYolo"
    assert dict(infer["class-attrs-all"]) == {"nms-iou-threshold": "0.6", "pre-cluster-threshold": "0.4", "topk": "50"}
    app = key_file(folder / "deepstream_app_config.txt")
    assert app["primary-gie"]["config-file"] == "config_infer_primary.txt"
    readme = (folder / "README.txt").read_text()
    assert f"make -C {Path(keys['custom-lib-path']).parent}" in readme
    assert f"--saveEngine={keys['model-engine-file']}" in (folder / "build_engine.sh").read_text()


def test_nvinfer_knows_every_key(model: Path, tmp_path: Path) -> None:
    """By the names in DeepStream's gstnvinfer_property_parser.h; what it does not know it warns of, and goes on."""
    known = {
        "gpu-id", "net-scale-factor", "model-color-format", "maintain-aspect-ratio", "symmetric-padding",
        "scaling-filter", "onnx-file", "model-engine-file", "labelfile-path", "batch-size", "network-mode",
        "num-detected-classes", "interval", "gie-unique-id", "process-mode", "network-type", "cluster-mode",
        "parse-bbox-func-name", "custom-lib-path", "engine-create-func-name",
    }  # fmt: skip
    deploy(model, "deepstream", tmp_path / "ds")
    keys = key_file(tmp_path / "ds/config_infer_primary.txt")
    assert set(keys["property"]) == known
    assert set(keys["class-attrs-all"]) == {"nms-iou-threshold", "pre-cluster-threshold", "topk"}


def test_deepstreams_rows_are_those_that_its_parser_reads(model: Path, tmp_path: Path) -> None:
    deploy(model, "deepstream", tmp_path / "ds")
    with Detector(model, runtime="onnxruntime") as detect:
        wanted = detect(red_picture())
    batch = red_picture()[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 255
    with OnnxRuntimeRunner(tmp_path / "ds" / "tiny.onnx") as runner:
        (rows,) = runner.infer(np.concatenate([batch, batch]))
    assert rows.shape == (2, 64, 6)
    found = rows[1][rows[1, :, 4] >= 0.25]  # as nvdsparsebbox_Yolo.cpp: score at 4, class at 5
    assert sorted(found[:, 5]) == [0, 0, 2]
    np.testing.assert_allclose(sorted(found[:, :4].tolist()), sorted(wanted.boxes_xyxy.tolist()), atol=1e-4)


@pytest.mark.parametrize(("batch", "shapes"), [(None, 3), (1, 0)])
def test_the_engine_is_built_from_what_lies_there(tmp_path: Path, batch: int | None, shapes: int) -> None:
    """The script runs, from any folder, with something that says what it was called with."""
    model = write_tiny_detector(tmp_path / "tiny.onnx", batch=batch)
    deploy(model, "deepstream", tmp_path / "a folder")
    (tmp_path / "trtexec").write_text('#!/bin/sh\nprintf "%s\\n" "$PWD" "$@"\n')
    (tmp_path / "trtexec").chmod(0o755)
    command = ["sh", str(tmp_path / "a folder" / "build_engine.sh")]
    said = subprocess.run(
        command, env={"TRTEXEC": str(tmp_path / "trtexec")}, capture_output=True, text=True, check=True
    )
    where, *options = said.stdout.splitlines()
    assert where == str(tmp_path / "a folder")
    assert options[:2] == ["--onnx=tiny.onnx", "--stronglyTyped"]
    assert options[-1] == "--saveEngine=tiny.engine"
    assert [option for option in options if "Shapes=" in option][-1:] == ["--maxShapes=images:8x3x64x64"] * bool(shapes)
    assert len(options) == 3 + shapes


def test_triton(model: Path, tmp_path: Path) -> None:
    done = deploy(model, "triton", tmp_path / "repository")
    assert set(done.files) == {
        "tiny/1/model.onnx", "tiny/config.pbtxt", "tiny/labels.txt", "client.py", "README.txt", RECORD,
    }  # fmt: skip
    assert (tmp_path / "repository/tiny/1/model.onnx").read_bytes() == model.read_bytes()


@pytest.mark.parametrize(
    ("make", "kind", "largest", "dims"),
    [
        (lambda path: write_tiny_detector(path / "tiny.onnx", batch=None), "onnxruntime", 8, [3, 64, 64]),
        (lambda path: write_tiny_detector(path / "tiny.onnx", batch=1), "onnxruntime", 0, [1, 3, 64, 64]),
        (lambda path: plan_file(path / "tiny.plan"), "tensorrt", 4, [3, 64, 64]),
        (lambda path: plan_file(path / "tiny.plan", batch=1), "tensorrt", 0, [1, 3, 64, 64]),
    ],
)
def test_triton_takes_the_configuration(
    tmp_path: Path, make: Callable[[Path], Path], kind: str, largest: int, dims: list[int]
) -> None:
    """Against the schema that Triton itself reads the file with."""
    schema = _triton_schema()
    from google.protobuf import text_format

    deploy(make(tmp_path), "triton", tmp_path / "repository")
    text = (tmp_path / "repository/tiny/config.pbtxt").read_text()
    config = text_format.Parse(text, schema.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", kind, largest)
    assert (config.input[0].name, list(config.input[0].dims)) == ("images", dims)
    assert config.input[0].data_type == schema.TYPE_FP32
    assert list(config.output[0].dims) == [*dims[:-3], 7, 64]
    assert config.HasField("dynamic_batching") == (largest > 0)


def end_to_end(path: Path, rows: bool = False) -> Path:
    """The tiny detector as if its head was trained to find each object once."""
    model = onnx.load(write_tiny_detector(path))
    helper.set_model_props(model, {**metadata_texts(model), "nms_free": "True"})
    onnx.save(with_nms(model, InferSection()) if rows else model, str(path))
    return path


def test_nothing_is_suppressed_behind_an_end_to_end_head(tmp_path: Path) -> None:
    deploy(end_to_end(tmp_path / "tiny.onnx"), "deepstream", tmp_path / "ds")
    assert key_file(tmp_path / "ds" / "config_infer_primary.txt")["property"]["cluster-mode"] == "4"
    deploy(write_tiny_detector(tmp_path / "raw.onnx"), "deepstream", tmp_path / "raw")
    assert key_file(tmp_path / "raw" / "config_infer_primary.txt")["property"]["cluster-mode"] == "2"
    deploy(end_to_end(tmp_path / "rows.onnx", rows=True), "jetson", tmp_path / "jetson")  # `infer` reads rows


@pytest.mark.parametrize("form", ["raw", "nms", "nms_free", "rows"])
def test_tritons_client_finds_what_the_detector_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """The client as it was written, and in the server's place ONNX Runtime with the repository's model."""
    raw = write_tiny_detector(tmp_path / "tiny.onnx")
    file = raw
    if form != "raw":
        file = tmp_path / form / "tiny.onnx"
        file.parent.mkdir()
    if form == "nms":
        onnx.save(with_nms(onnx.load(raw), InferSection()), str(file))
    elif form != "raw":
        end_to_end(file, rows=form == "rows")
    deploy(file, "triton", tmp_path / "repository")
    picture = np.repeat(np.repeat(red_picture(), 2, axis=0), 2, axis=1)
    cv2.imwrite(str(tmp_path / "red.png"), picture)
    with OnnxRuntimeRunner(tmp_path / "repository/tiny/1/model.onnx") as runner:
        module = types.ModuleType("tritonclient.grpc")
        vars(module).update(_fake_triton(runner))
        monkeypatch.setitem(sys.modules, "tritonclient", types.ModuleType("tritonclient"))
        monkeypatch.setitem(sys.modules, "tritonclient.grpc", module)
        vars(sys.modules["tritonclient"])["grpc"] = module
        monkeypatch.setattr(sys, "argv", ["client.py", str(tmp_path / "red.png")])
        path = tmp_path / "repository" / "client.py"
        exec(compile(path.read_text(), path, "exec"), {"__name__": "__main__", "__file__": str(path)})
    with Detector(raw, runtime="onnxruntime") as detect:
        wanted = detect(picture)
    lines = [line.removeprefix(f"{tmp_path / 'red.png'} ").split() for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3
    assert sorted(line[0] for line in lines) == sorted(NAMES[int(class_id)] for class_id in wanted.class_ids)
    np.testing.assert_allclose(
        sorted([float(x) for x in line[2:]] for line in lines), sorted(wanted.boxes_xyxy.tolist()), atol=0.06
    )


def _triton_schema() -> Any:
    """Triton's own schema. The module alone: its package asks for an older protobuf than onnx has here."""
    package = importlib.util.find_spec("tritonclient")
    if package is None or package.origin is None:
        pytest.skip("tritonclient is not installed")
    file = Path(package.origin).parent / "grpc" / "model_config_pb2.py"
    name = "model_config_pb2"
    if name not in sys.modules:  # protobuf takes a schema once
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _fake_triton(runner: OnnxRuntimeRunner) -> dict[str, Any]:
    """The four names of ``tritonclient.grpc`` that the client calls."""

    class Input:
        def __init__(self, name: str, shape: list[int], kind: str) -> None:
            assert (name, shape, kind) == ("images", [1, 3, 64, 64], "FP32")

        def set_data_from_numpy(self, batch: NDArray[np.float32]) -> None:
            self.batch = batch

    class Client:
        def __init__(self, url: str) -> None:
            assert url == "localhost:8001"

        def __enter__(self) -> Client:
            return self

        def __exit__(self, *exc: object) -> None: ...

        def infer(self, model_name: str, inputs: list[Input], outputs: list[str]) -> Any:
            assert (model_name, outputs) == ("tiny", ["output0"])
            (output,) = runner.infer(inputs[0].batch)
            return types.SimpleNamespace(as_numpy=lambda name: {"output0": output}[name])

    return {"InferInput": Input, "InferRequestedOutput": str, "InferenceServerClient": Client}


def test_isaac_ros(tmp_path: Path) -> None:
    model = raw_file(tmp_path / "signs.onnx", names={0: "stop", 1: 'a "quoted" name'})
    done = deploy(model, "isaac-ros", tmp_path / "ros", infer=InferSection(conf=0.3, iou=0.5))
    assert {"signs.onnx", "build_engine.sh", "signs.launch.py", "labels.txt"} < set(done.files)
    decoder = yaml.safe_load((tmp_path / "ros/decoder.yaml").read_text())["/**"]["ros__parameters"]
    assert decoder == {
        "tensor_name": "output_tensor", "confidence_threshold": 0.3, "nms_threshold": 0.5, "num_classes": 2,
    }  # fmt: skip
    tensor_rt = yaml.safe_load((tmp_path / "ros/tensor_rt.yaml").read_text())["/**"]["ros__parameters"]
    assert tensor_rt["input_binding_names"] == ["images"]
    assert tensor_rt["output_binding_names"] == ["output0"]
    assert tensor_rt["output_tensor_names"] == [decoder["tensor_name"]]
    assert tensor_rt["force_engine_update"] is False
    tree = ast.parse((tmp_path / "ros/signs.launch.py").read_text())
    given = {
        key.value: ast.unparse(value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant)
    }
    assert given["network_image_width"] == "'640'"
    assert given["tensor_name"] == repr(tensor_rt["input_tensor_names"][0])  # TensorRTNode finds it by name
    assert given["image_stddev"] == "'[1.0, 1.0, 1.0]'"
    assert given["engine_file_path"] == "os.path.join(HERE, 'signs.engine')"
    assert "--saveEngine=signs.engine" in (tmp_path / "ros/build_engine.sh").read_text()


def test_height_and_width_keep_their_order(tmp_path: Path) -> None:
    """512x800 has the 8400 anchors that Isaac ROS's decoder reads, too."""
    model = raw_file(tmp_path / "wide.onnx", batch=None, size=(512, 800))
    deploy(model, "isaac-ros", tmp_path / "ros")
    launch = (tmp_path / "ros/wide.launch.py").read_text()
    assert '"network_image_width": "800"' in launch
    assert '"network_image_height": "512"' in launch
    assert "--maxShapes=images:8x3x512x800" in (tmp_path / "ros/build_engine.sh").read_text()
    deploy(model, "triton", tmp_path / "triton")
    assert "SIZE = (512, 800)  # height, width" in (tmp_path / "triton/client.py").read_text()
    assert "dims: [3, 512, 800]" in (tmp_path / "triton/wide/config.pbtxt").read_text()


def test_jetson(model: Path, tmp_path: Path) -> None:
    deploy(model, "jetson", tmp_path / "jet son", name="Street_1", infer=InferSection(conf=0.4, max_det=9))
    folder = tmp_path / "jet son"
    assert (folder / "model" / "Street_1.onnx").read_bytes() == model.read_bytes()
    docker = (folder / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (\S+) ", docker, flags=re.MULTILINE)
    assert all((folder / name).exists() for name in copied)
    assert re.search(r"^USER 10001$", docker, flags=re.MULTILINE)
    unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((folder / "trt-qat-street-1.service").read_text().replace("\\\n", " "))
    started = shlex.split(unit["Service"]["ExecStart"])
    assert unit["Service"]["Restart"] == "always"
    assert {"--read-only", "--rm", "--init"} <= set(started)
    assert started[-2:] == ["trt-qat-street-1", "${SOURCE}"]
    for option, value in {"--runtime": "nvidia", "--cap-drop": "ALL", "--device": "${DEVICE}"}.items():
        assert started[started.index(option) + 1] == value


@pytest.mark.parametrize("kind", ["onnx", "plan"])
def test_what_the_container_runs_is_what_infer_takes(model: Path, tmp_path: Path, kind: str) -> None:
    """run.sh with a trt-qat that says what it was called with; every call parses as the real one does."""
    file = model if kind == "onnx" else plan_file(tmp_path / "tiny.plan")
    deploy(file, "jetson", tmp_path / "jetson")
    script = (tmp_path / "jetson/run.sh").read_text()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "trt-qat").write_text('#!/bin/sh\nprintf "call:%s\\n" "$*"\n')
    (tmp_path / "bin" / "trt-qat").chmod(0o755)
    (tmp_path / "run.sh").write_text(script.replace("/data", str(tmp_path)))
    command = ["sh", str(tmp_path / "run.sh"), "/dev/video0"]
    said = subprocess.run(
        command, env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    calls = [shlex.split(line.removeprefix("call:")) for line in said.stdout.splitlines() if line.startswith("call:")]
    assert [call[0] for call in calls] == (["engine", "infer"] if kind == "onnx" else ["infer"])
    for call in calls:
        with (
            cli.make_context("trt-qat", list(call)) as group,  # click keeps the first help option that it makes
            cli.commands[call[0]].make_context(call[0], call[1:], parent=group) as context,
        ):
            taken = context.params
    assert taken["sources"] == ("/dev/video0",)
    assert taken["jsonl"] == Path("-")
    assert taken["no_save"] is True
    if kind == "onnx":
        assert calls[0][-1] == calls[1][calls[1].index("--model") + 1]


def test_systemd_takes_the_unit(model: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    deploy(model, "jetson", tmp_path / "jetson")
    unit = tmp_path / "jetson" / "trt-qat-tiny.service"
    said = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False).stderr
    # Docker need not be here; everything else that it says is a fault of the file
    assert [line for line in said.splitlines() if "docker" not in line] == []


def test_a_plan_goes_where_one_is_run(tmp_path: Path) -> None:
    plan = plan_file(tmp_path / "tiny.plan")
    deploy(plan, "triton", tmp_path / "triton")
    assert (tmp_path / "triton/tiny/1/model.plan").read_bytes() == b"a plan"
    deploy(plan, "jetson", tmp_path / "jetson")
    assert (tmp_path / "jetson/model/tiny.json").is_file()
    with pytest.raises(ConfigError, match=r"'deepstream' takes \*\.onnx, found"):
        deploy(plan, "deepstream", tmp_path / "ds")
    with pytest.raises(ConfigError, match="built by TensorRT-RTX"):
        deploy(plan_file(tmp_path / "rtx.plan", "tensorrt-rtx"), "triton", tmp_path / "rtx")


def test_weights_beside_the_file_come_with_it(tmp_path: Path) -> None:
    """For a repository with one file per model."""
    model = onnx.load(write_tiny_detector(tmp_path / "tiny.onnx", batch=None))
    onnx.save(model, str(tmp_path / "big.onnx"), save_as_external_data=True, size_threshold=0)
    assert len(list(tmp_path.iterdir())) > 2
    deploy(tmp_path / "big.onnx", "triton", tmp_path / "repository")
    with OnnxRuntimeRunner(tmp_path / "repository/big/1/model.onnx") as runner:
        assert runner.infer(np.zeros((1, 3, 64, 64), np.float32))[0].shape == (1, 7, 64)


# odd names ---------------------------------------------------------------------------------------------------------


def test_class_names_are_kept_or_refused(tmp_path: Path) -> None:
    names = {0: "cấm đỗ xe", 1: "a=b # no comment", 2: '"quoted" \\ name'}
    model = raw_file(tmp_path / "signs.onnx", names=names)
    for target, file in (("deepstream", "labels.txt"), ("triton", "signs/labels.txt"), ("isaac-ros", "labels.txt")):
        deploy(model, target, tmp_path / target)
        assert (tmp_path / target / file).read_text(encoding="utf-8").splitlines() == list(names.values())
    broken = raw_file(tmp_path / "broken.onnx", names={0: "stop; go"})
    with pytest.raises(ConfigError, match="class 'stop; go' cannot be named"):
        deploy(broken, "deepstream", tmp_path / "broken")
    assert not (tmp_path / "broken").exists()


def test_a_tensor_name_cannot_break_a_file(tmp_path: Path) -> None:
    schema = _triton_schema()
    from google.protobuf import text_format

    model = onnx.load(write_tiny_detector(tmp_path / "x.onnx", batch=None))
    odd = 'im"a\\ges:0'
    model.graph.input[0].name = model.graph.node[0].input[0] = odd
    onnx.save(model, str(tmp_path / "odd.onnx"))
    deploy(tmp_path / "odd.onnx", "triton", tmp_path / "repository")
    config = text_format.Parse((tmp_path / "repository/odd/config.pbtxt").read_text(), schema.ModelConfig())
    assert config.input[0].name == odd
    ast.parse((tmp_path / "repository/client.py").read_text())


@pytest.mark.parametrize("name", ["", "my model", "../up", ".hidden", "a/b", "x" * 65, "straße", "a;b", "a\nb"])
def test_a_name_that_not_every_system_takes_is_refused(model: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be called .* --name must be") as said:
        deploy(model, "triton", tmp_path / "repository", name=name)
    assert "\n" not in str(said.value)
    spaced = model.rename(model.with_name("my model.onnx"))
    with pytest.raises(ConfigError, match="the name of the file, which --name replaces"):
        deploy(spaced, "triton", tmp_path / "repository")
    deploy(spaced, "triton", tmp_path / "repository", name="my_model")


# wrong models ------------------------------------------------------------------------------------------------------


def wrong_models(folder: Path) -> dict[str, tuple[Path, str, str]]:
    """What is wrong: the file, the target, a part of the line that says so."""
    nms = folder / "nms.onnx"
    onnx.save(with_nms(onnx.load(write_tiny_detector(folder / "t.onnx")), InferSection()), str(nms))
    (folder / "model.pt").write_bytes(b"weights")
    four = write_tiny_detector(folder / "four.onnx", batch=4)
    small = write_tiny_detector(folder / "small.onnx")
    return {
        "missing": (folder / "none.onnx", "triton", "does not exist"),
        "weights": (folder / "model.pt", "triton", r"must be a \*\.onnx or a \*\.plan"),
        "no names": (write_tiny_detector(folder / "nameless.onnx", names=False), "triton", "classes are called"),
        "no detector": (write_unknown_operator(folder / "unknown.onnx"), "triton", "classes are called"),
        "other output": (_classifier(folder / "classes.onnx"), "triton", "is no YOLOv8 detector"),
        "any size": (write_free_size(folder / "free.onnx"), "triton", "images of any size"),
        "fixed batch": (four, "triton", r"takes 4 images at once.*dynamic_batch=true"),
        "one at a time": (raw_file(folder / "two.onnx", batch=2), "isaac-ros", "one image at a time"),
        "anchors": (small, "isaac-ros", f"reads {ANCHORS_OF_640} anchors"),
        "nms": (nms, "deepstream", "NMS built in"),
        "rows": (
            end_to_end(folder / "rows.onnx", rows=True),
            "deepstream",
            "reads raw output. Export it without --nms",
        ),
        "nms on a jetson": (nms, "jetson", "NMS built in"),
        "unsigned": (_unsigned(folder / "unsigned.onnx"), "deepstream", r"unsigned INT8.*--target tensorrt"),
        "no side-car": (_bare_plan(folder / "bare.plan"), "triton", "Side-car"),
    }


def _bare_plan(path: Path) -> Path:
    path.write_bytes(b"a plan")
    return path


def _classifier(path: Path) -> Path:
    model = onnx.load(write_tiny_detector(path))
    helper.set_model_props(model, {"names": "{0: 'cat', 1: 'dog'}"})
    onnx.save(model, str(path))
    return path


def _unsigned(path: Path) -> Path:
    model = onnx.load(write_tiny_detector(path, batch=None))
    pair = [
        helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["levels"]),
        helper.make_node("DequantizeLinear", ["levels", "scale", "zero"], ["images.dq"]),
    ]
    model.graph.node[0].input[0] = "images.dq"
    for node in reversed(pair):
        model.graph.node.insert(0, node)
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(1 / 255, np.float32), "scale"),
            numpy_helper.from_array(np.array(128, np.uint8), "zero"),
        ]
    )
    onnx.save(model, str(path))
    return path


def test_wrong_models_are_refused_in_one_line(tmp_path: Path) -> None:
    for what, (file, target, pattern) in wrong_models(tmp_path).items():
        with pytest.raises(TrtQatError, match=pattern) as said:
            deploy(file, target, tmp_path / "out")
        assert "\n" not in str(said.value), what
        assert not (tmp_path / "out").exists(), what


# the folder --------------------------------------------------------------------------------------------------------


def test_the_same_deployment_may_be_written_again(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ds"
    folder.mkdir()  # empty
    deploy(model, "deepstream", folder)
    before = (folder / "config_infer_primary.txt").read_text()
    deploy(model, "deepstream", folder, infer=InferSection(conf=0.5))
    after = (folder / "config_infer_primary.txt").read_text()
    assert after == before.replace("pre-cluster-threshold=0.25", "pre-cluster-threshold=0.5") != before
    record = json.loads((folder / RECORD).read_text())
    assert set(record["files"]) | {RECORD} == {path.name for path in folder.iterdir()}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def _with_engine(folder: Path) -> None:
    (folder / "tiny.engine").write_bytes(b"of the model before")


def _changed(folder: Path) -> None:
    with (folder / "deepstream_app_config.txt").open("a") as stream:
        stream.write("[source1]\n")


def _without_record(folder: Path) -> None:
    (folder / RECORD).unlink()


def _linked(folder: Path) -> None:
    """The same content, but somebody else's file."""
    (folder / "labels.txt").rename(folder.parent / "labels.txt")
    (folder / "labels.txt").symlink_to(folder.parent / "labels.txt")


def _broken_record(folder: Path) -> None:
    (folder / RECORD).write_text("{}")


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (_with_engine, "holds 'tiny.engine', which `trt-qat deploy` did not write"),
        (_changed, "holds 'deepstream_app_config.txt', which was changed since"),
        (_without_record, "holds 'README.txt', which `trt-qat deploy` did not write"),
        (_linked, "holds 'labels.txt', which was changed since"),
        (_broken_record, "target"),
    ],
)
def test_nothing_is_lost(model: Path, tmp_path: Path, change: Callable[[Path], None], pattern: str) -> None:
    folder = tmp_path / "ds"
    deploy(model, "deepstream", folder)
    change(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ArtifactError, match=re.escape(pattern)) as said:
        deploy(model, "deepstream", folder)
    assert "\n" not in str(said.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_another_place_is_asked_for(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deploy(model, "triton", tmp_path / "repository")
    with pytest.raises(ArtifactError, match="holds model 'tiny' for target 'triton'"):
        deploy(model, "jetson", tmp_path / "repository")
    with pytest.raises(ArtifactError, match="holds model 'tiny' for target 'triton'"):
        deploy(model, "triton", tmp_path / "repository", name="other")
    with pytest.raises(ArtifactError, match=r"is a file\. Give a new or empty folder"):
        deploy(model, "triton", model)
    with pytest.raises(ArtifactError, match="a file is where a folder should be"):
        deploy(model, "triton", model / "below")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ArtifactError, match="is a file"):
        deploy(model, "triton", tmp_path / "loop")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ArtifactError, match="is the folder that this command runs in"):
        deploy(model, "triton", Path())


def test_a_failure_leaves_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trt_qat.deploy.deepstream._readme", fail)
    with pytest.raises(ArtifactError, match="No space left on device"):
        deploy(model, "deepstream", tmp_path / "ds")
    assert not (tmp_path / "ds").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["my models"]


# the command -------------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_wrote(model: Path, tmp_path: Path) -> None:
    out, result = tmp_path / "repository", tmp_path / "result.json"
    command = ["deploy", "--target", "triton", "--model", str(model), str(out), "--set", "engine.max_batch=16"]
    done = CliRunner().invoke(cli, [*command, "--json", str(result)])
    assert done.exit_code == 0, done.output
    written, then, note = done.stdout.splitlines()
    assert written.startswith(f"Written: {out} (README.txt, client.py, tiny/1/model.onnx, ")
    assert then.startswith("Next: ")
    assert note.startswith("Note: Tried in Triton 2.51, but with")
    assert "max_batch_size: 16" in (out / "tiny/config.pbtxt").read_text()
    said = json.loads(result.read_text())
    assert said["target"] == "triton"
    assert {"client.py", "tiny/config.pbtxt"} < set(said["files"])


def test_the_help_lists_every_target() -> None:
    text = CliRunner().invoke(cli, ["deploy", "--help"]).stdout
    for name in DEPLOYMENTS.rows:
        deployment = deployment_from_name(name)
        assert deployment.name == name
        assert f"{name:<11} {deployment.summary}" in text


@pytest.mark.parametrize("arguments", [["--target", "toaster"], [], ["--target", "triton"]])
def test_wrong_usage_is_said(tmp_path: Path, arguments: list[str]) -> None:
    done = CliRunner().invoke(cli, ["deploy", *arguments, str(tmp_path / "x")])
    assert done.exit_code == 2
