"""The rule table. A new rule is one function and one row; docs/placement.md shows the same table to users.

Severities are TensorRT's, with those of other targets behind them. Which client refuses what, or computes it wrongly,
was tried with the clients themselves (tests/linter/test_client_rules.py does it again); what costs speed on TensorRT
was read in its documentation and seen in the layers of TensorRT-RTX engines.
"""

from __future__ import annotations

from typing import Final

from trt_qat.linter import clients, numbers, placement
from trt_qat.linter.finding import Rule, Severity


def _cpu(openvino: Severity | None, onnxruntime: Severity | None) -> dict[str, Severity | None]:
    """Ultralytics runs an ONNX file in ONNX Runtime."""
    return {"openvino": openvino, "onnxruntime": onnxruntime, "ultralytics": onnxruntime}


# TensorRT-RTX 1.7 fuses nothing behind an INT8 convolution: with or without a quantizer there, the demo's engine has
# the same kernels and moves the same bytes (tests/engine/test_lint_check.py compiles both)
_RTX_FUSES_NOTHING: Final[dict[str, Severity | None]] = {"tensorrt-rtx": "warning"}

# fmt: off
RULES: Final = (
    Rule("qoperator", "operators with built-in quantization instead of Q/DQ",
         numbers.qoperator, "broken", _cpu("warning", None)),
    Rule("no-qdq", "no quantizer in the file",
         numbers.no_qdq, "slow"),
    Rule("not-int8", "uint8, int16 or int32 instead of int8",
         numbers.not_int8, "broken", _cpu(None, None)),
    Rule("asymmetric", "zero point other than 0",
         numbers.asymmetric, "broken", _cpu(None, None)),
    Rule("non-constant-scale", "scale computed at run time",
         numbers.non_constant_scale, "broken", _cpu("warning", "warning")),
    Rule("bad-scale", "scale not a positive number",
         numbers.bad_scale, "broken", _cpu("warning", "warning")),
    Rule("pair-mismatch", "Q and DQ of one pair differ",
         numbers.pair_mismatch, "broken"),
    Rule("type-mismatch", "scale and tensor, or operands, of different float types",
         numbers.type_mismatch, "broken"),
    Rule("box-score-concat", "boxes and scores under one scale",
         placement.box_score_concat, "broken"),
    Rule("openvino-signed-concat", "convolution behind a Concat of signed INT8",
         clients.openvino_signed_concat, None, {"openvino": "broken"}),
    Rule("onnxruntime-opset", "pool or reshape of signed INT8 in opset 21 or later",
         clients.onnxruntime_opset, None, _cpu(None, "broken")),
    Rule("ultralytics-dynamic", "free batch size with a fixed height and width",
         clients.ultralytics_dynamic, None, {"ultralytics": "broken"}),
    Rule("per-channel-activation", "activation quantized per channel",
         numbers.per_channel_activation, "slow"),
    Rule("weight-axis", "weight scales not along the output channels",
         numbers.weight_axis, "slow"),
    Rule("rtx-channel-scales", "weight scales per channel",
         clients.rtx_channel_scales, None, {"tensorrt-rtx": "slow"}),
    Rule("rtx-enlarged", "convolution behind a Resize without Q/DQ between",
         clients.rtx_enlarged, None, {"tensorrt-rtx": "slow"}),
    Rule("q-between-conv-and-activation", "quantizer between a convolution and its activation",
         placement.q_between_conv_and_activation, "slow", {**_cpu("warning", None), **_RTX_FUSES_NOTHING}),
    Rule("two-scales-one-tensor", "one tensor quantized twice differently",
         placement.two_scales_one_tensor, "slow", _cpu("warning", "warning")),
    Rule("unequal-scales", "concat or max-pool with different scales",
         placement.unequal_scales, "slow", _cpu("warning", "warning")),
    Rule("float-round-trip", "INT8 data goes through float for nothing",
         placement.float_round_trip, "slow", _cpu("warning", "warning")),
    Rule("add-unequal-scales", "add with different input scales",
         placement.add_unequal_scales, "warning", _cpu(None, None)),
    Rule("conv-not-int8", "convolution in float",
         placement.conv_not_int8, "warning"),
    Rule("onnxruntime-float-conv", "quantized convolution that ONNX Runtime computes in float",
         clients.onnxruntime_float_conv, None, _cpu(None, "warning")),
    Rule("ultralytics-names", "no class names in the metadata",
         clients.ultralytics_names, None, {"ultralytics": "warning"}),
    Rule("idle-qdq", "quantizer without an INT8 layer behind it",
         placement.idle_qdq, "warning"),
    Rule("channels-not-16", "channels not a multiple of 16",
         placement.channels_not_16, "warning", _cpu(None, None)),
    Rule("int8-head", "prediction layer in INT8",
         placement.int8_head, "info"),
)
# fmt: on
