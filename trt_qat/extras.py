"""What `pip install trt_qat` does not bring, and which extra does: every message about a missing package says the same.

The plain install runs a model; training, export and engines need much more. The table is checked against
pyproject.toml by tests/test_extras.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from trt_qat.errors import MissingDependency

EXTRA_OF: Final[Mapping[str, str]] = {
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "pycuda": "gpu",
    "polygraphy": "gpu",  # in [train] too; where TensorRT came without it is the machine that runs the engine
    "trackers": "track",
    "ray": "ray",
    "pyarrow": "ray",
    **dict.fromkeys(
        (
            "huggingface_hub",
            "jinja2",
            "matplotlib",
            "modelopt",
            "onnx_graphsurgeon",
            "pygraphviz",
            "safetensors",
            "tensorboard",
            "tensorrt_rtx",
            "torch",
            "torchvision",
            "ultralytics",
        ),
        "train",
    ),
}
"""Module to the extra that brings it. NVIDIA's tensorrt is in none: it must fit the driver of the machine."""


def install_hint(module: str) -> str:
    """How to get a module that is missing, e.g. ``pip install 'trt_qat[train]'``.

    Args:
        module: its dotted name.
    """
    extra = EXTRA_OF.get(module.partition(".")[0])
    return f"pip install 'trt_qat[{extra}]'" if extra else "pip install trt_qat"


@contextmanager
def extras_named() -> Iterator[None]:
    """Within: the import of a package that is not installed fails with the extra that brings it.

    Raises:
        MissingDependency: a package of others is missing; one of our own modules is a bug and stays what it was.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        package = str(exc.name).partition(".")[0]
        if package == __package__:
            raise
        raise MissingDependency(
            f"This needs the package '{package}', which is not installed: {install_hint(package)}."
        ) from exc
