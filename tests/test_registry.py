"""What a name chooses: a new calibrator is one class and one row, and nothing else has to know of it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch
from click.testing import CliRunner

from trt_qat import api
from trt_qat.checkpoint import load, save
from trt_qat.cli import cli
from trt_qat.config import Config
from trt_qat.errors import ConfigError, MissingDependency
from trt_qat.quantization.calibration import Calibration
from trt_qat.quantization.calibrators.base import Calibrator, calibrator_from_section
from trt_qat.quantization.histogram import ActivationHistogram
from trt_qat.registry import CALIBRATORS, DEPLOYMENTS, RUNTIMES, TARGETS, Table, suggestion

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model
    from trt_qat.config import QuantizationSection
    from trt_qat.data.dataset import Dataset


@dataclass(frozen=True)
class Share(Calibrator):
    """A share of the largest value seen; takes the section's number of bins for its setting."""

    name: ClassVar[str] = "share"
    share: float = 0.5

    @classmethod
    def configured(cls, section: QuantizationSection) -> Share:
        return cls(section.histogram_bins / 512)

    def _amax(self, histogram: ActivationHistogram) -> float:
        return histogram.maximum * self.share


@pytest.fixture
def share(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only thing that a new calibrator needs beside its class."""
    monkeypatch.setitem(CALIBRATORS.rows, "share", f"{__name__}:Share")


@pytest.mark.usefixtures("share")
def test_a_new_calibrator_is_one_row(detector: Model, demo: Dataset, tmp_path: Path) -> None:
    section = Config.load(
        overrides=["quantization.calibrator=share", "quantization.histogram_bins=128", "quantization.images=3"]
    ).quantization
    assert calibrator_from_section(section) == Share(0.25)
    model = api.quantize(detector, demo, section)
    largest = api.quantize(detector, demo, section.replace(calibrator="max")).require_quantized().amax()
    for name, amax in model.require_quantized().amax().items():
        assert torch.equal(amax, largest[name] * (0.25 if name.startswith("activation.") else 1)), name
    again = load(save(tmp_path / "ptq.safetensors", model).path)
    assert again.provenance["calibration"]["calibrator"] == "share"
    assert Calibration.from_dict(again.provenance["calibration"]) == Calibration(Share(0.25))


@pytest.mark.usefixtures("share")
def test_a_new_calibrator_works_from_the_command_line(
    detector: Model, demo_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("fp32.safetensors"), detector)
    command = f"calibrate --weights fp32.safetensors --data {demo_yaml} --out ptq.safetensors --json said.json"
    chosen = ["--set", "quantization.calibrator=share", "--set", "quantization.images=2"]
    chosen += ["--set", "quantization.histogram_bins=128"]  # a quarter of the maximum
    result = CliRunner().invoke(cli, [*command.split(), *chosen])
    assert result.exit_code == 0, result.output
    assert json.loads(Path("said.json").read_text())["calibrator"] == "share"


def test_a_calibrator_without_a_row_is_unknown() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load(overrides=["quantization.calibrator=sharr"])
    known = "auto, entropy, max, mse, percentile"
    expected = f"quantization.calibrator = 'sharr': unknown calibrator. Known: {known}"
    assert str(caught.value) == f"Invalid configuration: {expected}."
    with pytest.raises(ConfigError, match=r"^Unknown calibrator 'percentil'\. Did you mean 'percentile'\?$"):
        CALIBRATORS.load("percentil")
    with pytest.raises(ConfigError, match=r"^Unknown calibrator 'auto'\. Known: entropy, max, mse, percentile\.$"):
        CALIBRATORS.check("auto")  # a choice among them


@pytest.mark.parametrize(
    ("table", "name"),
    [(table, name) for table in (CALIBRATORS, RUNTIMES, TARGETS, DEPLOYMENTS) for name in table.rows],
    ids=lambda value: value if isinstance(value, str) else value.what,
)
def test_every_row_leads_to_something_of_that_name(table: Table, name: str) -> None:
    try:
        found = table.load(name)
    except MissingDependency as exc:
        pytest.skip(str(exc))
    assert found.name == name
    module, _, attribute = table.rows[name].partition(":")
    assert found is getattr(importlib.import_module(module), attribute)


def test_tables_and_configuration_load_nothing_that_stands_behind_them() -> None:
    code = (
        "import sys\n"
        "from trt_qat.config import Config\n"
        "Config.load(overrides=['quantization.calibrator=mse', 'evaluation.runtime=openvino'])\n"
        "Config.load(overrides=['export.target=openvino'])\n"
        "print(sorted({'torch', 'onnx', 'openvino', 'onnxruntime', 'tensorrt', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_suggestions() -> None:
    assert suggestion("pct", ("mse", "max")) == "Known: max, mse."
    assert suggestion("maxx", ("mse", "max")) == "Did you mean 'max'?"
