"""What another activation in SiLU's place costs and brings on a CPU: mAP after 2, 6 and 12 epochs, INT8 for OpenVINO.

    python scripts/activation_table.py --weights yolov8n.pt --data data.yaml --out runs/activation --imgsz 384 640

Rows: FP32 and INT8 with SiLU, NNCF's PTQ as Ultralytics' OpenVINO export calls it, and for hard-swish and ReLU the
float network after each number of epochs, calibrated, and fine-tuned for one more epoch with its quantizers; the same
with SiLU kept (``keep``), which is what that training brings by itself. Every number of epochs is a run of its own,
with its learning rate down at the end of it. The LAST epoch is measured, so that the val images chose nothing. mAP is
that of the exported file on OpenVINO; each row is compared with FP32 by a paired bootstrap over the images
(docs/compare.md). Rows that OUT has already are kept, so a killed run goes on; ``--only`` chooses rows. Latency:
``trt-qat evaluate`` of the files of OUT in one call, which interleaves them, on a quiet machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import yaml

import trt_qat
from trt_qat.artifacts import write_json
from trt_qat.config import Activation, Config, EvaluationSection, ExportSection, QatSection
from trt_qat.data.dataset import Dataset, calibration_images, load_dataset
from trt_qat.data.images import network_batch
from trt_qat.exporter.onnx_export import file_metadata
from trt_qat.pipeline import calibrated_model
from trt_qat.progress import SILENT
from trt_qat.targets.openvino import IR_SUFFIX
from trt_qat.training.activation import distil_float

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.placement import nncf_openvino
from scripts.accuracy_table import Row, Table, cells, read_table

ACTIVATIONS: tuple[Activation, ...] = ("hardswish", "relu", "keep")
EPOCHS = (2, 6, 12)
FAST = EvaluationSection(latency_iterations=3, latency_warmup=1)  # this table is about accuracy


@dataclass(frozen=True)
class Setting:
    """What every row has in common."""

    model: trt_qat.Model
    dataset: Dataset
    out: Path
    section: QatSection
    images: int


def measured(name: str, model: trt_qat.Model, setting: Setting, command: str) -> Row:
    """Export for OpenVINO and evaluate the file."""
    file = setting.out / f"{name.replace(' ', '_')}.onnx"
    trt_qat.export(model, file, target="openvino")
    (result,) = trt_qat.evaluate([file], setting.dataset, FAST, details=True)
    return Row(name=name, result=result, commands=(command,))


def calibrated(model: trt_qat.Model, setting: Setting) -> trt_qat.Model:
    """PTQ with the defaults for OpenVINO."""
    config = Config().with_values("export", target="openvino").with_values("quantization", images=setting.images)
    config = config.with_values("data", calibration_cache=str(setting.out / "calib"))
    return calibrated_model(model, model.source, setting.dataset, config, SILENT)


def trained(activation: Activation, epochs: int, setting: Setting) -> trt_qat.Model:
    """The float network of the last epoch; a finished run is not done again. ``keep`` trains SiLU's in the same way."""
    folder = setting.out / f"{activation}_{epochs}"
    section = setting.section.replace(activation=activation, activation_epochs=epochs)
    if activation == "keep":
        silu = setting.model
        distil_float(silu, silu, setting.dataset, folder, section, silu.provenance, resume=True)
    else:
        trt_qat.replace_activation(setting.model, setting.dataset, folder, section, resume=True)
    return trt_qat.load(folder / "last.safetensors")


def ptq(name: str, model: trt_qat.Model, setting: Setting) -> Row:
    """Calibrated, not trained."""
    return measured(name, calibrated(model, setting), setting, "trt_qat.quantize(...)")


def qat(name: str, model: trt_qat.Model, setting: Setting) -> Row:
    """Calibrated, and one epoch with the quantizers, taught by the SiLU network."""
    folder = setting.out / f"{name.replace(' ', '_')}"
    int8, section = calibrated(model, setting), setting.section.replace(epochs=1)
    trt_qat.finetune(int8, setting.dataset, folder, section, teacher=setting.model, resume=True)
    return measured(name, trt_qat.load(folder / "last.safetensors"), setting, "trt_qat.finetune(..., epochs=1)")


def replaced(name: str, activation: Activation, epochs: int, setting: Setting) -> Row:
    """The float network with another activation."""
    call = f"trt_qat.replace_activation(..., activation={activation!r}, activation_epochs={epochs})"
    if activation == "keep":
        call = f"distil_float(..., activation_epochs={epochs})"
    return measured(name, trained(activation, epochs, setting), setting, call)


def on_replaced(
    make: Callable[[str, trt_qat.Model, Setting], Row], name: str, activation: Activation, epochs: int, setting: Setting
) -> Row:
    """What is made of that network."""
    return make(name, trained(activation, epochs, setting), setting)


def nncf(name: str, setting: Setting) -> Row:
    """NNCF on the OpenVINO model, as a folder that trt-qat runs like its own."""
    import openvino

    images = [
        network_batch([path], setting.model.imgsz) for path in calibration_images(setting.dataset, setting.images)
    ]
    folder = setting.out / f"nncf{IR_SUFFIX}"
    folder.mkdir(exist_ok=True)
    openvino.save_model(nncf_openvino(setting.out / "FP32.onnx", images), folder / "nncf.xml")
    metadata = file_metadata(setting.model, ExportSection(target="openvino", precision="int8+fp32"))
    (folder / "metadata.yaml").write_text(yaml.safe_dump(metadata, allow_unicode=True), encoding="utf-8")
    (result,) = trt_qat.evaluate([folder], setting.dataset, FAST, details=True)
    return Row(name=name, result=result, commands=("benchmarks.placement.nncf_openvino(...)",))


def rows(setting: Setting) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Every row's name and how it is made."""
    silu = setting.model
    yield "FP32", lambda: measured("FP32", silu, setting, "trt_qat.export(...)")
    yield "silu PTQ", lambda: ptq("silu PTQ", silu, setting)
    yield "silu QAT", lambda: qat("silu QAT", silu, setting)
    yield "NNCF PTQ", lambda: nncf("NNCF PTQ", setting)
    for activation in ACTIVATIONS:
        for epochs in EPOCHS:
            name = f"{activation} {epochs}"
            yield f"{name} FP32", partial(replaced, f"{name} FP32", activation, epochs, setting)
            for kind, make in (("PTQ", ptq), ("QAT", qat)):
                row = f"{name} {kind}"
                yield row, partial(on_replaced, make, row, activation, epochs, setting)


def as_markdown(table: dict[str, Row]) -> str:
    """The rows; those of a float network end in FP32."""
    base = table["FP32"].result
    lines = ["| | mAP50-95 | mAP50 | points against FP32 | 95 % of resamples |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {' | '.join(cells(row.result, base))} |" for name, row in table.items()]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--weights", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--imgsz", nargs=2, type=int, default=(640, 640), show_default=True, help="Height and width.")
@click.option("--images", default=512, show_default=True, help="Calibration images.")
@click.option("--amp", default="none", show_default=True, help="qat.amp of every training.")
@click.option("--lr0", default=None, type=float, help="qat.activation_lr0; its default if left out.")
@click.option("--only", multiple=True, help="FP32 and rows whose name starts with this; repeatable.")
def main(
    weights: Path,
    data: Path,
    out: Path,
    imgsz: tuple[int, int],
    images: int,
    amp: str,
    lr0: float | None,
    only: tuple[str, ...],
) -> None:
    """Make the table."""
    out.mkdir(parents=True, exist_ok=True)
    model = trt_qat.load(weights, imgsz)
    section = QatSection().replace(amp=amp, **({} if lr0 is None else {"activation_lr0": lr0}))
    setting = Setting(model, load_dataset(data, model.names), out, section, images)
    file = out / "table.json"
    table = {row.name: row for row in read_table(file).rows} if file.is_file() else {}
    for name, make in rows(setting):
        if name in table or (only and not name.startswith((*only, "FP32"))):
            continue
        table[name] = make()
        click.echo(f"== {name}: {table[name].result.map50_95:.4f}")
        write_json(file, Table(rows=tuple(table.values())).model_dump(mode="json"))
        (out / "table.md").write_text(as_markdown(table), encoding="utf-8")


if __name__ == "__main__":
    main()
