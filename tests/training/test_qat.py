"""QAT through Ultralytics' own loop: what it writes, what it must not touch, and that it can be repeated."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel

from trt_qat import pipeline
from trt_qat.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from trt_qat.config import Config, ModelSection, QatLoss, QatSection, QuantizationSection, TrainSection
from trt_qat.data.dataset import Dataset, load_dataset, ultralytics_data
from trt_qat.model.loading import LoadedModel, load_model
from trt_qat.quantization.calibration import calibrate_, collect_histograms
from trt_qat.quantization.insert import QuantizedModel, quantize_model
from trt_qat.training.features.progressive import ProgressiveQuantization
from trt_qat.training.fp32 import train_fp32
from trt_qat.training.qat import QATTrainer, train_qat
from trt_qat.vision.image import read_image_bgr
from trt_qat.vision.letterbox import network_input

if TYPE_CHECKING:
    from conftest import Calibrated


def finetune(
    model: QuantizedModel, data: Dataset, out: Path, loss: QatLoss = "distill", **keys: Any
) -> tuple[Checkpoint, list[tuple[str, int, int]]]:
    with model.quantizers_off():
        teacher = copy.deepcopy(model.network)
    section = QatSection.model_validate({"epochs": 1, "batch": 4, "lr0": 1e-3, "loss": loss, **keys})
    reports: list[tuple[str, int, int]] = []
    artifact = train_qat(
        model,
        teacher,
        ultralytics_data(data),
        out,
        ModelSection(imgsz=64),
        section,
        {"seed": section.seed},
        lambda *report: reports.append(report),
    )
    assert artifact.path == out / "best.safetensors"
    return load_checkpoint(out / "last.safetensors"), reports


def weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {name: value for name, value in checkpoint.network.state_dict().items() if "quantizer" not in name}


@pytest.fixture(scope="module")
def model(calibrated: Calibrated) -> QuantizedModel:
    return calibrated()


@pytest.fixture(scope="module")
def trained(
    model: QuantizedModel, demo: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Checkpoint, list[tuple[str, int, int]], bool]:
    """One epoch; the last entry says whether the model that was handed in is as it was."""
    out = tmp_path_factory.mktemp("qat") / "run"
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    checkpoint, reports = finetune(model, demo, out)
    same = all(torch.equal(before[name], value) for name, value in model.network.state_dict().items())
    return out, checkpoint, reports, same and not model.network.training


Trained = tuple[Path, Checkpoint, list[tuple[str, int, int]], bool]


def test_files(trained: Trained) -> None:
    out = trained[0]
    assert {"best.safetensors", "last.safetensors", "results.csv"} <= {path.name for path in out.iterdir()}
    assert [path.name for path in out.rglob("*.pt")] == ["resume.pt"]
    with (out / "results.csv").open() as stream:
        assert len(list(csv.reader(stream))) == 2  # header and one epoch


def test_weights_moved_and_stayed_finite(trained: Trained, model: QuantizedModel) -> None:
    before = {name: value for name, value in model.network.state_dict().items() if "quantizer" not in name}
    after = weights(trained[1])
    assert before.keys() == after.keys()
    assert all(torch.isfinite(value).all() for value in after.values())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {f"{name}.weight" for name in model.weight_quantizers()} <= changed
    assert not any("dfl" in name for name in changed)


def test_activation_ranges_stay_calibrated(trained: Trained, model: QuantizedModel) -> None:
    quantized = trained[1].quantized
    assert quantized is not None
    assert quantized.placement == model.placement
    for name, amax in model.amax().items():
        if name.startswith("activation."):
            assert torch.equal(quantized.amax()[name], amax)


def test_handed_in_model_is_untouched(trained: Trained) -> None:
    assert trained[3]


def test_best_is_not_worse_than_the_start(trained: Trained) -> None:
    out, last, _, _ = trained
    best = load_checkpoint(out / "best.safetensors")
    assert last.stage == best.stage == "qat"
    assert last.provenance["training"]["epoch"] == 1
    fitness = [entry.provenance["training"]["fake_quant_map50_95"] for entry in (best, last)]
    assert fitness[0] >= fitness[1]
    assert best.provenance["seed"] == 0


def test_progress_is_reported(trained: Trained) -> None:
    assert trained[2] == [("QAT epoch 1/1", done, 3) for done in (1, 2, 3)]


def test_trains_on_the_images_as_calibration_saw_them(
    model: QuantizedModel, demo: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Tensor] = {}
    preprocess = QATTrainer.preprocess_batch

    def spy(trainer: QATTrainer, batch: dict[str, Any]) -> Any:
        content = preprocess(trainer, batch)
        seen.update(zip(content["im_file"], content["img"], strict=True))
        return content

    monkeypatch.setattr(QATTrainer, "preprocess_batch", spy)
    finetune(model, demo, tmp_path / "plain")
    assert set(demo.train) <= set(map(Path, seen))  # validation goes through the same function
    for file, image in seen.items():
        assert torch.equal(image, torch.from_numpy(network_input(read_image_bgr(Path(file)), 64)[0][0])), file
    plain = dict(seen)
    finetune(model, demo, tmp_path / "moved", translate=0.2)
    assert not any(torch.equal(seen[str(file)], plain[str(file)]) for file in demo.train)


def test_same_seed_same_weights(trained: Trained, model: QuantizedModel, demo: Dataset, tmp_path: Path) -> None:
    again = weights(finetune(model, demo, tmp_path / "again")[0])
    assert all(torch.equal(value, again[name]) for name, value in weights(trained[1]).items())


@pytest.mark.parametrize("loss", ["detection", "both"])
def test_other_losses_train(
    trained: Trained, model: QuantizedModel, demo: Dataset, tmp_path: Path, loss: QatLoss
) -> None:
    other = weights(finetune(model, demo, tmp_path / loss, loss, fraction=0.34)[0])
    assert all(torch.isfinite(value).all() for value in other.values())
    name = "model.0.conv.weight"
    assert not torch.equal(other[name], weights(trained[1])[name])
    assert not torch.equal(other[name], model.network.state_dict()[name])


def test_a_ruinous_epoch_keeps_the_calibrated_network(shared_data: Path, tmp_path: Path) -> None:
    """With a learning rate that destroys the network, ``best`` is epoch 0: the calibrated weights themselves."""
    dataset = few_real_images(shared_data, tmp_path / "data", count=8)
    loaded = load_model(shared_data / "weights" / "yolov8n_vnsigns.pt")
    model = quantize_model(copy.deepcopy(loaded.network), loaded.names, QuantizationSection())
    images = torch.rand(2, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    calibrate_(model, collect_histograms(model, [images], 2048), QuantizationSection(calibrator="max"))
    out = tmp_path / "run"
    section = QatSection(epochs=1, batch=4, lr0=1.0, optimizer="SGD", warmup_epochs=0, loss="detection")
    data = ultralytics_data(dataset)
    train_qat(model, None, data, out, ModelSection(imgsz=320), section, {})
    best, last = load_checkpoint(out / "best.safetensors"), load_checkpoint(out / "last.safetensors")
    start = best.provenance["training"]
    assert start["epoch"] == 0
    assert start["fake_quant_map50_95"] > 0.05
    assert last.provenance["training"]["fake_quant_map50_95"] < start["fake_quant_map50_95"]
    for name, value in weights(best).items():
        assert torch.equal(value, model.network.state_dict()[name])


def test_a_step_that_is_not_finite_is_left_out_and_ends_the_run(
    model: QuantizedModel,
    demo: Dataset,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[QATTrainer] = []
    whole = QATTrainer.optimizer_step

    def poisoned(trainer: QATTrainer) -> None:
        steps.append(trainer)
        if len(steps) == 2:
            next(p for p in trainer.model.parameters() if p.grad is not None).grad.fill_(torch.nan)  # type: ignore[union-attr]
        whole(trainer)

    monkeypatch.setattr(QATTrainer, "optimizer_step", poisoned)
    last, reports = finetune(model, demo, tmp_path / "run", epochs=3)
    assert "the gradient of step 1 is not finite" in caplog.text
    assert len(steps) == 2
    assert {description for description, _, _ in reports} == {"QAT epoch 1/3"}
    assert all(torch.isfinite(value).all() for value in weights(last).values())
    assert (tmp_path / "run" / "best.safetensors").is_file()


def test_batchnorm_kept_until_the_end(
    model: QuantizedModel, unfolded: DetectionModel, demo: Dataset, tmp_path: Path
) -> None:
    section = QatSection(epochs=2, batch=4, lr0=1e-4, loss="detection", bn="freeze", bn_freeze_epochs=1)
    network = copy.deepcopy(unfolded)
    train_qat(
        model, None, ultralytics_data(demo), tmp_path / "run", ModelSection(imgsz=64), section, {},
        lambda *_: None, unfolded_network=network,
    )  # fmt: skip
    last = load_checkpoint(tmp_path / "run" / "last.safetensors")
    before = {name: value for name, value in model.network.state_dict().items() if "quantizer" not in name}
    assert weights(last).keys() == before.keys()  # folded like any other checkpoint
    assert all(torch.isfinite(value).all() for value in weights(last).values())
    assert last.quantized is not None
    assert last.quantized.placement == model.placement
    statistics = {name: value for name, value in unfolded.state_dict().items() if "running_mean" in name}
    moved = network.state_dict()
    assert all(not torch.equal(value, moved[name]) for name, value in statistics.items())  # in the first epoch


def test_progressive_by_sensitivity_switches_the_least_costly_on_first(
    detector: LoadedModel, demo_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[Sequence[str]] = []
    original = ProgressiveQuantization.__init__

    def spy(self: ProgressiveQuantization, model: QuantizedModel, order: Sequence[str], end: float) -> None:
        orders.append(order)
        original(self, model, order, end)

    monkeypatch.setattr(ProgressiveQuantization, "__init__", spy)
    source = save_checkpoint(tmp_path / "fp32.safetensors", detector, "fp32", 64, {}).path
    overrides = ["model.imgsz=64", "qat.progressive=sensitivity", "qat.epochs=1", "qat.batch=4", "sensitivity.images=2"]
    config = Config.load(overrides=[*overrides, f"data.calibration_cache={tmp_path / 'calib'}"])
    pipeline.qat(source, demo_yaml, tmp_path / "run", config)
    layers = json.loads((tmp_path / "run" / "sensitivity.json").read_text())["layers"]
    costs = {layer["group"]: layer["error"] for layer in layers}
    (order,) = orders
    assert [costs[name] for name in order] == sorted(costs.values())


def few_real_images(shared_data: Path, folder: Path, count: int) -> Dataset:
    """A copy of the first validation images, as train and val (labels are found beside the images)."""
    source = shared_data / "data" / "vnsigns"
    for kind, suffix in (("images", "*.jpg"), ("labels", "*.txt")):
        target = folder / kind / "val"
        target.mkdir(parents=True)
        for file in sorted((source / kind / "val").glob(suffix))[:count]:
            (target / file.name).write_bytes(file.read_bytes())
    names = load_dataset(source / "data.yaml").names
    lines = [f"path: {folder}", "train: images/val", "val: images/val", "names:"]
    lines += [f"  {index}: {name}" for index, name in names.items()]
    (folder / "data.yaml").write_text("\n".join(lines) + "\n")
    return load_dataset(folder / "data.yaml")


def test_fp32_training(
    make_unfolded: Callable[..., DetectionModel], demo: Dataset, tmp_path: Path, detector: LoadedModel
) -> None:
    network = make_unfolded("yolov8n.yaml", demo.names)
    section = TrainSection(epochs=1, batch=6, optimizer="SGD")
    best = train_fp32(network, ultralytics_data(demo), tmp_path / "run", ModelSection(imgsz=64), section)
    assert best == tmp_path / "run" / "weights" / "best.pt"
    model = load_model(best)
    assert model.names == demo.names
    name = "model.0.conv.weight"
    assert not torch.equal(model.network.state_dict()[name], detector.network.state_dict()[name])
