"""Configuration files and ``--set``."""

from __future__ import annotations

import os
from collections.abc import Iterator

from case import MARKER, Case, deep, steps, text, with_tiny, words

SETTINGS = {
    "empty": "",
    "no value": "qat.epochs",
    "no key": "=5",
    "dots": "...=5",
    "code": f"qat.epochs=__import__('os').system('touch {MARKER}')",
    "python tag": f"qat.epochs=!!python/object/apply:os.system ['touch {MARKER}']",
    "dunder": "qat.__class__=5",
    "model_config": "qat.model_config={}",
    "deep": "qat.epochs=" + deep(20_000),
    "deep keys": ".".join(["a"] * 20_000) + "=1",
    "laughs": "qat.epochs=[&a [l,l,l,l,l,l,l,l,l], &b [*a,*a,*a,*a,*a,*a,*a,*a,*a], [*b,*b,*b]]",
    "anchor in itself": "qat.epochs=&a [*a]",
    "integer of 5000 digits": "qat.epochs=" + "9" * 5000,
    "hexadecimal of 5000 digits": "qat.epochs=0x" + "f" * 5000,
    "1e400": "qat.lr0=1e400",
    "nan": "qat.lr0=.nan",
    "inf": "qat.lr0=.inf",
    "-0.0": "qat.lr0=-0.0",
    "true for a number": "qat.epochs=true",
    "null": "qat.epochs=null",
    "list for a number": "qat.epochs=[1]",
    "mapping for a section": "qat={epochs: 1}",
    "text for a section": "qat=hello",
    "date": "qat.epochs=2024-02-31",
    "base 60": "qat.epochs=1:1:1",
    "binary": "qat.optimizer=!!binary aGVsbG8=",
    "set": "quantization.exclude=!!set {a}",
    "newline": "qat.epochs=1\nqat.lr0: 5",
    "controls": "qat.epochs=\x1b[2J\x07",
    "not UTF-8": "qat.epochs=\udcff\udcfe",
    "colon": "qat.epochs=a: b: c",
    "tab": "qat.epochs=\t5",
    "quotes": "qat.epochs=\"'",
    "100000 values": "quantization.exclude=[" + "a, " * 50_000 + "b]",
    "pattern": "quantization.exclude=['(a+)+$']",
    "imgsz 1e9": f"model.imgsz={32 * 10**9}",
    "imgsz 8224": "model.imgsz=8224",
    "imgsz -32": "model.imgsz=-32",
    "imgsz 33": "model.imgsz=33",
    "imgsz 64.0": "model.imgsz=64.5",
    "epochs 1e18": "qat.epochs=1000000000000000000000",
    "batch 1e18": "evaluation.batch=1000000000000000000",
    "bins 1e12": "quantization.histogram_bins=1000000000000",
    "bins odd": "quantization.histogram_bins=129",
    "threads -1": "evaluation.threads=-1",
    "threads 1e9": "infer.threads=1000000000",
    "seed -1": "qat.seed=-1",
    "seed 1e30": "qat.seed=1000000000000000000000000000000",
    "opset 1e9": "export.opset=1000000000",
    "workspace 1e18": "engine.workspace_mib=1000000000000000000",
    "capability": "engine.compute_capabilities=['99.99']",
    "capability text": "engine.compute_capabilities=[x]",
    "cache folder NUL": 'data.calibration_cache="a\\0b"',
    "cache folder long": "data.calibration_cache=" + "a" * 5000,
    "cache folder number": "data.calibration_cache=5",
    "unknown calibrator": "quantization.calibrator=os.system",
    "secret": "qat.token=hunter2",
    "2000 of them": "x",
}
FILES = {
    "laughs": "a: &a [l, l, l, l, l, l, l, l, l]\n"
    + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)),
    "deep": deep(100_000),
    "deep mapping": "qat: " + deep(5000, "{a: ", "}"),
    "10 MB": "# " + "x" * 10_000_000 + "\nqat:\n  epochs: 1\n",
    "python tag": f"qat: !!python/object/apply:os.system ['touch {MARKER}']\n",
    "list": "- qat\n",
    "text": "qat\n",
    "number": "5\n",
    "empty": "",
    "null section": "qat:\n",
    "section list": "qat: [1]\n",
    "section number": "qat: 1\n",
    "keys of numbers": "1:\n  2: 3\n",
    "keys of lists": "? [qat]\n: {epochs: 1}\n",
    "null key": "null: {epochs: 1}\n",
    "key with newline": '"qat\\n\\e[2J": {epochs: 1}\n',
    "section twice": "qat: {epochs: 1}\nqat: {epochs: 2}\n",
    "merge": "x: &x {epochs: 1}\nqat:\n  <<: *x\n",
    "binary": "\udcff\udcfe\udc80" * 10,
    "UTF-16": "\udcff\udcfeq\0a\0t\0",
    "NUL": "qat:\0\n",
    "two documents": "qat: {epochs: 1}\n---\nqat: {epochs: 2}\n",
    "key of 100000 letters": "k" * 100_000 + ": 1\n",
    "100000 keys": "".join(f"k{i}: 1\n" for i in range(100_000)),
    "date": "qat: {epochs: 2024-99-99}\n",
    "cycle": "qat: &a {epochs: *a}\n",
}


def cases() -> Iterator[Case]:
    """All of them."""
    lint = words("lint tiny.onnx")
    for name, value in SETTINGS.items():
        given = ("--set", value) if name != "2000 of them" else ("--set", "qat.epochs=1") * 2000
        yield Case(f"settings/{name}", (*lint, *given), with_tiny())
    for name, content in FILES.items():
        yield Case(f"settings/file: {name}", (*lint, "--config", "bad.yaml"), with_tiny(text("bad.yaml", content)))
    file = (*lint, "--config", "bad.yaml")
    yield Case("settings/file: pipe", file, with_tiny(lambda place, kit: os.mkfifo(place / "bad.yaml")))
    yield Case("settings/file: zero", file, with_tiny(lambda place, kit: os.symlink("/dev/zero", place / "bad.yaml")))
    yield Case("settings/file: folder", file, with_tiny(lambda place, kit: (place / "bad.yaml").mkdir()))
    yield Case("settings/file: stdin", (*lint, "--config", "/dev/stdin"), with_tiny())
    secret = "https://user:hunter2@example.com/x.yaml"
    yield Case("settings/file: URL", (*lint, "--config", secret), with_tiny(), secrets=("hunter2",))
    for name, variables in {
        "limit is text": {"TRT_QAT_MAX_YAML_MB": "many"},
        "limit is negative": {"TRT_QAT_MAX_ONNX_NODES": "-1"},
        "limit of 5000 digits": {"TRT_QAT_MAX_ONNX_NODES": "9" * 5000},
        "limit 1e400": {"TRT_QAT_MAX_ONNX_MB": "1e400"},
    }.items():
        good = steps(with_tiny(), text("good.yaml", "qat: {epochs: 1}\n"))
        yield Case(f"settings/{name}", (*lint, "--config", "good.yaml"), good, environment=variables)
    for command in ("--max-drop nan", "--max-drop inf", "--epochs 1e9", f"--epochs {'9' * 5000}", "--max-drop 1e400"):
        yield Case(f"settings/option {command[:20]}", words(f"qat --weights x --data y --out z {command}"))
    for command in ("--conf nan", "--iou nan", "--conf inf", "--conf -1", "--iou 1e400"):
        arguments = words(f"infer good.png --model tiny.onnx --out out.png {command}")
        yield Case(f"settings/option {command}", arguments, with_tiny())
