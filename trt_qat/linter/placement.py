"""Rules on where quantizers stand. Each says what a TensorRT engine loses at that place.

One cause gives one finding: a place that two rules could name belongs to the more specific one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trt_qat.linter.finding import Place
from trt_qat.linter.graph import ACTIVATION_OPS, CONV_OPS, INT8_OPS, QdqGraph, unlike
from trt_qat.linter.view import QUANTIZE, Node

_LANES = 16  # INT8 tensor-core kernels read channels in vectors of 16 (TensorRT performance guide)


def conv_not_int8(graph: QdqGraph) -> Iterator[Place]:
    """Convolutions that stay float, with the missing piece. Predicting ones and the DFL do so on purpose."""
    for conv in graph.convs:
        if graph.is_int8(conv):
            continue
        value, weight = graph.grid(conv.inputs[0]), graph.grid(conv.inputs[1])
        missing = [what for what, grid in (("input", value), ("weight", weight)) if grid is None]
        deliberate = len(missing) == 2 and graph.is_last(conv)
        message = f"runs in float: no Q/DQ on its {' and '.join(missing)}"
        if value is None:
            message += f" ({_origin(graph, conv.inputs[0])})"
        if deliberate:
            advice = "Nothing: scores and box distances need float."
        elif len(missing) == 1:
            advice = "Quantize both input and weight, or neither: one alone costs accuracy and gains no speed."
        else:
            advice = "Quantize its input where that tensor is made and its weight per channel, if accuracy allows."
        yield Place(conv, message, advice, deliberate)


def int8_head(graph: QdqGraph) -> Iterator[Place]:
    """Predicting convolutions and the DFL in INT8: they cost accuracy and hold almost no work."""
    for conv in graph.convs:
        if graph.is_int8(conv) and graph.is_last(conv):
            what = "DFL" if conv in graph.dfl else "convolution that makes the predictions"
            advice = "Leave it float if accuracy matters: it is a small part of the time."
            yield Place(conv, f"{what} runs in INT8", advice)


def q_between_conv_and_activation(graph: QdqGraph) -> Iterator[Place]:
    """A quantizer inside Conv -> BatchNorm -> activation: TensorRT can no longer fuse them into one INT8 kernel."""
    for conv, nodes in _between(graph).items():
        message = f"quantizer '{nodes[0].name}' stands between this convolution and its activation"
        advice = "Remove it and quantize the activation's output instead."
        yield Place(conv, message, advice)


def two_scales_one_tensor(graph: QdqGraph) -> Iterator[Place]:
    """One float tensor quantized twice with different numbers: a second quantize kernel and a second copy."""
    readers: dict[str, list[Node]] = {}
    for node in graph.quantizers:
        if graph.grid(node.inputs[0]) is None:
            readers.setdefault(node.inputs[0], []).append(node)
    for tensor, nodes in readers.items():
        quantizations = [graph.quantization(node) for node in nodes]
        if unlike(quantizations):
            shown = ", ".join(dict.fromkeys(str(quantization) for quantization in quantizations))
            message = f"tensor '{tensor}' is quantized {len(nodes)} times with different numbers: {shown}"
            advice = "Use one quantizer per tensor and let all its readers share it."
            yield Place(nodes[0], message, advice)


def unequal_scales(graph: QdqGraph) -> Iterator[Place]:
    """A concat whose inputs have different scales, or a max-pool that changes scale: no longer a plain copy."""
    for node in _unequal_concats(graph):
        shown = ", ".join(str(grid) if (grid := graph.grid(name)) else "float" for name in node.inputs)
        message = f"inputs of the Concat have different scales ({shown}): each must be rescaled first"
        advice = "Give all its inputs and its output one scale; then it is a pointer move."
        yield Place(node, message, advice)
    for trip in _round_trips(graph):
        if trip.quantizer is not None and trip.node.op == "MaxPool":
            message = f"MaxPool goes from {graph.grid(trip.node.inputs[0])} to {graph.quantization(trip.quantizer)}"
            advice = "Use one scale before and behind a max-pool."
            yield Place(trip.node, message, advice)


def add_unequal_scales(graph: QdqGraph) -> Iterator[Place]:
    """A residual Add with both inputs quantized, differently. One quantized input (the skip) is a sound choice."""
    for node in graph.nodes:
        if node.op != "Add" or not graph.is_data(node) or node not in graph.body:
            continue
        if unlike(graph.grid(name) for name in node.inputs):
            shown = ", ".join(str(graph.grid(name)) for name in node.inputs)
            advice = "Quantize the skip input only, or give both inputs one scale."
            yield Place(node, f"inputs of the Add: {shown}", advice)


def float_round_trip(graph: QdqGraph) -> Iterator[Place]:
    """INT8 data that goes through float to become INT8 again, in the part of the network that runs in INT8.

    Either a tensor is dequantized, at most copied, and quantized with another scale; or a concat, split, pool or
    resize runs in float although every reader quantizes its result.
    """
    for trip in _round_trips(graph):
        if trip.is_concat or (trip.quantizer is not None and trip.node.op == "MaxPool"):
            continue
        if trip.quantizer is not None:
            old, new = graph.grid(trip.quantizer.inputs[0]), graph.quantization(trip.quantizer)
            message = f"INT8 tensor with {old} is dequantized and quantized again with {new}"
            advice = "Use one scale along the whole chain of copies."
        else:
            copy = graph.copy(trip.node)
            bare = [name for name in copy.carried(trip.node.inputs) if graph.grid(name) is None] if copy else []
            message = f"{trip.node.op} runs in float though all its readers quantize; no Q/DQ on '{bare[0]}'"
            message += f" and {len(bare) - 1} more" if len(bare) > 1 else ""
            advice = "Quantize where that tensor is made, with the scale its readers use."
        yield Place(trip.node, message, advice)


def idle_qdq(graph: QdqGraph) -> Iterator[Place]:
    """A quantizer with no INT8 layer behind it: it costs accuracy and a kernel, and gains nothing."""
    named = {node for nodes in _between(graph).values() for node in nodes}
    named |= {node for nodes in _box_score_concats(graph).values() for node in nodes}
    for node in graph.quantizers:
        takers = graph.takers(node.outputs[0], graph.is_copy_or_qdq)
        if node not in named and not any(taker is not None and taker.op in INT8_OPS for taker in takers):
            readers = ", ".join(sorted({"a graph output" if taker is None else taker.op for taker in takers}))
            message = f"no INT8 layer reads this quantized tensor, only {readers or 'nothing'}"
            yield Place(node, message, "Remove this Q/DQ pair.")


def box_score_concat(graph: QdqGraph) -> Iterator[Place]:
    """Boxes (0 ... 640) and scores (0 ... 1) under one scale: all scores round to zero and nothing is detected."""
    for concat, nodes in _box_score_concats(graph).items():
        message = f"Concat of boxes and scores is quantized by '{nodes[0].name}'"
        advice = "Leave everything behind the last convolutions float."
        yield Place(concat, message, advice)


def channels_not_16(graph: QdqGraph) -> Iterator[Place]:
    """Channel counts that INT8 kernels must pad to a multiple of 16. The image and the predictions have no choice."""
    for conv in graph.convs:
        shape = graph.shape(graph.root(conv.inputs[1]))
        if shape is None or len(shape) < 2 or shape[0] is None or shape[1] is None:
            continue
        group = int(conv.attributes.get("group", 1))
        ins, outs = (shape[0], shape[1] * group) if conv.op == "ConvTranspose" else (shape[1] * group, shape[0])
        if ins % _LANES == 0 and outs % _LANES == 0:
            continue
        from_image = not graph.sources(conv.inputs[0], graph.is_copy_or_qdq)
        fixed = graph.is_last(conv) or (from_image and outs % _LANES == 0)
        advice = "Nothing." if fixed else f"Choose a width that is a multiple of {_LANES}, or leave this layer float."
        message = f"{ins} -> {outs} channels, not multiples of {_LANES}"
        yield Place(conv, message, advice, deliberate=fixed)


def avoidable_round_trips(graph: QdqGraph) -> int:
    """How often INT8 data goes through float for nothing: the places of `unequal-scales` and `float-round-trip`."""
    return len(_round_trips(graph))


@dataclass(frozen=True)
class _RoundTrip:
    """``node``: where to look. ``quantizer``: the Q that changes the scale, None if ``node`` is a copy in float."""

    node: Node
    quantizer: Node | None = None
    is_concat: bool = False


def _round_trips(graph: QdqGraph) -> list[_RoundTrip]:
    concats = _unequal_concats(graph)
    trips = [_RoundTrip(node, is_concat=True) for node in concats]
    for node in graph.nodes:
        if node not in graph.body or node in concats:
            continue
        if node.op == QUANTIZE and not graph.is_weight_side(node):
            grid = graph.grid(node.inputs[0])
            if grid is not None and not grid.same_as(graph.quantization(node)):
                trips.append(_RoundTrip(_mover(graph, node) or node, quantizer=node))
        elif _is_float_copy(graph, node):
            trips.append(_RoundTrip(node))
    return trips


def _mover(graph: QdqGraph, quantizer: Node) -> Node | None:
    """The moving copy right before a Q, over free copies."""
    node = graph.producer(quantizer.inputs[0])
    while node is not None and (copy := graph.copy(node)) is not None:
        graph.step()
        if copy.moves:
            return node
        node = graph.producer(node.inputs[0])
    return None


def _is_float_copy(graph: QdqGraph, node: Node) -> bool:
    copy = graph.copy(node)
    if copy is None or not copy.moves:
        return False
    if any(graph.grid(name) is not None for name in node.outputs):
        return False
    takers = [taker for name in node.outputs for taker in graph.takers(name, graph.is_copy)]
    return bool(takers) and all(taker is not None and taker.op == QUANTIZE for taker in takers)


def _unequal_concats(graph: QdqGraph) -> list[Node]:
    """Concats in the body with inputs of different scales that a quantizer or an INT8 convolution reads."""
    found = []
    for node in graph.nodes:
        if node.op != "Concat" or node not in graph.body or not unlike(graph.grid(name) for name in node.inputs):
            continue
        for taker in graph.takers(node.outputs[0], graph.is_copy):
            quantized_conv = taker is not None and taker.op in CONV_OPS and graph.grid(taker.inputs[1]) is not None
            if quantized_conv or (taker is not None and taker.op == QUANTIZE):
                found.append(node)
                break
    return found


def _between(graph: QdqGraph) -> dict[Node, list[Node]]:
    """Per convolution, the quantizers on the way to its activation, the one inside a SiLU included."""
    found: dict[Node, list[Node]] = {}
    for conv in graph.convs:
        tensors = list(conv.outputs)
        tensors += [node.outputs[0] for name in conv.outputs for node in _readers(graph, name, "BatchNormalization")]
        gates = [node.outputs[0] for name in tensors for node in _readers(graph, name, "Sigmoid")]
        nodes = [
            node
            for name in (*tensors, *gates)
            for node in graph.consumers(name)
            if node.op == QUANTIZE and _feeds_activation(graph, node, is_gate=name in gates)
        ]
        if nodes:
            found[conv] = nodes
    return found


def _readers(graph: QdqGraph, tensor: str, op: str) -> list[Node]:
    return [node for node in graph.takers(tensor, _is_qdq) if node is not None and node.op == op]


def _is_qdq(node: Node) -> bool:
    return node.is_qdq


def _feeds_activation(graph: QdqGraph, quantizer: Node, is_gate: bool) -> bool:
    for node in graph.takers(quantizer.outputs[0], _is_qdq):
        if node is not None and graph.is_silu(node):
            return True
        if node is not None and not is_gate and node.op in ACTIVATION_OPS | {"BatchNormalization"}:
            return True
    return False


def _box_score_concats(graph: QdqGraph) -> dict[Node, list[Node]]:
    """Per concat of boxes and scores behind the last convolutions, the quantizers around it."""
    found: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        if node.op != "Concat" or not graph.is_data(node) or node in graph.body or not _joins_kinds(graph, node):
            continue
        before = [maker for name in node.inputs for maker in graph.sources(name, graph.is_copy)]
        behind = graph.takers(node.outputs[0], graph.is_copy)
        around = [entry for entry in (*before, *behind) if entry is not None and entry.is_qdq]
        if around:
            found[node] = [_quantizer(graph, entry) for entry in around]
    return found


def _joins_kinds(graph: QdqGraph, concat: Node) -> bool:
    """Whether some inputs are scores and others are not.

    Decoded: a part comes from a sigmoid, another does not. Raw (older exports join per level): parts come from
    different convolutions and are joined along the channels.
    """
    makers = [graph.sources(name, graph.is_copy_or_qdq) for name in concat.inputs]
    scored = [any(maker.op == "Sigmoid" for maker in group) for group in makers]
    if any(scored) and not all(scored):
        return True
    convs = [{maker for maker in group if maker.op in CONV_OPS} for group in makers]
    return concat.attributes.get("axis") == 1 and all(convs) and len(set.union(*convs)) == sum(map(len, convs)) > 1


def _quantizer(graph: QdqGraph, node: Node) -> Node:
    """The Q of a pair, given either."""
    source = graph.producer(node.inputs[0])
    return source if source is not None and node.op != QUANTIZE and source.op == QUANTIZE else node


def _origin(graph: QdqGraph, tensor: str) -> str:
    node = graph.producer(tensor)
    return f"'{tensor}' is a graph input" if node is None else f"'{tensor}' comes from {node.op} '{node.name}'"
