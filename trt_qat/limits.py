"""How much of anything is read, so that no input can take all memory or all time. Each limit says how to raise it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from trt_qat.errors import ConfigError, TrtQatError


@dataclass(frozen=True)
class Limit:
    """The most that is accepted of something.

    Args:
        variable: environment variable that sets another limit.
        default: where the variable is not set.
        unit: what is counted, for messages.
    """

    variable: str
    default: int
    unit: str

    @property
    def value(self) -> int:
        """The limit that holds now.

        Raises:
            ConfigError: the environment variable is not a whole number above 0.
        """
        given = os.environ.get(self.variable, "").strip()
        if not given:
            return self.default
        if not (given.isascii() and given.isdigit() and int(given[:18]) > 0):
            raise ConfigError(f"{self.variable}={given[:40]!r} must be a whole number of {self.unit}, 1 or more.")
        return int(given[:18])

    def check(self, found: float, what: str, error: type[TrtQatError]) -> None:
        """Refuse what exceeds the limit.

        Args:
            found: in the limit's unit, finite.
            what: begins the message.

        Raises:
            TrtQatError: of the kind ``error``.
        """
        if not found <= self.value:
            raise error(
                f"{what} has {found:,.15g} {self.unit}, the limit is {self.value:,}. "
                f"If this is meant, raise it: {self.variable}={math.ceil(found)}."
            )


YAML_MEGABYTES = Limit("TRT_QAT_MAX_YAML_MB", 4, "MB")
YAML_VALUES = Limit("TRT_QAT_MAX_YAML_VALUES", 1_000_000, "values once its aliases are written out")
JSON_MEGABYTES = Limit("TRT_QAT_MAX_JSON_MB", 64, "MB")
ANNOTATION_MEGABYTES = Limit("TRT_QAT_MAX_ANNOTATION_MB", 2048, "MB")
LABEL_MEGABYTES = Limit("TRT_QAT_MAX_LABEL_MB", 16, "MB")
LABEL_ROWS = Limit("TRT_QAT_MAX_LABEL_ROWS", 100_000, "rows")
LIST_MEGABYTES = Limit("TRT_QAT_MAX_LIST_MB", 256, "MB")
IMAGE_MEGABYTES = Limit("TRT_QAT_MAX_IMAGE_MB", 512, "MB")
IMAGE_MEGAPIXELS = Limit("TRT_QAT_MAX_IMAGE_MEGAPIXELS", 128, "megapixels")
LISTED_FILES = Limit("TRT_QAT_MAX_FILES", 1_000_000, "files")
CLASSES = Limit("TRT_QAT_MAX_CLASSES", 10_000, "classes")
ONNX_MEGABYTES = Limit("TRT_QAT_MAX_ONNX_MB", 2048, "MB")
ENGINE_MEGABYTES = Limit("TRT_QAT_MAX_ENGINE_MB", 8192, "MB")
ONNX_NODES = Limit("TRT_QAT_MAX_ONNX_NODES", 20_000, "nodes")
ONNX_ROW = Limit("TRT_QAT_MAX_ONNX_ROW", 500, "operators in a row without a convolution")
ONNX_VALUES = Limit("TRT_QAT_MAX_ONNX_VALUES", 1_000_000_000, "values")
SOURCES = Limit("TRT_QAT_MAX_SOURCES", 64, "sources that are open at once")
LINT_STEPS = Limit("TRT_QAT_MAX_LINT_STEPS", 3_000_000, "steps from node to node")
PICTURE_BOXES = Limit("TRT_QAT_MAX_PICTURE_BOXES", 3_000, "boxes")
CONSTANT_VALUES = Limit("TRT_QAT_MAX_CONSTANT_VALUES", 64_000_000, "values in a computed constant")
PARAMETERS = Limit("TRT_QAT_MAX_PARAMETERS", 500_000_000, "parameters")
WEIGHTS_MEGABYTES = Limit("TRT_QAT_MAX_WEIGHTS_MB", 8192, "MB")
HEADER_MEGABYTES = Limit("TRT_QAT_MAX_HEADER_MB", 8, "MB of description beside the tensors")
PICKLE_MEGABYTES = Limit("TRT_QAT_MAX_PICKLE_MB", 2, "MB of structure beside the tensors")
NETWORK_MODULES = Limit("TRT_QAT_MAX_MODULES", 10_000, "modules")
NETWORK_OPERATIONS = Limit("TRT_QAT_MAX_OPERATIONS", 10_000, "operations in one forward pass")
NETWORK_MEGABYTES = Limit("TRT_QAT_MAX_ACTIVATION_MB", 8192, "MB of activations for one image of 256 pixels")
NETWORK_GIGAMACS = Limit("TRT_QAT_MAX_GIGAMACS", 200, "billion multiply-accumulates for one image of 256 pixels")
