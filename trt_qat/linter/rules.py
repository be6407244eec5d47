"""The rule table. A new rule is one function and one row."""

from __future__ import annotations

from typing import Final

from trt_qat.linter import numbers, placement
from trt_qat.linter.finding import Rule

RULES: Final = (
    Rule("qoperator", "operators with built-in quantization instead of Q/DQ", numbers.qoperator),
    Rule("no-qdq", "no quantizer in the file", numbers.no_qdq),
    Rule("not-int8", "uint8, int16 or int32 instead of int8", numbers.not_int8),
    Rule("asymmetric", "zero point other than 0", numbers.asymmetric),
    Rule("non-constant-scale", "scale computed at run time", numbers.non_constant_scale),
    Rule("bad-scale", "scale not a positive number", numbers.bad_scale),
    Rule("pair-mismatch", "Q and DQ of one pair differ", numbers.pair_mismatch),
    Rule("type-mismatch", "scale and tensor, or operands, of different float types", numbers.type_mismatch),
    Rule("per-channel-activation", "activation quantized per channel", numbers.per_channel_activation),
    Rule("weight-axis", "weight scales not along the output channels", numbers.weight_axis),
    Rule(
        "q-between-conv-and-activation",
        "quantizer between a convolution and its activation",
        placement.q_between_conv_and_activation,
    ),
    Rule("two-scales-one-tensor", "one tensor quantized twice differently", placement.two_scales_one_tensor),
    Rule("unequal-scales", "concat or max-pool with different scales", placement.unequal_scales),
    Rule("float-round-trip", "INT8 data goes through float for nothing", placement.float_round_trip),
    Rule("box-score-concat", "boxes and scores under one scale", placement.box_score_concat),
    Rule("add-unequal-scales", "add with different input scales", placement.add_unequal_scales),
    Rule("conv-not-int8", "convolution in float", placement.conv_not_int8),
    Rule("idle-qdq", "quantizer without an INT8 layer behind it", placement.idle_qdq),
    Rule("channels-not-16", "channels not a multiple of 16", placement.channels_not_16),
    Rule("int8-head", "prediction layer in INT8", placement.int8_head),
)
