"""The network as an SVG: INT8 edges in the colour of their scale group, float edges grey and dashed; or as data.

Graphviz draws: it is the established layout tool for such graphs, and pygraphviz 2 carries it inside its wheels
(Linux, macOS, Windows; no ``dot`` on the machine). Constants, shape arithmetic and Q/DQ nodes are not drawn, since
the colour of an edge says what they do; Conv + BatchNorm + activation is one box, and the float decode behind the
last convolutions is one box as long as nothing in it is quantized.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from trt_qat.artifacts import atomic_path
from trt_qat.errors import ArtifactError, MissingDependency
from trt_qat.extras import install_hint
from trt_qat.limits import PICTURE_BOXES
from trt_qat.linter.finding import ERRORS, Finding
from trt_qat.linter.graph import ACTIVATION_OPS, CONV_OPS, QdqGraph
from trt_qat.linter.layout import Box, Drawing, Edge, Kind
from trt_qat.linter.view import UNKNOWN_MODULE, Node
from trt_qat.vision.quiet import NO_STDERR

# Dark enough on white; neighbours in the list differ in hue, since neighbouring groups meet in the drawing.
_GROUP_COLOURS: Final = (
    "#1b7f3b", "#1f5fbf", "#b8420f", "#7a2da8", "#00808a", "#b0206a", "#6b7a00", "#4b3fcf", "#a06a00", "#c22f2f",
    "#2f8f6f", "#8a4b2a",
)  # fmt: skip
_FILLS: Final = {"int8": "#cfeed6", "float": "#ffe2bd", "copy": "#e8f6ec", "plain": "#f3f3f3"}
_FONT: Final = "Helvetica,Arial,sans-serif"
_CLUSTER_STYLE: Final = {"style": "rounded", "color": "#bbbbbb", "fontcolor": "#555555", "labeljust": "l"}
_DECODE: Final = "float decode"
_POINTS_PER_INCH: Final = 72.0
_FREE_OPS: Final = frozenset({"Cast", "Identity"})


@dataclass
class _Block:
    """One box: the node that names it and the others drawn inside."""

    head: Node
    members: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class _Line:
    """One drawn edge; ``text`` says on which grid its values lie."""

    start: str
    end: str
    group: int | None
    text: str


def draw(source: Path | QdqGraph, out: Path, findings: Iterable[Finding] = ()) -> None:
    """Draw a Q/DQ file as SVG into ``out``. Boxes named by error ``findings`` get a red border and a tooltip.

    Raises:
        ArtifactError: the model cannot be read or ``out`` cannot be written.
        MissingDependency: pygraphviz is not installed.
    """
    graph = source if isinstance(source, QdqGraph) else QdqGraph.read(source)
    blocks = _blocks(graph)
    drawing = _drawing(graph, blocks, _lines(graph, blocks), tuple(findings))
    _add_legend(drawing)
    with atomic_path(out) as temporary:
        with NO_STDERR:  # Fontconfig's remarks about this machine's files
            picture = drawing.draw(format="svg", prog="dot")
        temporary.write_bytes(picture)


def layout(source: Path | QdqGraph) -> Drawing:
    """Where :func:`draw` puts boxes and lines, without the legend.

    Raises:
        ArtifactError: the model cannot be read.
        MissingDependency: pygraphviz is not installed.
    """
    graph = source if isinstance(source, QdqGraph) else QdqGraph.read(source)
    blocks = _blocks(graph)
    lines = _lines(graph, blocks)
    drawing = _drawing(graph, blocks, lines, ())
    drawing.edge_attr["arrowhead"] = "none"  # else a line ends before its box
    for block in _unique(blocks):
        if _is_float_decode(graph, block.head):
            drawing.get_node(_key(block.head.name)).attr["label"] = _DECODE  # a page has no room for all operators
    with NO_STDERR:
        drawing.layout(prog="dot")
    width, height = (_rounded(value) for value in drawing.graph_attr["bb"].split(",")[2:])
    return Drawing(
        width=width,
        height=height,
        boxes=tuple(_placed_boxes(drawing, graph, blocks, height)),
        edges=tuple(_placed_edge(drawing, line, number, height) for number, line in enumerate(lines)),
    )


def _placed_boxes(drawing: Any, graph: QdqGraph, blocks: dict[Node, _Block], height: float) -> Iterable[Box]:
    heads = {_key(block.head.name): block for block in _unique(blocks)}
    ends: dict[str, tuple[Kind, str]] = {_key(name): ("input", name) for name in graph.inputs}
    ends |= {_output_key(name): ("output", name) for name in graph.outputs}
    for key in (*ends, *heads):
        placed = drawing.get_node(key).attr
        x, y = _points(placed["pos"], height)[0]
        block = heads.get(key)
        module = "" if block is None else graph.module_of(block.head)
        yield Box(
            key=key,
            module="" if module == UNKNOWN_MODULE else module,
            label=placed["label"].replace("\\n", "\n"),
            kind=_kind(graph, block) if block else ends[key][0],
            group=_written_group(graph, block) if block else graph.scale_group(ends[key][1]),
            x=x,
            y=y,
            width=_rounded(placed["width"], _POINTS_PER_INCH),
            height=_rounded(placed["height"], _POINTS_PER_INCH),
        )


def _placed_edge(drawing: Any, line: _Line, number: int, height: float) -> Edge:
    placed = drawing.get_edge(line.start, line.end, str(number)).attr["pos"]
    return Edge(start=line.start, end=line.end, group=line.group, points=_points(placed, height))


def _points(text: str, height: float) -> tuple[tuple[float, float], ...]:
    """Graphviz's ``x,y x,y ...``, its y upwards; it breaks long ones over lines with a backslash."""
    pairs = (pair.split(",") for pair in text.replace("\\\n", "").split())
    return tuple((_rounded(x), _rounded(height - float(y))) for x, y in pairs)


def _rounded(value: str | float, unit: float = 1.0) -> float:
    """A tenth of a point is finer than a screen shows, and keeps files small."""
    return round(float(value) * unit, 1)


def _drawing(graph: QdqGraph, blocks: dict[Node, _Block], lines: list[_Line], findings: tuple[Finding, ...]) -> Any:
    try:
        pygraphviz = importlib.import_module("pygraphviz")
    except ImportError as exc:
        raise MissingDependency(f"The picture needs pygraphviz: {install_hint('pygraphviz')}.") from exc
    drawing = pygraphviz.AGraph(directed=True, strict=False, rankdir="TB", nodesep="0.3", ranksep="0.35")
    drawing.graph_attr.update(fontname=_FONT, fontsize="13", bgcolor="white", newrank="true", labelloc="t")
    drawing.node_attr.update(
        fontname=_FONT, fontsize="12", shape="box", style="rounded,filled", color="#777777", margin="0.12,0.05"
    )
    drawing.edge_attr.update(fontname=_FONT, fontsize="10", arrowsize="0.7")
    PICTURE_BOXES.check(len(_unique(blocks)), "The picture", ArtifactError)
    _add_boxes(drawing, graph, blocks, findings)
    for number, line in enumerate(lines):
        drawing.add_edge(line.start, line.end, key=str(number), **_edge_style(line.group, line.text))
    return drawing


def _blocks(graph: QdqGraph) -> dict[Node, _Block]:
    """Every drawn node -> its box."""
    blocks: dict[Node, _Block] = {}
    decode: _Block | None = None
    for node in graph.nodes:
        if node.is_qdq or node.op in _FREE_OPS or not graph.is_data(node):
            continue
        if _is_float_decode(graph, node):
            decode = decode or _Block(node)
            block = decode
        else:
            maker = _fused_into(graph, node)
            block = blocks[maker] if maker in blocks else _Block(node)
        block.members.append(node)
        blocks[node] = block
    return blocks


def _is_float_decode(graph: QdqGraph, node: Node) -> bool:
    if node in graph.body or (node.op in CONV_OPS and node not in graph.dfl):
        return False
    if _fused_into(graph, node) is not None:
        return False
    if not any(graph.sources(name, lambda maker: maker.op not in CONV_OPS) for name in node.inputs):
        return False
    return all(graph.grid(name) is None for name in (*node.inputs, *node.outputs))


def _fused_into(graph: QdqGraph, node: Node) -> Node | None:
    """The convolution whose kernel also computes ``node`` (BatchNorm, an activation, the two halves of SiLU)."""
    if node.op != "BatchNormalization" and node.op not in ACTIVATION_OPS and not graph.is_silu(node):
        return None
    for name in node.inputs:
        maker = graph.producer(graph.root(name))
        if maker is not None and maker.op == "BatchNormalization":
            maker = graph.producer(graph.root(maker.inputs[0]))
        if maker is not None and maker.op in CONV_OPS:
            return maker
    return None


def _add_boxes(drawing: Any, graph: QdqGraph, blocks: dict[Node, _Block], findings: tuple[Finding, ...]) -> None:
    wrong: dict[str, list[str]] = {}
    for finding in findings:
        if finding.severity in ERRORS:
            wrong.setdefault(finding.node, []).append(f"{finding.rule}: {finding.message}")
    clusters: dict[str, list[str]] = {}
    for name in graph.inputs:
        drawing.add_node(_key(name), label=f"{name}\\n{_dims(graph, name)}", fillcolor="white", shape="oval")
    for block in _unique(blocks):
        messages = [text for member in block.members for text in wrong.get(member.name, ())]
        tooltip = "\\n".join([*(f"{member.op} {member.name}" for member in block.members), *messages])
        attributes = {"color": "#d00000", "penwidth": "3"} if messages else {}
        label = _label(graph, block)
        drawing.add_node(
            _key(block.head.name), label=label, fillcolor=_FILLS[_kind(graph, block)], tooltip=tooltip, **attributes
        )
        clusters.setdefault(_cluster(graph.module_of(block.head)), []).append(_key(block.head.name))
    for name in graph.outputs:
        drawing.add_node(_output_key(name), label=f"{name}\\n{_dims(graph, name)}", fillcolor="white", shape="oval")
    for title, keys in clusters.items():
        if title and len(keys) > 1:
            drawing.add_subgraph(keys, name=f"cluster_{title}", label=title, **_CLUSTER_STYLE)


def _unique(blocks: dict[Node, _Block]) -> list[_Block]:
    return list({id(block): block for block in blocks.values()}.values())


def _label(graph: QdqGraph, block: _Block) -> str:
    head = block.head
    module = graph.module_of(head)
    if _is_float_decode(graph, head):
        counts = Counter(member.op for member in block.members)
        listed = [f"{op} x{number}" if number > 1 else op for op, number in counts.most_common()]
        rows = [", ".join(listed[start : start + 4]) for start in range(0, len(listed), 4)]
        return "\\n".join([_DECODE, *rows])
    text = "" if module == UNKNOWN_MODULE else f"{module}\\n"
    return text + (_conv_text(graph, block) if head.op in CONV_OPS else head.op)


def _conv_text(graph: QdqGraph, block: _Block) -> str:
    head = block.head
    shape = graph.shape(graph.root(head.inputs[1])) or ()
    if len(shape) < 4 or None in shape:
        return head.op
    group = int(head.attributes.get("group", 1))
    stride = max(head.attributes.get("strides", [1]))
    ins, outs = (shape[0], shape[1]) if head.op == "ConvTranspose" else (shape[1], shape[0])
    silu = any(graph.is_silu(member) for member in block.members)
    others = [member.op for member in block.members if member.op in ACTIVATION_OPS and not silu]
    names = "+".join([head.op, *(["SiLU"] if silu else others)])
    size = f"{shape[2]}x{shape[3]}" + (f" /{stride}" if stride > 1 else "")
    return f"{names} {size}, {(ins or 0) * (1 if head.op == 'ConvTranspose' else group)} → {outs}"


def _kind(graph: QdqGraph, block: _Block) -> Kind:
    head = block.head
    if head.op in CONV_OPS:
        return "int8" if graph.is_int8(head) else "float"
    if _is_float_decode(graph, head):
        return "float"
    return "copy" if graph.is_copy(head) and graph.grid(head.outputs[0]) is not None else "plain"


def _written_group(graph: QdqGraph, block: _Block) -> int | None:
    groups = [graph.scale_group(name) for member in reversed(block.members) for name in member.outputs]
    return next((group for group in groups if group is not None), None)


def _lines(graph: QdqGraph, blocks: dict[Node, _Block]) -> list[_Line]:
    reads = [(tensor, block) for node, block in blocks.items() for tensor in _data_inputs(graph, node)]
    ends = [(tensor, _key(block.head.name)) for tensor, block in reads]
    ends += [(name, _output_key(name)) for name in graph.outputs]
    drawn: dict[tuple[str, str, int | None], _Line] = {}
    for tensor, end in ends:
        source = _drawn_source(graph, tensor)
        maker = graph.producer(source)
        start = _key(blocks[maker].head.name if maker in blocks else source)
        grid = graph.grid(tensor)
        group = graph.scale_group(tensor) if grid is not None else None
        if start != end:
            line = _Line(start, end, group, "float" if grid is None else str(grid))
            drawn.setdefault((start, end, group), line)
    return list(drawn.values())


def _data_inputs(graph: QdqGraph, node: Node) -> list[str]:
    names = node.inputs[:1] if node.op in CONV_OPS else node.inputs
    return [name for name in names if name and not graph.is_constant(graph.root(name)) and not graph.is_shape(name)]


def _drawn_source(graph: QdqGraph, tensor: str) -> str:
    """Back over everything that is not drawn."""
    node = graph.producer(tensor)
    while node is not None and (node.is_qdq or node.op in _FREE_OPS):
        tensor = node.inputs[0]
        node = graph.producer(tensor)
    return tensor


def _edge_style(group: int | None, text: str) -> dict[str, str]:
    if group is None:
        return {"color": "#8a8a8a", "style": "dashed", "edgetooltip": text}
    colour = _GROUP_COLOURS[group % len(_GROUP_COLOURS)]
    return {"color": colour, "penwidth": "2.4", "edgetooltip": f"scale group {group}: {text}"}


def _add_legend(drawing: Any) -> None:
    edges = "".join(f'<font color="{colour}">━</font>' for colour in _GROUP_COLOURS[:4])
    rows = [
        (f'bgcolor="{_FILLS["int8"]}"', "", "INT8 convolution"),
        (f'bgcolor="{_FILLS["float"]}"', "", "float"),
        (f'bgcolor="{_FILLS["copy"]}"', "", "copy of INT8 data"),
        (f'bgcolor="{_FILLS["plain"]}"', "", "other operator"),
        ("", edges, "INT8 edge, coloured by scale group (colours repeat)"),
        ("", '<font color="#8a8a8a">╌╌╌</font>', "float edge"),
        ("", '<font color="#d00000">▢</font>', "the lint found an error here"),
    ]
    cells = "".join(f'<tr><td {fill}>{mark}</td><td align="left">{text}</td></tr>' for fill, mark, text in rows)
    label = f'<<table border="0" cellborder="0" cellspacing="3">{cells}</table>>'
    drawing.add_node("legend", label=label, shape="box", style="rounded", color="#bbbbbb")


def _dims(graph: QdqGraph, tensor: str) -> str:
    return "x".join("?" if size is None else str(size) for size in graph.shape(tensor) or ())


def _cluster(module: str) -> str:
    """``model.22`` of ``model.22.cv2.0``; empty if the name has no numbered top level."""
    match = re.search(r"(?:^|\.)(model\.\d+)", module)
    return match.group(1) if match else ""


def _output_key(name: str) -> str:
    return _key(name) + " "  # the node that makes it may have the same name


def _key(name: str) -> str:
    # Graphviz reads ':' in an edge end as a port.
    return name.replace(":", "_") or "_"
