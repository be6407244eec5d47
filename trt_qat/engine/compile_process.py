"""The child process that compiles an ONNX file only to hear what the compiler says.

``python -m trt_qat.engine.compile_process``. Request: {"onnx", "sm", "batch", "log", "report"}. It leaves the
compiler's words in the file "log" and {"version", "plan_bytes"} in "report", or {"error", "kind"} for an expected
failure. TensorRT-RTX only: its builder is the one that needs no GPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from trt_qat.engine.build_errors import Complaint, explained
from trt_qat.engine.build_process import first_complaint
from trt_qat.engine.flavor import import_tensorrt
from trt_qat.errors import ConfigError, EngineError, TrtQatError

_WORKSPACE_MIB = 2048  # engine.workspace_mib's default: a real build with it makes the same choices


def main() -> None:
    """Answer the one request on stdin."""
    request = json.load(sys.stdin)
    try:
        report = _compile(Path(request["onnx"]), request["sm"], request["batch"], Path(request["log"]))
    except TrtQatError as exc:
        report = {"error": str(exc), "kind": type(exc).__name__}
    Path(request["report"]).write_text(json.dumps(report), encoding="utf-8")


def _compile(onnx: Path, sm: int, batch: int, log: Path) -> dict[str, Any]:
    trt = import_tensorrt("tensorrt-rtx")
    said: list[str] = []
    logger = _listening_logger(trt, said)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        raise EngineError(f"TensorRT cannot parse '{onnx.name}': {explained(first_complaint(parser), onnx)}")
    plan = builder.build_serialized_network(network, _config(builder, network, sm, batch, trt))
    if plan is None:
        errors = [line.partition(" ")[2] for line in said if line.startswith(("ERROR", "INTERNAL_ERROR"))]
        complaint = Complaint.of_log(errors, "no reason was given")
        raise EngineError(f"TensorRT could not build '{onnx.name}' for SM {sm}: {explained(complaint, onnx)}")
    log.write_text("\n".join(said), encoding="utf-8")
    return {"version": trt.__version__, "plan_bytes": plan.nbytes}


def _listening_logger(trt: Any, said: list[str]) -> Any:
    class Listener(trt.ILogger):  # type: ignore[misc]  # the base class is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            said.append(f"{severity.name} {msg}")

    return Listener()


def _config(builder: Any, network: Any, sm: int, batch: int, trt: Any) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_MIB << 20)
    known = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    if f"SM{sm}" not in known:
        raise ConfigError(f"SM {sm} is unknown to TensorRT-RTX {trt.__version__}. Known: {', '.join(known)}.")
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), 0)
    profile = _profile(builder, network, batch)
    if profile is not None:
        config.add_optimization_profile(profile)
    return config


def _profile(builder: Any, network: Any, batch: int) -> Any | None:
    """The one batch size for every input with a free batch axis; None for a static network."""
    free = [tensor for tensor in map(network.get_input, range(network.num_inputs)) if -1 in tuple(tensor.shape)]
    if not free:
        _check_static_batch(network, batch)
        return None
    profile = builder.create_optimization_profile()
    for tensor in free:
        shape = tuple(tensor.shape)
        if -1 in shape[1:]:
            raise EngineError(f"Input '{tensor.name}' has shape {shape}: only the batch axis may be dynamic.")
        fixed = (batch, *shape[1:])
        profile.set_shape(tensor.name, fixed, fixed, fixed)
    return profile


def _check_static_batch(network: Any, batch: int) -> None:
    for tensor in map(network.get_input, range(network.num_inputs)):
        shape = tuple(tensor.shape)
        if batch != 1 and shape and shape[0] != batch:
            raise ConfigError(
                f"Batch {batch} was asked for, but input '{tensor.name}' is {shape}, fixed. "
                "Export with a free batch axis, or leave the batch away."
            )


if __name__ == "__main__":
    main()
