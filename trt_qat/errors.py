"""Every error a user can meet, as one tree.

TrtQatError                 caught in cli.py only: one line on stderr, exit code 1
├── ConfigError             a configuration key or value is wrong
├── DatasetError            images, labels or data.yaml are wrong
├── ArtifactError           a file (weights, checkpoint, ONNX, plan) cannot be read or written
├── MissingDependency       an optional package or a driver is not there
├── QuantizationError       quantizers cannot be placed or calibrated
├── ExportError             the ONNX graph cannot be made or cleaned
├── EngineError             the TensorRT build failed
├── RunnerError             a model cannot run on the chosen runtime
├── NotEnoughMemory         memory runs out even with one image at a time
└── ConsistencyError        two things that must agree do not: a result would be wrong

A message says in one line what was given, what is allowed, and what to do.
"""

from __future__ import annotations

from trt_qat.redact import redacted_message

_LONGEST = 2000  # characters of a message; its end, which says what to do, is kept
_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(0x20), *range(0x7F, 0xA0))}


class TrtQatError(Exception):
    """Base class of every expected failure.

    A message is one line without control characters, which a terminal would obey, whatever names and values out of a
    file stand in it, and it holds no URL's user, password or token.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(_one_line(redacted_message(message)))


def _one_line(message: str) -> str:
    line = " ".join(message.splitlines()).translate(_CONTROLS)
    return line if len(line) <= _LONGEST else f"{line[:1400]} ... {line[-500:]}"


class ConfigError(TrtQatError):
    """A configuration key or value is wrong."""


class DatasetError(TrtQatError):
    """Images, labels or the data.yaml are wrong."""


class ArtifactError(TrtQatError):
    """A weights, checkpoint, ONNX or plan file cannot be read or written."""


class MissingDependency(TrtQatError):
    """An optional package or a driver is not installed."""


class QuantizationError(TrtQatError):
    """Quantizers cannot be placed, calibrated or loaded."""


class ExportError(TrtQatError):
    """The ONNX graph cannot be exported or cleaned."""


class EngineError(TrtQatError):
    """TensorRT could not build the engine."""


class RunnerError(TrtQatError):
    """A model cannot run on the chosen runtime."""


class NotEnoughMemory(TrtQatError):
    """Memory runs out even with one image at a time."""


class ConsistencyError(TrtQatError):
    """Two things that must agree do not, so that every result would be wrong."""
