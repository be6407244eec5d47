"""What each idea for the start of INT8 brings on images that neither calibration nor training saw.

    python scripts/ideas_table.py --weights yolov8n.pt --data coco128.yaml --out runs/ideas_coco --halves both
    python scripts/ideas_table.py --weights signs.pt --data vnsigns.yaml --imgsz 384,640 --out runs/ideas_signs

With ``--halves first`` every second image of the val split, sorted by name from the first, calibrates and trains, and
the others are measured; with ``both`` the roles are exchanged as well and all images measured together. Without it the
training split calibrates and trains, and all of val is measured. QAT validates on eight of its own training images and
its last epoch is measured, so that the measured images choose nothing.

Every row is measured twice on the same forward passes: mAP against the labels, and agreement with FP32, whose confident
detections are then the labels. Networks are fake-quantized; rows named "exported" are ONNX files on OpenVINO. A
difference is that of the mean over the seeds, its interval a paired bootstrap over the images. Rows that OUT has
already are kept, so a killed run goes on; ``--only`` chooses rows.

Ideas that were no better than chance are not kept; docs/qat.md has their rows. Their code, and a script that runs them,
is at commit 0b1e7b3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

import trt_qat
from trt_qat.artifacts import write_json
from trt_qat.checkpoint import Model, load
from trt_qat.config import EvaluationSection
from trt_qat.data.dataset import Dataset, load_dataset
from trt_qat.data.labelled import LabelledImage, labelled_split
from trt_qat.data.labels import Labels
from trt_qat.evaluation.accuracy import (
    MatchedImage,
    PreparedImage,
    counted,
    match_image,
    mean_average_precision,
    prepared,
)
from trt_qat.evaluation.bootstrap import draws, weighted_map
from trt_qat.evaluation.torch_runner import TorchRunner
from trt_qat.quantization.auto import CANDIDATES
from trt_qat.quantization.calibration_cache import CalibrationCache
from trt_qat.reading import FileModel, checked, read_json
from trt_qat.runtime.openvino import OpenVinoRunner
from trt_qat.runtime.runner import Runner
from trt_qat.vision.postprocess import detections_from_output

SECTION = EvaluationSection()
IMAGES = 24  # calibration images that the choice by detections sees; the seed chooses them
STEPS = 80  # of QAT, in batches of 8
QAT = {"batch": 8, "amp": "bfloat16", "monitor": False}
CONFIDENT = 0.25

Idea = Callable[["Half", Model, int], Model]


@dataclass(frozen=True)
class Half:
    """A split: what calibrates and trains, what is measured, and where files go."""

    model: Model
    dataset: Dataset
    seen: tuple[Path, ...]
    unseen: tuple[LabelledImage, ...]
    out: Path
    footage: tuple[Path, ...] = ()

    @cached_property
    def calibrated(self) -> Model:
        """PTQ as it is by default."""
        cache = CalibrationCache(self.out / "calib", "ideas")
        return trt_qat.quantize(self.model, list(self.seen), remember=cache, images=256)

    def calibrated_by(self, index: int) -> Model:
        """PTQ with one of the candidates of ``auto``."""
        cache, settings = CalibrationCache(self.out / "calib", "ideas"), CANDIDATES[index].as_dict()
        keys = {name: value for name, value in settings.items() if value is not None}
        return trt_qat.quantize(self.model, list(self.seen), remember=cache, images=256, **keys)

    @cached_property
    def labelled(self) -> list[PreparedImage]:
        """The unseen images with their labels."""
        return list(prepared(self.unseen, self.model.imgsz, {}))

    @cached_property
    def agreed(self) -> list[PreparedImage]:
        """The unseen images with what FP32 detects."""
        raw = outputs(TorchRunner(self.model), self.labelled)
        return [_as_labelled(*pair) for pair in zip(raw, self.labelled, strict=True)]

    def some(self, seed: int, count: int) -> list[Path]:
        """Calibration images, by the seed."""
        return Random(seed).sample(self.seen, min(count, len(self.seen)))


def outputs(runner: Runner, items: Sequence[PreparedImage]) -> list[NDArray[np.float32]]:
    """The raw output of each image."""
    size = runner.input_shape[0] or 8
    parts = [items[first : first + size] for first in range(0, len(items), size)]
    return [raw for part in parts for raw in runner.infer(np.concatenate([item.pixels for item in part]))[0]]


def _as_labelled(raw: NDArray[np.float32], item: PreparedImage) -> PreparedImage:
    """Suppressed exactly as mAP suppresses; otherwise some of FP32's own boxes would count as false."""
    found = detections_from_output(raw, CONFIDENT, SECTION.iou, SECTION.max_det, multi_label=True)
    boxes, sides = item.transform.boxes_to_image(found.boxes_xyxy), np.array(item.transform.size_wh * 2)
    centred = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1) / sides
    return replace(item, given=LabelledImage(item.given.image, Labels(found.class_ids, centred.astype(np.float32))))


def _copied(model: Model) -> Model:
    quantized = model.require_quantized()
    return model.with_quantized(replace(quantized, network=copy.deepcopy(quantized.network)), "ptq", model.provenance)


def qat(half: Half, start: Model, seed: int, footage: bool = False, **keys: Any) -> Model:
    """Fine-tuned on the calibration images, and on other footage as well if wanted; the last epoch."""
    images = half.some(seed, 8 * STEPS)
    if footage:
        images += Random(seed).sample(half.footage, 8 * STEPS - len(images))
    epochs = max(1, round(8 * STEPS / len(images)))
    dataset = replace(half.dataset, train=tuple(sorted(images)), val=tuple(sorted(images)[:8]))
    out = half.out / f"qat_{seed}"
    trt_qat.finetune(start, dataset, out, epochs=epochs, seed=seed, **(QAT | keys))
    return load(out / "last.safetensors", start.imgsz)


def by_detections(half: Half, start: Model, seed: int) -> Model:
    """The calibrator of ``auto``'s candidates whose network detects most like FP32 on calibration images."""
    nothing = Labels(np.zeros(0, dtype=np.int64), np.zeros((0, 4), dtype=np.float32))
    images = [LabelledImage(path, nothing) for path in half.some(seed, IMAGES)]
    items = list(prepared(images, start.imgsz, {}))
    raw = outputs(TorchRunner(half.model), items)
    agreed = [_as_labelled(*pair) for pair in zip(raw, items, strict=True)]

    def agreement(model: Model) -> float:
        pairs = zip(outputs(TorchRunner(model), items), agreed, strict=True)
        return mean_average_precision([match_image(*pair, SECTION) for pair in pairs])[0]

    return max((half.calibrated_by(index) for index in range(len(CANDIDATES))), key=agreement)


IDEAS: dict[str, Idea] = {
    "PTQ, calibrator chosen by detections": by_detections,
    "QAT": qat,
    "QAT on other footage, too": lambda half, start, seed: qat(half, start, seed, footage=True),
}


class Row(FileModel):
    """A measured row: mAP and agreement, and both on each draw of the bootstrap."""

    name: str
    seed: int
    map: float
    agreement: float
    overlaps: tuple[float, ...]
    map_drawn: tuple[float, ...]
    agreement_drawn: tuple[float, ...]


class Table(FileModel):
    """The content of ``OUT/ideas.json``."""

    rows: tuple[Row, ...]


def measured(name: str, seed: int, halves: Sequence[Half], make: Callable[[Half], Runner]) -> Row:
    """Both measures, over the unseen images of all halves."""
    labelled: list[MatchedImage] = []
    agreed: list[MatchedImage] = []
    for half in halves:
        raw = outputs(make(half), half.labelled)
        for images, items in ((labelled, half.labelled), (agreed, half.agreed)):
            images += [match_image(*pair, SECTION) for pair in zip(raw, items, strict=True)]
    taken = draws(len(labelled))
    drawn = [tuple(np.round(weighted_map(images, taken), 5).tolist()) for images in (labelled, agreed)]
    by_overlap = counted(agreed)[5].mean(0)
    return Row(
        name=name,
        seed=seed,
        map=mean_average_precision(labelled)[0],
        agreement=mean_average_precision(agreed)[0],
        overlaps=tuple(np.round(by_overlap, 5).tolist()),
        map_drawn=drawn[0],
        agreement_drawn=drawn[1],
    )


def exported(half: Half, model: Model, name: str) -> Runner:
    """The model's ONNX file on OpenVINO."""
    file = half.out / f"{name}.onnx"
    trt_qat.export(model, file, target="openvino")
    return OpenVinoRunner(file)


def rows(seeds: Sequence[int]) -> Iterator[tuple[str, int, Callable[[Half], Runner]]]:
    """Every row's name, seed, and how it is made of a half."""
    yield "FP32", 0, lambda half: TorchRunner(half.model)
    yield "PTQ", 0, lambda half: TorchRunner(half.calibrated)
    yield "PTQ, exported", 0, lambda half: exported(half, half.calibrated, "ptq")
    for name, idea in IDEAS.items():
        for seed in seeds:
            yield name, seed, lambda half, idea=idea, seed=seed: TorchRunner(idea(half, _copied(half.calibrated), seed))
    yield "QAT, exported", 0, lambda half: exported(half, qat(half, _copied(half.calibrated), 0), "qat")


def as_markdown(found: Sequence[Row]) -> str:
    """A line per idea, the mean over its seeds; differences in points."""
    names = dict.fromkeys(row.name for row in found)
    of = {name: [row for row in found if row.name == name] for name in names}
    lines = [
        "| | seeds | agreement | against FP32 | against its base | mAP50-95 | against FP32 | against its base |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, mine in of.items():
        base = of.get("QAT" if name.startswith("QAT ") else "PTQ") if name not in ("FP32", "PTQ") else None
        cells = [name, str(len(mine))]
        for measure in ("agreement", "map"):
            cells.append(f"{np.mean([getattr(row, measure) for row in mine]):.4f}")
            cells += [_difference(mine, other, measure) for other in (of["FP32"] if name != "FP32" else None, base)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _difference(mine: Sequence[Row], others: Sequence[Row] | None, measure: str) -> str:
    if not others:
        return ""
    drawn, values = f"{measure}_drawn", measure
    apart = np.mean([getattr(row, drawn) for row in mine], 0) - np.mean([getattr(row, drawn) for row in others], 0)
    points = np.mean([getattr(row, values) for row in mine]) - np.mean([getattr(row, values) for row in others])
    low, high = np.percentile(100 * apart, [2.5, 97.5])
    return f"{100 * points:+.2f} ({low:+.2f} to {high:+.2f})"


def halves_of(
    weights: Path, data: Path, imgsz: tuple[int, ...], out: Path, wanted: str, footage: Path | None
) -> list[Half]:
    """The splits."""
    other = load_dataset(footage).train if footage else ()
    model, dataset = load(weights, imgsz), load_dataset(data)
    images = labelled_split(dataset, "val").images
    if wanted == "none":
        return [Half(model, dataset, dataset.train, images, out, other)]
    parts = images[::2], images[1::2]
    return [
        Half(model, dataset, tuple(image.image for image in seen), unseen, out / f"half_{index}", other)
        for index, (seen, unseen) in enumerate((parts, parts[::-1])[: 1 if wanted == "first" else 2])
    ]


@click.command()
@click.option("--weights", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--imgsz", default="640,640", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--halves", type=click.Choice(["none", "first", "both"]), default="none", help="Split val, see above.")
@click.option("--footage", type=click.Path(exists=True, path_type=Path), help="Its images are other footage.")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--only", multiple=True, help="FP32, PTQ and the rows of this name; repeatable.")
def main(
    weights: Path,
    data: Path,
    imgsz: str,
    out: Path,
    halves: str,
    footage: Path | None,
    seeds: str,
    only: tuple[str, ...],
) -> None:
    """Make the table."""
    size = tuple(map(int, imgsz.split(",")))
    parts = halves_of(weights, data, size, out, halves, footage)
    for half in parts:
        half.out.mkdir(parents=True, exist_ok=True)
    file = out / "ideas.json"
    found = list(checked(Table, read_json(file, "Table"), file, "Delete it.").rows) if file.is_file() else []
    for name, seed, make in rows(tuple(int(seed) for seed in seeds.split(","))):
        done = any((row.name, row.seed) == (name, seed) for row in found)
        if done or (only and name not in ("FP32", "PTQ", *only)):
            continue
        found.append(measured(name, seed, parts, make))
        click.echo(f"== {name}, seed {seed}: {found[-1].agreement:.4f} {found[-1].map:.4f}")
        write_json(file, Table(rows=tuple(found)).model_dump(mode="json"))
        (out / "ideas.md").write_text(as_markdown(found), encoding="utf-8")


if __name__ == "__main__":
    main()
