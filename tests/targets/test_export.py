"""Choosing a target, the names its files must have, and the gate that refuses what a client computes wrongly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from ultralytics.nn.backends.base import BaseBackend

from trt_qat.cli import cli
from trt_qat.config import ExportSection
from trt_qat.engine.onnx_file import onnx_metadata
from trt_qat.errors import ArtifactError, ConfigError, ExportError, MissingDependency
from trt_qat.model.loading import raw_output
from trt_qat.progress import SILENT
from trt_qat.registry import TARGETS
from trt_qat.targets import openvino, ultralytics
from trt_qat.targets.base import Arrays, Form, Target, all_targets
from trt_qat.targets.check import BOX_LIMIT, LOGIT_LIMIT, check_computed_right, difference, generated_images
from trt_qat.targets.export import export
from trt_qat.targets.onnx_file import compute_onnxruntime, write_unsigned

if TYPE_CHECKING:
    from conftest import Exported

    from trt_qat.checkpoint import Model

Invent = Callable[[Form], str]


@pytest.fixture
def invent(monkeypatch: pytest.MonkeyPatch) -> Invent:
    """A target of one's own: an object and a row of the table, nothing else."""

    def make(form: Form) -> str:
        module = "invented_target"
        target = Target("invented", "The client", "For this test.", "int8+fp32", {"onnx": form})
        monkeypatch.setitem(__import__("sys").modules, module, type("Module", (), {"TARGET": target}))
        monkeypatch.setitem(TARGETS.rows, "invented", f"{module}:TARGET")
        return "invented"

    return make


def copying(file: Path) -> Callable[[Model, Path, ExportSection], None]:
    """Writes what was exported before: the gate is met, not the exporter."""

    def write(model: Model, out: Path, section: ExportSection) -> None:
        del model, section
        shutil.copy(file, out)

    return write


# the gate ----------------------------------------------------------------------------------------------------------


def test_a_file_that_its_client_computes_wrongly_is_refused(
    exported: Exported, invent: Invent, demo_int8: Model, tmp_path: Path
) -> None:
    """Signed Q/DQ in plain OpenVINO: it loads, and detects nothing."""
    signed = exported(target="tensorrt", precision="int8+fp32")
    section = ExportSection(target=invent(Form(".onnx", copying(signed), openvino.compute)))
    wrongly = r"The client computes 'x\.onnx' wrongly at 320: class scores .* --no-check"
    with pytest.raises(ExportError, match=wrongly) as said:
        export(demo_int8, tmp_path / "x.onnx", section)
    assert "\n" not in str(said.value)
    assert not list(tmp_path.iterdir())
    assert export(demo_int8, tmp_path / "x.onnx", section.replace(check=False)).path.is_file()


def test_the_same_numbers_unsigned_pass(exported: Exported, invent: Invent, demo_int8: Model, tmp_path: Path) -> None:
    unsigned = exported(target="openvino")
    section = ExportSection(target=invent(Form(".onnx", copying(unsigned), openvino.compute)))
    assert export(demo_int8, tmp_path / "x.onnx", section).precision == "int8+fp32"


def test_a_file_that_its_client_does_not_load_is_refused(invent: Invent, demo_int8: Model, tmp_path: Path) -> None:
    def write(model: Model, out: Path, section: ExportSection) -> None:
        del model, section
        out.write_bytes(b"no ONNX at all")

    section = ExportSection(target=invent(Form(".onnx", write, compute_onnxruntime)))
    (tmp_path / "x.onnx").write_bytes(b"an earlier file")
    with pytest.raises(ExportError, match=r"The client does not run 'x\.onnx'") as said:
        export(demo_int8, tmp_path / "x.onnx", section)
    assert "\n" not in str(said.value)
    assert (tmp_path / "x.onnx").read_bytes() == b"an earlier file"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_client_that_is_not_installed_is_said(
    exported: Exported, invent: Invent, demo_int8: Model, tmp_path: Path
) -> None:
    def compute(file: Path, batches: Arrays) -> Arrays:
        raise MissingDependency("pip install client.")

    said: list[str] = []

    class Noting(type(SILENT)):  # type: ignore[misc]
        def note(self, line: str) -> None:
            said.append(line)

    section = ExportSection(target=invent(Form(".onnx", copying(exported(target="openvino")), compute)))
    assert export(demo_int8, tmp_path / "x.onnx", section, Noting()).path.is_file()
    assert said == ["'x.onnx' is not checked in The client: pip install client."]


@pytest.mark.parametrize("wrong", ["nan", "shape", "one box", "one class"])
def test_the_gate_sees(exported: Exported, demo_int8: Model, invent: Invent, wrong: str) -> None:
    def compute(file: Path, batches: Arrays) -> Arrays:
        outputs = compute_onnxruntime(file, batches)
        outputs[1] = {
            "nan": lambda found: np.full_like(found, np.nan),
            "shape": lambda found: found[:, :-1],
            "one box": lambda found: np.concatenate([found[:, :1] + 0.03 * demo_int8.imgsz[0], found[:, 1:]], axis=1),
            "one class": lambda found: np.concatenate([found[:, :4], found[:, 4:].clip(0, 1) ** 1.5], axis=1),
        }[wrong](outputs[1])
        return outputs

    section = ExportSection(target=invent(Form(".onnx", write_unsigned, compute)), precision="int8+fp32")
    with pytest.raises(ExportError, match="to shape" if wrong == "shape" else "wrongly"):
        check_computed_right(demo_int8, exported(target="openvino"), section, SILENT)


def test_images_of_the_caller_are_used(
    exported: Exported, demo_int8: Model, invent: Invent, pictures: list[NDArray[np.uint8]]
) -> None:
    seen: Arrays = []

    def compute(file: Path, batches: Arrays) -> Arrays:
        seen.extend(batches)
        return compute_onnxruntime(file, batches)

    section = ExportSection(target=invent(Form(".onnx", write_unsigned, compute)), precision="int8+fp32")
    check_computed_right(demo_int8, exported(target="openvino"), section, SILENT, pictures)
    assert [batch.shape for batch in seen] == [(1, 3, *demo_int8.imgsz)] * 2
    generated = generated_images(demo_int8.imgsz)
    assert len(generated) == 2
    assert all(np.array_equal(one, again) for one, again in zip(generated, generated_images((320, 320)), strict=True))


@pytest.mark.slow
def test_the_limits_lie_above_what_rounding_does(
    exported: Exported, demo_int8: Model, inputs: list[NDArray[np.float32]]
) -> None:
    """Right files reach at most half of each limit on real scenes."""
    import torch

    for image in inputs[:2]:
        network = raw_output(demo_int8.network, torch.from_numpy(image)).numpy()
        for found in (
            openvino.compute(exported(target="openvino"), [image])[0],
            compute_onnxruntime(exported(target="tensorrt"), [image])[0],
        ):
            off = difference(found, network, demo_int8.imgsz)
            assert off.logits <= LOGIT_LIMIT / 2
            assert off.boxes <= BOX_LIMIT / 2


def test_a_static_batch_is_checked_as_it_is(demo_int8: Model, tmp_path: Path) -> None:
    section = ExportSection(target="onnxruntime", batch=3)
    assert export(demo_int8, tmp_path / "x.onnx", section).path.is_file()


# precision and names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "precision"),
    [("tensorrt", "fp16"), ("openvino", "fp32")],
)
def test_float_models(demo_detector: Model, tmp_path: Path, target: str, precision: str) -> None:
    made = export(demo_detector, tmp_path / "x.onnx", ExportSection(target=target))
    assert made.precision == precision
    assert onnx_metadata(made.path)["precision"] == precision


@pytest.mark.parametrize(
    ("keys", "name", "error", "message"),
    [
        ({"target": "openvino", "format": "openvino"}, "x.onnx", ArtifactError, r"named \*_openvino_model, found"),
        ({"target": "openvino"}, "x_openvino_model", ArtifactError, r"named \*\.onnx, found"),
        ({"target": "ultralytics", "format": "engine"}, "x.plan", ArtifactError, r"named \*\.engine, found"),
        (
            {"format": "openvino"},
            "x_openvino_model",
            ConfigError,
            r"no format 'openvino'.* \(\*\.onnx\)",
        ),
        ({"target": "onnxruntime", "format": "engine"}, "x.engine", ConfigError, "has no format 'engine'"),
    ],
)
def test_names_are_checked_first(
    demo_int8: Model, tmp_path: Path, keys: dict[str, str], name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as said:
        export(demo_int8, tmp_path / name, ExportSection.model_validate(keys))
    assert "\n" not in str(said.value)
    assert not list(tmp_path.iterdir())


def test_an_openvino_folder_replaces_an_earlier_one_only(demo_int8: Model, tmp_path: Path) -> None:
    out, section = tmp_path / "x_openvino_model", ExportSection(target="openvino", format="openvino", check=False)
    out.mkdir()
    (out / "old.xml").write_text("<net/>", encoding="utf-8")
    export(demo_int8, out, section)
    assert {file.name for file in out.iterdir()} == {"x.xml", "x.bin", "metadata.yaml"}
    (out / "thesis.txt").write_text("unique", encoding="utf-8")
    with pytest.raises(ArtifactError, match="something else than an OpenVINO model"):
        export(demo_int8, out, section)
    assert (out / "thesis.txt").read_text(encoding="utf-8") == "unique"
    assert [file.name for file in tmp_path.iterdir()] == ["x_openvino_model"]


# Ultralytics' engine -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_engine_has_the_header_that_ultralytics_reads(demo_int8: Model, tmp_path: Path) -> None:
    section = ExportSection(target="ultralytics", format="engine", precision="int8+fp16", opset=19)
    ultralytics.write_engine(demo_int8, tmp_path / "x.engine", section, flavor="tensorrt-rtx")
    offset, metadata = BaseBackend.engine_header(tmp_path / "x.engine")
    assert (metadata["target"], metadata["precision"], metadata["task"]) == ("ultralytics", "int8+fp16", "detect")
    assert metadata["names"] == str(dict(demo_int8.names))
    assert (tmp_path / "x.engine").stat().st_size - offset > 1_000_000
    assert [file.name for file in tmp_path.iterdir()] == ["x.engine"]


def test_engine_without_tensorrt_or_with_a_dynamic_batch(demo_int8: Model, tmp_path: Path) -> None:
    section = ExportSection(target="ultralytics", format="engine")
    with pytest.raises(ConfigError, match=r"export\.batch=N"):
        export(demo_int8, tmp_path / "x.engine", section.replace(dynamic_batch=True))
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        with pytest.raises(MissingDependency, match="pip install tensorrt, on the machine with the GPU"):
            export(demo_int8, tmp_path / "x.engine", section)
    assert not list(tmp_path.iterdir())


# the command line --------------------------------------------------------------------------------------------------


def test_targets_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["targets", "--json", str(tmp_path / "t.json")], catch_exceptions=False)
    assert result.exit_code == 0
    rows = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in rows] == list(TARGETS.rows)
    assert all(row["name"] in result.output and row["summary"] in result.output for row in rows)
    assert rows[2]["formats"] == {"onnx": "*.onnx", "openvino": "*_openvino_model"}
    assert "slower than FP32" in next(row["summary"] for row in rows if row["name"] == "onnxruntime")


def test_every_row_is_the_target_of_its_name() -> None:
    assert [target.name for target in all_targets()] == list(TARGETS.rows)
    assert all(target.forms for target in all_targets())


def test_export_command(demo_int8: Model, tmp_path: Path) -> None:
    from trt_qat.checkpoint import save

    save(tmp_path / "d.safetensors", demo_int8)
    arguments = ["export", str(tmp_path / "d.safetensors"), "--target", "openvino", "--format", "openvino"]
    refused = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "d.onnx")])
    assert refused.exit_code == 1
    assert "must be named *_openvino_model" in refused.output
    out = tmp_path / "d_openvino_model"
    done = CliRunner().invoke(
        cli, [*arguments, "--no-check", "--out", str(out), "--json", str(tmp_path / "e.json")], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "e.json").read_text(encoding="utf-8")) == {
        "openvino": str(out),
        "precision": "int8+fp32",
        "target": "openvino",
    }
    assert (out / "d.xml").is_file()
