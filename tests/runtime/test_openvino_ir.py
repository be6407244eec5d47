"""OpenVINO folders from outside: checked before OpenVINO reads them, one line where they are wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_onnx import write_tiny_detector

from trt_qat.errors import ArtifactError, RunnerError
from trt_qat.runtime.openvino import OpenVinoRunner
from trt_qat.runtime.openvino_ir import check_ir
from trt_qat.runtime.packages import import_openvino


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """The XML and the weights of the tiny detector."""
    folder = tmp_path_factory.mktemp("ir")
    openvino = import_openvino()
    network = openvino.Core().read_model(write_tiny_detector(folder / "tiny.onnx"))
    openvino.save_model(network, folder / "tiny.xml", compress_to_fp16=False)
    return (folder / "tiny.xml").read_text(), (folder / "tiny.bin").read_bytes()


def _write(folder: Path, xml: str, weights: bytes, metadata: str = "names: {0: r, 1: g, 2: b}\n") -> Path:
    (folder / "tiny.xml").write_text(xml, encoding="utf-8")
    (folder / "tiny.bin").write_bytes(weights)
    (folder / "metadata.yaml").write_text(metadata, encoding="utf-8")
    return folder / "tiny.xml"


def _sub(pattern: str, text: str) -> Callable[[str], str]:
    return lambda xml: re.sub(pattern, text, xml, count=1)


def _doctype(text: str) -> Callable[[str], str]:
    return lambda xml: xml.replace("<net", f"<!DOCTYPE net [{text}]><net", 1)


LAUGHS = '<!ENTITY a "ha">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1 or str()};" * 10}">' for n in range(1, 12))
WRONG: dict[str, tuple[Callable[[str], str], str]] = {
    "no XML": (lambda xml: "hello", "syntax error"),
    "empty": (lambda xml: " ", "no element found"),
    "truncated": (lambda xml: xml[: len(xml) // 2], "not a sound OpenVINO IR"),
    "deep": (lambda xml: "<net version='11'>" + "<a>" * 100_000, "nested more than 40 levels"),
    "billion laughs": (_doctype(LAUGHS), "document type"),
    "external entity": (_doctype('<!ENTITY x SYSTEM "file:///etc/passwd">'), "document type"),
    "another root": (lambda xml: '<graph version="11"/>', "<graph> of version '11'"),
    "another version": (_sub('version="11"', 'version="1"'), "of version '1'"),
    "no layers": (lambda xml: '<net version="11"/>', "no layer"),
    "id twice": (_sub('id="1"', 'id="0"'), "is missing or there twice"),
    "text input": (_sub('element_type="f32"', 'element_type="string"'), "the input is 'string'"),
    "integer input": (_sub('element_type="f32"', 'element_type="u8"'), "the input is 'u8'"),
    "edge to nowhere": (_sub('to-layer="[0-9]+"', 'to-layer="99"'), "which are not there"),
    "circle": (_sub("(<edges>)", r'\1<edge from-layer="9" from-port="0" to-layer="9" to-port="0"/>'), "circle"),
    "size": (_sub(' size="[0-9]+"', ' size="999999999999"'), "takes 999999999999 bytes"),
    "negative size": (_sub(' size="[0-9]+"', ' size="-1"'), "'-1' is not a size"),
    "offset": (_sub(' offset="[0-9]+"', ' offset="999999999"'), "at 999999999, the weights have"),
}


@pytest.mark.parametrize(("change", "found"), WRONG.values(), ids=WRONG)
def test_a_violation_is_one_line(
    change: Callable[[str], str], found: str, good: tuple[str, bytes], tmp_path: Path
) -> None:
    assert change(good[0]) != good[0]
    xml = _write(tmp_path, change(good[0]), good[1])
    for read in (check_ir, OpenVinoRunner):
        with pytest.raises(ArtifactError) as caught:
            read(xml)
        assert found in str(caught.value)
        assert str(xml) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 10])
def test_truncated_weights(size: int, good: tuple[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=f"the weights have {size}"):
        check_ir(_write(tmp_path, good[0], good[1][:size]))


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "- 1",
        "names: {0: red, 5: blue}",
        "imgsz: 1000000000",
        "a: &a [*a]",
        "names: " + "[" * 5000,
        "imgsz: [64, 64]\nstride: 7",
        "task: segment",
        'names: {0: "a\\x1b"}',
        "\x00",
    ],
)
def test_wrong_metadata(text: str, good: tuple[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        check_ir(_write(tmp_path, *good, text))
    assert str(tmp_path / "metadata.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pipes_are_not_opened(good: tuple[str, bytes], tmp_path: Path) -> None:
    xml = _write(tmp_path, *good)
    for name in ("metadata.yaml", "tiny.bin"):
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
        with pytest.raises(ArtifactError, match="is a pipe"):
            check_ir(xml)


def test_what_openvino_itself_refuses_is_one_line(good: tuple[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="OpenVINO cannot run") as caught:
        OpenVinoRunner(_write(tmp_path, good[0].replace('type="Convolution"', 'type="Mystery"'), good[1]))
    assert "\n" not in str(caught.value)
