"""Targets for weights: checkpoints, architectures, Ultralytics' ``*.pt``. What is accepted is run and saved again."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from archives import mutated_archive
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from mutations import mutated_bytes, mutated_json, nudged_json
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save
from target import Target, written

SMALL: dict[str, Any] = {
    "nc": 2,
    "reg_max": 4,
    "scales": {"n": [0.33, 0.25, 64]},
    "scale": "n",
    "backbone": [[-1, 1, "Conv", [32, 3, 2]], [-1, 1, "Conv", [32, 3, 2]], [-1, 3, "C2f", [32, True]],
                 [-1, 1, "Conv", [32, 3, 2]], [-1, 1, "SPPF", [32, 5]]],
    "head": [[-1, 1, "nn.Upsample", ["None", 2, "nearest"]], [[-1, 2], 1, "Concat", [1]], [-1, 1, "C2f", [32]],
             [[7, 4], 1, "Detect", ["nc"]]],
}  # fmt: skip
_LIMITS = {"TRT_QAT_MAX_GIGAMACS": "1", "TRT_QAT_MAX_ACTIVATION_MB": "256"}


@contextlib.contextmanager
def small_networks() -> Iterator[None]:
    """Within: limits are such that a network that is accepted runs in a moment, on one core."""
    import torch

    threads, before = torch.get_num_threads(), {name: os.environ.get(name) for name in _LIMITS}
    torch.set_num_threads(1)
    os.environ.update(_LIMITS)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@cache
def _small(quantized: bool) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Header and tensors of a checkpoint of the small network."""
    import trt_qat

    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), "small.yaml", json.dumps(SMALL).encode())
        model = trt_qat.load(path, imgsz=64)
        if quantized:
            model = trt_qat.quantize(model, [np.full((64, 64, 3), 114, np.uint8)], calibrator="max", images=1, batch=1)
        saved = trt_qat.save(Path(folder, "small.safetensors"), model).path
        with safe_open(saved, framework="np") as stream:
            return json.loads(stream.metadata()["header"]), {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118


def _checkpoint(header: bytes, tensors: Mapping[str, NDArray[Any]]) -> bytes:
    return save(dict(tensors), metadata={"header": header.decode("utf-8", "replace")})


def _checkpoints() -> SearchStrategy[bytes]:
    def of(quantized: bool) -> SearchStrategy[bytes]:
        header, tensors = _small(quantized)
        encoded = json.dumps(header).encode()
        # a file of an older version says no hash: what is in its tensors is looked at
        unhashed = {key: value for key, value in header.items() if key != "tensors_sha256"}
        nudged = nudged_json(header).map(lambda text: _checkpoint(text, tensors))
        other_header = mutated_json(header).map(lambda text: _checkpoint(text, tensors))
        other_tensors = _other_tensors(tensors).map(lambda found: _checkpoint(json.dumps(unhashed).encode(), found))
        return st.one_of(
            nudged, nudged, other_header, other_tensors, other_tensors,
            _other_tensors(tensors).map(lambda found: _checkpoint(encoded, found)),
            mutated_bytes([_checkpoint(encoded, tensors)]),
        )  # fmt: skip

    return st.one_of(of(quantized=False), of(quantized=True))


@st.composite
def _other_tensors(draw: st.DrawFn, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """One tensor of other values, shape, type or name, or none of that name; ranges as often as weights."""
    changed = dict(tensors)
    ranges = [name for name in tensors if name.startswith("amax.")]
    name = draw(st.sampled_from(draw(st.sampled_from([list(tensors), ranges or list(tensors)]))))
    kind = draw(st.sampled_from(["value", "value", "value", "all", "shape", "type", "type", "remove", "rename"]))
    value = draw(st.sampled_from([np.nan, np.inf, -1.0, 0.0, 3e38, 1e-45, 1.0, 0.5, 2.0, 100.0, 1e-3]))
    array = changed.pop(name).copy()
    if kind == "remove":
        return changed
    if kind == "value" and array.size:
        array.reshape(-1)[draw(st.integers(0, array.size - 1))] = value
    elif kind == "all":
        array[...] = value
    elif kind == "shape":
        array = np.ones(draw(st.lists(st.integers(0, 9), max_size=5)), np.float32)
    elif kind == "type":
        array = np.asarray(np.nan_to_num(array)).astype(  # of no dimension, it would be no array
            draw(st.sampled_from(["f2", "f8", "f2", "f8", "i8", "u1", "?"]))
        )
    changed[draw(st.sampled_from([f"{name}x", "amax.x", "x", "model.0"])) if kind == "rename" else name] = array
    return changed


@small_networks()
def _check_checkpoint(content: bytes, folder: Path) -> None:
    import trt_qat

    path = written(folder, "a.safetensors", content)
    model = trt_qat.load(path)
    _check_model(model)
    _check_same(model, trt_qat.load(path))
    saved = trt_qat.save(folder / "b.safetensors", model).path
    again = trt_qat.load(saved)
    _check_same(model, again)
    twice = trt_qat.save(folder / "c.safetensors", again).path
    assert saved.read_bytes() == twice.read_bytes(), "another file the second time"


def _check_model(model: Any) -> None:
    assert list(model.names) == list(range(len(model.names))), "class ids with a gap"
    assert all(isinstance(name, str) for name in model.names.values())
    assert all(side % 32 == 0 and 32 <= side <= 8192 for side in model.imgsz), f"imgsz {model.imgsz}"
    assert all(bool(value.isfinite().all()) for value in model.network.parameters()), "weights that are not finite"
    if model.quantized is not None:
        ranges = model.quantized.amax().values()
        assert all(bool((value.isfinite() & (value > 0)).all()) for value in ranges), "a range that is none"
    if max(model.imgsz) <= 256:
        output = _output(model)
        assert output.shape[:2] == (2, 4 + len(model.names)), f"an output of shape {tuple(output.shape)}"
        assert output.shape[2] > 0, "no anchors"
        assert bool(output.isfinite().all()), "an output that is not finite"


def _output(model: Any) -> Any:
    """Of grey images at the model's own size, with its quantizers on: float32, shape (2, 4 + classes, anchors)."""
    import torch

    from trt_qat.model.loading import raw_output

    return raw_output(model.network, torch.full((2, 3, *model.imgsz), 0.5))


def _check_same(model: Any, again: Any) -> None:
    assert (again.names, again.imgsz, again.stage) == (model.names, model.imgsz, model.stage), "another description"
    if max(model.imgsz) <= 256:
        assert bool((_output(model) == _output(again)).all()), "another output the second time"


def _architectures() -> SearchStrategy[bytes]:
    return st.one_of(nudged_json(SMALL), mutated_json(SMALL), _plausible_architectures(), _plausible_architectures())


_KINDS: dict[str, list[Any]] = {  # arguments behind the width
    "Conv": [3, 1], "DWConv": [3, 1], "C2f": [True], "C3": [True], "C3k2": [False, 0.25], "SPPF": [5], "Bottleneck": [],
    "GhostConv": [3, 1], "SPP": [[3, 5]], "C2": [], "C1": [], "C3x": [], "C3Ghost": [], "BottleneckCSP": [], "SCDown": [3, 2],
    "ADown": [], "AConv": [], "RepC3": [], "C2fCIB": [True, True], "C2PSA": [], "PSA": [], "ELAN1": [16, 8],
    "RepNCSPELAN4": [16, 8, 1], "SPPELAN": [16], "Focus": [3], "GhostBottleneck": [], "C2fPSA": [], "A2C2f": [False, 1],
    "ConvTranspose": [2, 2], "DWConvTranspose2d": [3, 1, 1], "HGStem": [16], "HGBlock": [16, 3], "CBLinear": [],
}  # fmt: skip
_PLAIN: dict[str, list[Any]] = {  # without a width
    "nn.MaxPool2d": [2, 2], "nn.AvgPool2d": [3, 1, 1], "nn.Identity": [], "nn.Upsample": ["None", 2, "nearest"],
    "nn.BatchNorm2d": [], "nn.ZeroPad2d": [[0, 1, 0, 1]],
}  # fmt: skip
_ACTIVATIONS = (
    *("nn.ReLU()", "torch.nn.LeakyReLU(0.1)", "nn.Hardswish()", "nn.SiLU(inplace=True)", "nn.ReLU6()", "nn.ELU(1)"),
    *(
        "nn.Linear(2, 2)",
        "nn.ReLU6",
        "nn.Softplus(-1)",
        "nn.LeakyReLU(1000)",
        "nn.GELU('tanh')",
        "nn.CELU(0)",
        "nn.Tanh()",
    ),
)


@st.composite
def _plausible_architectures(draw: st.DrawFn) -> bytes:
    """A backbone of common layers with odd widths, repeats and activations, and a head that reads some of them."""
    width = st.sampled_from([8, 16, 32, 64, 16, 32, 7, 1, 33])
    layers: list[list[Any]] = [[-1, 1, "Conv", [draw(width), 3, 2]]]
    for index in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(sorted(_KINDS) + sorted(_PLAIN) + ["Conv", "Conv", "C2f", "C2f", "Concat"]))
        arguments = [draw(width), *_KINDS[kind]] if kind in _KINDS else _PLAIN.get(kind, [1])
        if kind == "Conv":
            arguments = [draw(width), draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 2]))]
        source = (
            [-1, draw(st.integers(0, index))] if kind == "Concat" else draw(st.sampled_from([-1, -1, -1, -1, index]))
        )
        repeats = draw(st.sampled_from([1, 1, 1, 2, 3])) if kind in _KINDS else 1
        layers.append([source, repeats, kind, arguments])
    ends = draw(st.lists(st.integers(0, len(layers) - 1), min_size=1, max_size=3, unique=True).map(sorted))
    head = draw(st.sampled_from(["Detect", "Detect", "Detect", "v10Detect"]))
    content = {
        "nc": draw(st.integers(1, 5)),
        "reg_max": draw(st.sampled_from([4, 4, 1, 16])),
        "backbone": layers,
        "head": [[[*ends[:-1], len(layers) - 1], 1, head, ["nc"]]],
    }
    if draw(st.integers(0, 3)) == 0:
        content["activation"] = draw(st.sampled_from(_ACTIVATIONS))
    if draw(st.integers(0, 3)) == 0:
        content["scales"] = {
            "n": [draw(st.sampled_from([0.33, 1, 2, 0.01])), draw(st.sampled_from([0.25, 1, 0.5])), 64]
        }
    return json.dumps(content).encode()


@small_networks()
def _check_architecture(content: bytes, folder: Path) -> None:
    import trt_qat

    path = written(folder, "a.yaml", content)
    model = trt_qat.load(path, imgsz=96)
    _check_model(model)
    _check_same(model, trt_qat.load(path, imgsz=96))
    saved = trt_qat.save(folder / "b.safetensors", model).path
    _check_same(model, trt_qat.load(saved))


@cache
def _pt() -> bytes:
    """The tiny network as Ultralytics' trainer saves one."""
    from tiny_network import save_pt, tiny_network

    with tempfile.TemporaryDirectory() as folder:
        return save_pt(tiny_network(), Path(folder, "tiny.pt")).read_bytes()


@small_networks()
def _check_pt(content: bytes, folder: Path) -> None:
    import trt_qat

    path = written(folder, "a.pt", content)
    with NothingRuns():
        model = trt_qat.load(path, imgsz=96)
    _check_model(model)
    _check_same(model, trt_qat.load(path, imgsz=96))


_RUNS = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.fork")


class NothingRuns:
    """Within: nothing is unpickled by Python's own unpickler, no process is started, nobody is called."""

    seen: str | None = None
    watching = False

    def __enter__(self) -> None:
        _watch()
        NothingRuns.seen, NothingRuns.watching = None, True

    def __exit__(self, *_: object) -> None:
        NothingRuns.watching = False
        assert NothingRuns.seen is None, f"{NothingRuns.seen} was called"


@cache
def _watch() -> None:
    """An audit hook stays until the process ends."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if NothingRuns.watching and event in _RUNS:
            NothingRuns.seen = f"{event} {arguments!r}"[:200]

    sys.addaudithook(hook)


TARGETS = (
    Target("checkpoint", _checkpoints, _check_checkpoint),
    Target("architecture", _architectures, _check_architecture),
    Target("pt", lambda: mutated_archive(_pt()), _check_pt),
)
