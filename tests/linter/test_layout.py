"""The drawing as data: boxes and lines where Graphviz puts them, y downwards, coloured by scale group."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest
from lint_graphs import detector

from trt_qat.errors import ArtifactError, MissingDependency
from trt_qat.linter.graph import QdqGraph
from trt_qat.linter.layout import Box, Drawing
from trt_qat.linter.picture import layout

ROUNDED = 0.2  # points; all lengths are rounded to a tenth


@pytest.fixture(scope="module")
def drawn() -> Drawing:
    pytest.importorskip("pygraphviz")
    return layout(QdqGraph(detector()))


def box(drawing: Drawing, key: str) -> Box:
    return next(entry for entry in drawing.boxes if entry.key == key)


def test_boxes_say_what_they_are(drawn: Drawing) -> None:
    conv = box(drawn, "/model.1/cv1/Conv")
    assert (conv.module, conv.kind) == ("model.1.cv1", "int8")
    assert conv.label == "model.1.cv1\nConv+SiLU 1x1, 16 → 32"
    assert box(drawn, "/model.1/Concat").kind == "copy"
    assert box(drawn, "/model.1/m.0/Add").kind == "plain"
    assert [entry.module for entry in drawn.boxes if entry.kind == "float"] == [
        "model.3.cv2.1",
        "model.3.cv3.1",
        "model.3.dfl",
    ]
    ends = {entry.key: (entry.kind, entry.module, entry.label) for entry in drawn.boxes if not entry.module}
    assert ends["images"] == ("input", "", "images\n1x3x16x16")
    assert {kind for kind, _module, _label in ends.values()} == {"input", "output"}


def test_groups_of_boxes_and_lines_agree(drawn: Drawing) -> None:
    """Split, bottleneck and concat share a scale; what leaves a box in INT8 is of the group that the box writes."""
    shared = {"/model.1/cv1/Conv", "/model.1/Split", "/model.1/m.0/Add", "/model.1/Concat"}
    assert len({box(drawn, key).group for key in shared}) == 1
    assert box(drawn, "/model.1/m.0/cv1/Conv").group not in (None, box(drawn, "/model.1/Concat").group)
    written = {entry.key: entry.group for entry in drawn.boxes}
    assert all(edge.group == written[edge.start] for edge in drawn.edges if edge.group is not None)
    assert any(edge.group is None for edge in drawn.edges)


def test_lines_touch_their_boxes(drawn: Drawing) -> None:
    boxes = {entry.key: entry for entry in drawn.boxes}
    assert boxes["images"].y < boxes["/model.0/Conv"].y < boxes["/model.3/Concat_output_0 "].y < drawn.height
    for edge in drawn.edges:
        assert len(edge.points) % 3 == 1
        for (x, y), end in ((edge.points[0], boxes[edge.start]), (edge.points[-1], boxes[edge.end])):
            assert abs(x - end.x) <= end.width / 2 + 1
            assert abs(y - end.y) <= end.height / 2 + 1
    for entry in drawn.boxes:
        assert entry.width / 2 - ROUNDED <= entry.x <= drawn.width - entry.width / 2 + ROUNDED
        assert entry.height / 2 - ROUNDED <= entry.y <= drawn.height - entry.height / 2 + ROUNDED


def test_keys_are_unique_and_json_brings_it_back(drawn: Drawing) -> None:
    assert len({entry.key for entry in drawn.boxes}) == len(drawn.boxes)
    assert Drawing.model_validate_json(drawn.model_dump_json()) == drawn


def test_a_float_file_has_no_groups(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pygraphviz")
    onnx.save(detector(quantized=False), tmp_path / "float.onnx")
    drawing = layout(tmp_path / "float.onnx")
    assert capfd.readouterr().err == ""
    assert {entry.kind for entry in drawing.boxes} == {"float", "plain", "input", "output"}
    assert all(entry.group is None for entry in (*drawing.boxes, *drawing.edges))


def test_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        layout(tmp_path / "nowhere.onnx")
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    with pytest.raises(MissingDependency, match=r"pip install 'trt_qat\[train\]'"):
        layout(QdqGraph(detector()))
