"""The page: everything on it is what the record says, it is the same each time, small, and runs nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from example_page import example_page
from example_record import example_record
from hostile_page import hostile_page

from trt_qat.report.answer import answer, file_rows
from trt_qat.report.page import html_page
from trt_qat.report.pictures import jpeg_uri
from trt_qat.report.record import RunRecord, write_record

TAGS = (
    {"html", "head", "meta", "title", "link", "style", "body", "header", "main", "section", "nav", "footer", "h1", "h2"}
    | {"h3", "p", "div", "span", "b", "br", "i", "a", "ul", "li", "dl", "dt", "dd", "pre", "code", "figure"}
    | {"figcaption", "details", "summary", "input", "label", "table", "caption", "thead", "tbody", "tr", "th", "td"}
    | {"svg", "g", "path", "rect", "text", "use", "defs", "image", "clippath", "pattern"}
)
# One change of the record each: where, to what, and what the page then says.
CHANGES = (
    ("created", "2031-01-02T03:04:05Z", "2 January 2031, 03:04 UTC"),
    ("command", "trt-qat run --out elsewhere", "trt-qat run --out elsewhere"),
    ("inputs.weights.path", "changed.pt", "INT8 for changed.pt"),
    ("inputs.weights.sha256", "ab" * 32, "ab" * 32),
    ("inputs.data_sha256", "cd" * 32, "cd" * 32),
    ("inputs.calibration_images", 1731, "1,731 training images"),
    ("inputs.train.images", 98765, "98,765 train"),
    ("seeds.qat", 7331, "qat 7331"),
    ("versions.torch", "9.8.7", "torch 9.8.7"),
    ("machine.cpu", "Other CPU", "Other CPU"),
    ("settings.qat.lr0", 0.0123, "0.0123"),
    ("stages.1.seconds", 3725.0, "62 min 5 s"),
    ("calibration.tried.0.error", 0.7654, "0.7654"),
    ("placement.groups.0.activation.0.sqnr_db", 11.7, ">11.7<"),
    ("placement.groups.0.activation.1.sqnr_db", 12.9, "SQNR 12.9 dB; range"),
    ("placement.groups.0.activation.1.amax", 8.88, "QAT \u00b18.88"),
    ("placement.groups.1.convs.0.weights.1.sqnr_db", 55.5, ">55.5<"),
    ("placement.groups.2.error", 0.0777, ">79\u00a0%<"),
    ("placement.groups.2.map50_95_drop", 0.0313, ">\u22123.13<"),
    ("placement.groups.0.histogram.clipped", 0.0345, "3.5 % of the values are clipped"),
    ("placement.groups.0.histogram.below_one_step", 0.61, "61 % round to zero"),
    ("placement.float_layers.0.reason", "for another reason", "for another reason"),
    ("placement.measured_on", 913, "measured on 913 images"),
    ("training.epochs.2.map50_95", 0.3999, "to 0.3999 in epoch 2"),
    ("training.epochs.1.losses.box", 0.654, "box from 0.654"),
    ("training.epochs.3.learning_rate", 2e-7, "From 1e\u221205 to 2e\u221207"),
    ("training.noise.0.sqnr_db.0", 3.3, "Lowest of the activations from 3.3"),
    ("budget.max_drop_points", 0.91, "At most 0.91 points"),
    ("budget.mixes.2.drop_points", 0.0456, ">0.05<"),
    ("files.0.result.map50_95", 0.3911, "FP32 0.3911:"),
    ("files.0.result.latency_ms.median", 91.3, ">91.3<"),
    ("files.0.result.left_out.reason", "'b.jpg' is none", "&#39;b.jpg&#39; is none"),
    ("files.1.result.map50", 0.6543, ">0.6543<"),
    ("files.1.result.details.map75", 0.5151, ">0.5151<"),
    ("files.2.result.details.map95", 0.0815, ">0.0815<"),
    ("files.2.file.size_bytes", 7_770_000, ">7.77<"),
    ("files.2.result.latency_ms.p90", 33.3, ">33.3<"),
    ("files.2.result.details.per_class.0.map50_95", 0.2468, ">0.2468<"),
    ("files.2.result.details.sizes.0.map50_95", 0.0976, "small \u221210.00"),
    ("files.4.result.map50_95", 0.4022, "reaches an mAP50-95 of 0.4022"),
    ("files.4.result.details.resampled.0", 0.9, None),  # one draw of many: the interval may stay as it is
    ("files.4.compiler.kernels.0.activation_bytes", 5_550_000, ">5.57<"),
    ("files.4.compiler.plan_bytes", 6_660_000, ">6.66<"),
    ("files.4.lint.findings.0.advice", "Do something else.", "Do something else."),
    ("files.4.lint.counts.convolutions", 4321, "4,321 convolutions"),
    ("files.3.not_compiled", "it is another one", "it is another one"),
    ("engine.file.size_bytes", 8_880_000, "8.88 MB"),
    ("parity.0.logits", 0.111, "off by 0.111"),
    ("parity.1.outputs.2.largest_error", 4.567, ">4.567<"),
    ("disagreements.agreeing", 37, "In 37 of 64 images"),
    ("disagreements.worst.0.fp32.0.score", 0.93, "stop 0.93"),
    ("disagreements.worst.1.image", "other.jpg", "other.jpg"),
    ("drawing.boxes.1.label", "another box", "another box"),
    ("warnings.0", "something else", "something else"),
)


def _changed(changes: tuple[tuple[str, Any, str | None], ...]) -> RunRecord:
    content = example_record().model_dump(mode="json")
    for path, value, _ in changes:
        *parents, last = path.split(".")
        place = content
        for key in parents:
            place = place[int(key)] if isinstance(place, list) else place[key]
        place[int(last) if isinstance(place, list) else last] = value
    return RunRecord.model_validate_json(json.dumps(content))


def test_every_number_is_read_from_the_record() -> None:
    page, before = html_page(_changed(CHANGES)), example_page()
    shown = [text for _, _, text in CHANGES if text is not None]
    assert [text for text in shown if text in before] == []
    assert [text for text in shown if text not in page] == []


def test_the_interval_is_that_of_the_paired_draws() -> None:
    record = example_record()
    fp32, *others = file_rows(record)
    assert fp32.points is None
    assert fp32.interval is None
    for row in others:
        assert row.points is not None
        assert row.interval is not None
        assert row.interval[0] < row.points < row.interval[1]
    assert others[0].by_chance is False  # PTQ, 0.74 points below
    assert others[1].by_chance is True
    other_images = _changed((("files.1.result.details.images_sha256", "other", None),))
    assert file_rows(other_images)[1].interval is None


def test_the_answer_is_one_line() -> None:
    assert answer(example_record()) == (
        "INT8 for TensorRT-RTX reaches an mAP50-95 of 0.3789 (FP32 0.3776: +0.13 points, 95 % \u22120.47 to +0.69, "
        "no more than chance), is 3.6 times smaller and 2.6 times as fast on this CPU (for OpenVINO); "
        "not run on a GPU."
    )


def test_what_was_not_measured_is_left_out() -> None:
    content = example_record(images=0).model_dump(mode="json")
    for entry in content["files"]:
        entry["result"]["details"] = entry["lint"] = entry["compiler"] = None
    for group in content["placement"]["groups"]:
        group.update(histogram=None, error=None, map50_95_drop=None)
    content |= {"drawing": None, "budget": None, "parity": [], "warnings": [], "stages": [], "settings": {}}
    content["training"] |= {"epochs": [], "noise": []}
    content["calibration"] |= {"tried": [], "groups": {}}
    content["files"] = content["files"][:1] + content["files"][2:3]
    content["engine"]["built_from"] = content["deployed"] = "qat"
    page = html_page(RunRecord.model_validate_json(json.dumps(content)))
    assert "interval not measured" in page
    assert 'id="curves"' not in page
    assert 'id="mixes"' not in page


def test_charts_take_their_colours_from_the_page_and_say_what_they_show() -> None:
    charts = [attributes for tag, attributes in _elements(example_page()) if tag == "svg" and attributes.get("role")]
    assert len(charts) > 12
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in charts)
    ids = [attributes["id"] for _, attributes in _elements(example_page()) if "id" in attributes]
    assert len(ids) == len(set(ids))
    for style in (attributes.get("style") or "" for _, attributes in _elements(example_page())):
        assert "#0" not in style


def _luminance(colour: str) -> float:
    """WCAG's relative luminance of ``#rrggbb``."""
    channels = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return sum(weight * channel for weight, channel in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_in_the_drawing_stands_out_from_its_box() -> None:
    """The browser test cannot say so of SVG."""
    found = example_page().split(":root {")[1:3]
    light, dark = (re.findall(r"--([\w-]+): (#\w{6});", part) for part in found)
    for colours in (dict[str, str](light), dict[str, str](dark)):
        for shade in range(5):
            text = colours.get(f"on-shade-{shade}") or colours["ink"]
            lights = sorted((_luminance(text), _luminance(colours[f"shade-{shade}"])))
            assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5, shade


def test_each_picture_is_embedded_once() -> None:
    record = example_record()
    for entry in record.disagreements.worst:
        assert example_page().count(entry.jpeg) == 1


def test_a_picture_that_is_no_jpeg_is_left_out() -> None:
    jpeg = example_record().disagreements.worst[0].jpeg
    assert jpeg_uri(jpeg) == f"data:image/jpeg;base64,{jpeg}"
    assert jpeg_uri("PHN2Zz48L3N2Zz4=") == ""  # an SVG
    assert jpeg_uri("/9j/4") == ""  # cut off


@pytest.mark.slow
def test_many_classes_layers_and_images_stay_below_5_megabytes() -> None:
    record = example_record(classes=80, groups=60, images=8, picture_wh=(640, 480), kernels=140)
    jpeg = "/9j/" + "A" * 200_000  # as large as a photograph
    worst = tuple(entry.model_copy(update={"jpeg": jpeg}) for entry in record.disagreements.worst)
    record = record.model_copy(update={"disagreements": record.disagreements.model_copy(update={"worst": worst})})
    assert len(html_page(record).encode()) < 5e6


def test_a_hostile_record_is_text() -> None:
    elements = list(_elements(hostile_page()))
    assert {tag for tag, _ in elements} <= TAGS
    for _, attributes in elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "src"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:image/jpeg;base64,")) or target == "data:,"
    assert "{{ 7*7 }}" in hostile_page()


def _elements(page: str) -> Iterator[tuple[str, dict[str, str | None]]]:
    found: list[tuple[str, dict[str, str | None]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, dict(attrs)))

    Reader().feed(page)
    yield from found


def test_the_command_writes_the_same_page_without_torch(tmp_path: Path) -> None:
    write_record(tmp_path, example_record())
    code = "import sys; from trt_qat.cli import cli; cli(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    call = [sys.executable, "-c", code, "report", str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == example_page()
    first, modules = done.stdout.splitlines()
    assert first == f"Report: {tmp_path / 'report.html'}"
    assert not {"torch", "ultralytics", "cv2"} & set(modules.split())
