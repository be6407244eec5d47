"""A complete run record, made in code: what reads ``run.json`` is tested on it, without a run and without torch.

The numbers are invented but plausible, and the same at each call; more classes, groups or images make a large one.
"""

from __future__ import annotations

import base64
import hashlib
import io
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trt_qat.config import Config
from trt_qat.evaluation.parity_report import (
    MapPair,
    MatchedDetections,
    OutputParity,
    ParityReport,
    ParitySide,
)
from trt_qat.linter.layout import Box, Drawing, Edge
from trt_qat.report.record import (
    Budget,
    CalibrationRecord,
    CalibratorTried,
    CompilerRecord,
    ConvRecord,
    Disagreement,
    Disagreements,
    EngineRecord,
    Epoch,
    ExportedRecord,
    FileRecord,
    FloatLayer,
    GroupRecord,
    Histogram,
    Inputs,
    KernelRecord,
    LayerNoise,
    LintFinding,
    LintRecord,
    Machine,
    Mix,
    Placement,
    QuantizerRecord,
    RunRecord,
    ShownBox,
    SplitRecord,
    StageRecord,
    Step,
    Training,
)
from trt_qat.results import (
    CURVE_POINTS,
    AccuracyDetails,
    ClassAccuracy,
    Curves,
    Latency,
    LeftOut,
    Measure,
    ResultRow,
    SizeAccuracy,
)

CLASSES = ("stop", "yield", "speed limit")
DRAWS = 200
ACCURACY = {"fp32": 0.3776, "ptq": 0.3702, "qat": 0.3791, "qat_tensorrt": 0.3789, "qat_tensorrt-rtx": 0.3789}
LATENCY_MS = {"fp32": 46.6, "ptq": 18.3, "qat": 18.2, "qat_tensorrt": 21.4, "qat_tensorrt-rtx": 21.5}
SIZE_MB = {"fp32": 12.26, "ptq": 3.31, "qat": 3.31, "qat_tensorrt": 3.29, "qat_tensorrt-rtx": 3.42}
_IMAGES = _TOTAL = 64


def example_record(
    classes: int = 3,
    groups: int = 8,
    images: int = 2,
    picture_wh: tuple[int, int] = (160, 120),
    kernels: int = 9,
    measure: Measure = "mAP",
) -> RunRecord:
    """A record in which every part is filled.

    Args:
        images: in which the networks disagree.
        picture_wh: their size in pixels.
        kernels: of each compiled file.
    """
    names = tuple(CLASSES[index] if index < len(CLASSES) else f"class {index}" for index in range(classes))
    return RunRecord(
        created="2026-11-26T14:05:09Z",
        command="trt-qat run --weights detector.safetensors --data data.yaml --out result --set qat.epochs=3",
        inputs=_inputs(names),
        settings=_settings(),
        seeds={"qat": 0, "calibration": 0},
        versions={"python": "3.11.7", "trt_qat": "0.2.0", "torch": "2.15.0", "onnx": "1.19.1", "openvino": "2026.4.1"},
        machine=Machine(cpu="AMD EPYC 9B14", cores=2, gpus=()),
        stages=(
            StageRecord(name="the calibration", seconds=None),
            StageRecord(name="the fine-tuning", seconds=412.5),
            StageRecord(name="the evaluation", seconds=63.2),
        ),
        calibration=CalibrationRecord(
            calibrator="percentile 99.99",
            tried=(
                CalibratorTried(calibrator="max", error=0.0131, chosen=False),
                CalibratorTried(calibrator="entropy", error=0.0098, chosen=False),
                CalibratorTried(calibrator="mse", error=0.0067, chosen=False),
                CalibratorTried(calibrator="percentile 99.99", error=0.0052, chosen=True),
            ),
            groups={"silu_1": "max"},
        ),
        placement=_placement(groups),
        training=_training(groups),
        budget=Budget(
            max_drop_points=0.5,
            met=True,
            mixes=(
                _mix((), 0.62, 18.2, chosen=False),
                _mix(("silu_1",), 0.21, 18.9, chosen=True),
                _mix(("silu_1", "silu_2"), 0.08, 20.3, chosen=False),
            ),
        ),
        files=tuple(_exported(name, names, kernels, measure) for name in ACCURACY),
        deployed="qat_tensorrt-rtx",
        engine=EngineRecord(
            file=_file("qat.plan", 3_610_112), flavor="tensorrt-rtx", built_from="qat_tensorrt-rtx", run=False
        ),
        parity=(
            _parity("best.safetensors", "torch", measure),
            _parity("qat_tensorrt-rtx.onnx", "onnxruntime", measure),
        ),
        drawing=_drawing(groups),
        disagreements=Disagreements(
            first="fp32",
            second="qat",
            images=_IMAGES,
            agreeing=51,
            conf=0.25,
            iou=0.5,
            worst=tuple(_disagreement(index, picture_wh, classes) for index in range(images)),
        ),
        warnings=("2 of 66 images left out, the first: 'a.jpg' is empty", "No GPU is here: the engine was not run."),
        measure=measure,
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _file(name: str, size: int) -> FileRecord:
    return FileRecord(path=name, sha256=_sha256(name), size_bytes=size)


def _inputs(names: tuple[str, ...]) -> Inputs:
    return Inputs(
        weights=_file("detector.safetensors", 12_552_516),
        data="data.yaml",
        data_sha256=_sha256("data"),
        train=SplitRecord(images=240),
        val=SplitRecord(images=_IMAGES, left_out="2 of 66 images left out, the first: 'a.jpg' is empty"),
        classes=names,
        calibration_images=128,
        calibration_sha256=_sha256("calibration"),
        imgsz=(320, 320),
    )


def _settings() -> dict[str, object]:
    changed = Config().with_values("qat", epochs=3, max_drop=0.5).with_values("quantization", images=128)
    return dict(changed.model_dump(mode="json"))


def _tensor(group: int) -> str:
    return f"silu_{group}" if group else "silu"


def _conv(number: int) -> str:
    return f"model.{number}.conv"


def _activation(group: int, step: Step) -> QuantizerRecord:
    amax = (7.5 if step == "ptq" else 7.1) / (1 + 0.2 * group)
    return QuantizerRecord(step=step, amax=amax, sqnr_db=24.0 + 1.7 * ((3 * group) % 8) + (step == "qat"))


def _placement(groups: int) -> Placement:
    return Placement(
        weights="channel",
        groups=tuple(_group(index) for index in range(groups)),
        float_layers=(
            FloatLayer(name="model.22.cv2.0.2", reason="role head_last"),
            FloatLayer(name="model.22.dfl.conv", reason="role dfl"),
        ),
        measured_on=16,
    )


def _group(index: int) -> GroupRecord:
    edges = np.linspace(-0.28, 7.9, 65)
    counts = (1e5 * np.exp(-3 * (edges[:-1] - 0.1) ** 2) + 400 * np.exp(-0.6 * np.abs(edges[:-1]))).astype(int)
    steps: tuple[Step, ...] = ("ptq", "qat")
    convs = tuple(
        ConvRecord(
            name=_conv(index) if number == 0 else f"model.{index}.m.{number - 1}.cv1.conv",
            weights=tuple(
                QuantizerRecord(step=step, amax=0.6, sqnr_db=38.2 + 0.4 * index - 2 * number) for step in steps
            ),
            macs=1_500_000 * (index + 1),
            input_channels=16 << min(index, 4),
            output_channels=16 << min(index + 1, 4),
            kernel=(3, 3),
            depthwise=False,
        )
        for number in range(1 + index % 2)
    )
    return GroupRecord(
        name=_tensor(index),
        convs=convs,
        adds=(f"model.{index}.m.0",) if index % 3 == 2 else (),
        activation=tuple(_activation(index, step) for step in steps),
        histogram=Histogram(
            low=-0.28,
            high=7.9,
            counts=tuple(int(count) for count in counts),
            clipped=0.00013 * (index + 1),
            below_one_step=0.091,
            images=16,
        ),
        error=0.0061 / (1 + (5 * index) % 7),
        map50_95_drop=0.0031 / (1 + (5 * index) % 7),
    )


def _training(groups: int) -> Training:
    start = Epoch(epoch=0, map50_95=0.3702, losses={}, learning_rate=None, seconds=None)
    found = (0.3755, 0.3791, 0.3788)
    epochs = (
        Epoch(
            epoch=number,
            map50_95=found[number - 1],
            losses={"score": 0.42 / number, "box": 0.31 / number, "feature": 0.12 / number**0.5},
            learning_rate=1e-5 * (1 - 0.3 * (number - 1)),
            seconds=137.5 * number,
        )
        for number in (1, 2, 3)
    )
    noise = tuple(
        LayerNoise(
            kind="activation",
            layer=_conv(index),
            sqnr_db=(24.0 + index, 24.4 + index, 24.6 + index, 25.0 + index),
            drift=(0.0, -0.02, -0.03, -0.05),
        )
        for index in range(groups)
    )
    return Training(epochs=(start, *epochs), best=2, seed=0, images=240, stopped="", noise=noise)


def _mix(groups: tuple[str, ...], drop: float, ms: float, *, chosen: bool) -> Mix:
    return Mix(
        groups=groups,
        order="error",
        weights="fine-tuned",
        drop_points=drop,
        map50_95=0.3776 - drop / 100,
        latency_ms=ms,
        chosen=chosen,
    )


def _exported(name: str, classes: tuple[str, ...], kernels: int, measure: Measure) -> ExportedRecord:
    step: Step = "fp32" if name == "fp32" else "ptq" if name == "ptq" else "qat"
    _, _, target = name.partition("_")
    is_rtx = name == "qat_tensorrt-rtx"
    return ExportedRecord(
        name=name,
        step=step,
        target=target or "openvino",
        file=_file(f"{name}.onnx", round(1e6 * SIZE_MB[name])),
        result=_row(name, step, classes, measure),
        lint=None if step == "fp32" else _lint(target or "openvino"),
        compiler=_compiler(kernels, int8=is_rtx) if is_rtx or step == "fp32" else None,
        not_compiled="" if is_rtx or step == "fp32" else "written for a client that TensorRT-RTX does not serve",
    )


def _row(name: str, step: Step, classes: tuple[str, ...], measure: Measure) -> ResultRow:
    found, ms = ACCURACY[name], LATENCY_MS[name]
    return ResultRow(
        model=f"{name}.onnx",
        precision="fp32" if step == "fp32" else "int8+fp16" if name != step else "int8",
        runtime="openvino CPU",
        map50_95=found,
        map50=found + 0.21,
        images=_IMAGES,
        size_bytes=round(1e6 * SIZE_MB[name]),
        latency_ms=Latency(median=ms, p90=1.08 * ms, p99=1.31 * ms),
        left_out=LeftOut(images=2, of=66, reason="'a.jpg' is empty"),
        details=_details(name, step, classes),
        measure=measure,
    )


@cache
def _draws(name: str) -> tuple[float, ...]:
    shared = np.random.default_rng(0).normal(0, 0.012, DRAWS)  # which images a draw takes moves all files alike
    own = np.random.default_rng(len(name)).normal(0, 0.0022, DRAWS)
    return tuple(float(value) for value in np.clip(ACCURACY[name] + shared + own, 0, 1).round(5))


def _details(name: str, step: Step, classes: tuple[str, ...]) -> AccuracyDetails:
    found = ACCURACY[name]
    spread = np.random.default_rng(1).uniform(-0.3, 0.3, len(classes))
    spread -= spread.mean()
    own = np.random.default_rng(len(name) + 7).normal(0, 0.006, len(classes))
    per_class = tuple(
        ClassAccuracy(
            name=label,
            map50_95=float(np.clip(found + spread[index] + own[index], 0, 1)),
            map50=float(np.clip(found + 0.21 + spread[index] + own[index], 0, 1)),
            labels=40 + 7 * index,
            images=20 + 2 * (index % 20),
        )
        for index, label in enumerate(classes)
    )
    sizes = (
        SizeAccuracy(size="small", map50_95=found - 0.18, map50=found, labels=61),
        SizeAccuracy(size="medium", map50_95=found + 0.07, map50=found + 0.3, labels=48),
        SizeAccuracy(size="large", map50_95=None, map50=None, labels=0),
    )
    return AccuracyDetails(
        per_class=per_class,
        sizes=sizes,
        map75=found + 0.04,
        map95=found - 0.31,
        curves=_curves({"fp32": 0.62, "ptq": 0.60, "qat": 0.62}[step]),
        images_sha256=_sha256("val"),
        resampled=_draws(name),
    )


def _curves(best: float) -> Curves:
    axis = np.linspace(0, 1, CURVE_POINTS)
    precision, recall = 1 - 0.75 * (1 - axis) ** 2.5, best * (1 - axis**3)
    f1 = 2 * precision * recall / (precision + recall + 1e-9)

    def values(curve: NDArray[np.float64]) -> tuple[float, ...]:
        return tuple(float(value) for value in np.clip(curve, 0, 1))

    return Curves(
        precision_of_recall=values(np.where(axis < best + 0.2, 1 - axis**4, 0)),
        precision=values(precision),
        recall=values(recall),
        f1=values(f1),
    )


def _lint(target: str) -> LintRecord:
    finding = LintFinding(
        rule="float-conv",
        severity="info",
        node="/model.22/cv2.0/cv2.0.2/Conv",
        module="model.22.cv2.0.2",
        message="reads float",
        advice="Meant: the head's last convolutions stay float.",
    )
    slow = LintFinding(
        rule="requantize",
        severity="slow",
        node="/model.4/cv1/conv/Conv",
        module=_conv(4),
        message="its input is quantized twice, with two scales",
        advice="Give both readers one quantizer.",
    )
    return LintRecord(
        target=target,
        errors=0,
        warnings=1,
        counts={"convolutions": 64, "INT8 convolutions": 57},
        findings=(slow, finding),
    )


def _compiler(kernels: int, *, int8: bool) -> CompilerRecord:
    roles = ("convolution", "pointwise", "copy", "pool", "reformat") if int8 else ("convolution", "pointwise", "copy")
    made = tuple(
        KernelRecord(
            name=f"__myl_{'CorrSilu' if roles[index % len(roles)] == 'convolution' else 'Move'}_0x{index:04x}",
            role=roles[index % len(roles)],
            module=_conv(index % 8),
            input_type="Int8" if int8 else "Float",
            output_type="Half" if int8 else "Float",
            fused=("bias",) if int8 else ("bias", "activation"),
            activation_bytes=(900_000 if int8 else 1_900_000) // (1 + index),
            weight_bytes=(20_000 if int8 else 80_000) * (1 + index),
            macs=1_500_000 * (index % 2),
        )
        for index in range(kernels if int8 else 2 * kernels // 3)
    )
    return CompilerRecord(
        flavor="tensorrt-rtx",
        version="1.7.1",
        sm=89,
        plan_bytes=3_610_112 if int8 else 12_700_512,
        activation_bytes=sum(kernel.activation_bytes for kernel in made),
        weight_bytes=sum(kernel.weight_bytes for kernel in made),
        kernels=made,
    )


def _parity(first: str, runtime: str, measure: Measure) -> ParityReport:
    return ParityReport(
        first=ParitySide(model=first, runtime=runtime, precision="int8", device="CPU"),
        second=ParitySide(model="qat_tensorrt-rtx.onnx", runtime="openvino", precision="int8+fp16", device="CPU"),
        images=_IMAGES,
        of=66,
        left_out=LeftOut(images=2, of=66, reason="'a.jpg' is empty"),
        outputs=tuple(
            OutputParity(
                name=name,
                cosine_lowest=0.99912,
                cosine_mean=0.99987,
                psnr_lowest=52.4,
                largest_error=1.83,
                cosine_image="street_03.jpg",
                error_image="street_07.jpg",
            )
            for name in ("output0", "output0 boxes", "output0 scores")
        ),
        logits=0.034,
        detections=MatchedDetections(conf=0.25, iou=0.9, first=118, first_matched=115, second=117, second_matched=115),
        map50_95=MapPair(first=0.3791, second=0.3789),
        not_measured="",
        measure=measure,
        thresholds={"min_cosine": 0.7, "min_psnr": 40.0, "max_drop": 1.0, "min_matched": 0.9},
        broken=(),
    )


def _drawing(groups: int) -> Drawing:
    """A column of convolutions with a skip beside it."""
    step, middle, width = 62.0, 185.0, 170.0

    def box(key: str, module: str, label: str, kind: str, row: int) -> Box:
        group = row if kind in ("input", "int8") else None
        fields = {"key": key, "module": module, "label": label, "kind": kind, "group": group}
        return Box.model_validate({**fields, "x": middle, "y": 38 + step * row, "width": width, "height": 36.0})

    boxes = [box("images", "", "images\n1x3x320x320", "input", 0)]
    boxes += [
        box(f"conv{index}", _conv(index), f"{_conv(index).removesuffix('.conv')}\nConv+SiLU 3x3, 16 → 32", "int8",
            index + 1)
        for index in range(groups)
    ]  # fmt: skip
    boxes.append(box("head", "model.22.cv2.0.2", "model.22.cv2.0.2\nConv 1x1, 64 → 64", "float", groups + 1))
    boxes.append(box("output0", "", "output0\n1x7x2100", "output", groups + 2))

    def edge(first: int, last: int, bend: float, group: int | None) -> Edge:
        top, bottom = 20 + step * first + 36, 20 + step * last
        points = ((middle, top), (middle + bend, top + 10), (middle + bend, bottom - 10), (middle, bottom))
        return Edge(start=boxes[first].key, end=boxes[last].key, group=group, points=points)

    edges = [edge(row, row + 1, 0.0, row if row <= groups else None) for row in range(groups + 2)]
    if groups >= 4:
        edges.append(edge(1, 4, 110.0, 1))
    return Drawing(width=370.0, height=20 + step * (groups + 3), boxes=tuple(boxes), edges=tuple(edges))


def _disagreement(index: int, size_wh: tuple[int, int], classes: int) -> Disagreement:
    width, height = size_wh
    here = (0.1 * width, 0.15 * height, 0.4 * width, 0.6 * height)
    there = (0.55 * width, 0.3 * height, 0.9 * width, 0.8 * height)
    both = ShownBox(xyxy=here, class_id=index % classes, score=0.81, matched=True)
    return Disagreement(
        image=f"street_{index:02d}.jpg",
        jpeg=_jpeg(index, size_wh),
        size_wh=size_wh,
        fp32=(both, ShownBox(xyxy=there, class_id=(index + 1) % classes, score=0.34, matched=False)),
        int8=(both.model_copy(update={"score": 0.79}),),
    )


def _jpeg(seed: int, size_wh: tuple[int, int]) -> str:
    """A sky above a road, with the two things that are found in it."""
    width, height = size_wh
    rng = np.random.default_rng(seed)
    pixels = np.linspace((150, 190, 230), (70, 75, 80), height).astype(np.uint8)[:, None].repeat(width, 1)
    for left, top, right, bottom in ((0.1, 0.15, 0.4, 0.6), (0.55, 0.3, 0.9, 0.8)):
        rows, columns = (int(top * height), int(bottom * height)), (int(left * width), int(right * width))
        pixels[slice(*rows), slice(*columns)] = rng.integers(60, 255, 3)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=80)
    return base64.b64encode(stream.getvalue()).decode()
