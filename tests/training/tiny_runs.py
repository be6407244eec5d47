"""QAT of a tiny detector in seconds, and what tests look at afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from trt_qat.checkpoint import Model, load
from trt_qat.config import QatLoss, QatSection
from trt_qat.data.dataset import Dataset
from trt_qat.progress import SILENT, Progress
from trt_qat.training.qat import train_qat

Item = TypeVar("Item")


class Reports:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []
        self.loops: list[str] = []

    def over(self, items: Sequence[Item], description: str) -> Iterable[Item]:
        self.loops.append(description)
        return items

    def step(self, description: str, done: int, total: int, detail: str = "") -> None:
        self.steps.append((description, done, total))

    def note(self, line: str) -> None:
        pass


def finetune(
    model: Model, data: Dataset, out: Path, loss: QatLoss = "distill", progress: Progress = SILENT, **keys: Any
) -> Model:
    """The last epoch's model."""
    section = QatSection.model_validate({"epochs": 1, "batch": 4, "lr0": 1e-3, "loss": loss, **keys})
    artifact = train_qat(model, data, out, section, {"seed": section.seed}, progress)
    assert artifact.path == out / "best.safetensors"
    return load(out / "last.safetensors")


def weights(model: Model) -> dict[str, Tensor]:
    """Every weight and statistic, quantizers apart."""
    return {name: value for name, value in model.network.state_dict().items() if "quantizer" not in name}


def statistics(network: nn.Module) -> dict[str, Tensor]:
    """A copy of every BatchNorm's running mean and variance."""
    return {name: value.clone() for name, value in network.state_dict().items() if "running_" in name}
