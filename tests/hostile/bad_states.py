"""What the stages leave for themselves: calibration cache, automatic choice, resume.pt, ranking, demo folder."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bad_networks import shell
from case import (
    CALIBRATE,
    QAT,
    Case,
    Make,
    copied,
    cut,
    data,
    deep,
    flipped,
    json_with,
    read_safetensors,
    safetensors,
    setting,
    steps,
    text,
    with_set,
    without,
    words,
)  # fmt: skip

NAN, INF = float("nan"), float("inf")
Change = Callable[[bytes], bytes]


def _cache(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Change:
    """The cache with other counts or limits (changed in place; the first group's name is the first key)."""

    def changed(content: bytes) -> bytes:
        tensors, metadata = read_safetensors(content)
        key = next(key for key in metadata)
        limits = json.loads(metadata[key])
        change(tensors, limits)
        return safetensors(tensors, {**metadata, key: json.dumps(limits)})

    return changed


def _metadata(value: str) -> Change:
    def changed(content: bytes) -> bytes:
        tensors, metadata = read_safetensors(content)
        return safetensors(tensors, dict.fromkeys(metadata, value))

    return changed


def _counts(value: Any) -> Change:
    def change(tensors: dict[str, Any], limits: dict[str, Any]) -> None:
        name = next(name for name in sorted(tensors))
        tensors[name] = np.full_like(tensors[name], value) if np.isscalar(value) else value

    return _cache(change)


def _limit(value: Any) -> Change:
    return _cache(lambda tensors, limits: limits.update({next(iter(limits)): value}))


CACHES: dict[str, Change] = {
    "empty": lambda content: b"",
    "cut": cut(0.5),
    "flipped": flipped(1, 20, 0, 0.05),
    "group missing": _cache(lambda tensors, limits: limits.pop(next(iter(limits)))),
    "counts missing": _cache(lambda tensors, limits: tensors.pop(next(iter(tensors)))),
    "group added": _cache(lambda tensors, limits: limits.update(more=[1.0, 0.5])),
    "limits empty": _metadata("[]"),
    "limits deep": _metadata(deep(100_000)),
    "limits no JSON": _metadata("{"),
    "counts NaN": _counts(NAN),
    "counts negative": _counts(-1.0),
    "counts infinite": _counts(INF),
    "counts 0": _counts(0.0),
    "counts of 3 bins": _counts(np.ones(3)),
    "counts two-dimensional": _counts(np.ones((64, 64))),
    "limit NaN": _limit([NAN, NAN]),
    "limit negative": _limit([-1.0, -1.0]),
    "limit 0": _limit([0.0, 0.0]),
    "limit 1e308": _limit([1e308, 1e308]),
    "limit below the maximum": _limit([1.0, 100.0]),
    "limit []": _limit([]),
    "limit no power of two": _limit([3.0, 2.5]),
}
CHOICES: dict[str, Change] = {
    "empty": lambda content: b"",
    "deep": lambda content: deep(100_000).encode(),
    "long integer": lambda content: b'{"calibrator": ' + b"9" * 10_000 + b"}",
    "binary": lambda content: b"\xff\xfe\x80" * 100,
    "error NaN": json_with(setting("candidates.0.error", NAN)),
    "none chosen": json_with(lambda choice: [row.update(chosen=False) for row in choice["candidates"]]),
    "all chosen": json_with(lambda choice: [row.update(chosen=True) for row in choice["candidates"]]),
    "candidates missing": json_with(without("candidates")),
    "candidate null": json_with(setting("candidates.0", None)),
    "calibrator code": json_with(setting("calibrator", "__import__('os')")),
    "groups list": json_with(setting("groups", [])),
    "groups of unknown": json_with(setting("groups", {"model.99": {"calibrator": "max"}})),
    "unknown field": json_with(setting("more", 1)),
}
RANKINGS: dict[str, Change] = {
    "empty": lambda content: b"",
    "text": lambda content: b"my precious notes\n",
    "deep": lambda content: deep(100_000).encode(),
    "long integer": lambda content: b'{"key": ' + b"9" * 10_000 + b"}",
    "binary": lambda content: b"\xff\xfe\x80" * 100,
    "error NaN": json_with(setting("layers.0.error", NAN)),
    "error negative": json_with(setting("layers.0.error", -5.0)),
    "layer without error": json_with(without("layers.0.error")),
    "layer unknown": json_with(setting("layers.0.group", "model.99")),
    "layer twice": json_with(lambda ranking: ranking["layers"].append(ranking["layers"][0])),
    "layers mapping": json_with(setting("layers", {})),
    "layers half": json_with(lambda ranking: ranking["layers"].__delitem__(slice(5, None))),
    "convs number": json_with(setting("layers.0.convs", 5)),
    "key deep": json_with(setting("key.weights", json.loads(deep(500)))),
    "key missing": json_with(without("key")),
    "float text": json_with(setting("float", "abc")),
    "groups 1e9": json_with(setting("groups", 10**9)),
}


def _damaged(pattern: str, change: Change, among: str) -> Make:
    """Every file of this pattern in ``calib``, which is a copy of the kit's folder ``among``."""

    def make(place: Path, kit: Path) -> None:
        shutil.copytree(kit / among, place / "calib")
        found = list((place / "calib").rglob(pattern))
        assert found, f"no {pattern} in {among}"
        for path in found:
            path.write_bytes(change(path.read_bytes()))

    return make


def _replaced(pattern: str, put: Callable[[Path], object], among: str = "calib") -> Make:
    def make(place: Path, kit: Path) -> None:
        shutil.copytree(kit / among, place / "calib")
        for path in list((place / "calib").rglob(pattern)):
            path.unlink()
            put(path)

    return make


def _resume(change: Callable[[dict[str, Any], Any], Any]) -> Make:
    """``resume.pt`` of a finished run, changed in place or replaced by what is returned; read without restrictions."""

    def make(place: Path, kit: Path) -> None:
        import torch

        shutil.copytree(kit / "tuned", place / "out")
        path = place / "out/resume.pt"
        state = torch.load(path, weights_only=False) if path.exists() else {}
        answer = change(state, torch)
        torch.save(answer if isinstance(answer, (dict, list, int)) else state, path)

    return make


def _resume_bytes(change: Change) -> Make:
    def make(place: Path, kit: Path) -> None:
        shutil.copytree(kit / "tuned", place / "out")
        path = place / "out/resume.pt"
        path.write_bytes(change(path.read_bytes() if path.exists() else b""))

    return make


def _tensors_nan(state: Any, torch: Any) -> None:
    for value in state.values() if isinstance(state, dict) else state if isinstance(state, list) else ():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value.fill_(NAN)
        elif isinstance(value, (dict, list)):
            _tensors_nan(value, torch)


RESUMES: dict[str, Make] = {
    "payload": _resume(lambda state, torch: state.update(more=shell())),
    "payload alone": _resume_bytes(lambda content: pickle.dumps(shell())),
    "text": _resume_bytes(lambda content: b"hello"),
    "cut": _resume_bytes(cut(0.5)),
    "flipped": _resume_bytes(flipped(0, 50, 0, 0.05)),
    "NaN everywhere": _resume(_tensors_nan),
    "list": _resume(lambda state, torch: [1, 2]),
    "values null": _resume(
        lambda state, torch: {k: v if k in ("format", "fingerprint") else None for k, v in state.items()}
    ),
    "values text": _resume(
        lambda state, torch: {k: v if k in ("format", "fingerprint") else "x" for k, v in state.items()}
    ),
    "epoch 1e9": _resume(lambda state, torch: state.update(epoch=10**9)),
    "epoch -5": _resume(lambda state, torch: state.update(epoch=-5)),
    "epoch text": _resume(lambda state, torch: state.update(epoch="last")),
}


def cases() -> Iterator[Case]:
    """All of them."""
    demo = copied("demo.safetensors", "demo.safetensors")
    calibrate = words(CALIBRATE, weights="demo.safetensors", data="set")
    for name, change in CACHES.items():
        make = with_set(demo, _damaged("*.safetensors", change, "calib"))
        yield Case(f"caches/{name}", calibrate, make, ("ptq",))
    auto = words(
        CALIBRATE.replace("calibrator=max", "calibrator=auto") + " --set quantization.auto_images=1",
        weights="demo.safetensors", data="set",
    )  # fmt: skip
    for name, change in CHOICES.items():
        make = with_set(demo, _damaged("*.json", change, "auto"))
        yield Case(f"caches/choice: {name}", auto, make, ("auto",), seconds=40)
    odd: dict[str, Callable[[Path], object]] = {
        "pipe": os.mkfifo, "folder": Path.mkdir, "zero": lambda path: os.symlink("/dev/zero", path),
        "loop": lambda path: os.symlink(path.name, path),
    }  # fmt: skip
    for name, put in odd.items():
        yield Case(f"caches/{name}", calibrate, with_set(demo, _replaced("*.safetensors", put)), ("ptq",))
        make = with_set(demo, _replaced("*.json", put, "auto"))
        yield Case(f"caches/choice: {name}", auto, make, ("auto",), seconds=40)
    blocked = with_set(demo, text("calib", "a file\n"))
    yield Case("caches/folder is a file", calibrate, blocked)
    ranking = words("sensitivity --weights ptq.safetensors --data set --set sensitivity.images=1 --out out.json")
    ptq = copied("ptq.safetensors", "ptq.safetensors")
    for name, change in RANKINGS.items():
        make = with_set(ptq, _changed("out.json", change, "ranking.json"))
        yield Case(f"rankings/{name}", ranking, make, ("ptq", "ranking"), leaves=("calib", "out.png"), seconds=60)
    for name, put in odd.items():
        make = with_set(ptq, _put("out.json", put))
        yield Case(f"rankings/{name}", ranking, make, ("ptq",), leaves=("calib", "out.png"), seconds=60)
    resume = words(QAT + " --resume", weights="ptq.safetensors", data="set")
    for name, make in RESUMES.items():
        full = with_set(ptq, make)
        yield Case(f"resume/{name}", resume, full, ("ptq", "tuned"), leaves=("calib", "out"), seconds=60)
    for name, put in odd.items():
        full = with_set(ptq, _put("out/resume.pt", put))
        yield Case(f"resume/{name}", resume, full, ("ptq",), leaves=("calib", "out"), seconds=60)
    of_float = words(QAT + " --resume", weights="demo.safetensors", data="set")
    for name, content in {"payload alone": pickle.dumps(shell()), "text": b"hello", "empty": b""}.items():
        full = with_set(demo, data("out/resume.pt", content))
        yield Case(f"resume/float: {name}", of_float, full, leaves=("calib", "out"))
    early = words("sensitivity --weights demo.safetensors --data set --out out.json")
    for name in ("pipe", "folder"):  # a link is replaced, whatever it names
        yield Case(f"rankings/refused before the work: {name}", early, with_set(demo, _put("out.json", odd[name])))
    demo_set = words("data demo --train 1 --val 1 --out out")
    for name, content in {"empty": "", "list": "[]", "deep": deep(100_000), "null": "null", "binary": "\udcff\udcfe",
                          "numbers": '{"images": 5, "train": "x"}'}.items():  # fmt: skip
        yield Case(f"demo/{name}", demo_set, text("out/demo.json", content), leaves=("out",))
    yield Case(
        "demo/foreign files",
        demo_set,
        steps(text("out/mine.txt", "mine\n"), text("out/images/a.png", "mine\n")),
        leaves=(),
    )
    for name, put in odd.items():
        yield Case(f"demo/{name}", demo_set, _put("out/demo.json", put), leaves=("out",))


def _changed(name: str, change: Change, source: str) -> Make:
    return lambda place, kit: (place / name).write_bytes(change((kit / source).read_bytes()))


def _put(name: str, put: Callable[[Path], object]) -> Make:
    def make(place: Path, kit: Path) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        put(place / name)

    return make
