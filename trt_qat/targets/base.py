"""What a target is: the client that an exported file is for, and the forms in which that client takes it.

Nothing here loads torch: the command line reads the table and checks names before anything heavy starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trt_qat.artifacts import writable_file, writable_folder
from trt_qat.config import ExportFormat, ExportSection, Precision, Scheme
from trt_qat.errors import ArtifactError, ConfigError
from trt_qat.registry import TARGETS

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model

Writer = Callable[["Model", Path, ExportSection], None]
"""Writes a model to a path; the section's precision and opset are settled."""

Arrays = list[NDArray[np.float32]]
Client = Callable[[Path, Arrays], Arrays]
"""Loads a file as its user would and runs batches: (batch, 3, *imgsz) to (batch, 4 + classes, anchors).

Raises MissingDependency where the client is not installed here; whatever else it raises says that it cannot run it.
"""


@dataclass(frozen=True)
class Form:
    """One kind of file that a client takes.

    Args:
        suffix: how its name ends; one without a dot is a folder's.
        write: makes it.
        compute: the client itself, see :data:`Client`.
        precision: of the INT8 file in this form, where it is not the target's.
    """

    suffix: str
    write: Writer
    compute: Client
    precision: Precision | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder rather than one file."""
        return not self.suffix.startswith(".")


@dataclass(frozen=True)
class Target:
    """A client of exported files.

    Args:
        name: as in :data:`trt_qat.registry.TARGETS`.
        client: whose code loads the file, for messages.
        summary: one line for ``trt-qat targets``.
        precision: of the INT8 file, where none is asked for.
        forms: what it takes, by format; the first is the default.
        opset: where none is asked for.
        nms_operator: whether it runs ONNX's NonMaxSuppression.
        zero_points: whether it takes activations of ``quantization.scheme=asymmetric``.
    """

    name: str
    client: str
    summary: str
    precision: Precision
    forms: Mapping[ExportFormat, Form]
    opset: int = 19
    nms_operator: bool = True
    zero_points: bool = False

    def form(self, name: ExportFormat) -> Form:
        """The form of a format.

        Raises:
            ConfigError: the target does not take it.
        """
        if name not in self.forms:
            raise ConfigError(f"Target '{self.name}' has no format '{name}'. It takes: {self.formats}.")
        return self.forms[name]

    @property
    def formats(self) -> str:
        """Every format with the name that its file must have, e.g. ``onnx (*.onnx)``."""
        return ", ".join(f"{name} (*{form.suffix})" for name, form in self.forms.items())


def target_from_name(name: str) -> Target:
    """The target of a name.

    Raises:
        ConfigError: there is none.
    """
    target: Target = TARGETS.load(name)
    return target


def all_targets() -> list[Target]:
    """Every target, in the table's order."""
    return [target_from_name(name) for name in TARGETS.rows]


def check_scheme(scheme: Scheme, name: str) -> None:
    """Refuse INT8 activations in a form that a target does not take.

    Raises:
        ConfigError: see above; or no such target.
    """
    if scheme == "asymmetric" and not target_from_name(name).zero_points:
        able = " or ".join(target.name for target in all_targets() if target.zero_points)
        raise ConfigError(
            f"Target '{name}' takes no zero points, which quantization.scheme=asymmetric has. Use target {able}, or "
            "calibrate with quantization.scheme=symmetric."
        )


def check_out(out: Path, section: ExportSection) -> Form:
    """Prove that ``out`` can be written for ``section``, before any long work starts.

    Returns:
        The form it will have.

    Raises:
        ConfigError: no such target, or a format that it does not take.
        ArtifactError: a name that its client would not recognize, or a place that cannot be written.
    """
    target = target_from_name(section.target)
    form = target.form(section.format)
    if not out.name.lower().endswith(form.suffix) or out.name == form.suffix:
        raise ArtifactError(
            f"Format '{section.format}' of target '{target.name}' must be named *{form.suffix}, found '{out}'. "
            f"This target takes: {target.formats}."
        )
    if not form.is_folder:
        writable_file(out, form.suffix)
        return form
    if out.exists() and not is_openvino_folder(out):
        raise ArtifactError(f"'{out}' holds something else than an OpenVINO model. Give another name or remove it.")
    writable_folder(out.parent)
    return form


def is_openvino_folder(folder: Path) -> bool:
    """Whether a folder holds an OpenVINO model and nothing else, so that it may be replaced by another one."""
    return folder.is_dir() and {file.suffix for file in folder.iterdir()} <= {".xml", ".bin", ".yaml"}
