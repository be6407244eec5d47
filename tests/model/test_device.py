"""Which device a setting means, and one clear line where it is not here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner
from fake_cuda import CUDA, devices, fake_cuda
from torch import nn

from trt_qat import api, distributed
from trt_qat.cli import cli
from trt_qat.config import Config
from trt_qat.errors import ConfigError
from trt_qat.model.device import CPU, computing_on, torch_device
from trt_qat.training.detection_trainer import common_overrides

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model

Gpus = Callable[[int], None]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    """So many GPUs are here."""

    def are(count: int, cuda: str | None = "13.0") -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
        monkeypatch.setattr(torch.version, "cuda", cuda)

    return are


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("auto", "auto"),
        ("cpu", "cpu"),
        ("cuda", "cuda"),
        ("cuda:1", "cuda:1"),
        ("0", "cuda:0"),
        ("1", "cuda:1"),
        ("CUDA:1", "cuda:1"),
    ],
)
def test_what_may_be_typed(typed: str, meant: str) -> None:
    assert Config.load(overrides=[f"model.device={typed}"]).model.device == meant


@pytest.mark.parametrize("typed", ["gpu", "cuda:", "cuda:x", "-1", "1.5", "true", "mps", "cuda:0,1", "[0, 1]"])
def test_what_may_not(typed: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.device") as refused:
        Config.load(overrides=[f"model.device={typed}"])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("count", "wanted", "found"),
    [
        (0, "auto", "cpu"),
        (0, "cpu", "cpu"),
        (2, "auto", "cuda:0"),
        (2, "cuda", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
        (2, "cpu", "cpu"),
    ],
)
def test_which_device_it_is(gpus: Gpus, count: int, wanted: str, found: str) -> None:
    gpus(count)
    assert torch_device(wanted) == torch.device(found)


def test_what_is_not_here_is_said_with_what_is(gpus: Gpus) -> None:
    gpus(2)
    with pytest.raises(ConfigError) as missing:
        torch_device("cuda:2")
    assert str(missing.value) == (
        "model.device = 'cuda:2': there is no cuda:2, only cpu, cuda:0 (Card 0), cuda:1 (Card 1). "
        "Set model.device=cpu or auto."
    )
    gpus(0)
    with pytest.raises(ConfigError, match=r"PyTorch .* \(CUDA 13.0\) finds no GPU here, only cpu"):
        torch_device("cuda")
    gpus(0, None)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="is built without CUDA and has cpu alone"):
        torch_device("cuda")
    with pytest.raises(ConfigError, match="must be auto, cpu, cuda or cuda:N"):
        torch_device("gpu")


def test_each_process_takes_the_gpu_of_its_number(gpus: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(2)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "local_rank", lambda: 1)
    assert torch_device("auto") == torch_device("cuda") == torch.device("cuda", 1)
    assert torch_device("cpu") == CPU
    with pytest.raises(ConfigError, match="'cuda:1' is one GPU for 2 processes"):
        torch_device("cuda:1")
    monkeypatch.setattr(distributed, "local_rank", lambda: 2)
    with pytest.raises(ConfigError, match="there is no cuda:2"):
        torch_device("auto")


def test_a_network_goes_back_to_where_it_was() -> None:
    network = nn.Conv2d(1, 1, 1)
    seen: set[torch.device] = set()

    def fail() -> None:
        with computing_on(network, CUDA):
            seen.update(devices(network))
            raise ValueError("of the work there")

    with fake_cuda():
        with pytest.raises(ValueError, match="of the work there"):
            fail()
        assert (seen, devices(network)) == ({CUDA}, {CPU})


@pytest.mark.parametrize(("device", "argument"), [("cpu", "cpu"), ("cuda:0", "0"), ("cuda:3", "3")])
def test_what_ultralytics_is_told(device: str, argument: str, tmp_path: Path) -> None:
    assert common_overrides(tmp_path, 1, 1, 0, torch.device(device))["device"] == argument


@pytest.mark.parametrize("verb", ["train", "quantize", "sensitivity", "finetune", "export", "evaluate"])
def test_every_verb_refuses_a_device_that_is_not_here(
    verb: str, gpus: Gpus, demo_detector: Model, tmp_path: Path
) -> None:
    gpus(0)
    calls: dict[str, Callable[[], Any]] = {
        "train": lambda: api.train(demo_detector, "missing.yaml", tmp_path, device="cuda:1"),
        "quantize": lambda: api.quantize(demo_detector, "missing.yaml", device="cuda:1"),
        "sensitivity": lambda: api.sensitivity(demo_detector, "missing.yaml", device="cuda:1"),
        "finetune": lambda: api.finetune(demo_detector, "missing.yaml", tmp_path, device="cuda:1"),
        "export": lambda: api.export(demo_detector, tmp_path / "x.onnx", device="cuda:1"),
        "evaluate": lambda: api.evaluate([demo_detector], "missing.yaml", device="cuda:1"),
    }
    with pytest.raises(ConfigError, match=r"^model\.device = 'cuda:1': "):
        calls[verb]()


def test_the_command_line_says_it_in_one_line(gpus: Gpus, demo_yaml: Path) -> None:
    gpus(0)
    weights = Path(api.__file__).parent / "demo" / "detector.safetensors"
    done = CliRunner().invoke(
        cli, ["evaluate", str(weights), "--data", str(demo_yaml), "--set", "model.device=1"], catch_exceptions=False
    )
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: model.device = 'cuda:1': ")
    assert done.stderr.count("\n") == 1


def test_the_device_decides_no_result() -> None:
    there, here = Config.load(overrides=["model.device=cuda:1"]), Config()
    assert there != here
    assert there.deciding() == here.deciding()
    assert "device" not in here.deciding()["model"]
    assert Config.load(overrides=["model.imgsz=320"]).deciding() != here.deciding()
