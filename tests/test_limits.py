"""Every limit holds, names itself, and is in the table of the documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from trt_qat import limits
from trt_qat.errors import ArtifactError, ConfigError
from trt_qat.limits import Limit
from trt_qat.model.architecture import ACTIVATIONS, ARGUMENT_WORDS, HEADS, LAYERS

DOCUMENT = (Path(__file__).resolve().parents[1] / "docs" / "security.md").read_text(encoding="utf-8")
LIMITS = [value for value in vars(limits).values() if isinstance(value, Limit)]


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.variable)
def test_limit_is_in_the_table(limit: Limit) -> None:
    assert f"| `{limit.variable}` | {limit.default:,} | {limit.unit} |" in DOCUMENT


def test_limits_have_names_of_their_own() -> None:
    assert len({limit.variable for limit in LIMITS}) == len(LIMITS) >= 10


@pytest.mark.parametrize("name", sorted(LAYERS | HEADS | ACTIVATIONS | ARGUMENT_WORDS))
def test_allowed_name_is_documented(name: str) -> None:
    assert f"`{name}`" in DOCUMENT


def test_a_limit_says_how_to_raise_it(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Limit("TRT_QAT_MAX_TEST", 10, "things")
    limit.check(10, "It", ArtifactError)
    with pytest.raises(ArtifactError, match=r"It has 11 things, the limit is 10\. .*TRT_QAT_MAX_TEST=11"):
        limit.check(11, "It", ArtifactError)
    monkeypatch.setenv("TRT_QAT_MAX_TEST", "11")
    limit.check(11, "It", ArtifactError)


@pytest.mark.parametrize("value", ["0", "-1", "many", "1e3", "٣"])
def test_a_limit_is_a_whole_number(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TRT_QAT_MAX_TEST", value)
    with pytest.raises(ConfigError, match="must be a whole number of things"):
        _ = Limit("TRT_QAT_MAX_TEST", 10, "things").value
