"""The reference pages of the documentation, as text; test_docs.py builds and looks at the whole site."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from mkdocs.exceptions import PluginError

from trt_qat.cli import cli
from trt_qat.config import Config
from trt_qat.errors import ConfigError

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "docs_reference.py"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_reference", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_setting_has_type_range_default_and_comment(reference: ModuleType) -> None:
    page = reference.configuration_page()
    for line in (
        "`qat.epochs`: integer, 1 or more; default `2`",
        "`qat.progressive_end`: number, above 0, below 0.6667; default `0.5`",
        "`qat.max_drop`: number, 0 or more or `null`; default `null`",
        '`qat.loss`: `detection`, `distill`, `both`; default `"distill"`',
        "`model.imgsz`: `[integer, integer]` or `auto` or `null`; default `null`",
        '`quantization.float_roles`: list of `first_conv`, `head_last`, `dfl`; default `["head_last", "dfl"]`',
        "Passes over the training images. 1 or more. Raise it while the fake-quant mAP in OUT/results.csv still rises.",
    ):
        assert line in page.replace("\\", "").splitlines(), line
    assert len(re.findall(r"^### ", page, re.M)) == sum(len(keys) for keys in Config().model_dump().values())


def test_the_named_values_of_a_setting_are_those_that_it_takes(reference: ModuleType) -> None:
    for setting, names in reference.NAMED.items():
        for name in names:
            Config.load(overrides=[f"{setting}={name}"])
        with pytest.raises(ConfigError):
            Config.load(overrides=[f"{setting}={'-'.join(names)}"])


def test_a_command_has_its_help_and_its_options(reference: ModuleType) -> None:
    page = reference.commands_page()
    assert {f"## trt-qat {name}" for name in cli.commands} <= set(page.splitlines())
    assert "trt-qat lint [OPTIONS] ONNX" in page
    assert "`--target [tensorrt|tensorrt-rtx|openvino|onnxruntime|ultralytics]`\n:   Whose rules hold." in page
    assert "```text\ndeepstream  NVIDIA DeepStream" in page  # a paragraph that keeps its lines


def test_a_file_has_its_fields_and_their_parts(reference: ModuleType) -> None:
    page = reference.files_page()
    assert "- `latency_ms`: [Latency](#Latency)" in page
    assert "- `map50_95`: number, 0 or more, at most 1" in page
    assert "### Latency { #Latency }\n\nMilliseconds per forward pass, warm-up apart." in page
    anchors = set(re.findall(r"\{ #(\w+) \}", page))
    assert set(re.findall(r"\]\(#(\w+)\)", page)) <= anchors


def test_a_file_of_the_repository_becomes_a_page(reference: ModuleType) -> None:
    assert "# configs/qat_config.yaml\n\n```yaml\n# Quantization-aware" in reference.source_page(
        "configs/qat_config.yaml"
    )
    with pytest.raises(PluginError, match="which is no file of the repository"):
        reference.source_page("configs/nosuch.yaml")


def test_plain_text_is_no_markdown(reference: ModuleType) -> None:
    assert reference._escaped("*.pt or *.yaml of `a_b*`, x_1, [a]: 0<x") == (
        "\\*.pt or \\*.yaml of `a_b*`, x\\_1, \\[a\\]: 0&lt;x"
    )
