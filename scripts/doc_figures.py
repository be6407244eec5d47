"""Draw the figures of docs/why-int8.md into docs/images/, from the shipped demo detector and its Q/DQ file.

    python scripts/doc_figures.py

Every number in a figure is measured here, on images that are generated, and printed: the page quotes what is printed.
The figures are SVG on a white card, so that they read the same on a light and on a dark page.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import onnx
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from numpy.typing import NDArray
from onnx import numpy_helper

import trt_qat
from trt_qat.checkpoint import Model
from trt_qat.data.images import network_batch
from trt_qat.demo.generate import generate_demo_set
from trt_qat.demo.model import DETECTOR
from trt_qat.model.output_error import raw_predictions
from trt_qat.quantization.calibrators.base import LEVELS
from trt_qat.quantization.calibrators.max import Max
from trt_qat.quantization.calibrators.mse import Mse
from trt_qat.quantization.calibrators.percentile import Percentile
from trt_qat.quantization.histogram import HistogramCollector

IMAGES = 64
SILU = "model.2.cv1"  # whose output is looked at
CONV = "model.4.m.0.cv1"  # whose pairs are drawn
GROUP = ("model.6.cv2", "model.19", "model.9.cv2")  # tensors that the concats of the neck join
INK, FAINT = "#202124", "#6b7280"
BLUE, ORANGE, GREEN = "#1f6fb2", "#c2571a", "#2f855a"


@dataclass(frozen=True)
class Material:
    """What the figures are drawn from.

    Args:
        model: the shipped detector, float; ``int8`` the same, calibrated; ``graph`` its file for TensorRT.
        images: float32 (n, 3, h, w) in [0, 1].
        tensors: the outputs of the convolutions by module name, for all images.
    """

    model: Model
    int8: Model
    graph: onnx.GraphProto
    images: torch.Tensor
    tensors: dict[str, torch.Tensor]


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "images")
    parser.add_argument("--png", action="store_true", help="PNG instead of SVG, to look at")
    options = parser.parse_args()
    plt.rcParams |= {
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT,
        "axes.labelcolor": INK, "text.color": INK, "xtick.color": FAINT, "ytick.color": FAINT,
        "svg.hashsalt": "trt_qat", "svg.fonttype": "path", "axes.titlesize": 10.5, "axes.titleweight": "bold",
        "axes.titlelocation": "left", "figure.constrained_layout.w_pad": 0.12, "figure.constrained_layout.h_pad": 0.1,
    }  # fmt: skip
    material = _material()
    figures = {"range": _range, "scale-group": _scale_group, "qdq": _qdq, "distillation": _distillation}
    for name, draw in figures.items():
        figure = draw(material)
        file = options.out / f"why-{name}.{'png' if options.png else 'svg'}"
        metadata = {} if options.png else {"Date": None, "Creator": None}
        figure.savefig(file, metadata=metadata, facecolor="white", dpi=110)
        plt.close(figure)
        print(f"-> {file.name}\n")


def _material() -> Material:
    model = trt_qat.load(DETECTOR)
    tensors: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = generate_demo_set(Path(folder) / "data", train=IMAGES, val=1)
        files = sorted((data.parent / "images" / "train").iterdir())
        int8 = trt_qat.quantize(model, data, calibrator="mse")
        trt_qat.export(int8, f"{folder}/int8.onnx", target="tensorrt")
        graph = onnx.load(f"{folder}/int8.onnx").graph
        images = torch.from_numpy(network_batch(files, model.imgsz))
    for name in (SILU, *GROUP):
        module = model.network.get_submodule(name)
        module.register_forward_hook(lambda _m, _i, out, name=name: tensors.update({name: out.detach()}))
    with torch.no_grad():
        model.network(images)
    return Material(model, int8, graph, images, tensors)


# --- the symmetric range


def _range(material: Material) -> Figure:
    values = material.tensors[SILU]
    low, high = (float(value) for value in torch.aminmax(values))
    scale = high / LEVELS
    used = round(high / scale) + round(-low / scale) + 1
    print(f"range: output of {SILU}: {low:.3f} to {high:.2f}, {values.numel():,} values")
    print(f"  scale {scale:.4f}: the negative side is {round(-low / scale)} levels; {used} of 255 levels can be met")
    figure, (above, below) = plt.subplots(2, 1, figsize=(6.4, 6.6), layout="constrained")
    counts, edges = np.histogram(values.numpy(), bins=240, range=(-high, high))
    above.fill_between(edges[:-1], counts + 0.7, 0.7, step="post", color=BLUE, alpha=0.85, linewidth=0)
    above.set_yscale("log")
    above.axvspan(-high, low, color=ORANGE, alpha=0.16, linewidth=0)
    above.set_title("SiLU never gives half of what a symmetric scale can say")
    above.set_xlabel(f"output of {SILU}, {IMAGES} images")
    above.set_ylabel("count")
    above.text(-high * 0.97, counts.max() * 0.25, f"{LEVELS - round(-low / scale)} levels\nnever used", color=ORANGE)
    above.annotate(
        f"{low:.2f}, SiLU's minimum:\n{round(-low / scale)} levels below 0", (low, counts.max() * 0.004),
        xytext=(high * 0.22, counts.max() * 0.08), arrowprops={"arrowstyle": "->", "color": INK},
    )  # fmt: skip
    _clipping(below, values)
    return figure


def _clipping(axes: Axes, values: torch.Tensor) -> None:
    """Mean squared error of rounding and of clipping over the range, and where calibrators put it."""
    magnitudes = values.abs().flatten()
    high = float(magnitudes.max())
    ranges = np.linspace(high * 0.03, high, 120)
    step = ranges / LEVELS
    rounding = [float((((m := magnitudes.clamp(max=a)) - (m / s).round() * s) ** 2).mean())
                for a, s in zip(ranges.tolist(), step.tolist(), strict=True)]  # fmt: skip
    clipping = [float(((magnitudes - a).clamp(min=0) ** 2).mean()) for a in ranges.tolist()]
    axes.plot(ranges, np.add(rounding, clipping), color=INK, linewidth=2.4)
    axes.plot(ranges, rounding, color=BLUE)
    axes.plot(ranges, np.maximum(clipping, 1e-12), color=ORANGE)
    for at, curve, text, colour in (
        (0.12, rounding, "rounding: wide steps", BLUE),
        (0.71, clipping, "clipping: large\nvalues are cut off", ORANGE),
        (0.2, np.add(rounding, clipping), "both", INK),
    ):
        x = high * at
        axes.text(
            x + 0.9,
            float(np.interp(x, ranges, curve)),
            text,
            color=colour,
            va="bottom" if colour == INK else "top" if colour == BLUE else "center",
        )
    axes.set_yscale("log")
    axes.set_ylim(2e-6, 1.0)
    histogram = _histogram(values)
    print("  ranges and their mean squared error:")
    places = {"99.9 %": Percentile(99.9), "99.99 %": Percentile(99.99), "mse": Mse(), "max": Max()}
    for shift, (name, calibrator) in enumerate(places.items()):
        amax = calibrator.amax(histogram)
        print(f"    {name:8} {amax:6.2f}  {float(np.interp(amax, ranges, np.add(rounding, clipping))):.2e}")
        axes.axvline(amax, color=FAINT, linewidth=0.9, linestyle=":")
        axes.text(amax, 0.99 - 0.09 * shift, f"{name} ", transform=axes.get_xaxis_transform(), va="top", ha="right")
    axes.set_title("Clipping against rounding: a smaller range has finer steps")
    axes.set_xlabel("range, where the largest level lies")
    axes.set_ylabel("mean squared error")


def _histogram(values: torch.Tensor) -> Any:
    collector = HistogramCollector(4096)
    collector.add(values)
    return collector.result()


# --- one scale for a group


def _scale_group(material: Material) -> Figure:
    producers = {name: _scale_behind(material.graph, name) for name in GROUP}
    shared = set(producers.values())
    if len(shared) != 1:
        raise SystemExit(f"{GROUP} do not share one scale: {producers}")
    amax = shared.pop() * LEVELS
    print(f"scale-group: {', '.join(GROUP)}: one range {amax:.2f} in the file")
    figure, axes = plt.subplots(figsize=(6.4, 3.9), layout="constrained")
    for row, name in enumerate(reversed(GROUP)):
        own = Mse().amax(_histogram(material.tensors[name]))
        levels = round(own / amax * LEVELS)
        print(f"  {name}: by itself {own:.2f}, {own / amax:.2f} of the group's: {levels} levels of {LEVELS}")
        reached = f"reaches {min(levels, LEVELS)} of {LEVELS} levels"
        said = "wants more and is cut off" if own > 1.05 * amax else reached
        axes.barh(row, amax, height=0.5, color=BLUE, alpha=0.16)
        axes.barh(row, min(own, amax), height=0.5, color=BLUE)
        axes.barh(row, max(own - amax, 0), left=amax, height=0.5, color=ORANGE, alpha=0.45)
        axes.text(0.1, row + 0.31, f"{name}, by itself {own:.1f}: {said}", va="bottom")
    axes.axvline(amax, color=ORANGE)
    axes.text(amax, -0.62, f"the group's range {amax:.2f} ", color=ORANGE, ha="right", va="center")
    axes.set_ylim(-0.85, len(GROUP) - 0.2)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("range that calibrator mse gives the tensor by itself")
    axes.set_title("Tensors that a concat joins share one scale")
    return figure


def _scale_behind(graph: onnx.GraphProto, module: str) -> float:
    """The scale of the QuantizeLinear that reads what ``module`` computes."""
    prefix = f"{_node(module)}/"
    made = {output for node in graph.node if node.name.startswith(prefix) for output in node.output}
    scales = {
        float(_constant(graph, node.input[1]))
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in made
    }
    if len(scales) != 1:
        raise SystemExit(f"'{module}' is quantized with {len(scales)} scales")
    return scales.pop()


def _node(module: str) -> str:
    """How the nodes of a module begin: ``/model.4/m.0/cv1`` for ``model.4.m.0.cv1``."""
    return "/" + re.sub(r"\.(?!\d)", "/", module)


def _constant(graph: onnx.GraphProto, name: str) -> NDArray[Any]:
    array: NDArray[Any] = next(numpy_helper.to_array(each) for each in graph.initializer if each.name == name)
    return array


# --- Q/DQ in ONNX


def _qdq(material: Material) -> Figure:
    graph = material.graph
    node = next(n for n in graph.node if n.op_type == "Conv" and n.name == f"{_node(CONV)}/conv/Conv")
    makers = {output: n for n in graph.node for output in n.output}
    data, weight = makers[node.input[0]], makers[node.input[1]]
    while data.op_type != "DequantizeLinear":  # what only moves values stands between
        data = makers[data.input[0]]
    quantize = makers[data.input[0]]
    scale, scales = float(_constant(graph, data.input[1])), _constant(graph, weight.input[1])
    ints = _constant(graph, weight.input[0])
    bias = _constant(graph, node.input[2])
    source = makers[quantize.input[0]]
    after = [n.op_type for n in graph.node if node.output[0] in n.input]
    print(f"qdq: {node.name}: activation scale {scale:.5f} ({quantize.name} behind {source.name})")
    print(f"  weight {ints.dtype} {ints.shape}, {scales.size} scales {scales.min():.5f} to {scales.max():.5f}")
    print(f"  bias {bias.dtype}, followed by {sorted(after)}")
    figure, axes = plt.subplots(figsize=(6.4, 6.0), layout="constrained")
    axes.set(xlim=(0, 10), ylim=(0.2, 10.2))
    axes.axis("off")
    shape = " x ".join(map(str, ints.shape))
    boxes = {
        "source": (2.5, 9.5, f"{source.op_type} of the layer before\nFP16", "white"),
        "q": (2.5, 7.7, f"QuantizeLinear\none scale: {scale:.4f}", "#dbeafe"),
        "dq": (2.5, 5.9, "DequantizeLinear\nthe same scale", "#dbeafe"),
        "ints": (7.5, 7.7, f"weight, int8 numbers\n{shape}", "#ffedd5"),
        "wdq": (7.5, 5.9, f"DequantizeLinear\n{scales.size} scales, one per channel", "#ffedd5"),
        "conv": (5, 4.1, f"Conv {CONV}\nbias FP16", "#dcfce7"),
        "act": (5, 2.5, "Sigmoid, Mul (SiLU)\nFP16", "#dcfce7"),
        "next": (5, 0.9, "QuantizeLinear of the next\ntensor that a Conv reads", "#dbeafe"),
    }
    for x, y, text, colour in boxes.values():
        axes.add_patch(FancyBboxPatch((x - 2.05, y - 0.5), 4.1, 1.0, boxstyle="round,pad=0.06", facecolor=colour,
                                      edgecolor=FAINT))  # fmt: skip
        axes.text(x, y, text, ha="center", va="center")
    for start, end, label in (
        ("source", "q", "FP16"), ("q", "dq", "int8"), ("dq", "conv", ""), ("ints", "wdq", "int8"),
        ("wdq", "conv", ""), ("conv", "act", "nothing between"), ("act", "next", ""),
    ):  # fmt: skip
        (x0, y0, *_), (x1, y1, *_) = boxes[start], boxes[end]
        _arrow(axes, (x0, y0 - 0.58), (x1 + (x0 - x1) * 0.35, y1 + 0.58))
        axes.text((x0 + x1) / 2 + 0.2, (y0 + y1) / 2, label, va="center", color=FAINT)
    return figure


def _arrow(axes: Axes, start: Sequence[float], end: Sequence[float]) -> None:
    axes.add_patch(FancyArrowPatch(tuple(start), tuple(end), arrowstyle="-|>", mutation_scale=12, color=FAINT))


# --- distillation


def _distillation(material: Material) -> Figure:
    quantized = material.int8.require_quantized()
    images = material.images[:16]
    with torch.no_grad():
        teacher = raw_predictions(material.model.network, images)
        student = raw_predictions(quantized.network, images)
    shapes = {name: tuple(teacher[name].shape[1:]) for name in ("scores", "boxes")}
    features = [tuple(each.shape[1:]) for each in teacher["feats"]]
    print(f"distillation: compared per image: scores {shapes['scores']}, boxes {shapes['boxes']}, features {features}")
    wanted, given = (p["scores"].sigmoid().amax(1).flatten().numpy() for p in (teacher, student))
    sure = wanted > 0.05
    off = np.abs(given - wanted)
    print(f"  {sure.sum()} of {sure.size:,} anchors above 0.05; there the student is off by {off[sure].mean():.4f} on "
          f"average, {off[sure].max():.3f} at most")  # fmt: skip
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(6.4, 7.6), layout="constrained", gridspec_kw={"height_ratios": [1, 1.15]}
    )
    above.set(xlim=(0, 10), ylim=(0, 6))
    above.axis("off")
    above.set_title("Both see the same image; what differs is the loss")
    for x, y, text, colour in (
        (1.3, 3, "image,\nno label", "white"),
        (5, 4.7, "teacher: the float network\nfrozen", "#dcfce7"),
        (5, 1.3, "student: the same network\nwith its quantizers", "#dbeafe"),
    ):
        half = 1.0 if x < 2 else 2.0
        above.add_patch(FancyBboxPatch((x - half, y - 0.6), 2 * half, 1.2, boxstyle="round,pad=0.06", facecolor=colour,
                                       edgecolor=FAINT))  # fmt: skip
        above.text(x, y, text, ha="center", va="center")
    for end in (4.7, 1.3):
        _arrow(above, (2.4, 3), (2.9, end))
        _arrow(above, (7.1, end), (7.6, 3 + (end - 3) * 0.45))
    above.text(7.75, 3, "class scores\nbox distributions\nfeature maps", va="center", color=ORANGE)
    above.add_patch(FancyArrowPatch((8.4, 2.0), (7.15, 0.95), arrowstyle="-|>", mutation_scale=12, color=ORANGE,
                                    connectionstyle="arc3,rad=-0.3"))  # fmt: skip
    above.text(7.75, 0.55, "gradient, as if\nnothing were rounded", color=ORANGE, va="center")
    shown = sure | (given > 0.05)  # the rest is background: tens of thousands of dots on one spot
    below.scatter(wanted[shown], given[shown], s=9, color=BLUE, alpha=0.5, linewidths=0)
    below.plot([0, 1], [0, 1], color=FAINT, linewidth=0.9)
    below.set(xlim=(0, 1), ylim=(0, 1))
    below.set_title("Before fine-tuning: what the student has to learn")
    below.set_xlabel("teacher's best class score, one dot per anchor")
    below.set_ylabel("student's")
    return figure


if __name__ == "__main__":
    mpl.use("svg")
    main()
