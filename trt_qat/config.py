"""Configuration: one frozen, strict section per stage.

YAML files (``--config``, repeatable) and ``--set section.key=value`` are merged over the defaults
below and validated once. No dictionary travels past this module: stages take their section.
Every key is documented where it stands in ``configs/*.yaml``.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    field_validator,
)

from trt_qat.errors import ConfigError
from trt_qat.reading import explain, parse_yaml, read_yaml, shortened, shown_name
from trt_qat.registry import CALIBRATORS, FEATURES, RUNTIMES, TARGETS, Table, suggestion

Precision = Literal["int8+fp32", "int8+fp16", "fp32", "fp16"]
Flavor = Literal["tensorrt", "tensorrt-rtx"]
FlavorChoice = Literal["auto", "tensorrt", "tensorrt-rtx"]
ExportFormat = Literal["onnx", "openvino", "engine"]
Residual = Literal["none", "skip", "both"]
ToolkitName = Literal["modelopt", "pytorch-quantization"]
WeightScales = Literal["channel", "tensor"]
Scheme = Literal["symmetric", "asymmetric"]
QatLoss = Literal["detection", "distill", "both"]
Activation = Literal["keep", "hardswish", "relu"]
Progressive = Literal["none", "depth", "sensitivity"]
Role = Literal["first_conv", "head_last", "dfl"]
HardwareCompatible = Literal["none", "same_compute_capability", "ampere_plus"]
Amp = Literal["none", "bfloat16", "float16"]
InferMode = Literal["auto", "latency", "throughput"]
SensitivityMetric = Literal["error", "drop", "both"]


SectionType = TypeVar("SectionType", bound="Section")

# Keys of earlier versions and what took their place.
RENAMED = {
    "data.calibration_images": "quantization.images",
    "data.batch": "quantization.batch, sensitivity.batch or evaluation.batch",
    "qat.penalty": "qat.dampening",
    "qat.learned_scales": "qat.lsq",
    "qat.scale_lr": "qat.lsq_lr",
    "parity.max_map_drop": "parity.max_drop",
    "sensitivity.map_images": "sensitivity.val_images",
}


def _square(value: Any) -> Any:
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _sides(value: tuple[int, int]) -> tuple[int, int]:
    for side in value:
        if side < 32 or side % 32:
            raise ValueError(f"{side} must be a multiple of 32, the nearest is {_nearest_side(side)}")
    return value


Size = Annotated[tuple[int, int], BeforeValidator(_square), AfterValidator(_sides)]
"""Height and width in pixels; a configuration may say one number for a square."""


def _imgsz(value: Any, one_of_the_types: object) -> Any:
    """In one sentence what pydantic would say once for each of the types."""
    del one_of_the_types
    if value is None or value == "auto":
        return value
    sides = _square(value)
    whole = isinstance(sides, list | tuple) and len(sides) == 2 and all(type(side) is int for side in sides)
    if not whole:
        raise ValueError("must be a number of pixels, [height, width] or auto")
    return _sides(tuple(sides))


_NUMBERS = (int, float, int | None, float | None)


class Section(BaseModel):
    """Base of every section: immutable, unknown keys and values that are not finite refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in _NUMBERS:
            raise ValueError("must be a number")
        return value

    def replace(self: SectionType, **values: Any) -> SectionType:
        """A copy with other values, checked like values from a file.

        Raises:
            ConfigError: an unknown key (the nearest known one is suggested) or a bad value.
        """
        name = _section_name(type(self))
        unknown = [key for key in values if key not in type(self).model_fields]
        if unknown:
            raise ConfigError(_unknown(f"{name}.{unknown[0]}", [f"{name}.{key}" for key in type(self).model_fields]))
        try:
            return type(self).model_validate({**self.model_dump(), **values})
        except ValidationError as exc:
            raise ConfigError(_explain(exc, prefix=f"{name}.")) from exc


class ModelSection(Section):
    """How the network sees an image, and where PyTorch computes it."""

    imgsz: Annotated[tuple[int, int] | Literal["auto"] | None, WrapValidator(_imgsz)] = None
    device: str = "auto"

    @property
    def fixed_imgsz(self) -> tuple[int, int] | None:
        """The height and width that are asked for; None where weights or images decide."""
        return None if self.imgsz == "auto" else self.imgsz

    @field_validator("device", mode="before")
    @classmethod
    def _known_device(cls, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return value
        text = f"{value:g}" if isinstance(value, float) else str(value).strip().lower()  # --set reads 0 as a number
        named = f"cuda:{text}" if text.isdecimal() else text
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", named, re.ASCII):
            raise ValueError("must be auto, cpu, cuda, cuda:N or N with the number of a GPU")
        return named


class DataSection(Section):
    """Where the stages keep what they need again, and how images and videos without labels become a dataset."""

    calibration_cache: str = "calib"
    frames: int = Field(default=512, ge=1)
    difference: float = Field(default=3.0, ge=0, le=255)
    held_out: float = Field(default=0.2, gt=0, lt=1)
    label_conf: float = Field(default=0.25, ge=0, lt=1)


class TrainSection(Section):
    """FP32 training (``trt-qat train``), handed to Ultralytics' trainer."""

    epochs: int = Field(default=100, ge=1)
    batch: int = Field(default=16, ge=1)
    nominal_batch: int = Field(default=64, ge=1)
    lr0: float = Field(default=0.01, gt=0)
    optimizer: Literal["auto", "SGD", "AdamW"] = "auto"
    amp: Amp = "none"
    seed: int = 0


class QuantizationSection(Section):
    """Which tensors become INT8 and how their ranges are found."""

    toolkit: ToolkitName = "modelopt"
    images: int = Field(default=512, ge=1)
    batch: int = Field(default=8, ge=1)
    calibrator: str = "auto"
    percentile: float = Field(default=99.99, gt=50, le=100)
    histogram_bins: int = Field(default=4096, ge=128, multiple_of=2)
    auto_images: int = Field(default=32, ge=1)
    auto_per_group: bool = False
    scheme: Scheme = "symmetric"
    weights: WeightScales = "channel"
    residual: Residual = "skip"
    float_roles: tuple[Role, ...] = ("head_last", "dfl")
    head_int8: Literal["auto", "never"] = "auto"
    exclude: tuple[str, ...] = ()

    @field_validator("calibrator")
    @classmethod
    def _known_calibrator(cls, value: str) -> str:
        return value if value == "auto" else _known(CALIBRATORS, value, "auto")

    @field_validator("auto_per_group")
    @classmethod
    def _needs_auto(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("calibrator", "auto") != "auto":
            raise ValueError("needs quantization.calibrator=auto")
        return value

    @field_validator("scheme")
    @classmethod
    def _needs_modelopt(cls, value: Scheme, info: ValidationInfo) -> Scheme:
        if value == "asymmetric" and info.data.get("toolkit") == "pytorch-quantization":
            raise ValueError("asymmetric needs quantization.toolkit=modelopt: the other one has no zero points")
        return value


class SensitivitySection(Section):
    """What each scale group costs when it alone is INT8."""

    metric: SensitivityMetric = "error"
    images: int = Field(default=16, ge=1)
    val_images: int = Field(default=128, ge=1)
    batch: int = Field(default=8, ge=1)


class QatSection(Section):
    """Quantization-aware fine-tuning."""

    epochs: int = Field(default=2, ge=1)
    batch: int = Field(default=8, ge=1)
    amp: Amp = "none"
    lr0: float = Field(default=1e-5, gt=0)
    lrf: float = Field(default=0.1, gt=0, le=1)
    optimizer: Literal["AdamW", "SGD"] = "AdamW"
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_epochs: float = Field(default=0.5, ge=0)
    hsv: float = Field(default=0.0, ge=0, le=1)
    scale: float = Field(default=0.0, ge=0, lt=1)
    translate: float = Field(default=0.0, ge=0, lt=1)
    fliplr: float = Field(default=0.0, ge=0, le=1)
    fraction: float = Field(default=1.0, gt=0, le=1)
    loss: QatLoss = "distill"
    distill_score: float = Field(default=1.0, ge=0)
    distill_box: float = Field(default=1.0, ge=0)
    distill_feature: float = Field(default=1.0, ge=0)
    dampening: float = Field(default=0.0, ge=0)
    scheduler: Literal["qat", "ultralytics"] = "qat"
    progressive: Progressive = "none"
    progressive_end: float = Field(default=0.5, gt=0, lt=2 / 3)
    lsq: bool = False
    lsq_lr: float = Field(default=1e-3, gt=0, lt=1)
    bn: Literal["fold", "freeze"] = "fold"
    bn_freeze_epochs: int = Field(default=1, ge=0)
    monitor: bool = True
    collapse: float = Field(default=0.5, ge=0, lt=1)
    max_drop: float | None = Field(default=None, ge=0)
    activation: Activation = "keep"
    activation_epochs: int = Field(default=12, ge=1)
    activation_lr0: float = Field(default=1e-3, gt=0)
    features: tuple[str, ...] = ()
    seed: int = 0

    @field_validator("features", mode="before")
    @classmethod
    def _one_feature(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("features")
    @classmethod
    def _known_features(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_known(FEATURES, name) for name in value))


class ExportSection(Section):
    """The ONNX file."""

    target: str = "tensorrt"
    format: ExportFormat = "onnx"
    precision: Precision | None = None
    opset: int | None = Field(default=None, ge=19, le=23)
    batch: int = Field(default=1, ge=1)
    dynamic_batch: bool = False
    nms: bool = False
    dynamic_size: bool = False
    check: bool = True

    @field_validator("target")
    @classmethod
    def _known_target(cls, value: str) -> str:
        return _known(TARGETS, value)


class EngineSection(Section):
    """The TensorRT build."""

    flavor: FlavorChoice = "auto"
    workspace_mib: int = Field(default=2048, ge=16)
    min_batch: int = Field(default=1, ge=1)
    opt_batch: int = Field(default=1, ge=1)
    max_batch: int = Field(default=8, ge=1)
    min_size: Size | None = None
    opt_size: Size | None = None
    max_size: Size | None = None
    timing_cache: str = "auto"
    optimization_level: int | None = Field(default=None, ge=0, le=5)
    compute_capabilities: tuple[int, ...] = ()
    hardware_compatible: HardwareCompatible = "none"
    version_compatible: bool = False

    @field_validator("timing_cache", mode="before")
    @classmethod
    def _nothing_is_none(cls, value: Any) -> Any:
        return "" if value is None else value  # --set engine.timing_cache=

    @field_validator("compute_capabilities")
    @classmethod
    def _each_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each GPU generation must stand there once")
        return value


class EvaluationSection(Section):
    """mAP (or agreement) and latency."""

    runtime: str = "openvino"
    batch: int = Field(default=8, ge=1)
    conf: float = Field(default=0.001, ge=0, lt=1)
    iou: float = Field(default=0.7, gt=0, le=1)
    max_det: int = Field(default=300, ge=1)
    latency_iterations: int = Field(default=50, ge=3)
    latency_warmup: int = Field(default=10, ge=0)
    threads: int = Field(default=0, ge=0)

    @field_validator("runtime")
    @classmethod
    def _known_runtime(cls, value: str) -> str:
        return value if value == "torch" else _known(RUNTIMES, value, "torch")


class ParitySection(Section):
    """Whether two sides compute the same: how many images are looked at, and what is still the same."""

    images: int = Field(default=256, ge=1)
    min_cosine: float | None = Field(default=0.7, ge=-1, le=1)
    min_psnr: float | None = Field(default=40.0, ge=0)
    max_logits: float | None = Field(default=0.25, ge=0)
    match_iou: float = Field(default=0.9, gt=0, le=1)
    min_matched: float | None = Field(default=0.9, ge=0, le=1)
    max_drop: float | None = Field(default=1.0, ge=0)
    bisect_sqnr: float = Field(default=35.0, ge=0)

    def thresholds(self) -> dict[str, float | None]:
        """What decides whether parity is broken; None is not asked."""
        names = ("min_cosine", "min_psnr", "max_logits", "min_matched", "max_drop")
        return {name: getattr(self, name) for name in names}


class InferSection(Section):
    """Images, videos and streams in, detections out."""

    conf: float = Field(default=0.25, ge=0, lt=1)
    iou: float = Field(default=0.45, gt=0, le=1)
    max_det: int = Field(default=300, ge=1)
    classes: tuple[int | str, ...] = ()
    mode: InferMode = "auto"
    batch: int = Field(default=1, ge=1)
    every: int = Field(default=1, ge=1)
    max_fps: float | None = Field(default=None, gt=0)

    @field_validator("classes", mode="before")
    @classmethod
    def _one_class(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | str) and not isinstance(value, bool) else value


class Config(Section):
    """All sections. Frozen: make a changed copy with :meth:`load` or :meth:`with_values`."""

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    quantization: QuantizationSection = QuantizationSection()
    sensitivity: SensitivitySection = SensitivitySection()
    qat: QatSection = QatSection()
    export: ExportSection = ExportSection()
    engine: EngineSection = EngineSection()
    evaluation: EvaluationSection = EvaluationSection()
    parity: ParitySection = ParitySection()
    infer: InferSection = InferSection()

    @classmethod
    def load(cls, files: Iterable[str | Path] = (), overrides: Iterable[str] = ()) -> Config:
        """Defaults, then each YAML file, then each ``section.key=value``.

        Raises:
            ConfigError: unreadable file, unknown key (the nearest known one is suggested), bad value.
        """
        merged: dict[str, dict[str, Any]] = {}
        for file in files:
            _merge(merged, _read_yaml(Path(file)), str(file))
        for override in overrides:
            _merge(merged, _parse_override(override), f"--set {override}")
        return cls._checked(merged)

    def with_values(self, section: str, **values: Any) -> Config:
        """A copy with other values in one section.

        Raises:
            ConfigError: a bad value.
        """
        changed: Section = getattr(self, section).replace(**values)
        return self.model_copy(update={section: changed})

    def deciding(self) -> dict[str, Any]:
        """Every setting that decides a result, as JSON values: ``model.device`` only says where it is computed."""
        return self.model_dump(mode="json", exclude={"model": {"device"}})

    @classmethod
    def _checked(cls, content: dict[str, dict[str, Any]]) -> Config:
        try:
            return cls.model_validate(content)
        except ValidationError as exc:
            raise ConfigError(_explain(exc)) from exc


def _read_yaml(path: Path) -> dict[str, Any]:
    content = read_yaml(path, "Config file", ConfigError)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"Config file '{path}' must hold sections (a mapping), found {type(content).__name__}.")
    return content


def _parse_override(text: str) -> dict[str, Any]:
    name, separator, raw = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (separator and dot and section and key):
        raise ConfigError(f"--set {shortened(text)} is not of the form section.key=value, e.g. --set qat.epochs=5.")
    value = parse_yaml(raw, f"--set {shortened(text)}", ConfigError)
    # YAML 1.1 reads '1e-5' (no dot) as a string; users mean the number.
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    return {section: {key: value}}


def _merge(into: dict[str, dict[str, Any]], new: Mapping[str, Any], source: str) -> None:
    for section, values in new.items():
        if section not in Config.model_fields:
            raise ConfigError(_unknown(str(section), list(Config.model_fields), f" in {source}"))
        if values is None:
            continue
        if not isinstance(values, Mapping):
            raise ConfigError(f"Section '{section}' in {source} must be a mapping of keys, found {shortened(values)}.")
        known = list(_section_class(section).model_fields)
        for key, value in values.items():
            if key not in known:
                names = [f"{section}.{name}" for name in known]
                raise ConfigError(_unknown(f"{section}.{key}", names, f" in {source}"))
            into.setdefault(section, {})[key] = value


def _nearest_side(pixels: int) -> int:
    return max(32, round(pixels / 32) * 32)


def _section_class(section: str) -> type[Section]:
    return type(getattr(Config(), section))


def _section_name(section: type[Section]) -> str:
    return next(name for name in Config.model_fields if _section_class(name) is section)


def _known(table: Table, name: str, *more: str) -> str:
    if name not in table.rows:
        raise ValueError(f"unknown {table.what}. {suggestion(name, (*table.rows, *more))}".rstrip("."))
    return name


def _unknown(key: str, known: list[str], where: str = "") -> str:
    if key in RENAMED:
        return f"Key '{key}'{where} has a new name: {RENAMED[key]}."
    section, _, leaf = key.rpartition(".")
    for name in Config.model_fields if section else ():  # the key may stand in the wrong section
        if leaf in _section_class(name).model_fields:
            return f"Unknown key '{shown_name(key)}'{where}. It belongs to another section: '{name}.{leaf}'."
    close = difflib.get_close_matches(leaf, [name.rpartition(".")[2] for name in known], n=1, cutoff=0.5)
    hint = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(sorted(known))}."
    return f"Unknown key '{shown_name(key)}'{where}. {hint}"


def _explain(exc: ValidationError, prefix: str = "") -> str:
    return f"Invalid configuration: {explain(exc, prefix)}."


def choices(alias: Any) -> tuple[str, ...]:
    """The strings a ``Literal`` alias of this module allows, for command-line options."""
    return get_args(alias)
