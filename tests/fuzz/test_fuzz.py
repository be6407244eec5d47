"""A short fixed set of inputs for every parser, and the inputs that once were findings."""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from parsers import TARGETS
from per_input import limited_memory, limited_time
from target import Target, parsed

import trt_qat.checkpoint  # noqa: F401  # PyTorch is mapped before the limit of memory holds

REGRESSIONS = sorted(Path(__file__).with_name("regressions").glob("*.json"))
EXAMPLES = {"checkpoint": 10, "architecture": 10, "pt": 10, "resume": 20, "lint": 20, "onnxruntime": 20, "openvino": 10}


@contextmanager
def _as_the_command_does() -> Iterator[None]:
    with warnings.catch_warnings(), limited_time(60), limited_memory():
        warnings.simplefilter("ignore")
        yield


def _judge(target: Target, content: bytes) -> None:
    with _as_the_command_does():
        parsed(target, content)


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_returns_or_refuses_in_one_line(name: str) -> None:
    target = TARGETS[name]

    @settings(
        max_examples=EXAMPLES.get(name, 40),
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs())
    def judge(content: bytes) -> None:
        _judge(target, content)

    judge()


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.stem)
def test_a_former_finding_stays_fixed(path: Path) -> None:
    finding = json.loads(path.read_text(encoding="utf-8"))
    _judge(TARGETS[finding["target"]], base64.b64decode(finding["base64"]))
