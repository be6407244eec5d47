"""A network with another activation in SiLU's place is distilled from the SiLU network, in float, before calibration.

It is the training of QAT with no quantizer in the network: the same teacher, loss terms, schedule, resume and memory
handling. Afterwards everything sees an ordinary float model, so its ranges are calibrated on what it computes now.

The settings of QAT are for adapting a network to INT8, which moves weights by less than a step of the grid. Here every
layer must learn another function, so that this phase has a learning rate and a length of its own, BatchNorm that
follows (where the weights have it apart), and images that vary: the teacher says for any image what is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trt_qat.artifacts import CheckpointArtifact
from trt_qat.checkpoint import Model
from trt_qat.config import Activation, QatSection
from trt_qat.data.dataset import Dataset
from trt_qat.errors import ArtifactError, ConfigError
from trt_qat.model.activation import with_activation
from trt_qat.model.device import CPU
from trt_qat.progress import SILENT, Progress
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.quantization.placement import Placement
from trt_qat.quantization.toolkits.choose import toolkit_from_name
from trt_qat.training.qat import train_qat

_LAST_RATE = 0.01  # of the first: the last epoch must not move what calibration sees next
_LIVE_STATISTICS = 0.75  # part of the epochs in which BatchNorm follows the batch; the last ones train what is deployed
_FOLDED_RATE = 0.1  # folded weights differ in size from channel to channel, and a step of AdamW does not
_AUGMENTED = {"hsv": 0.3, "scale": 0.3, "translate": 0.1, "fliplr": 0.5}
_FOR_INT8: dict[str, Any] = {"dampening": 0.0, "progressive": "none", "lsq": False, "monitor": False, "max_drop": None}


def with_untrained_activation(model: Model, activation: Activation) -> Model:
    """A float model whose SiLU is replaced, not trained.

    Raises:
        ArtifactError: the model is quantized.
        ConfigError: see :func:`~trt_qat.model.activation.with_activation`.
    """
    if model.quantized is not None:
        raise ArtifactError(
            f"'{model.source}' is quantized already ({model.stage}), for the outputs of SiLU; qat.activation="
            f"{activation} needs the float weights. Give those."
        )
    apart = model.with_batchnorm
    return replace(
        model,
        network=with_activation(model.network, activation, model.source),
        with_batchnorm=None if apart is None else with_activation(apart, activation, model.source),
    )


def check_activation(section: QatSection, model: Model) -> None:
    """Refuse what :func:`train_activation` would refuse, before anything long is done.

    Raises:
        TrtQatError: see :func:`with_untrained_activation`.
    """
    if section.activation != "keep":
        with_untrained_activation(model, section.activation)


def train_activation(
    model: Model,
    dataset: Dataset,
    out: Path,
    section: QatSection,
    provenance: Mapping[str, Any],
    progress: Progress = SILENT,
    *,
    device: torch.device = CPU,
    resume: bool = False,
) -> CheckpointArtifact:
    """Replace SiLU by ``section.activation``, train, and return the best float checkpoint, ``out/best.safetensors``.

    Args:
        model: float, with SiLU: the teacher, left as it is.
        resume: go on with the run in ``out`` where it was interrupted; begin if there is none.

    Raises:
        ArtifactError: the model is quantized; ``resume`` with other settings than the interrupted run's.
        ConfigError: see :func:`~trt_qat.model.activation.with_activation`.
    """
    if section.activation == "keep":
        raise ConfigError(f"qat.activation=keep: '{model.source}' keeps its own. Name hardswish or relu.")
    student = with_untrained_activation(model, section.activation)
    return distil_float(student, model, dataset, out, section, provenance, progress, device=device, resume=resume)


def distil_float(
    student: Model,
    teacher: Model,
    dataset: Dataset,
    out: Path,
    section: QatSection,
    provenance: Mapping[str, Any],
    progress: Progress = SILENT,
    *,
    device: torch.device = CPU,
    resume: bool = False,
) -> CheckpointArtifact:
    """The training of this module, whatever the student's activation; returns ``out/best.safetensors``.

    Args:
        student: float, left as it is; may be the teacher.
        teacher: float, left as it is.

    Raises:
        ArtifactError: ``resume`` with other settings than the interrupted run's.
    """
    no_quantizers = QuantizedModel(student.network, student.names, Placement((), {}), toolkit_from_name("modelopt"))
    return train_qat(
        replace(student, quantized=no_quantizers),
        dataset,
        out,
        float_section(section, folded=teacher.with_batchnorm is None),
        provenance,
        progress,
        device=device,
        teacher=teacher.network,
        resume=resume,
    )


def float_section(section: QatSection, *, folded: bool) -> QatSection:
    """The settings of this phase: the user's, with those of :mod:`this module <trt_qat.training.activation>` in place.

    Args:
        folded: the weights have no BatchNorm.
    """
    epochs = section.activation_epochs
    augmentation = {key: value for key, value in _AUGMENTED.items() if section.loss == "distill"}
    return section.replace(
        epochs=epochs,
        lr0=section.activation_lr0 * (_FOLDED_RATE if folded else 1.0),
        lrf=_LAST_RATE,
        bn="fold" if folded else "freeze",
        bn_freeze_epochs=round(_LIVE_STATISTICS * epochs),
        **augmentation,
        **_FOR_INT8,
    )
