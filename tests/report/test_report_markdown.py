"""The report as Markdown: the same figures as the page's, and names that are no markup."""

from __future__ import annotations

import json

from example_record import example_record
from hostile_page import hostile_record

from trt_qat.report.markdown import markdown_report
from trt_qat.report.record import RunRecord


def test_it_has_the_answer_and_its_tables() -> None:
    text = markdown_report(example_record())
    lines = text.splitlines()
    assert lines[2].startswith("INT8 for TensorRT-RTX reaches an mAP50-95 of 0.3789 (FP32 0.3776: +0.13 points")
    assert (
        "| PTQ | 0.3702 | \u22120.74 | \u22121.32 to \u22120.15 | 0.5802 | 3.31 | 18.3 | 19.8 | int8 | openvino CPU |"
        in lines
    )
    assert "| percentile 99.99, chosen | 0.0052 |" in lines
    assert "| 1, chosen | 0.21 | 0.3755 | 18.9 |" in lines
    assert "- model.22.dfl: role dfl" in lines
    assert "| FP32 | 6 | 4.65 | 1.68 | 12.70 |" in lines
    for section in ("Fine-tuning", "Compiler", "Lint", "Parity", "Disagreement", "Warnings", "Provenance"):
        assert f"## {section}" in lines


def test_a_section_that_has_nothing_is_left_out() -> None:
    content = example_record().model_dump(mode="json") | {"budget": None, "warnings": [], "parity": []}
    text = markdown_report(RunRecord.model_validate_json(json.dumps(content)))
    assert "## Mixes tried" not in text
    assert "## Warnings" not in text
    assert "## Parity" not in text


def test_names_are_no_markup() -> None:
    text = markdown_report(hostile_record())
    assert "\\<script\\>" in text
    code = [part for line in text.splitlines() for part in line.split("`")[1::2]]
    outside = [part for line in text.splitlines() for part in line.split("`")[::2]]
    assert any("<script>" in part for part in code)
    assert not any("<script>" in part.replace("\\<", "") for part in outside)
