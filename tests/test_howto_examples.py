"""The how-tos about extending the package: each page's module is installed as the page says, and used as it says."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from PIL import Image
from tiny_onnx import write_tiny_detector

from trt_qat import registry
from trt_qat.config import Config
from trt_qat.errors import ConfigError
from trt_qat.provenance import package_versions

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model

HOWTO = Path(__file__).resolve().parents[1] / "docs" / "howto"
Installed = Callable[[str], list[str]]


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (HOWTO / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    """Put a page's package where pip would, and read the registry anew; gives the page's further Python blocks."""
    rows = {kind: dict(table.rows) for kind, table in registry.KINDS.items()}
    modules = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def installed(page: str) -> list[str]:
        (project,) = _blocks(page, "toml")
        module, *uses = _blocks(page, "python")
        group, points = re.search(r'\[project\.entry-points\."([\w.]+)"\]\n((?:.+\n)+)', project).groups()
        (name,) = re.findall(r'^name = "(.+)"$', project, re.MULTILINE)
        (file,) = re.findall(r'^py-modules = \["(\w+)"\]$', project, re.MULTILINE)
        Path(f"{file}.py").write_text(module, "utf-8")
        about = Path(f"{name.replace('-', '_')}-1.0.dist-info")
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[{group}]\n{points.replace(chr(34), '')}")
        registry.add_rows_of_others_()
        assert package_versions()[name] == "1.0"
        return uses

    yield installed
    for kind, table in registry.KINDS.items():
        table.rows.clear()
        table.rows.update(rows[kind])
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def _run(source: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(source, "how-to", "exec"), names)
    return names


@pytest.fixture(scope="module")
def tiny() -> Model:
    """A detector of three layers, BatchNorm folded."""
    import torch
    from tiny_network import NAMES, tiny_network

    from trt_qat.checkpoint import Model
    from trt_qat.model.loading import fold_batchnorm

    network = fold_batchnorm(tiny_network().eval())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d) and module.bias is not None:
                torch.nn.init.kaiming_normal_(module.weight)
                torch.nn.init.zeros_(module.bias)  # else each score is nearly its bias
    return Model(network, NAMES, (64, 64), Path("tiny.yaml"))


def test_a_calibrator(install: Installed, tiny: Model, capsys: pytest.CaptureFixture[str]) -> None:
    from trt_qat.checkpoint import save
    from trt_qat.quantization.histogram import ActivationHistogram

    (use,) = install("custom-calibrator.md")
    calibrator = registry.CALIBRATORS.load("energy")(lost=0.5)
    for near, expected in ((8, 3.6), (80, 1.0)):  # energies: a quarter of each that is near, and 12.25
        counts = np.array([near, 0.0, 0.0, 1.0])
        assert calibrator.amax(ActivationHistogram(counts, limit=4.0, maximum=3.6)) == expected
    save(Path("best.safetensors"), tiny)
    for split in ("train", "val"):
        Path("images", split).mkdir(parents=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(f"images/{split}/0.png")
    Path("data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {tiny.names}\n", "utf-8")
    int8 = _run(use)["int8"]
    assert "'calibrator': 'energy'" in capsys.readouterr().out
    assert int8.provenance["calibration"]["lost"] == 1e-5


def test_a_callback(install: Installed, tiny: Model, tmp_path: Path) -> None:
    from trt_qat.config import QatSection
    from trt_qat.training.features.base import Epoch, Start
    from trt_qat.training.features.choose import features_from_section

    (use,) = install("custom-callback.md")
    section = _run(use)["section"]
    assert section == QatSection(features=("patience",))
    assert section == Config.load(overrides=["qat.features=patience"]).qat
    plain = section.replace(loss="detection", lsq=False)  # the others of these need no calibrated network
    names = [feature.name for feature in features_from_section(plain, Start(tiny, tmp_path))]
    assert names == ["learning_rate", "patience", "monitor"]

    def made() -> Any:
        return features_from_section(plain, Start(tiny, tmp_path))[1]

    patience, again = made(), made()
    ends = [patience.after_epoch(Epoch(n, None, value, 0.4)) for n, value in enumerate((0.3, 0.4, 0.4, 0.2), start=1)]  # type: ignore[arg-type]
    assert ends == [False, False, False, True]
    assert (tmp_path / "epochs.jsonl").read_text().splitlines()[1] == '{"epoch": 2, "mAP": 0.4}'
    again.load_state(patience.state(), 4)
    assert again.state() == {"best": 0.4, "waited": 2}


def test_a_target(install: Installed, tiny: Model) -> None:
    from trt_qat.checkpoint import save

    (use,) = install("custom-target.md")
    save(Path("best.safetensors"), tiny)
    _run(use)  # ONNX Runtime has computed the file right, or it would not be there
    graph = onnx.load("camera.onnx").graph
    assert [(entry.name, entry.type.tensor_type.elem_type) for entry in graph.input] == [
        ("pixels", onnx.TensorProto.UINT8)
    ]
    assert graph.node[0].name == "bytes/rgb"


def test_a_runtime(install: Installed, capsys: pytest.CaptureFixture[str]) -> None:
    from trt_qat.runtime.runner import Runner
    from trt_qat.runtime.selection import open_runner, runtimes_for

    (use,) = install("custom-runtime.md")
    file = write_tiny_detector(Path("signs.onnx"))
    _run(use)
    assert capsys.readouterr().out == "0\n"
    assert runtimes_for(file) == ["openvino", "onnxruntime", "reference"]
    batch = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    with open_runner(file, "reference") as reference, open_runner(file, "onnxruntime") as fast:
        assert isinstance(reference, Runner)
        np.testing.assert_allclose(reference.infer(batch)[0], fast.infer(batch)[0], atol=1e-5)


def test_no_package_takes_the_place_of_a_row_of_ours(install: Installed) -> None:
    before = dict(registry.CALIBRATORS.rows)
    install("custom-calibrator.md")
    points = next(Path().glob("*.dist-info")) / "entry_points.txt"
    points.write_text("[trt_qat.calibrators]\nmse = energy_range:Energy\ngone = energy_range:Gone\n")
    registry.CALIBRATORS.rows.pop("energy")
    registry.add_rows_of_others_()
    assert registry.CALIBRATORS.rows == {**before, "gone": "energy_range:Gone"}
    with pytest.raises(
        ConfigError, match=r"^The calibrator 'gone' is 'energy_range:Gone' of another package, .*has no"
    ):
        registry.CALIBRATORS.load("gone")


def test_a_feature_that_nobody_brings() -> None:
    with pytest.raises(ConfigError, match=r"qat\.features = .*unknown QAT feature\. None is installed\.$"):
        Config.load(overrides=["qat.features=[patience]"])
