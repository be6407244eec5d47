"""The command, its JSON, its page and its drawing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from tiny_onnx import write_tiny_detector

from trt_qat.cli import cli
from trt_qat.engine import report
from trt_qat.engine.compiled import CompiledEngine, Kernel
from trt_qat.engine.compiler_log import engine_from_log
from trt_qat.engine.picture import drawing, write_html, write_svg
from trt_qat.engine.report import Inspected, estimate_table, kernel_cells, layer_cells, notes, size_cells
from trt_qat.engine.roofline import GPUS, estimate

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


@pytest.fixture
def read(recorded: Callable[[str], str]) -> Callable[..., Inspected]:
    def make(name: str, *gpus: str) -> Inspected:
        engine = engine_from_log(recorded(name), version="1.7.1.116", sm=89, source=f"runs/{name}.onnx")
        return Inspected(engine, tuple(estimate(engine, gpu) for gpu in gpus), None)

    return make


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["inspect", *map(str, arguments)])


def test_the_command_writes_everything(tmp_path: Path) -> None:
    first, second = (write_tiny_detector(tmp_path / f"{name}.onnx") for name in ("first", "second"))
    out = {name: tmp_path / f"out.{name}" for name in ("json", "html", "svg")}
    options = ("--against", second, "--layers", "--gpu", "rtx3060", "--gpu", "agx-orin", "--launch-us", "1")
    done = run(first, *options, *(part for name, path in out.items() for part in (f"--{name}", path)))
    assert done.exit_code == 0, done.output
    rows = json.loads(out["json"].read_text())
    assert [Path(row["source"]).name for row in rows] == ["first.onnx", "second.onnx"]
    for row in rows:
        assert row["kernels"] == len(row["layers"]) > 0
        assert [(one["gpu"], one["what"]) for one in row["estimates"]] == [
            ("rtx3060", "estimate"),
            ("agx-orin", "lower bound"),
        ]
        assert row["estimates"][0]["launch_us"] == 1
        assert row["lint"]["seen"] <= row["lint"]["findings"]
    assert re.search(r"lint: \d+ of \d+ findings seen in the engine", done.output)
    assert "GeForce RTX 3060 12 GB: estimated from the kernels for SM 89" in done.output
    assert "Nothing more can be said here" in done.output
    assert rows[0]["layers"][0]["name"] in done.output
    assert out["html"].read_text().startswith("<!DOCTYPE html>")
    ElementTree.parse(out["svg"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x.onnx", "--gpu", "rtx9090"), "Unknown GPU 'rtx9090'"),
        (("none.onnx",), "does not exist"),
        (("x.onnx", "--sm", "90"), "SM 90 is unknown"),
        (("x.onnx", "--html", "page.txt"), "page.txt"),
        (("x.onnx", "--svg", "x.onnx"), "is a file that this command reads"),
        (("x.plan",), "No NVIDIA GPU found: .*Inspect the [*].onnx instead"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trt_qat.engine.inspect.gpu_names", tuple)
    write_tiny_detector(Path("x.onnx"))
    Path("x.plan").write_bytes(b"plan")
    done = run(*arguments)
    assert done.exit_code == 1
    assert re.search(f"^Error: .*{message}.*$", done.output, flags=re.MULTILINE)


def test_cards_by_default_are_those_of_the_compute_capability() -> None:
    for sm, cards in ((86, {"rtx3060", "rtxa2000"}), (89, {"rtx4060", "rtx4090"}), (120, {"rtx5090"}), (75, set())):
        assert {gpu.name for gpu in report._default_gpus(sm)} == cards | {"orin-nx"}


def test_cells(read: Callable[..., Inspected]) -> None:
    entry = read("yolov8n_320_int8_fp16")
    assert kernel_cells(entry) == (
        "yolov8n_320_int8_fp16.onnx",
        "133",
        "55 Int8->Float, 8 Half->Half, 1 Float->Float",
        "bias 8",
        "62",
        "4",
        "0",
        "0",
    )
    assert size_cells(entry) == ("yolov8n_320_int8_fp16.onnx", "42.9", "3.2", "0.00", "1.015")
    (row,) = [row for row in layer_cells(entry.engine) if row[0] == "/model.1/conv/Conv_myl0_7"]
    assert row[1:4] == ("convolution", "", "model.1.conv")
    assert row[4].startswith("/model.1/conv/Conv /model.1/conv/input_quantizer/DequantizeLinear")
    assert row[5:] == ("Int8", "Float", "1x32x80x80", "1228.8", "4.9", "29.49")
    unfused = replace(entry, engine=replace(entry.engine, kernels=entry.engine.kernels[:3]))
    assert kernel_cells(unfused)[3] == "nothing"


def test_estimates_are_called_so_and_bounds_too(read: Callable[..., Inspected]) -> None:
    entries = [read(name, "rtx4090", "orin-nano") for name in ("yolov8n_320_int8_fp16", "yolov8n_320_fp16")]
    header, rows = estimate_table(entries)
    assert header[:2] == ("estimate, not measured", "from")
    assert rows[0][:2] == ("GeForce RTX 4090", "TensorRT-RTX kernels")
    assert rows[1][:2] == ("Jetson Orin Nano 8 GB", "TensorRT: lower bound")
    assert all(float(cell) > 0 for cell in rows[0][2:])
    assert all(cell.startswith("at least ") for cell in rows[1][2:])
    said = "\n".join((*notes(entries, 89), *header, *(cell for row in rows for cell in row)))
    assert "published peaks" in said
    assert "assumed" in said
    assert not re.search(r"latency|measured(?<!not measured)", said)


def test_names_only(tmp_path: Path) -> None:
    engine = CompiledEngine("x.plan", "tensorrt", "10.0", None, (Kernel("conv <1>", "", (), (), (), (), 0),), 7)
    entry = Inspected(engine, (), None)
    assert kernel_cells(entry)[:3] == ("x.plan", "1", "names only")
    assert size_cells(entry)[1:] == ("?", "?", "0.00", "?")
    write_html([entry], 89, tmp_path / "x.html")
    assert "conv &lt;1&gt;" in (tmp_path / "x.html").read_text()


def test_the_drawing_has_a_bar_per_kernel_on_one_scale(read: Callable[..., Inspected], tmp_path: Path) -> None:
    entries = [read(name, "orin-nx", "rtx4060") for name in ("yolov8n_320_int8_fp16", "yolov8n_320_fp32")]
    write_svg(entries, tmp_path / "x.svg")
    root = ElementTree.parse(tmp_path / "x.svg").getroot()
    space = {"svg": "http://www.w3.org/2000/svg"}
    groups = root.findall("svg:g", space)
    assert len(groups) == 133 + 92
    thick = [float(group.findall("svg:rect", space)[0].attrib["width"]) for group in groups]
    thin = [float(group.findall("svg:rect", space)[1].attrib["width"]) for group in groups]
    moved = [one.activation_bytes + one.weight_bytes for entry in entries for one in entry.engine.kernels]
    assert max(thick) == max(thin) == 210
    assert thick == pytest.approx([210 * count / max(moved) for count in moved], abs=0.06)
    titles = [group.findtext("svg:title", "", space) for group in groups]
    assert "in: Int8 1x16x160x160" in titles[3]
    assert re.search(r"estimated [\d.]+ us", titles[3])
    classes = [group.findall("svg:rect", space)[0].attrib["class"] for group in groups]
    assert classes[:133].count("int8") == 55
    assert sum("fused" in name for name in classes) == 57
    assert "estimated for GeForce RTX 4060" in (tmp_path / "x.svg").read_text()


def test_the_page_loads_nothing_and_knows_dark(read: Callable[..., Inspected], tmp_path: Path) -> None:
    entry = read("yolov8n_320_fp16", "rtx4060")
    odd = replace(entry.engine, source="<script>alert(1)</script>.onnx")
    write_html([replace(entry, engine=odd)], 89, tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in page
    assert "<script" not in page
    assert re.findall(r"https?://[^\"' ]+", page) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"@import|<link|<img|src=", page)


def test_an_empty_engine_is_drawn() -> None:
    engine = CompiledEngine("x.onnx", "tensorrt-rtx", "1.7.1", 89, ())
    ElementTree.fromstring(drawing([Inspected(engine, (estimate(engine, GPUS["rtx4060"]),), None)]))
