"""The report and the picture: what the command prints, writes and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import onnx
import pytest
from lint_graphs import detector, set_constant

from trt_qat.errors import ArtifactError, ConfigError, MissingDependency
from trt_qat.linter.graph import QdqGraph
from trt_qat.linter.picture import draw
from trt_qat.linter.report import lint
from trt_qat.registry import TARGETS


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    onnx.save(detector(), tmp_path / "clean.onnx")
    return tmp_path / "clean.onnx"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    model = detector()
    set_constant(model, "/model.1/m.0/Add_output_0.scale", np.float32(0.08))
    onnx.save(model, tmp_path / "broken.onnx")
    return tmp_path / "broken.onnx"


def test_clean_report(clean: Path) -> None:
    report = lint(clean)
    assert (report.errors, report.warnings) == (0, 0)
    assert report.as_text().endswith("0 avoidable float round trips.")


def test_json_contract(broken: Path) -> None:
    content = json.loads(json.dumps(lint(broken).as_dict()))
    assert list(content) == [
        "path", "target", "errors", "broken", "slow", "warnings", "counts", "by_rule", "findings",
    ]  # fmt: skip
    assert (content["target"], content["broken"], content["slow"]) == ("tensorrt", 0, 1)
    assert content["errors"] == content["by_rule"]["unequal-scales"] == content["counts"]["avoidable_round_trips"] == 1
    assert list(content["findings"][0]) == ["rule", "severity", "node", "module", "message", "advice"]


def test_text_groups_by_rule_and_limits(broken: Path) -> None:
    text = lint(broken).as_text(limit=1)
    assert "slow: unequal-scales (1)" in text
    assert "[/model.1/Concat]" in text
    assert "... and 2 more (--json lists all)" in text
    assert text.index("slow: ") < text.index("info: ")


@pytest.mark.parametrize("content", [b"", b"not an onnx file", None])
def test_unreadable_files_are_clear_errors(clean: Path, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(clean.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(ArtifactError, match=r"bad\.onnx"):
        lint(path)


def test_broken_and_slow_are_told_apart(broken: Path, tmp_path: Path) -> None:
    """TensorRT refuses a zero point and only loses speed by an unequal concat; the exit code is 1 for either."""
    model = onnx.load(broken)
    set_constant(model, "/model.0/act/Mul_output_0.zero", np.int8(3))
    onnx.save(model, tmp_path / "both.onnx")
    report = lint(tmp_path / "both.onnx")
    assert (report.broken, report.slow, report.errors) == (1, 1, 2)
    text = report.as_text()
    assert text.index("broken: asymmetric") < text.index("slow: unequal-scales")
    assert "1 broken, 1 slow, 0 warnings" in text


def test_target_decides(broken: Path) -> None:
    report = lint(broken, "openvino")
    assert {finding.rule for finding in report.findings if finding.severity == "broken"} == {"openvino-signed-concat"}
    assert report.slow == 0
    assert "for openvino: 2 broken" in report.as_text()


def test_unknown_target(clean: Path) -> None:
    with pytest.raises(ConfigError, match=r"Unknown target 'openvin'\. Did you mean 'openvino'"):
        lint(clean, "openvin")


def test_a_target_without_rows_is_checked_as_tensorrt_is(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS.rows, "toaster", "nowhere:TARGET")
    assert lint(broken, "toaster").findings == lint(broken).findings


def test_missing_file() -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        lint(Path("nowhere.onnx"))


def test_the_file_is_not_changed(broken: Path) -> None:
    before = broken.read_bytes()
    lint(broken)
    assert broken.read_bytes() == before


def test_picture(broken: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pygraphviz")
    out = tmp_path / "out" / "net.svg"
    draw(broken, out, lint(broken).findings)
    assert capfd.readouterr().err == ""
    drawing = ElementTree.fromstring(out.read_bytes())
    text = "\n".join(drawing.itertext())
    assert "Conv+SiLU 3x3, 3 → 16" in text
    assert "float decode" in text
    assert "cluster_model.1" in text
    assert "QuantizeLinear" not in text
    red = [group for group in drawing.iter() if group.get("stroke") == "#d00000"]
    assert len(red) == 1


def test_picture_of_an_empty_scale(tmp_path: Path) -> None:
    pytest.importorskip("pygraphviz")
    model = detector()
    set_constant(model, "/model.1/m.0/Add_output_0.scale", np.zeros(0, np.float32))
    onnx.save(model, tmp_path / "empty.onnx")
    out = tmp_path / "net.svg"
    draw(tmp_path / "empty.onnx", out, lint(tmp_path / "empty.onnx").findings)
    assert "0 scales" in out.read_text(encoding="utf-8")


def test_picture_without_graphviz(clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    with pytest.raises(MissingDependency, match=r"pip install 'trt_qat\[train\]'"):
        draw(QdqGraph.read(clean), tmp_path / "net.svg")
    assert not (tmp_path / "net.svg").exists()


def test_the_lint_needs_no_training_framework() -> None:
    code = (
        "import sys, trt_qat.linter.report, trt_qat.linter.picture;"
        "print(sorted({'torch', 'tensorrt', 'tensorrt_rtx', 'ultralytics'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
