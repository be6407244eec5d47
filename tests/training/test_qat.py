"""QAT through Ultralytics' own loop: what it writes, what it must not touch, and that it can be repeated."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Reports, finetune, weights
from torch import Tensor

from trt_qat import api, pipeline
from trt_qat.checkpoint import Model, load
from trt_qat.config import Config, QatLoss, QatSection, SensitivitySection
from trt_qat.data.dataset import Dataset
from trt_qat.errors import QuantizationError
from trt_qat.report.training_curves import training_record
from trt_qat.training.features.progressive import ProgressiveQuantization
from trt_qat.training.qat import QATTrainer
from trt_qat.vision.image import read_image_bgr
from trt_qat.vision.letterbox import network_input


@pytest.fixture(scope="module")
def trained(
    int8: Model, demo: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Model, list[tuple[str, int, int]], bool]:
    """One epoch; the last entry says whether the model that was handed in is as it was."""
    out = tmp_path_factory.mktemp("qat") / "run"
    before = {name: value.clone() for name, value in int8.network.state_dict().items()}
    reports = Reports()
    model = finetune(int8, demo, out, progress=reports)
    same = all(torch.equal(before[name], value) for name, value in int8.network.state_dict().items())
    return out, model, reports.steps, same and not int8.network.training


Trained = tuple[Path, Model, list[tuple[str, int, int]], bool]


def test_files(trained: Trained) -> None:
    out = trained[0]
    assert {"best.safetensors", "last.safetensors", "results.csv"} <= {path.name for path in out.iterdir()}
    assert [path.name for path in out.rglob("*.pt")] == ["resume.pt"]
    with (out / "results.csv").open() as stream:
        assert len(list(csv.reader(stream))) == 2  # header and one epoch


def test_weights_moved_and_stayed_finite(trained: Trained, int8: Model) -> None:
    before = weights(int8)
    after = weights(trained[1])
    assert before.keys() == after.keys()
    assert all(torch.isfinite(value).all() for value in after.values())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {f"{name}.weight" for name in int8.require_quantized().weight_quantizers()} <= changed
    assert not any("dfl" in name for name in changed)


def test_activation_ranges_stay_calibrated(trained: Trained, int8: Model) -> None:
    quantized, start = trained[1].require_quantized(), int8.require_quantized()
    assert quantized.placement == start.placement
    for name, amax in start.amax().items():
        if name.startswith("activation."):
            assert torch.equal(quantized.amax()[name], amax)


def test_handed_in_model_is_untouched(trained: Trained) -> None:
    assert trained[3]


def test_best_is_not_worse_than_the_start(trained: Trained) -> None:
    out, last, _, _ = trained
    best = load(out / "best.safetensors")
    assert last.stage == best.stage == "qat"
    assert last.provenance["training"]["epoch"] == 1
    fitness = [entry.provenance["training"]["fake_quant_map50_95"] for entry in (best, last)]
    assert fitness[0] >= fitness[1]
    assert best.provenance["seed"] == 0


def test_progress_is_reported(trained: Trained) -> None:
    assert trained[2] == [("QAT epoch 1/1", done, 3) for done in (1, 2, 3)]


@pytest.mark.parametrize(
    ("name", "imgsz"),
    [pytest.param("int8", (64, 64), marks=pytest.mark.slow), ("tiny_int8", (32, 64)), ("tiny_int8", (96, 64))],
)
def test_trains_on_the_images_as_calibration_saw_them(
    name: str,
    imgsz: tuple[int, int],
    request: pytest.FixtureRequest,
    demo: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    int8 = replace(request.getfixturevalue(name), imgsz=imgsz)
    seen: dict[str, Tensor] = {}
    preprocess = QATTrainer.preprocess_batch

    def spy(trainer: QATTrainer, batch: dict[str, Any]) -> Any:
        content = preprocess(trainer, batch)
        seen.update(zip(content["im_file"], content["img"], strict=True))
        return content

    monkeypatch.setattr(QATTrainer, "preprocess_batch", spy)
    assert finetune(int8, demo, tmp_path / "plain").imgsz == imgsz
    assert set(demo.train) <= set(map(Path, seen))  # validation goes through the same function
    for file, image in seen.items():
        assert torch.equal(image, torch.from_numpy(network_input(read_image_bgr(Path(file)), imgsz)[0][0])), file
    plain = dict(seen)
    finetune(int8, demo, tmp_path / "moved", translate=0.2)
    assert not any(torch.equal(seen[str(file)], plain[str(file)]) for file in demo.train)


def test_same_seed_same_weights(trained: Trained, int8: Model, demo: Dataset, tmp_path: Path) -> None:
    again = weights(finetune(int8, demo, tmp_path / "again"))
    assert all(torch.equal(value, again[name]) for name, value in weights(trained[1]).items())


@pytest.mark.parametrize("loss", ["detection", "both"])
def test_other_losses_train(trained: Trained, int8: Model, demo: Dataset, tmp_path: Path, loss: QatLoss) -> None:
    tuned = finetune(int8, replace(demo, labelled_by="model"), tmp_path / loss, loss, fraction=0.34)
    other = weights(tuned)
    assert all(torch.isfinite(value).all() for value in other.values())
    name = "model.0.conv.weight"
    assert not torch.equal(other[name], weights(trained[1])[name])
    assert not torch.equal(other[name], int8.network.state_dict()[name])
    _check_agreement(tmp_path / loss, tuned.provenance["training"])


def _check_agreement(out: Path, kept: dict[str, Any]) -> None:
    """The labels were a model's: neither table nor checkpoint speaks of mAP, and the report reads both."""
    assert kept.keys() == {"measure", "epoch", "fake_quant_agreement50_95", "start_fake_quant_agreement50_95"}
    table = (out / "results.csv").read_text()
    assert "metrics/agreement50(B),metrics/agreement50-95(B)" in table
    assert "mAP" not in table
    read = training_record(out, QatSection(epochs=1), 4, kept, "agreement")
    start, end = (entry.map50_95 for entry in read.epochs)
    assert (start, end) == (
        kept["start_fake_quant_agreement50_95"],
        pytest.approx(kept["fake_quant_agreement50_95"], rel=1e-4),
    )


def test_ranges_learn_and_zero_points_stay(tiny_asymmetric: Model, demo: Dataset, tmp_path: Path) -> None:
    tuned = finetune(tiny_asymmetric, demo, tmp_path / "run", lsq=True, bn="freeze", monitor=False)
    before, after = tiny_asymmetric.require_quantized().grids(), tuned.require_quantized().grids()
    assert {name: grid.zero_point for name, grid in after.items()} == {n: g.zero_point for n, g in before.items()}
    assert all(after[name].amax != grid.amax for name, grid in before.items())
    assert tuned.require_quantized().placement == tiny_asymmetric.require_quantized().placement


@pytest.mark.slow
def test_a_ruinous_epoch_keeps_the_calibrated_network(demo_int8: Model, demo_set: Path, tmp_path: Path) -> None:
    """With a learning rate that destroys the network, ``best`` is epoch 0: the calibrated weights themselves."""
    ruin: dict[str, Any] = {"epochs": 1, "lr0": 1.0, "optimizer": "SGD", "warmup_epochs": 0, "loss": "detection"}
    best = api.finetune(demo_int8, demo_set, tmp_path / "run", **ruin)
    start = best.provenance["training"]
    assert start["epoch"] == 0
    assert start["fake_quant_map50_95"] > 0.5
    last = load(tmp_path / "run" / "last.safetensors").provenance["training"]
    assert last["epoch"] == 1
    assert last["fake_quant_map50_95"] < 0.1
    for name, value in weights(best).items():
        assert torch.equal(value, demo_int8.network.state_dict()[name])


@pytest.mark.slow  # tests/test_api.py compares the mAP of a tuned and exported detector with that of the float one
def test_a_gentle_epoch_keeps_what_the_detector_can(demo_int8: Model, demo_set: Path, tmp_path: Path) -> None:
    api.finetune(demo_int8, demo_set, tmp_path / "run", epochs=1)
    last, before = load(tmp_path / "run" / "last.safetensors"), weights(demo_int8)
    assert last.provenance["training"]["fake_quant_map50_95"] > 0.5
    assert any(not torch.equal(value, before[name]) for name, value in weights(last).items())


def test_a_float_model_is_refused(detector: Model, demo: Dataset, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="is a float model"):
        finetune(detector, demo, tmp_path / "run")


def test_a_step_that_is_not_finite_is_left_out_and_ends_the_run(
    int8: Model,
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
    reports = Reports()
    last = finetune(int8, demo, tmp_path / "run", progress=reports, epochs=3)
    assert "the gradient of step 1 is not finite" in caplog.text
    assert len(steps) == 2
    assert {description for description, _, _ in reports.steps} == {"QAT epoch 1/3"}
    assert all(torch.isfinite(value).all() for value in weights(last).values())
    assert (tmp_path / "run" / "best.safetensors").is_file()


@pytest.mark.slow
def test_progressive_by_sensitivity_switches_the_least_costly_on_first(
    int8: Model, demo: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[Sequence[str]] = []
    original = ProgressiveQuantization.__init__

    def spy(self: ProgressiveQuantization, order: Sequence[str], end: float) -> None:
        orders.append(order)
        original(self, order, end)

    monkeypatch.setattr(ProgressiveQuantization, "__init__", spy)
    few = SensitivitySection(images=2)
    api.finetune(int8, demo, tmp_path / "run", ranking=few, progressive="sensitivity", epochs=1, batch=4)
    costs = {row.group: row.error for row in api.sensitivity(int8, demo, few).rows}
    (order,) = orders
    assert [costs[name] for name in order] == sorted(costs.values())


def test_a_learned_range_has_no_column(int8: Model, demo: Dataset, tmp_path: Path) -> None:
    finetune(int8, demo, tmp_path / "run", lsq=True, dampening=0.1, fraction=0.34)
    with (tmp_path / "run" / "results.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert [name for name in row if name.startswith("lr/")] == ["lr/pg0", "lr/pg1", "lr/pg2"]
    assert float(row["train/dampening"]) >= 0
    assert row["val/dampening"] == "nan"


def test_float_weights_are_calibrated_first(unfolded_pt: Path, demo_yaml: Path, tmp_path: Path) -> None:
    settings = ["qat.epochs=1", "qat.batch=4", "qat.lr0=1e-4", "quantization.calibrator=max"]
    config = Config.load(overrides=[*settings, f"data.calibration_cache={tmp_path / 'calib'}"])
    pipeline.qat(unfolded_pt, demo_yaml, tmp_path / "run", config)
    assert load(tmp_path / "run" / "best.safetensors").provenance["calibration"]["calibrator"] == "max"
    assert list((tmp_path / "calib").iterdir())
