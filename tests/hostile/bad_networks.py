"""Architecture YAML files and Ultralytics ``.pt`` files."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from case import (
    CALIBRATE,
    EVALUATE,
    EXPORT,
    MARKER,
    PYTHON_PAYLOAD,
    QAT,
    Case,
    Make,
    changed,
    cut,
    deep,
    flipped,
    text,
    with_set,
    words,
)
from case import data as file

HEAD = "head:\n  - [-1, 1, Conv, [32, 3, 1]]\n  - [[-1], 1, Detect, [nc]]\n"
GOOD = f"nc: 7\nbackbone:\n  - [-1, 1, Conv, [16, 3, 2]]\n  - [-1, 1, Conv, [32, 3, 2]]\n{HEAD}"


def _with(module: str, arguments: str = "[16, 3, 2]", repeats: str = "1", source: str = "-1") -> str:
    return f"nc: 7\nbackbone:\n  - [{source}, {repeats}, {module}, {arguments}]\n  - [-1, 1, Conv, [32, 3, 2]]\n{HEAD}"


ARCHITECTURES = {
    "activation runs code": f'activation: "{PYTHON_PAYLOAD}"\n{GOOD}',
    "activation of another module": f"activation: torch.hub.load('x/y', 'z')\n{GOOD}",
    "activation lambda": f'activation: "(lambda: {PYTHON_PAYLOAD})()"\n{GOOD}',
    "activation walrus": f'activation: "[x := {PYTHON_PAYLOAD}, torch.nn.SiLU()][1]"\n{GOOD}',
    "activation with code as argument": f'activation: "torch.nn.LeakyReLU({PYTHON_PAYLOAD})"\n{GOOD}',
    "activation with keyword code": f'activation: "torch.nn.LeakyReLU(negative_slope={PYTHON_PAYLOAD})"\n{GOOD}',
    "activation chained": f'activation: "torch.nn.SiLU().__class__.__init__.__globals__"\n{GOOD}',
    "activation number": f"activation: 3\n{GOOD}",
    "activation list": f"activation: [torch.nn.SiLU()]\n{GOOD}",
    "activation empty": f'activation: ""\n{GOOD}',
    "activation not called": f"activation: torch.nn.SiLU\n{GOOD}",
    "activation is a layer": f"activation: torch.nn.Linear(100000, 100000)\n{GOOD}",
    "activation of bad arguments": f"activation: torch.nn.LeakyReLU(1, 2, 3, 4)\n{GOOD}",
    "activation very long": f'activation: "torch.nn.LeakyReLU({"-" * 20000}1)"\n{GOOD}',
    "activation brackets": f'activation: "torch.nn.LeakyReLU({"(" * 5000}1{")" * 5000})"\n{GOOD}',
    "module torch_load": _with("torch_load", "['payload.pt']"),
    "module load_checkpoint": _with("load_checkpoint", "['payload.pt']"),
    "module TorchVision": _with("TorchVision", "[512, resnet18, DEFAULT, True, 2, True]"),
    "module yaml_model_load": _with("yaml_model_load", "['yolov8n.yaml']"),
    "module eval": _with("eval", f'["{PYTHON_PAYLOAD}"]'),
    "module exec": _with("exec", f'["{PYTHON_PAYLOAD}"]'),
    "module dunder": _with("__builtins__", "[1]"),
    "module os": _with("os.system", f"['touch {MARKER}']"),
    "module torch.hub": _with("nn.modules.module.torch.hub.load", "['a/b', 'c']"),
    "module nn.Module": _with("nn.Module", "[]"),
    "module nn.Sequential": _with("nn.Sequential", "[]"),
    "module nn.Linear": _with("nn.Linear", "[100000, 100000]"),
    "module nn.Embedding": _with("nn.Embedding", "[1000000000, 1000]"),
    "module nn.LSTM": _with("nn.LSTM", "[3, 16]"),
    "module torchvision.ops": _with("torchvision.ops.Conv2dNormActivation", "[3, 16]"),
    "module empty": _with("''"),
    "module number": _with("7"),
    "module null": _with("null"),
    "module list": _with("[Conv, Conv]"),
    "module unknown": _with("Convv"),
    "module newline": _with('"Conv\\nConv"'),
    "module temporary": _with("temporary_modules", "[{}]"),
    "module attempt_load": _with("attempt_load_weights", "['payload.pt']"),
    "channels 1e9": _with("Conv", "[1000000000, 3, 2]"),
    "channels -1": _with("Conv", "[-1, 3, 2]"),
    "channels 0": _with("Conv", "[0, 3, 2]"),
    "channels 1.5": _with("Conv", "[1.5, 3, 2]"),
    "channels nan": _with("Conv", "[.nan, 3, 2]"),
    "channels inf": _with("Conv", "[.inf, 3, 2]"),
    "channels text": _with("Conv", "[abc, 3, 2]"),
    "channels code": _with("Conv", f'["{PYTHON_PAYLOAD}", 3, 2]'),
    "channels true": _with("Conv", "[true, 3, 2]"),
    "kernel 1e6": _with("Conv", "[16, 1000000, 2]"),
    "kernel 0": _with("Conv", "[16, 0, 2]"),
    "kernel -3": _with("Conv", "[16, -3, 2]"),
    "kernel list": _with("Conv", "[16, [3, 3, 3], 2]"),
    "stride 0": _with("Conv", "[16, 3, 0]"),
    "stride 1e9": _with("Conv", "[16, 3, 1000000000]"),
    "arguments null": _with("Conv", "null"),
    "arguments mapping": _with("Conv", "{out: 16}"),
    "arguments 10000": _with("Conv", f"[{', '.join(['3'] * 10000)}]"),
    "arguments empty": _with("Conv", "[]"),
    "repeats 1e9": _with("Conv", repeats="1000000000"),
    "repeats 1e9 of C2f": _with("C2f", "[16, True]", repeats="1000000000"),
    "repeats -1": _with("Conv", repeats="-1"),
    "repeats text": _with("Conv", repeats="many"),
    "repeats inf": _with("Conv", repeats=".inf"),
    "repeats list": _with("Conv", repeats="[1]"),
    "from a later layer": _with("Conv", source="5"),
    "from -100": _with("Conv", source="-100"),
    "from 1e18": _with("Conv", source="1000000000000000000"),
    "from text": _with("Conv", source="input"),
    "from empty list": _with("Concat", "[1]", source="[]"),
    "from nested list": _with("Concat", "[1]", source="[[-1], [[-1]]]"),
    "from itself": GOOD.replace("[[-1], 1, Detect", "[[3], 1, Detect"),
    "upsample 1e6": _with("nn.Upsample", "[null, 1000000, nearest]"),
    "upsample 4096 size": _with("nn.Upsample", "[[65536, 65536], null, nearest]"),
    "upsample negative": _with("nn.Upsample", "[null, -2, nearest]"),
    "upsample mode": _with("nn.Upsample", "[null, 2, mystery]"),
    "upsample chain": "nc: 7\nbackbone:\n  - [-1, 1, Conv, [16, 3, 2]]\n"
    + "  - [-1, 1, nn.Upsample, [null, 2, nearest]]\n" * 20
    + HEAD,
    "concat axis 9": _with("Concat", "[9]"),
    "layers 5000": "nc: 7\nbackbone:\n" + "  - [-1, 1, Conv, [16, 1, 1]]\n" * 5000 + HEAD,
    "layer of 2 values": GOOD.replace("[-1, 1, Conv, [16, 3, 2]]", "[-1, 1]"),
    "layer of 9 values": GOOD.replace("[-1, 1, Conv, [16, 3, 2]]", "[-1, 1, Conv, [16, 3, 2], 1, 2, 3, 4, 5]"),
    "layer is text": GOOD.replace("[-1, 1, Conv, [16, 3, 2]]", "Conv"),
    "layer is null": GOOD.replace("[-1, 1, Conv, [16, 3, 2]]", "null"),
    "no layers": "nc: 7\nbackbone: []\nhead: []\n",
    "backbone null": f"nc: 7\nbackbone:\n{HEAD}",
    "backbone number": f"nc: 7\nbackbone: 5\n{HEAD}",
    "backbone mapping": f"nc: 7\nbackbone: {{a: 1}}\n{HEAD}",
    "head text": "nc: 7\nbackbone:\n  - [-1, 1, Conv, [16, 3, 2]]\nhead: Detect\n",
    "no Detect": "nc: 7\nbackbone:\n  - [-1, 1, Conv, [16, 3, 2]]\nhead:\n  - [-1, 1, Conv, [16, 3, 2]]\n",
    "two Detects": GOOD + "  - [[-1], 1, Detect, [nc]]\n",
    "Detect of nothing": GOOD.replace("[[-1], 1, Detect", "[[], 1, Detect"),
    "Detect of 100 maps": GOOD.replace("[[-1], 1, Detect", f"[[{', '.join(['2'] * 100)}], 1, Detect"),
    "Segment": GOOD.replace("Detect, [nc]", "Segment, [nc, 32, 256]"),
    "WorldDetect": GOOD.replace("Detect, [nc]", "WorldDetect, [nc, 512, False]"),
    "nc 1e12": GOOD.replace("nc: 7", "nc: 1000000000000"),
    "nc -5": GOOD.replace("nc: 7", "nc: -5"),
    "nc 0": GOOD.replace("nc: 7", "nc: 0"),
    "nc text": GOOD.replace("nc: 7", "nc: seven"),
    "nc list": GOOD.replace("nc: 7", "nc: [7]"),
    "nc null": GOOD.replace("nc: 7", "nc: null"),
    "nc inf": GOOD.replace("nc: 7", "nc: .inf"),
    "nc 5000 digits": GOOD.replace("nc: 7", f"nc: {'9' * 5000}"),
    "reg_max 1e9": f"reg_max: 1000000000\n{GOOD}",
    "end2end text": f"end2end: yes please\n{GOOD}",
    "ch 1e9": f"ch: 1000000000\n{GOOD}",
    "channels 1e9 at the top": f"channels: 1000000000\n{GOOD}",
    "channels text at the top": f"channels: three\n{GOOD}",
    "scales null": f"scales: null\nscale: n\n{GOOD}",
    "scales text": f"scales: abc\n{GOOD}",
    "scales of 1e9": f"scales:\n  n: [1000000000, 1000000000, 1000000000]\n{GOOD}",
    "scales of nan": f"scales:\n  n: [.nan, .nan, .nan]\n{GOOD}",
    "scales of text": f"scales:\n  n: [a, b, c]\n{GOOD}",
    "scales of two": f"scales:\n  n: [0.3, 0.25]\n{GOOD}",
    "scale unknown": f"scales:\n  n: [0.33, 0.25, 1024]\nscale: q\n{GOOD}",
    "depth 1e12": f"depth_multiple: 1000000000000.0\n{_with('C2f', '[16, True]', '3')}",
    "width 1e12": f"width_multiple: 1000000000000.0\n{GOOD}",
    "width -1": f"width_multiple: -1\n{GOOD}",
    "width code": f'width_multiple: "{PYTHON_PAYLOAD}"\n{GOOD}',
    "kpt_shape": f"kpt_shape: [1000000, 1000000]\n{GOOD}",
    "unknown key": f"download: https://example.com/{MARKER}.pt\n{GOOD}",
    "deep list": f"nc: 7\nbackbone: {deep(20000)}\n{HEAD}",
    "deep mapping": f"nc: 7\nbackbone: {deep(3000, '{a: ', '}')}\n{HEAD}",
    "laughs": "a: &a [l, l, l, l, l, l, l, l, l]\n"
    + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True))
    + f"nc: *j\n{HEAD}backbone: *j\n",
    "cycle": f"nc: 7\nbackbone: &a [[-1, 1, Conv, *a], *a]\n{HEAD}",
    "python tag": f"nc: !!python/object/apply:os.system ['touch {MARKER}']\n{GOOD}",
    "python name": f"activation: !!python/name:os.system ''\n{GOOD}",
    "empty file": "",
    "NUL bytes": "nc: 7\0\0\n",
    "binary": "\udcff\udcfe\udc81\udc80" * 50,
    "number": "5\n",
    "url": "https://example.com/yolov8n.yaml\n",
    "two documents": f"{GOOD}---\n{GOOD}",
    "tab": f"nc:\t7\n\tbackbone: x\n{HEAD}",
}


class Payload:
    """Unpickles to whatever a call returns."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def shell() -> Payload:
    """Runs a shell."""
    return Payload(os.system, f"touch {MARKER}")


def _checkpoint(**entries: Any) -> Make:
    """A checkpoint as ``torch.save`` writes it, with these entries beside or in place of a good network."""

    def make(place: Path, kit: Path) -> None:
        import torch

        content = torch.load(kit / "good.pt", weights_only=False)
        torch.save({**content, **entries}, place / "bad.pt")

    return make


def _network(change: Callable[[Any, Any], object]) -> Make:
    """The same with a network that is changed in place; the other argument is ``torch``."""

    def make(place: Path, kit: Path) -> None:
        import torch

        content = torch.load(kit / "good.pt", weights_only=False)
        change(content["model"], torch)
        torch.save(content, place / "bad.pt")

    return make


def _torch_save(content: Callable[[Any], Any], **options: Any) -> Make:
    def make(place: Path, kit: Path) -> None:
        del kit
        import torch

        torch.save(content(torch), place / "bad.pt", **options)

    return make


def _zip(entries: Callable[[], dict[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Make:
    def make(place: Path, kit: Path) -> None:
        del kit
        with zipfile.ZipFile(place / "bad.pt", "w", compression) as archive:
            for name, content in entries().items():
                archive.writestr(name, content)

    return make


def _rezipped(change: Callable[[str, bytes], bytes]) -> Make:
    def make(place: Path, kit: Path) -> None:
        with zipfile.ZipFile(kit / "good.pt") as old, zipfile.ZipFile(place / "bad.pt", "w") as new:
            for name in old.namelist():
                new.writestr(name, change(name, old.read(name)))

    return make


def _tar(place: Path, kit: Path) -> None:
    del kit
    with tarfile.open(place / "bad.pt", "w") as archive:
        for name in ("pickle", "tensors", "storages", "sys_info"):
            content = pickle.dumps(shell())
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _set_nan(network: Any, torch: Any) -> None:
    next(iter(network.parameters())).data.fill_(float("nan"))


def _set_inf(network: Any, torch: Any) -> None:
    list(network.parameters())[-1].data.fill_(float("inf"))


def _set_empty(network: Any, torch: Any) -> None:
    next(iter(network.parameters())).data = torch.zeros(0)


def _attribute(name: str, value: Any) -> Callable[[Any, Any], None]:
    return lambda network, torch: setattr(network, name, value)


def _yaml(**values: Any) -> Callable[[Any, Any], None]:
    return lambda network, torch: network.yaml.update(values)


def _hooked(network: Any, torch: Any) -> None:
    network.model[0]._forward_hooks[0] = shell()


def _bomb(size: int) -> dict[str, bytes]:
    return {"archive/data.pkl": b"\0" * size, "archive/version": b"3\n"}


PT_WITH_NETWORK: dict[str, Make] = {
    "payload beside the model": _checkpoint(extra=shell()),
    "payload in train_args": _checkpoint(train_args={"imgsz": shell()}),
    "payload as ema": _checkpoint(ema=shell()),
    "payload as optimizer": _checkpoint(optimizer={"state": shell()}),
    "payload in a key": _checkpoint(**{"date": {"nested": [(shell(),)]}}),
    "payload exec": _checkpoint(extra=Payload(exec, f"open('{MARKER}', 'w')")),
    "payload eval": _checkpoint(extra=Payload(eval, PYTHON_PAYLOAD)),
    "payload pickle in pickle": _checkpoint(extra=Payload(pickle.loads, pickle.dumps(shell()))),
    "payload popen": _checkpoint(extra=Payload(os.popen, f"touch {MARKER}")),
    "payload in names": _network(_attribute("names", {0: shell()})),
    "payload in yaml": _network(_yaml(activation=shell())),
    "payload in args": _network(_attribute("args", {"x": shell()})),
    "payload in hooks": _network(_hooked),
    "activation in yaml": _network(_yaml(activation=PYTHON_PAYLOAD)),
    "module in yaml": _network(_yaml(backbone=[[-1, 1, "torch_load", ["payload.pt"]]])),
    "yaml is text": _network(_attribute("yaml", "yolov8n.yaml")),
    "yaml is None": _network(_attribute("yaml", None)),
    "yaml is empty": _network(_attribute("yaml", {})),
    "yaml of width 1e9": _network(_yaml(scales={"n": [0.33, 1e9, 1024]})),
    "NaN weights": _network(_set_nan),
    "infinite weights": _network(_set_inf),
    "empty weight": _network(_set_empty),
    "names None": _network(_attribute("names", None)),
    "names of text": _network(_attribute("names", "abc")),
    "names with gaps": _network(_attribute("names", {0: "a", 9: "b"})),
    "names of 3": _network(_attribute("names", {0: "a", 1: "b", 2: "c"})),
    "names with newlines": _network(_attribute("names", {i: f"a\n\x1b[31m{i}" for i in range(7)})),
    "names of numbers": _network(_attribute("names", dict.fromkeys(range(7), 3.5))),
    "stride text": _network(_attribute("stride", "32")),
    "no layers left": _network(lambda network, torch: delattr(network, "model")),
    "layers exchanged": _network(lambda network, torch: setattr(network, "model", network.model[::2])),
    "imgsz text": _checkpoint(train_args={"imgsz": "640; touch x"}),
    "imgsz 1e9": _checkpoint(train_args={"imgsz": 10**9}),
    "train_args text": _checkpoint(train_args="imgsz"),
    "model is a dictionary": _checkpoint(model={"a": 1}),
    "model is None": _checkpoint(model=None),
    "model is a list": _checkpoint(model=[1, 2]),
    "ema is text": _checkpoint(ema="x"),
    "truncated at 90 %": changed("bad.pt", cut(0.9), "good.pt"),
    "truncated at 10 %": changed("bad.pt", cut(0.1), "good.pt"),
    "bytes flipped in the pickle": changed("bad.pt", flipped(1, 40, 0, 0.01), "good.pt"),
    "bytes flipped in the directory": changed("bad.pt", flipped(2, 40, 0.99, 1), "good.pt"),
    "data.pkl cut": _rezipped(lambda name, content: content[: len(content) // 2] if "data.pkl" in name else content),
    "storages cut": _rezipped(lambda name, content: content[:1] if "/data/" in name else content),
    "data.pkl flipped": _rezipped(
        lambda name, content: flipped(3, 30)(content) if name.endswith("data.pkl") else content
    ),
}
PT: dict[str, Make] = {
    "payload alone": _torch_save(lambda torch: shell()),
    "payload in a list": _torch_save(lambda torch: [1, shell()]),
    "payload old format": _torch_save(lambda torch: {"model": shell()}, _use_new_zipfile_serialization=False),
    "payload tar format": _tar,
    "payload as plain pickle": lambda place, kit: (place / "bad.pt").write_bytes(pickle.dumps(shell())),
    "payload protocol 0": lambda place, kit: (place / "bad.pt").write_bytes(pickle.dumps(shell(), protocol=0)),
    "payload in a zip of one entry": _zip(lambda: {"a/data.pkl": pickle.dumps(shell()), "a/version": b"3"}),
    "payload of a module that is missing": _zip(
        lambda: {"a/data.pkl": b"cno_such_package_x\nThing\n.", "a/version": b"3"}
    ),
    "payload asks pip": _zip(lambda: {"a/data.pkl": b"cyolov5.models\nModel\n)R.", "a/version": b"3"}),
    "torchscript": _zip(
        lambda: {"a/data.pkl": b"}.", "a/constants.pkl": b").", "a/code/x.py": b"import os", "a/version": b"3"}
    ),
    "zip bomb": _zip(lambda: _bomb(300_000_000), zipfile.ZIP_DEFLATED),
    "zip of 50000 entries": _zip(lambda: {f"a/{i}": b"" for i in range(50000)}),
    "zip with paths outside": _zip(lambda: {"../../outside/data.pkl": b"}.", "../../outside/version": b"3"}),
    "deep pickle": _zip(lambda: {"a/data.pkl": b"(" * 200000 + b".", "a/version": b"3"}),
    "deep pickled lists": _zip(lambda: {"a/data.pkl": b"]" * 100000 + b"a" * 99999 + b".", "a/version": b"3"}),
    "pickle of 2**62 bytes": _zip(
        lambda: {"a/data.pkl": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62), "a/version": b"3"}
    ),
    "pickle memo 2**31": _zip(lambda: {"a/data.pkl": b"\x80\x02}r\xff\xff\xff\x7f.", "a/version": b"3"}),
    "pickle int of 10**6 digits": _zip(lambda: {"a/data.pkl": b"I" + b"9" * 1000000 + b"\n.", "a/version": b"3"}),
    "pickle frame": _zip(lambda: {"a/data.pkl": b"\x80\x04\x95" + b"\xff" * 8 + b".", "a/version": b"3"}),
    "version text": _zip(lambda: {"a/data.pkl": b"}.", "a/version": b"three"}),
    "empty": file("bad.pt", b""),
    "zeros": file("bad.pt", bytes(100000)),
    "zip head only": file("bad.pt", b"PK\x03\x04" + bytes(100)),
    "end of zip only": file("bad.pt", b"PK\x05\x06" + b"\xff" * 18),
    "tensor": _torch_save(lambda torch: torch.zeros(3)),
    "number": _torch_save(lambda torch: 5),
    "state dict": _torch_save(lambda torch: {"model": {"a": torch.zeros(3)}}),
    "key model missing": _torch_save(lambda torch: {"weights": 1}),
    "sparse tensor of 1e12": _torch_save(lambda torch: {"model": torch.sparse_coo_tensor(size=(10**6, 10**6))}),
    "one value as 1e9": _torch_save(lambda torch: {"model": torch.zeros(1).expand(10**9)}),
    "linear": _torch_save(lambda torch: {"model": torch.nn.Linear(2, 2)}),
    "sequential": _torch_save(lambda torch: {"model": torch.nn.Sequential()}),
    "text": text("bad.pt", "import os\n"),
    "html": text("bad.pt", "<html>404</html>\n"),
    "pipe": lambda place, kit: os.mkfifo(place / "bad.pt"),
    "folder": lambda place, kit: (place / "bad.pt").mkdir(),
    "loop of links": lambda place, kit: os.symlink("bad.pt", place / "bad.pt"),
    "link to zero": lambda place, kit: os.symlink("/dev/zero", place / "bad.pt"),
    "link to nowhere": lambda place, kit: os.symlink("nowhere", place / "bad.pt"),
}


def cases() -> Iterator[Case]:
    """All of them."""
    for name, content in ARCHITECTURES.items():
        yield Case(
            f"architecture/{name}", words(EXPORT, weights="bad.yaml"),
            make=_beside_a_payload(text("bad.yaml", content)),
        )  # fmt: skip
    for verb, command in (
        ("calibrate", CALIBRATE),
        ("qat", QAT),
        ("train", "train --weights {weights} --data {data} --out out"),
    ):
        for name in ("activation runs code", "module torch_load", "channels 1e9", "layers 5000"):
            make = with_set(_beside_a_payload(text("bad.yaml", ARCHITECTURES[name])))
            yield Case(f"architecture/{verb}: {name}", words(command, weights="bad.yaml", data="set"), make)
    for name, make in PT_WITH_NETWORK.items():
        yield Case(f"pt/{name}", words(EXPORT, weights="bad.pt"), _beside_a_payload(make), ("pt",))
    for name, make in PT.items():
        yield Case(f"pt/{name}", words(EXPORT, weights="bad.pt"), make)
    for verb, command in (
        ("calibrate", CALIBRATE),
        ("qat", QAT),
        ("run", QAT.replace("qat ", "run ").replace("--epochs 1 ", "")),
    ):
        for name in ("payload alone", "payload old format"):
            yield Case(f"pt/{verb}: {name}", words(command, weights="bad.pt", data="set"), with_set(PT[name]))
    for name in ("payload beside the model", "NaN weights"):
        yield Case(
            f"pt/evaluate: {name}",
            words(EVALUATE, model="bad.pt", data="set"),
            with_set(PT_WITH_NETWORK[name]),
            ("pt",),
        )


def _beside_a_payload(make: Make) -> Make:
    """A pickle that runs code stands beside it, for what could be made to open it."""

    def both(place: Path, kit: Path) -> None:
        (place / "payload.pt").write_bytes(pickle.dumps(shell()))
        make(place, kit)

    return both
