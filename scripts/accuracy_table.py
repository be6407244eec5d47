"""What each way to INT8 costs in accuracy, in one table with the commands that made it. Hours on two cores.

    python scripts/accuracy_table.py --weights yolov8n.pt --data data.yaml --out runs/accuracy --epochs 2

Rows: FP32, the same in BF16, PTQ with each calibrator, what its weights and its activations cost alone, NNCF's PTQ as
Ultralytics' OpenVINO export calls it, this project's QAT with several seeds (also calibrated per group, with
augmentation, and with asymmetric activations) and with ``--max-drop 0.1``, Ultralytics' QAT (``quantize=8``) with its
documented recipe, with its defaults and with a mended recipe, and one run per idea of the ``qat`` section. Every row is
measured on its exported file, but for weights and activations alone, which are fake-quantized: no file has only one of
them. Each is compared with FP32 by a paired bootstrap over the images (docs/compare.md). With ``--agreement`` the FP32
model's own detections on the val images are the only labels: they are measured against, choose the best epoch, and
every QAT trains on those images. Rows that OUT has already are kept, so a killed run goes on; ``--only`` chooses rows.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import click
import torch
import yaml
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import xyxy2xywhn

from trt_qat.artifacts import write_json
from trt_qat.checkpoint import load
from trt_qat.config import Config
from trt_qat.data.dataset import calibration_images, load_dataset
from trt_qat.data.images import network_batch
from trt_qat.evaluation.details import measure_details
from trt_qat.evaluation.latency import measure_latency
from trt_qat.evaluation.torch_runner import TorchRunner
from trt_qat.model.device import torch_device
from trt_qat.reading import FileModel, read_json
from trt_qat.report.compare import map_difference
from trt_qat.results import ResultRow, checked_measures, file_content, read_rows
from trt_qat.runtime.openvino import OpenVinoRunner
from trt_qat.runtime.runner import Runner, class_names
from trt_qat.vision.image import read_image_bgr
from trt_qat.vision.letterbox import network_input

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.placement import CompiledRunner, nncf_openvino

IMGSZ = 640
FAST = ["--set", "evaluation.latency_iterations=3"]  # this table is about accuracy
FOR_OPENVINO = ["--set", "export.target=openvino"]  # what every row is measured on
PER_GROUP = ["quantization.auto_per_group=true"]
ASYMMETRIC = ["quantization.scheme=asymmetric"]
AUGMENTED = ["qat.hsv=0.3", "qat.scale=0.1", "qat.translate=0.05"]
CALIBRATORS = {
    "max": ["quantization.calibrator=max"],
    "percentile 99.9999": ["quantization.calibrator=percentile", "quantization.percentile=99.9999"],
    "percentile 99.999": ["quantization.calibrator=percentile", "quantization.percentile=99.999"],
    "percentile 99.99": ["quantization.calibrator=percentile", "quantization.percentile=99.99"],
    "percentile 99.9": ["quantization.calibrator=percentile", "quantization.percentile=99.9"],
    "entropy": ["quantization.calibrator=entropy"],
    "mse": ["quantization.calibrator=mse"],
    "auto": ["quantization.calibrator=auto"],
    "auto per group": PER_GROUP,
    "auto asymmetric": ASYMMETRIC,
}
QAT_VARIANTS: dict[str, list[str]] = {
    "QAT": [],
    "QAT per group": PER_GROUP,
    "QAT augmented": AUGMENTED,
    "QAT asymmetric": ASYMMETRIC,
}
IDEAS: dict[str, list[str]] = {
    "base": [],
    "start from max": ["quantization.calibrator=max"],
    "labels too": ["qat.loss=both"],
    "labels only": ["qat.loss=detection"],
    "no feature term": ["qat.distill_feature=0"],
    "one learning rate per epoch": ["qat.scheduler=ultralytics"],
    "learning rate 1e-5": ["qat.lr0=1e-5"],
    "learning rate 2e-4": ["qat.lr0=2e-4"],
    "progressive by depth": ["qat.progressive=depth"],
    "progressive by sensitivity": ["qat.progressive=sensitivity"],
    "dampening 0.01": ["qat.dampening=0.01"],
    "learned scales": ["qat.lsq=true"],
    "BatchNorm kept and frozen": ["qat.bn=freeze"],
}
IDEA_RATE = "qat.lr0=1e-4"  # at the default rate the few steps of these runs move too little to tell ideas apart
DOCUMENTED: dict[str, object] = {
    "optimizer": "AdamW",
    "lr0": 1e-5,
    "lrf": 0.1,
    "cos_lr": True,
    "mosaic": 0.0,
    "warmup_epochs": 0.5,
}
RECIPES: dict[str, dict[str, object]] = {
    "documented recipe": DOCUMENTED,
    "CLI defaults": {},
    # AdamW steps as far as its rate says; Ultralytics starts the biases' at 0.1 unless it chose the optimizer itself
    "documented recipe, biases warmed up from 0": DOCUMENTED | {"warmup_bias_lr": 0.0},
}
BUDGET_MISSED = 3  # trt-qat's exit code; everything is written all the same
BUDGET = "QAT --max-drop 0.1"


class Row(FileModel):
    """One measured file, with what stands behind its mAP."""

    name: str
    result: ResultRow
    commands: tuple[str, ...]


class Table(FileModel):
    """The content of ``OUT/table.json``."""

    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Setting:
    """What every row has in common."""

    weights: Path
    data: Path
    labels: Path
    out: Path
    epochs: int
    idea_epochs: int
    idea_fraction: float
    batch: int


def run(*arguments: object) -> str:
    """Run a trt-qat command in a process of its own; returns the command as text."""
    command = ["trt-qat", *map(str, arguments)]
    click.echo(f"$ {shlex.join(command)}")
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", "trt_qat", *command[1:]])
    if done.returncode not in (0, BUDGET_MISSED):
        raise subprocess.CalledProcessError(done.returncode, command)
    return shlex.join(command)


def sets(keys: list[str]) -> list[str]:
    """``--set`` options."""
    return [part for key in keys for part in ("--set", key)]


def measured(name: str, model: Path, setting: Setting, commands: list[str]) -> Row:
    """Evaluate an exported ONNX file on OpenVINO."""
    result = setting.out / "evaluation.json"
    commands.append(run("evaluate", model, "--data", setting.labels, *FAST, "--details", "--json", result))
    (row,) = read_rows(result)
    return Row(name=name, result=row, commands=tuple(commands))


def fp32(name: str, setting: Setting) -> Row:
    """The float model."""
    model = setting.out / "fp32.onnx"
    return measured(name, model, setting, [run("export", setting.weights, *FOR_OPENVINO, "--out", model)])


def measured_here(name: str, runner: Runner, setting: Setting, function: str) -> Row:
    """Evaluate what no command of trt-qat runs; ``function`` is the one of this script that made it."""
    labels, section = (
        load_dataset(setting.labels, class_names(runner.metadata)),
        Config().evaluation.replace(latency_iterations=3),
    )
    accuracy, details = measure_details(runner, labels, section)
    result = ResultRow(
        model=name,
        precision=runner.metadata.get("precision", "unknown"),
        runtime=runner.name,
        map50_95=round(accuracy.map50_95, 5),
        map50=round(accuracy.map50, 5),
        images=accuracy.images,
        size_bytes=0,
        latency_ms=measure_latency([runner], section)[0],
        left_out=accuracy.left_out,
        details=details,
        measure=labels.measure,
    )
    return Row(name=name, result=result, commands=(f"scripts/accuracy_table.py: {function}()",))


def bf16(name: str, setting: Setting) -> Row:
    """The float model's file, computed in BF16: what a precision that is taken for lossless costs."""
    import openvino

    file = setting.out / "fp32.onnx"
    with OpenVinoRunner(file) as like:
        return measured_here(name, CompiledRunner(openvino.Core().read_model(file), like, "bf16"), setting, "bf16")


def ptq_part(name: str, setting: Setting, part: str) -> Row:
    """``PTQ auto`` with only its ``part``, weights or activations, in INT8; fake-quantized."""
    checkpoint = load(setting.out / "PTQ_auto.safetensors")
    model = checkpoint.require_quantized()
    others = model.activation_quantizers() if part == "weights" else model.weight_quantizers()
    for quantizer in others.values():
        model.toolkit.set_enabled(quantizer, False)
    return measured_here(name, TorchRunner(checkpoint, 0, torch_device()), setting, "ptq_part")


def ptq(name: str, setting: Setting, keys: list[str]) -> Row:
    """Calibrated, not trained."""
    file = setting.out / f"{name.replace(' ', '_')}.safetensors"
    commands = [
        run("calibrate", "--weights", setting.weights, "--data", setting.data, *sets(keys), "--out", file),
        run("export", file, *FOR_OPENVINO, "--out", file.with_suffix(".onnx")),
    ]
    return measured(name, file.with_suffix(".onnx"), setting, commands)


def qat(name: str, setting: Setting, keys: list[str], epochs: int) -> Row:
    """This project's QAT."""
    folder = setting.out / name.replace(" ", "_")
    keys = [f"qat.batch={setting.batch}", *keys]
    model = folder / "best.onnx"
    commands = [
        run("qat", "--weights", setting.weights, "--data", setting.labels, "--epochs", epochs, *sets(keys),
            "--resume", "--out", folder),
        run("export", folder / "best.safetensors", *FOR_OPENVINO, "--out", model),
    ]  # fmt: skip
    return measured(name, model, setting, commands)


def ultralytics_qat(name: str, setting: Setting, recipe: str) -> Row:
    """Ultralytics' own QAT, exported by Ultralytics."""
    content = yaml.safe_load(setting.labels.read_text(encoding="utf-8"))
    data = setting.out / "ultralytics_data.yaml"  # Ultralytics takes a relative path from the working directory
    content["path"] = str((setting.labels.parent / content.get("path", ".")).resolve())
    data.write_text(yaml.safe_dump(content), encoding="utf-8")
    keys = {
        **RECIPES[recipe], "quantize": 8, "data": str(data), "epochs": setting.epochs, "batch": setting.batch,
        "imgsz": IMGSZ, "device": "cpu", "plots": False, "exist_ok": True, "val": False, "workers": 0,
        "project": str(setting.out.resolve()), "name": name.replace(" ", "_"),
    }  # fmt: skip
    # on two cores Ultralytics trains on one; threads do not change the recipe
    code = (
        "import os, torch; from ultralytics import YOLO; "
        f"m = YOLO({str(setting.weights)!r}); "
        "m.add_callback('on_train_start', lambda _: torch.set_num_threads(os.cpu_count())); "
        f"m.train(**{keys!r}); "
        "YOLO(m.trainer.last).export(format='onnx', simplify=False)"
    )
    click.echo(f"$ python -c {shlex.quote(code)}")
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    model = setting.out / name.replace(" ", "_") / "weights" / "last.onnx"
    return measured(name, model, setting, [f"python -c {shlex.quote(code)}"])


def nncf(name: str, setting: Setting) -> Row:
    """NNCF on the OpenVINO model."""
    import openvino

    dataset = load_dataset(setting.data)
    images = [network_batch([path], (IMGSZ, IMGSZ)) for path in calibration_images(dataset, 512)]
    file = setting.out / "nncf.xml"
    openvino.save_model(nncf_openvino(setting.out / "fp32.onnx", images), file)
    with OpenVinoRunner(setting.out / "fp32.onnx") as like:
        return measured_here(name, CompiledRunner(openvino.Core().read_model(file), like), setting, "nncf")


def rows(setting: Setting, seeds: tuple[int, ...]) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Every row's name and how it is made."""
    yield "FP32", lambda: fp32("FP32", setting)
    yield "BF16", lambda: bf16("BF16", setting)
    for calibrator, keys in CALIBRATORS.items():
        name = f"PTQ {calibrator}"
        yield name, lambda name=name, keys=keys: ptq(name, setting, keys)
    for part in ("weights", "activations"):
        name = f"PTQ auto, only the {part}"
        yield name, lambda name=name, part=part: ptq_part(name, setting, part)
    yield "NNCF PTQ", lambda: nncf("NNCF PTQ", setting)
    for variant, more in QAT_VARIANTS.items():
        for seed in seeds:
            name = f"{variant} seed {seed}"
            keys = [f"qat.seed={seed}", *more]
            yield name, lambda name=name, keys=keys: qat(name, setting, keys, setting.epochs)
    yield BUDGET, lambda: qat(BUDGET, setting, ["qat.max_drop=0.1"], setting.epochs)
    for recipe in RECIPES:
        name = f"Ultralytics QAT {recipe}"
        yield name, lambda name=name, recipe=recipe: ultralytics_qat(name, setting, recipe)
    for idea, keys in IDEAS.items():
        name = f"idea {idea}"
        keys = [f"qat.fraction={setting.idea_fraction}", IDEA_RATE, *keys]
        yield name, lambda name=name, keys=keys: qat(name, setting, keys, setting.idea_epochs)


def float_detections(setting: Setting) -> Path:
    """A dataset whose labels are what the FP32 model detects on the val images with a confidence of 0.25 or more.

    Its boxes are suppressed exactly as mAP suppresses them; otherwise some of FP32's own boxes would count as false.
    """
    dataset, section = load_dataset(setting.data), Config().evaluation
    folder = setting.out / "float_detections"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    with OpenVinoRunner(setting.out / "fp32.onnx") as runner:
        for path in dataset.val:
            image = read_image_bgr(path)
            batch, transform = network_input(image, (IMGSZ, IMGSZ))
            (found,) = non_max_suppression(
                torch.from_numpy(runner.infer(batch)[0]), 0.25, section.iou, multi_label=True, max_det=section.max_det
            )
            height, width = image.shape[:2]
            boxes = xyxy2xywhn(transform.boxes_to_image(found[:, :4].numpy()).astype("float64"), width, height)
            lines = [
                f"{int(label)} {' '.join(f'{value:.6f}' for value in box)}"
                for label, box in zip(found[:, 5].tolist(), boxes.tolist(), strict=True)
            ]
            (folder / "labels" / f"{path.stem}.txt").write_text("\n".join(lines) + "\n" * bool(lines))
            (folder / "images" / path.name).write_bytes(path.read_bytes())
    content = {"path": str(folder.resolve()), "train": "images", "val": "images", "names": dict(dataset.names)}
    content["labelled_by"] = "model"
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder / "data.yaml"


def as_markdown(table: dict[str, Row]) -> str:
    """The rows, and the commands of each."""
    base = table["FP32"].result
    figures = f"{base.measure}50-95 | {base.measure}50"
    lines = [f"| | {figures} | points against FP32 | 95 % of resamples |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {' | '.join(cells(row.result, base))} |" for name, row in table.items()]
    for variant in QAT_VARIANTS:
        seeds = [row.result.map50_95 for name, row in table.items() if name.startswith(f"{variant} seed")]
        if seeds:
            spread = f"mean {mean(seeds):.4f}, from {min(seeds):.4f} to {max(seeds):.4f}"
            lines.append(f"\n{variant} over {len(seeds)} seeds: {spread}.")
    for name, row in table.items():
        lines += [f"\n{name}:", *(f"    {command}" for command in row.commands)]
    return "\n".join(lines) + "\n"


def cells(row: ResultRow, base: ResultRow) -> tuple[str, ...]:
    """mAP50-95, mAP50, the difference to ``base`` in points and its interval."""
    found = None if row is base else map_difference(base, row)
    interval = (f"{found.points:+.2f}", f"{found.low:+.2f} to {found.high:+.2f}") if found else ("", "")
    return f"{row.map50_95:.4f}", f"{row.map50:.4f}", *interval


def read_table(file: Path) -> Table:
    """What an earlier call wrote."""
    return checked_measures(Table, read_json(file, "Table"), file, "Delete it, and its rows are made again.")


@click.command()
@click.option("--weights", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--epochs", default=2, show_default=True, help="Of every QAT, ours and Ultralytics'.")
@click.option("--batch", default=8, show_default=True)
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--idea-epochs", default=1, show_default=True, help="Epochs of the runs that change one idea.")
@click.option("--idea-fraction", default=1.0, show_default=True, help="Share of the images in those runs.")
@click.option("--agreement", is_flag=True, help="The FP32 model's detections are the labels.")
@click.option("--only", multiple=True, help="FP32 and rows whose name starts with this; repeatable.")
def main(
    weights: Path,
    data: Path,
    out: Path,
    epochs: int,
    batch: int,
    seeds: str,
    idea_epochs: int,
    idea_fraction: float,
    agreement: bool,
    only: tuple[str, ...],
) -> None:
    """Make the table."""
    out.mkdir(parents=True, exist_ok=True)
    setting = Setting(weights, data, data, out, epochs, idea_epochs, idea_fraction, batch)
    if agreement:
        if not (out / "fp32.onnx").is_file():
            run("export", weights, *FOR_OPENVINO, "--out", out / "fp32.onnx")
        setting = Setting(weights, data, float_detections(setting), out, epochs, idea_epochs, idea_fraction, batch)
    file = out / "table.json"
    table = {row.name: row for row in read_table(file).rows} if file.is_file() else {}
    for name, make in rows(setting, tuple(int(seed) for seed in seeds.split(","))):
        if name in table or (only and not name.startswith((*only, "FP32"))):  # every row is compared with FP32
            continue
        try:
            table[name] = make()
        except Exception as exc:  # noqa: BLE001  a row that fails is named, the others are still wanted
            click.echo(f"== left out: {name} ({type(exc).__name__}: {' '.join(str(exc).split())[:200]})")
            continue
        click.echo(f"== {name}: {table[name].result.map50_95:.4f}")
        write_json(file, file_content(Table(rows=tuple(table.values())).model_dump(mode="json")))
        (out / "table.md").write_text(as_markdown(table), encoding="utf-8")


if __name__ == "__main__":
    main()
