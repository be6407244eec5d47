"""A ``*.pt`` is data: whatever it asks for is listed and not run, and what does not fit the file is refused."""

from __future__ import annotations

import builtins
import copy
import functools
import importlib
import io
import operator
import os
import pathlib
import pickle
import pickletools
import runpy
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_network import NAMES, save_pt, tiny_network
from torch import nn
from ultralytics.utils import IterableSimpleNamespace

from trt_qat.checkpoint import load
from trt_qat.cli import cli
from trt_qat.errors import ArtifactError
from trt_qat.model.loading import raw_output

MARK = "ran.txt"
IMAGES = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Call:
    """Unpickling it calls ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.parts = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


TOUCH = f"open('{MARK}', 'w').write('ran')"
CALLS: dict[str, Call] = {
    "posix.system": Call(os.system, f"touch {MARK}"),
    "posix.remove": Call(os.remove, MARK),
    "subprocess.Popen": Call(subprocess.Popen, ["touch", MARK]),
    "subprocess.check_output": Call(subprocess.check_output, ["touch", MARK]),
    "builtin__.eval": Call(eval, TOUCH),
    "builtin__.exec": Call(exec, TOUCH),
    "builtin__.getattr": Call(getattr, "text", "upper"),
    "builtin__.open": Call(open, MARK, "w"),
    "builtin__.compile": Call(compile, TOUCH, "x", "exec"),
    "builtin__.__import__": Call(builtins.__import__, "antigravity"),
    "importlib.import_module": Call(importlib.import_module, "antigravity"),
    "runpy.run_path": Call(runpy.run_path, MARK),
    "functools.partial": Call(functools.partial, os.system, f"touch {MARK}"),
    "operator.attrgetter": Call(operator.attrgetter, "system"),
    "operator.methodcaller": Call(operator.methodcaller, "write_text", "ran"),
    "pathlib.Path": Call(pathlib.Path.touch, Path(MARK)),
    "torch.serialization.load": Call(torch.load, MARK),
    "torch.hub.load": Call(torch.hub.load, "a/b", "c"),
    "torch.nn.modules.module.register_module_forward_hook": Call(nn.modules.module.register_module_forward_hook, print),
    "pickle.loads": Call(pickle.loads, b"cos\nsystem\n(S'touch ran.txt'\ntR."),
    "sys.exit": Call(sys.exit, 3),
    "_io.FileIO": Call(io.FileIO, MARK, "w"),
}
PLACES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "a field beside the model": lambda call: {"model": tiny_network(), "extra": call},
    "the model": lambda call: {"model": call},
    "ema": lambda call: {"model": tiny_network(), "ema": call},
    "train_args": lambda call: {"model": tiny_network(), "train_args": call},
    "yaml": lambda call: {"model": changed(yaml=call)},
    "names": lambda call: {"model": changed(names={0: call, 1: "b"})},
    "a layer": lambda call: {"model": changed(_modules={"model": call})},
    "a hook": lambda call: {"model": changed(_forward_hooks={0: call})},
    "an attribute": lambda call: {"model": changed(forward=call)},
}


def changed(**attributes: Any) -> Any:
    network = tiny_network()
    network.__dict__.update(attributes)
    return network


def assert_refused(path: Path, message: str) -> None:
    before = time.monotonic()
    with pytest.raises(ArtifactError, match=message) as caught:
        load(path)
    assert time.monotonic() - before < 20
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("name", CALLS)
def test_what_it_asks_for_is_listed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "hostile.pt"
    torch.save({"model": tiny_network(), "extra": CALLS[name]}, path)
    assert_refused(path, rf"asks for more .*{name.rpartition('.')[2]}.*--trust-pickle")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("place", PLACES)
def test_wherever_it_is(tmp_path: Path, place: str, protocol: int) -> None:
    path = tmp_path / "hostile.pt"
    torch.save(PLACES[place](CALLS["posix.system"]), path, pickle_protocol=protocol)
    assert_refused(path, r"asks for more .*posix\.system")


def test_trusting_runs_it(tmp_path: Path) -> None:
    path = save_pt(tiny_network(), tmp_path / "hostile.pt", extra=CALLS["posix.system"])
    assert load(path, trust_pickle=True).names == NAMES
    assert (tmp_path / MARK).exists()
    (tmp_path / MARK).unlink()


def test_the_command_line_has_the_switch(tmp_path: Path) -> None:
    path = save_pt(tiny_network(), tmp_path / "hostile.pt", extra=CALLS["posix.system"])
    command = ["export", str(path), "--target", "onnxruntime", "--no-check", "--out", str(tmp_path / "x.onnx")]
    refused = CliRunner().invoke(cli, command)
    assert (refused.exit_code, "posix.system" in refused.stderr) == (1, True)
    assert not (tmp_path / MARK).exists()
    done = CliRunner().invoke(cli, [*command, "--trust-pickle"])
    assert done.exit_code == 0, done.output
    (tmp_path / MARK).unlink()
    again = CliRunner().invoke(cli, command)  # it holds for one command
    assert again.exit_code == 1


@pytest.mark.parametrize("verb", ["train", "calibrate", "sensitivity", "qat", "run", "export", "evaluate"])
def test_every_verb_that_takes_weights_has_it(verb: str) -> None:
    assert "--trust-pickle" in CliRunner().invoke(cli, [verb, "--help"]).output


# what ordinary checkpoints hold ------------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", [False, True])
def test_data_and_unpickling_give_the_same_model(tmp_path: Path, trust: bool) -> None:
    network = tiny_network()
    with torch.no_grad():
        network.model[0].conv.weight.mul_(3)
    model = load(save_pt(network, tmp_path / "plain.pt"), trust_pickle=trust)
    assert (model.names, model.imgsz) == (NAMES, (96, 96))
    for name, tensor in network.state_dict().items():
        assert torch.equal(model.unfolded().state_dict()[name], tensor), name
    expected = raw_output(network, IMAGES)
    assert torch.allclose(raw_output(model.network, IMAGES), expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_a_trainer_leaves_beside_the_model(tmp_path: Path, protocol: int) -> None:
    network = tiny_network()
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.rand(2, 3, 64, 64))
    network.args = IterableSimpleNamespace(imgsz=64, model=Path("a.yaml"))
    fields = {
        "ema": copy.deepcopy(network).half(),
        "optimizer": optimizer.state_dict(),
        "best_fitness": np.float64(0.5),
        "train_results": {"epoch": [1, 2], "loss": np.arange(3.0)},
        "save_dir": PurePosixPath("runs") / "x",
        "where": Path("runs"),
        "device": torch.device("cpu"),
        "kind": torch.float32,
        "version": torch.__version__,
    }
    path = save_pt(None, tmp_path / "full.pt", protocol, **fields)
    assert load(path).names == NAMES


def test_what_our_training_writes_is_data(tmp_path: Path) -> None:
    """The criterion, and everything else that Ultralytics' trainer hangs on to a network."""
    network = tiny_network()
    network.args = IterableSimpleNamespace(box=7.5, cls=0.5, dfl=1.5, epochs=1)
    network.criterion = network.init_criterion()
    assert load(save_pt(network, tmp_path / "trained.pt")).names == NAMES


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(tmp_path: Path, dtype: torch.dtype) -> None:
    model = load(save_pt(tiny_network().to(dtype), tmp_path / "other.pt"))
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.float32}


def test_channels_last(tmp_path: Path) -> None:
    network = tiny_network().to(memory_format=torch.channels_last)
    model = load(save_pt(network, tmp_path / "last.pt"))
    assert torch.equal(model.unfolded().model[1].conv.weight, network.model[1].conv.weight)


def test_methods_in_a_fused_model(tmp_path: Path) -> None:
    """Ultralytics' fuse() leaves bound methods, which pickle as a call of getattr."""
    path = save_pt(tiny_network().fuse(verbose=False), tmp_path / "fused.pt")
    assert any(op.name == "GLOBAL" and "getattr" in arg for op, arg, _ in pickletools.genops(data_pkl(path)))
    assert load(path).with_batchnorm is None


# a file that is no ordinary one -----------------------------------------------------------------------------------


def data_pkl(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(f"{path.stem}/data.pkl")


def archive_of(path: Path, program: bytes, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{path.stem}/data.pkl", program)
        for name, content in files.items():
            archive.writestr(f"{path.stem}/{name}", content)
    return path


PROGRAMS = {
    "empty": b"",
    "cut": b"\x80\x02}q\x00X\x05\x00\x00\x00mo",
    "no pickle": b"hello world",
    "stack underflow": b"\x80\x02\x85.",
    "no mark": b"\x80\x02t.",
    "unknown memo": b"\x80\x02h\x07.",
    "a number": b"\x80\x02K\x07.",
    "a memo of four billion": b"\x80\x02K\x01r\xff\xff\xff\xff.",
    "text of four gigabytes": b"\x80\x02X\xff\xff\xff\xffab.",
    "a number of two gigabytes": b"\x80\x02\x8b\xff\xff\xff\x7f1.",
    "nested tuples as a key": b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s.",
    "nested lists": b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".",
    "a call of a number": b"\x80\x02K\x01)R.",
    "a call of what a call gave": b"\x80\x02ctorch\nSize\n)R)R.",
    "an extension": b"\x80\x02\x82\x01.",
    "a buffer": b"\x80\x05\x97.",
    "a storage of text": b"\x80\x02U\x01aQ.",
    "a storage of complex numbers": b"\x80\x02(U\x07storagectorch\nComplexFloatStorage\nU\x010U\x03cpuK\x01tQ.",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_that_are_none(tmp_path: Path, name: str) -> None:
    assert_refused(archive_of(tmp_path / "hostile.pt", PROGRAMS[name]), "hostile.pt'")


def laughing(levels: int) -> list[Any]:
    value: list[Any] = ["x"]
    for _ in range(levels):
        value = [value] * 10
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


ATTRIBUTES = {
    "yaml that repeats itself": ({"yaml": {"backbone": laughing(30)}}, "holds more than"),
    "yaml that holds itself": ({"yaml": {"backbone": endless()}}, "holds more than"),
    "yaml of tensors": ({"yaml": {"backbone": torch.ones(3)}}, "yaml"),
    "no yaml": ({"yaml": None}, "does not say its architecture"),
    "names with a gap": ({"names": {0: "a", 2: "b"}}, r"names\.1 = None"),
    "names that are none": ({"names": None}, "names = None"),
    "no names": ({"names": {}}, "names = "),
    "an empty name": ({"names": ["a", " "]}, r"names\.1 = ' '"),
    "a name with a new line": ({"names": {0: "a", 1: "b\nc"}}, r"names\.1 = 'b\\nc'"),
    "a name that moves the cursor": ({"names": ["a", "\x1b[2J"]}, r"names\.1 = '\\x1b"),
    "a name that is a number": ({"names": [1, 2]}, r"names\.0 = 1"),
    "20,000 names": ({"names": ["x"] * 20_000}, "TRT_QAT_MAX_CLASSES"),
    "layers that hold themselves": ({"_modules": endless()}, "hostile.pt'"),
    "a layer that is text": ({"_modules": {"model": "text"}}, "is no layer"),
    "a parameter that is text": ({"_parameters": {"x": "text"}}, "not a plain tensor"),
    "a parameter more": ({"_parameters": {"x": torch.ones(2)}}, "do not fit"),
    "no layers": ({"_modules": {}}, "hostile.pt'"),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_that_are_none(tmp_path: Path, name: str) -> None:
    attributes, message = ATTRIBUTES[name]
    assert_refused(save_pt(changed(**attributes), tmp_path / "hostile.pt"), message)


def test_layers_without_end(tmp_path: Path) -> None:
    network = tiny_network()
    network.model[0]._modules["again"] = network.model[0]
    assert_refused(save_pt(network, tmp_path / "hostile.pt"), "TRT_QAT_MAX_MODULES")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    network = tiny_network()
    with torch.no_grad():
        network.model[0].conv.weight[0, 0, 0, 0] = value
    assert_refused(save_pt(network, tmp_path / "hostile.pt"), r"'model\.0\.conv\.weight' hold NaN or infinite")


def test_weights_too_large_to_compute_with(tmp_path: Path) -> None:
    network = tiny_network()
    with torch.no_grad():
        network.model[1].conv.weight.fill_(3e38)
    assert_refused(save_pt(network, tmp_path / "hostile.pt"), "NaN or infinite")


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "activation": (lambda n: setattr(n.model[0], "act", nn.ReLU()), r"'model\.0\.act' is a ReLU.*builds a SiLU"),
    "stride": (lambda n: setattr(n.model[1].conv, "stride", (1, 1)), r"'model\.1\.conv' has stride = \[1, 1\]"),
    "padding": (lambda n: setattr(n.model[1].conv, "padding", (2, 2)), "has padding"),
    "epsilon": (lambda n: setattr(n.model[1].bn, "eps", 1.0), "has eps"),
    "shortcut": (lambda n: setattr(n.model[2].m[0], "add", False), "has add = False"),
    "wiring": (lambda n: setattr(n.model[4], "f", [2, 1]), r"'model\.4' has f"),
    "a layer more": (lambda n: n.model[0].add_module("extra", nn.Identity()), r"only the file has a layer"),
    "a layer less": (lambda n: n.model[2]._modules.pop("cv2"), "hostile.pt'"),
    "a layer wider": (lambda n: setattr(n.model[0], "conv", nn.Conv2d(3, 9, 3, 2, 1, bias=False)), "hostile.pt'"),
    "one channel": (lambda n: setattr(n.model[0], "conv", nn.Conv2d(1, 8, 3, 2, 1, bias=False)), "1 channel;"),
    "no channel": (lambda n: setattr(n.model[0].conv, "weight", nn.Parameter(torch.ones(10**9, 0, 3, 3))), "shape"),
    "flat": (lambda n: setattr(n.model[0].conv, "weight", nn.Parameter(torch.ones(7))), "shape"),
    "kernel": (lambda n: setattr(n.model[0].conv, "weight", nn.Parameter(torch.ones(8, 3, 9, 9))), "another size"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_networks_that_are_not_their_architecture(tmp_path: Path, name: str) -> None:
    change, message = CHANGES[name]
    network = tiny_network()
    change(network)
    assert_refused(save_pt(network, tmp_path / "hostile.pt"), message)


def view(*arguments: Any) -> Call:
    """A tensor as ``torch.save`` writes one, with other numbers."""
    storage = torch.ones(4)._typed_storage()
    return Call(torch._utils._rebuild_tensor_v2, storage, *arguments, False, {})


@pytest.mark.parametrize(
    "call",
    [
        view(0, (5,), (1,)),
        view(4, (1,), (1,)),
        view(0, (10**9,), (0,)),
        view(0, (2, 2), (4, 1)),
        view(-1, (2,), (1,)),
        view(0, (2,), (-1,)),
        view(0, (-2,), (1,)),
        view(0, (2**62, 2**62), (1, 1)),
        view(0, (2,), (1, 1)),
        view(0, "ab", "ab"),
        view(0, (1,) * 70, (1,) * 70),
        view(0.5, (2,), (1,)),
    ],
)
def test_views_that_do_not_fit_their_storage(tmp_path: Path, call: Call) -> None:
    network = changed(_buffers={"x": call})
    assert_refused(save_pt(network, tmp_path / "hostile.pt"), "'x'")


# the archive -------------------------------------------------------------------------------------------------------


def repacked(path: Path, out: Path, change: Callable[[str, bytes], bytes | None], **options: Any) -> Path:
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w", **options) as archive:
        for entry in source.infolist():
            content = change(entry.filename.partition("/")[2], source.read(entry))
            if content is not None:
                archive.writestr(f"{out.stem}/{entry.filename.partition('/')[2]}", content)
    return out


REPACKED: dict[str, tuple[Callable[[str, bytes], bytes | None], str]] = {
    "values missing": (lambda name, content: None if name == "data/0" else content, "lacks the values"),
    "values cut": (lambda name, content: content[:-4] if name == "data/0" else content, "is damaged"),
    "values too many": (lambda name, content: content * 2 if name == "data/0" else content, "is damaged"),
    "big-endian": (lambda name, content: b"big" if name == "byteorder" else content, "big-endian"),
    "no pickle": (lambda name, content: None if name == "data.pkl" else content, "not an Ultralytics checkpoint"),
    "a long pickle": (
        lambda name, content: content + b"0" * 5_000_000 if name == "data.pkl" else content,
        "TRT_QAT_MAX_PICKLE_MB",
    ),
}


@pytest.mark.parametrize("name", REPACKED)
def test_archives_that_are_damaged(tmp_path: Path, name: str) -> None:
    change, message = REPACKED[name]
    plain = save_pt(tiny_network(), tmp_path / "plain.pt")
    assert_refused(repacked(plain, tmp_path / "hostile.pt", change), message)


def test_repacking_alone_changes_nothing(tmp_path: Path) -> None:
    plain = save_pt(tiny_network(), tmp_path / "plain.pt")
    assert load(repacked(plain, tmp_path / "same.pt", lambda name, content: content)).names == NAMES


def test_packed_archives_may_be_bombs(tmp_path: Path) -> None:
    plain = save_pt(tiny_network(), tmp_path / "plain.pt")
    packed = repacked(plain, tmp_path / "b.pt", lambda name, content: content, compression=zipfile.ZIP_DEFLATED)
    assert_refused(packed, "neither packs nor encrypts")


def test_a_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = save_pt(tiny_network(), tmp_path / "hostile.pt")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert_refused(path, "damaged or truncated")


@pytest.mark.parametrize("header", [b"PK\x03\x04", b"PK\x01\x02"])  # a part's own, and in the archive's list
def test_the_name_of_a_part_is_no_text(tmp_path: Path, header: bytes) -> None:
    path = save_pt(tiny_network(), tmp_path / "hostile.pt")
    content = bytearray(path.read_bytes())
    start = content.index(header)
    flags, name = (start + 6, start + 30) if header == b"PK\x03\x04" else (start + 8, start + 46)
    content[flags + 1] |= 0x08  # UTF-8
    content[name] = 0x80
    path.write_bytes(content)
    assert_refused(path, "hostile.pt' is (damaged or truncated|not an Ultralytics checkpoint)")


def test_torchscript_is_named(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Conv2d(3, 3, 1), torch.ones(1, 3, 4, 4)), tmp_path / "script.pt")
    assert_refused(tmp_path / "script.pt", "TorchScript")


def test_quantizers_of_ultralytics_are_named(tmp_path: Path) -> None:
    assert_refused(save_pt(tiny_network(), tmp_path / "qat.pt", modelopt={"state": 1}), "own quantizers")


@pytest.mark.parametrize("content", [{}, {"model": None}, {"model": {"a": torch.ones(1)}}, [1], "text", None, 1])
def test_torch_files_without_a_model(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.pt")
    assert_refused(tmp_path / "other.pt", "not an Ultralytics checkpoint: it holds no model")


def test_other_classes_are_named(tmp_path: Path) -> None:
    torch.save({"model": nn.Conv2d(3, 3, 1)}, tmp_path / "other.pt")
    assert_refused(tmp_path / "other.pt", "holds a Conv2d; trt_qat needs a detection model")
