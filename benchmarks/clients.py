"""Every target's file in every client that takes it: does it find what the fake-quantized network finds?

    python benchmarks/clients.py --weights ptq.safetensors --data data.yaml --out runs/clients

The detections of each client on real images are matched with the network's: confidence at least 0.25, the same class,
overlap at least 0.9. What is not matched is looked up again at confidence 0.05: found there, the score alone fell below
0.25. The first row is the network itself computed in float64: how far its own detections are defined. Writes the
files, ``clients.json`` and ``clients.md``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from trt_qat.api import export
from trt_qat.checkpoint import Model, load
from trt_qat.config import ExportFormat
from trt_qat.data.dataset import load_dataset
from trt_qat.data.images import evenly_spaced, pixels
from trt_qat.evaluation.agreement import matched
from trt_qat.evaluation.torch_runner import TorchRunner
from trt_qat.model.loading import raw_output
from trt_qat.runtime.detector import Detector
from trt_qat.runtime.onnxruntime import OnnxRuntimeRunner
from trt_qat.runtime.openvino import OpenVinoRunner
from trt_qat.targets.onnx_file import compute_onnxruntime
from trt_qat.targets.openvino import compute as compute_openvino
from trt_qat.vision.detections import Detections
from trt_qat.vision.letterbox import network_input
from trt_qat.vision.postprocess import detections_from_output

CONFIDENCE, LOW_CONFIDENCE, NMS_IOU = 0.25, 0.05, 0.45
Pictures = Sequence[NDArray[np.uint8]]
Found = list[Detections]
Client = Callable[[Path, Pictures, Model, float], Found]


@dataclass(frozen=True)
class Row:
    """One client on one file. ``expected`` and ``found`` count detections; shares are of ``expected``."""

    target: str
    file: str
    client: str
    expected: int
    found: int
    matched: int
    score_below: int
    other_box: int
    not_expected: int

    @property
    def share(self) -> float:
        """What part of the network's detections the client has."""
        return self.matched / max(self.expected, 1)


def plain(compute: Callable[[Path, list[NDArray[np.float32]]], list[NDArray[np.float32]]]) -> Client:
    """A library's own call, with our letterbox and NMS round it."""

    def detect(file: Path, pictures: Pictures, model: Model, confidence: float) -> Found:
        inputs = [network_input(picture, model.imgsz) for picture in pictures]
        outputs = compute(file, [batch for batch, _ in inputs])
        found = [detections_from_output(output[0], confidence, NMS_IOU) for output in outputs]
        return [
            Detections(transform.boxes_to_image(one.boxes_xyxy), one.scores, one.class_ids)
            for one, (_, transform) in zip(found, inputs, strict=True)
        ]

    return detect


def ultralytics(file: Path, pictures: Pictures, model: Model, confidence: float) -> Found:
    """``YOLO(file).predict``: Ultralytics' own letterbox and NMS too."""
    from ultralytics import YOLO

    del model
    yolo: Any = YOLO(str(file), task="detect")
    boxes = [yolo.predict(p, conf=confidence, iou=NMS_IOU, device="cpu", verbose=False)[0].boxes for p in pictures]
    return [
        Detections(
            box.xyxy.numpy().astype(np.float32),
            box.conf.numpy().astype(np.float32),
            box.cls.numpy().astype(np.int64),
        )
        for box in boxes
    ]


def float64(file: Path, pictures: Pictures, model: Model, confidence: float) -> Found:
    """The fake-quantized network with its sums in double precision: other roundings at every quantizer's edges."""
    del file
    network = copy.deepcopy(model.network).double()

    def compute(file: Path, batches: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        return [raw_output(network, torch.from_numpy(batch).double()).float().numpy() for batch in batches]

    return plain(compute)(Path(), pictures, model, confidence)


def ours(runner: type[OpenVinoRunner] | type[OnnxRuntimeRunner]) -> Client:
    """trt_qat's own runner behind its Detector."""

    def detect(file: Path, pictures: Pictures, model: Model, confidence: float) -> Found:
        del model
        with runner(file) as opened:
            detector = Detector(opened, confidence, NMS_IOU)
            return [detector.detect(picture) for picture in pictures]

    return detect


OPENVINO, ONNXRUNTIME = plain(compute_openvino), plain(compute_onnxruntime)
OURS_OPENVINO, OURS_ONNXRUNTIME = ours(OpenVinoRunner), ours(OnnxRuntimeRunner)
NAMES: dict[Client, str] = {
    float64: "PyTorch, float64",
    OPENVINO: "openvino.Core().read_model",
    ONNXRUNTIME: "onnxruntime.InferenceSession",
    ultralytics: "YOLO(x)",
    OURS_OPENVINO: "trt_qat, openvino",
    OURS_ONNXRUNTIME: "trt_qat, onnxruntime",
}
FILES: list[tuple[str, ExportFormat, str, tuple[Client, ...]]] = [
    ("tensorrt", "onnx", "tensorrt.onnx", (ONNXRUNTIME, ultralytics, OURS_OPENVINO, OURS_ONNXRUNTIME)),
    ("openvino", "onnx", "openvino.onnx", (OPENVINO, ONNXRUNTIME, ultralytics, OURS_OPENVINO)),
    ("openvino", "openvino", "x_openvino_model", (OPENVINO, ultralytics, OURS_OPENVINO)),
    ("onnxruntime", "onnx", "onnxruntime.onnx", (ONNXRUNTIME, ultralytics, OPENVINO, OURS_ONNXRUNTIME)),
    ("ultralytics", "onnx", "ultralytics.onnx", (ultralytics, ONNXRUNTIME, OPENVINO, OURS_ONNXRUNTIME)),
]


def compare(expected: Found, file: Path, client: Client, pictures: Pictures, model: Model, target: str) -> Row:
    """One row: a client's detections against the network's."""
    read = next(file.glob("*.xml")) if file.is_dir() and client is OPENVINO else file
    low = client(read, pictures, model, LOW_CONFIDENCE)
    found = [above(one, CONFIDENCE) for one in low]  # NMS keeps the same of these: worse ones do not suppress better
    hits = [matched(one, other) for one, other in zip(expected, found, strict=True)]
    low_hits = [matched(one, other) for one, other in zip(expected, low, strict=True)]
    back = [matched(other, one) for one, other in zip(expected, found, strict=True)]
    missed = [(hit, below) for pair in zip(hits, low_hits, strict=True) for hit, below in zip(*pair, strict=True)]
    return Row(
        target=target,
        file=file.name,
        client=NAMES[client],
        expected=sum(map(len, expected)),
        found=sum(map(len, found)),
        matched=sum(int(hit.sum()) for hit in hits),
        score_below=sum(bool(not hit and below) for hit, below in missed),
        other_box=sum(bool(not hit and not below) for hit, below in missed),
        not_expected=sum(int((~hit).sum()) for hit in back),
    )


def above(detections: Detections, confidence: float) -> Detections:
    """Those with at least this score."""
    keep = detections.scores >= confidence
    return Detections(detections.boxes_xyxy[keep], detections.scores[keep], detections.class_ids[keep])


def markdown(rows: Sequence[Row]) -> str:
    """The table of docs/targets.md."""
    lines = [
        "| target | file | client | matched | score fell below 0.25 | another box | not in the network's |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.target} | `{row.file}` | {row.client} | {row.matched} of {row.expected}, {row.share:.1%} | "
        f"{row.score_below} | {row.other_box} | {row.not_expected} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--weights", type=click.Path(path_type=Path), required=True, help="Calibrated *.safetensors.")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="data.yaml; its val images are used.")
@click.option("--images", type=int, default=32, show_default=True, help="How many, evenly spaced.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the files and the table.")
def main(weights: Path, data: Path, images: int, out: Path) -> None:
    """Compare every client on every file."""
    model = load(weights)
    pictures = [pixels(path) for path in evenly_spaced(load_dataset(data, model.names).val, images)]
    with ExitStack() as stack:
        network = Detector(stack.enter_context(TorchRunner(model)), CONFIDENCE, NMS_IOU)
        expected = [network.detect(picture) for picture in pictures]
    rows = [compare(expected, Path("(in memory)"), float64, pictures, model, "-")]
    for target, form, name, clients in FILES:
        export(model, out / name, target=target, format=form)
        for client in clients:
            rows.append(compare(expected, out / name, client, pictures, model, target))
            click.echo(f"{rows[-1].target:12} {rows[-1].file:18} {rows[-1].client:30} {rows[-1].share:.1%}", err=True)
    (out / "clients.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    (out / "clients.md").write_text(markdown(rows), encoding="utf-8")
    click.echo(markdown(rows))


if __name__ == "__main__":
    main()
