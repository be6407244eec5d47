"""Good files, of which the hostile ones are damaged copies. Each piece is made once, by the commands themselves."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from case import CALIBRATE, QAT, words
from tiny_onnx import write_tiny_detector

DEMO = Path(__file__).resolve().parents[2] / "trt_qat/demo/detector.safetensors"
NAMES = ("no_entry", "no_stopping", "speed_limit", "no_turning", "warning", "mandatory", "pedestrian_crossing")


def base(kit: Path) -> None:
    """What nearly every case needs and takes no time: detector, dataset, ONNX, plan, picture formats, videos."""
    shutil.copy(DEMO, kit / "demo.safetensors")
    _dataset(kit / "set")
    write_tiny_detector(kit / "tiny.onnx")
    metadata = {"names": str({0: "red", 1: "green", 2: "blue"}), "imgsz": "[64, 64]", "stride": "32"}
    sidecar = {"flavor": "tensorrt-rtx", "metadata": metadata, "precision": "int8+fp32", "onnx_sha256": "0" * 64}
    (kit / "x.plan").write_bytes(b"plan" * 100)
    (kit / "x.json").write_text(json.dumps(sidecar))
    header = json.dumps(metadata).encode()
    (kit / "x.engine").write_bytes(struct.pack("<i", len(header)) + header + b"plan" * 100)
    image = _picture(0, 96, 64)
    for suffix in ("jpg", "png", "bmp", "tiff", "webp", "ppm", "gif", "avif", "jp2"):
        try:
            ok, encoded = cv2.imencode(f".{suffix}", image)
        except cv2.error:
            continue
        if ok:
            (kit / f"picture.{suffix}").write_bytes(encoded.tobytes())
    for name, codec in (("good.mp4", "mp4v"), ("good.avi", "MJPG"), ("good.mkv", "mp4v")):
        writer = cv2.VideoWriter(str(kit / name), cv2.VideoWriter.fourcc(*codec), 5.0, (64, 64))
        for index in range(6):
            writer.write(_picture(index, 64, 64))
        writer.release()


def ptq(kit: Path) -> None:
    """A calibrated checkpoint, and the calibration cache."""
    _command(kit, words(CALIBRATE, weights="demo.safetensors", data="set"))
    (kit / "out.safetensors").rename(kit / "ptq.safetensors")


def auto(kit: Path) -> None:
    """The cached choice of the calibrator: ``auto/``."""
    command = CALIBRATE.replace("quantization.calibrator=max", "quantization.calibrator=auto")
    settings = " --set data.calibration_cache=auto --set quantization.auto_images=1"
    _command(kit, words(command + settings, weights="demo.safetensors", data="set"))


def onnx(kit: Path) -> None:
    """An INT8 export: ``int8.onnx``."""
    _command(kit, words("export ptq.safetensors --no-check --out int8.onnx"))


def ranking(kit: Path) -> None:
    """A finished sensitivity file: ``ranking.json``."""
    _command(
        kit, words("sensitivity --weights ptq.safetensors --data set --set sensitivity.images=1 --out ranking.json")
    )


def tuned(kit: Path) -> None:
    """A finished QAT run: the folder ``tuned``."""
    _command(kit, words(QAT.replace("--out out", "--out tuned"), weights="ptq.safetensors", data="set"))


def pt(kit: Path) -> None:
    """An Ultralytics checkpoint as its trainer writes it: ``good.pt``."""
    import torch
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    network = DetectionModel("yolov8n.yaml", nc=len(NAMES), verbose=False).half()
    network.names = dict(enumerate(NAMES))
    torch.save({"model": network, "ema": None, "train_args": {"imgsz": 64}, "epoch": -1}, kit / "good.pt")


PIECES: dict[str, Callable[[Path], None]] = {
    "base": base,
    "ptq": ptq,
    "auto": auto,
    "onnx": onnx,
    "ranking": ranking,
    "tuned": tuned,
    "pt": pt,
}
AFTER = {"onnx": ("ptq",), "ranking": ("ptq",), "tuned": ("ptq",)}


def in_order(needs: set[str]) -> list[str]:
    """The pieces to make, what others build on first."""
    wanted = {"base"} | needs | {before for need in needs for before in AFTER.get(need, ())}
    return [name for name in PIECES if name in wanted]


def _dataset(folder: Path) -> None:
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(2):
            cv2.imwrite(str(folder / f"images/{split}/{index}.png"), _picture(index + 2 * (split == "val"), 64, 64))
            (folder / f"labels/{split}/{index}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: [{', '.join(NAMES)}]\n")


def _picture(seed: int, width: int, height: int) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.ascontiguousarray(image.repeat(8, 0).repeat(8, 1))


def _command(kit: Path, arguments: tuple[str, ...]) -> None:
    from trt_qat.cli import cli

    os.chdir(kit)
    cli.main(list(arguments), standalone_mode=False)
