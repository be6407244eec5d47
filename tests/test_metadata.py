"""What an exporter wrote about a detector: read without evaluating anything, one line where it is wrong."""

from __future__ import annotations

import pytest

from trt_qat.errors import ArtifactError
from trt_qat.metadata import read_metadata


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{0: 'a', 1: \"it's\"}", {0: "a", 1: "it's"}),
        ("['a', 'b',]", {0: "a", 1: "b"}),
        ("('a', 'b')", {0: "a", 1: "b"}),
        (r"{0: 'bi\u1ec3n b\xe1o', 1: 'a\'b'}", {0: "biển báo", 1: "a'b"}),
        ('{"0": "a", "1": "b\\/c"}', {0: "a", 1: "b/c"}),
        ("{1: 'b', 0: 'a'}", {0: "a", 1: "b"}),
        ("{0: 0, 1: True}", {0: "0", 1: "True"}),
        ("{}", {}),
        (str({number: f"class {number}" for number in range(1000)}), {n: f"class {n}" for n in range(1000)}),
    ],
)
def test_names_that_exporters_write(text: str, names: dict[int, str]) -> None:
    assert read_metadata({"names": text}).names == names


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ({"names": "-" * 20_000}, "names"),
        ({"names": "{" * 100_000}, "a string or a number is missing"),
        ({"names": "[" * 5_000 + "]" * 5_000}, "a string or a number is missing"),
        ({"names": "__import__('os').system('true')"}, "it is no dict, list or number"),
        ({"names": "{0: 'a', 1: open('x')}"}, "does not end"),
        ({"names": "{0: 'a'"}, "does not end"),
        ({"names": "{0: 'a', 2: 'b'}"}, "1 is missing"),
        ({"names": "{0: 'a', 0: 'b'}"}, "twice"),
        ({"names": "{0: 'a\\x1b[2J'}"}, "printable"),
        ({"names": "{0: ''}"}, "printable"),
        ({"names": "{0: '" + "a" * 201 + "'}"}, "printable"),
        ({"names": "{'a': 'b'}"}, "valid integer"),
        ({"names": "{0: '\\q'}"}, "not an escape"),
        ({"names": "[" + "'a'," * 10_001 + "]"}, "TRT_QAT_MAX_CLASSES=10001"),
        ({"imgsz": "1000000000"}, "less than or equal to 8192"),
        ({"imgsz": "9" * 5_000}, "valid integer"),
        ({"imgsz": "0"}, "greater than or equal to 32"),
        ({"imgsz": "[64, 64"}, "does not end"),
        ({"imgsz": "[64, 64, 64]"}, "at most 2 items"),
        ({"imgsz": "[33, 64]", "stride": "32"}, "not a multiple of stride = 32"),
        ({"stride": "0"}, "greater than or equal to 1"),
        ({"stride": "many"}, "valid integer"),
        ({"task": "segment"}, "'detect'"),
    ],
)
def test_a_violation_is_one_line_that_names_the_entry(texts: dict[str, str], found: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        read_metadata(texts, "'x.onnx'")
    message = str(caught.value)
    assert found in message
    assert "\n" not in message
    assert "\x1b" not in message
    assert len(message) < 500
