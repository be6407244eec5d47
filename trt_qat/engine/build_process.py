"""The child process of a build: a request on stdin, a plan and a report on disk.

``python -m trt_qat.engine.build_process``, with POLYGRAPHY_USE_TENSORRT_RTX set by the parent.
Request: {"onnx", "plan", "report", "timing_folder", "flavor", "section"}. Report: what the side-car says about the
network, or {"error", "kind"} for an expected failure. Unexpected failures keep their traceback on stderr.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trt_qat.config import EngineSection, Flavor
from trt_qat.engine.build_errors import Complaint, explained
from trt_qat.engine.engine_file import ProfileShapes
from trt_qat.engine.flags import flag_options
from trt_qat.engine.flavor import import_tensorrt
from trt_qat.engine.gpu import compute_capability, gpu_names
from trt_qat.engine.onnx_file import onnx_metadata
from trt_qat.engine.profiles import input_profile
from trt_qat.errors import ConfigError, EngineError, TrtQatError
from trt_qat.extras import extras_named
from trt_qat.metadata import read_metadata


def main() -> None:
    """Answer the one request on stdin."""
    request = json.load(sys.stdin)
    try:
        section = EngineSection(**request["section"])
        timings = request["timing_folder"]
        with extras_named():
            report = _build(Path(request["onnx"]), Path(request["plan"]), section, request["flavor"], timings)
    except TrtQatError as exc:
        report = {"error": str(exc), "kind": type(exc).__name__}
    Path(request["report"]).write_text(json.dumps(report), encoding="utf-8")


def _build(onnx: Path, plan: Path, section: EngineSection, flavor: Flavor, timings: str | None) -> dict[str, Any]:
    metadata = onnx_metadata(onnx)
    trt = import_tensorrt(flavor)  # first, for its better message; Polygraphy imports it lazily
    from polygraphy.backend.trt import engine_bytes_from_network
    from polygraphy.exception import PolygraphyException

    flags = flag_options(section, trt)
    logged = _collect_polygraphy_errors()
    builder, network, _parser = _parse(onnx, trt)
    name, shape = network.get_input(0).name, tuple(network.get_input(0).shape)  # read_detector has seen that it is one
    profile = input_profile(shape, section, metadata, onnx.name)
    cache = _timing_cache(section, flavor, timings, trt)
    config = _create_config(builder, network, {name: profile}, section, flags, flavor, cache, trt)
    try:
        saved_to = None if cache is None else str(cache)
        plan_bytes = engine_bytes_from_network((builder, network), config=config, save_timing_cache=saved_to)
    except PolygraphyException as exc:
        complaint = Complaint.of_log(logged, " ".join(str(exc).split()))
        raise EngineError(f"TensorRT could not build '{onnx.name}': {explained(complaint, onnx)}") from exc
    plan.write_bytes(plan_bytes)
    return {
        "tensorrt_version": trt.__version__,
        "trt_qat_version": _installed_version("trt_qat"),
        "onnx_version": _installed_version("onnx"),
        "gpu": _gpu(),
        "inputs": [_tensor(network.get_input(index), trt) for index in range(network.num_inputs)],
        "outputs": [_tensor(network.get_output(index), trt) for index in range(network.num_outputs)],
        "profiles": [{name: profile.model_dump()}] if profile else [],
        "compute_capabilities": list(section.compute_capabilities),
        "hardware_compatible": section.hardware_compatible,
        "version_compatible": section.version_compatible,
        "optimization_level": section.optimization_level,
        **_detector(metadata, profile, shape),
    }


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a folder of sources
        return None


def _gpu() -> dict[str, Any] | None:
    gpus = gpu_names()
    return {"name": gpus[0], "compute_capability": compute_capability()} if gpus else None


def _detector(metadata: dict[str, str], profile: ProfileShapes | None, shape: tuple[int, ...]) -> dict[str, Any]:
    """What whoever runs the plan needs to know beside its tensors."""
    height, width = (profile.opt if profile else shape)[2:]
    if -1 in shape[2:]:
        metadata = {**metadata, "imgsz": f"[{height}, {width}]"}  # inside of the profile, as the file's may not be
    names = read_metadata(metadata).names
    return {
        "names": names and {str(number): name for number, name in names.items()},
        "preprocessing": {"size": [int(height), int(width)]},
        "metadata": metadata,
    }


def _parse(onnx: Path, trt: Any) -> tuple[Any, Any, Any]:
    from polygraphy.backend.trt import network_from_onnx_path
    from polygraphy.exception import PolygraphyException

    try:
        built: tuple[Any, Any, Any] = network_from_onnx_path(str(onnx), strongly_typed=True)
    except PolygraphyException as exc:
        complaint = _parser_complaint(onnx, trt)
        raise EngineError(f"TensorRT cannot parse '{onnx.name}': {explained(complaint, onnx)}") from exc
    return built


def _parser_complaint(onnx: Path, trt: Any) -> Complaint:
    # Polygraphy logs the parser's errors and drops them: parse once more to name the node
    from polygraphy.backend.trt import create_network, get_trt_logger

    _builder, network = create_network(strongly_typed=True)
    parser = trt.OnnxParser(network, get_trt_logger())
    parser.parse_from_file(str(onnx))
    return first_complaint(parser)


def first_complaint(parser: Any) -> Complaint:
    """What an ONNX parser that failed says first."""
    if parser.num_errors == 0:
        return Complaint("the parser gave no reason")
    error = parser.get_error(0)
    return Complaint.of_parser(error.desc(), error.node_name(), error.node_operator(), error.code().name)


def _timing_cache(section: EngineSection, flavor: Flavor, folder: str | None, trt: Any) -> Path | None:
    """Where kernel timings are kept; by itself one file per version and device, because others' do not fit."""
    if section.timing_cache != "auto":
        return Path(section.timing_cache) if section.timing_cache else None
    if folder is None:
        return None
    gpus = gpu_names()
    device = "-".join(f"sm{capability}" for capability in section.compute_capabilities) or "any"
    if flavor == "tensorrt" or not section.compute_capabilities:
        device = gpus[0] if gpus else device
    name = re.sub(r"[^a-z0-9.]+", "-", f"{flavor}-{trt.__version__}-{device}".lower())
    return Path(folder) / f"{name}.cache"


def _create_config(
    builder: Any,
    network: Any,
    profiles: dict[str, ProfileShapes | None],
    section: EngineSection,
    flags: dict[str, Any],
    flavor: Flavor,
    cache: Path | None,
    trt: Any,
) -> Any:
    from polygraphy.backend.tensorrt_rtx import create_config_rtx
    from polygraphy.backend.trt import create_config
    from polygraphy.exception import PolygraphyException

    options: dict[str, Any] = {
        "memory_pool_limits": {trt.MemoryPoolType.WORKSPACE: section.workspace_mib << 20},
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,
        "profiles": _polygraphy_profiles(profiles),
        **flags,
    }
    if cache is not None and cache.is_file():
        options["load_timing_cache"] = str(cache)
    try:
        if flavor == "tensorrt-rtx":
            return create_config_rtx(builder, network, compute_capabilities=_capabilities(section, trt), **options)
        # Polygraphy would switch TF32 off; this keeps TensorRT's default for the float layers
        return create_config(builder, network, tf32=True, **options)
    except PolygraphyException as exc:
        raise EngineError(f"TensorRT refuses the build configuration: {' '.join(str(exc).split())}") from exc


def _polygraphy_profiles(profiles: dict[str, ProfileShapes | None]) -> list[Any]:
    from polygraphy.backend.trt import Profile

    profile = Profile()
    for name, shapes in profiles.items():
        if shapes is not None:
            profile.add(name, min=shapes.min, opt=shapes.opt, max=shapes.max)
    return [profile] if profile else []


def _capabilities(section: EngineSection, trt: Any) -> list[tuple[int, int]] | None:
    known = [int(name[2:]) for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    for capability in section.compute_capabilities:
        if capability not in known:
            raise ConfigError(
                f"engine.compute_capabilities: {capability} is unknown to this TensorRT-RTX. Known: {known}."
            )
    return [divmod(capability, 10) for capability in section.compute_capabilities] or None


def _tensor(tensor: Any, trt: Any) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": _dtype_name(tensor.dtype, trt), "shape": list(tensor.shape)}


def _dtype_name(dtype: Any, trt: Any) -> str:
    try:
        return str(trt.nptype(dtype).__name__)
    except TypeError:  # NumPy has no bfloat16 or fp8
        return str(dtype.name).lower()


def _collect_polygraphy_errors() -> list[str]:
    from polygraphy.logger import G_LOGGER

    collected: list[str] = []
    log_error = G_LOGGER.error

    def error(message: Any, *args: Any, **kwargs: Any) -> None:
        collected.append(" ".join(str(message).split()))
        log_error(message, *args, **kwargs)

    G_LOGGER.error = error
    return collected


if __name__ == "__main__":
    main()
