"""What every idea of QAT is: a feature whose hooks the trainer calls, and which do nothing until a subclass needs them.

The trainer knows no feature by name. A run calls the hooks in this order::

    check                                    before any long work, also before calibration
    configured                               made from the ``qat`` section, or not
    as_trained, ultralytics_arguments        before the trainer is made
    prepare_, param_groups                   around the making of the optimizer
    load_state                               a resumed run only
    begin                                    after epoch 0, the calibrated network itself, was validated
    for every epoch:
        train_mode_
        for every step: before_step, loss, (gradients, optimizer,) after_step, (average of the weights)
        (validation,) as_saved, after_epoch, state
    end

Of several processes each trains, so each calls the hooks; those that record (``begin``, ``after_epoch``, ``state``) are
the main process's alone, and so is what they write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from ultralytics.nn.tasks import DetectionModel

from trt_qat.checkpoint import Model
from trt_qat.config import QatSection
from trt_qat.model.output_error import Predictions
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.results import Measure


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Args:
        model: calibrated; not to be changed.
        out: the run's folder.
        order: scale groups in the order of progressive quantization; empty is the order of the network.
        teacher: float network that distillation follows; None is the one that the model was calibrated from.
    """

    model: Model
    out: Path
    order: Sequence[str] = ()
    teacher: DetectionModel | None = None


@dataclass(frozen=True)
class Step:
    """Where in the run a step is.

    Args:
        number: counted from 0 over the whole run, also after a resume.
    """

    number: int
    per_epoch: int
    epochs: int

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.per_epoch * self.epochs

    @property
    def share(self) -> float:
        """Part of the run that is done before this step, from 0."""
        return self.number / self.total


@dataclass(frozen=True)
class Epoch:
    """A finished epoch.

    Args:
        number: counted from 1; 0 is the calibrated network.
        model: the averaged network (EMA) that was validated.
        fitness: its fake-quant mAP50-95, or agreement.
        best_fitness: the best so far, this one included.
        measure: which of the two.
    """

    number: int
    model: QuantizedModel
    fitness: float
    best_fitness: float
    measure: Measure = "mAP"


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that the optimizer treats apart from the rest."""

    params: Sequence[nn.Parameter]
    lr: float
    weight_decay: float = 0.0


class Feature:
    """One idea of QAT. A new one is a file beside this one and a row in ``features/choose.py``.

    Attributes:
        name: what its state is called in ``resume.pt``; unique.
        terms: the names of its loss terms, columns of ``results.csv``; epoch 0 needs them before a loss is computed.
        teaches: its terms say how far the network is from what it should compute, on images that it was not trained on
            as well: unless people's labels are what training follows, the epoch with the least sum of them is the best.
    """

    name: ClassVar[str]
    terms: ClassVar[tuple[str, ...]] = ()
    teaches: ClassVar[bool] = False

    @classmethod
    def configured(cls, section: QatSection, start: Start) -> Feature | None:
        """This feature with the settings of a section, None where the section leaves it out."""
        raise NotImplementedError(f"{cls.__name__} does not say when it is configured")

    @classmethod
    def check(cls, section: QatSection, model: Model) -> None:
        """Refuse what could only fail later.

        Args:
            model: where the run is to start; it may still be float.

        Raises:
            TrtQatError: the section asks for something that cannot be done with this model.
        """

    def as_trained(self, model: QuantizedModel, source: Model) -> QuantizedModel:
        """The form in which the model is trained; the inverse of :meth:`as_saved`.

        Args:
            model: a copy that may be changed.
            source: what the run starts from, to be left as it is.
        """
        return model

    def ultralytics_arguments(self) -> Mapping[str, Any]:
        """Ultralytics' training arguments that this feature needs to be other than they are."""
        return {}

    def prepare_(self, model: QuantizedModel, device: torch.device) -> None:
        """Before the optimizer and the averaged copy are made. May change the network, so that both see the change.

        Args:
            model: its network is the one in training, still where it was loaded; it stays the same object.
            device: where it will be trained.
        """

    def param_groups(self, model: QuantizedModel) -> Sequence[ParamGroup]:
        """Parameters of the network that are taken out of Ultralytics' groups to be optimized otherwise."""
        return ()

    def begin(self, model: QuantizedModel, images: Iterator[Tensor]) -> None:
        """Before the first step of this process's run. Nothing may be changed.

        Args:
            model: the averaged network as it is now.
            images: validation batches, each (batch, 3, h, w) in [0, 1]; read only when asked for.
        """

    def train_mode_(self, model: QuantizedModel, epoch: int) -> None:
        """After the network was put into training mode. May put layers of it back.

        Args:
            epoch: counted from 0.
        """

    def before_step(self, step: Step, optimizer: Optimizer) -> None:
        """Before a batch is read. May change the optimizer's settings and what the network computes."""

    def loss(self, predictions: Predictions, images: Tensor) -> Mapping[str, Tensor]:
        """Weighted terms of the training loss, one scalar for each name in ``terms``, with a gradient in training.

        Args:
            predictions: the network's raw predictions for ``images``, in float32.
            images: (batch, 3, h, w) in [0, 1]. With ``qat.amp`` this runs under autocast, for another network's sake.
        """
        return {}

    def after_step(self, model: QuantizedModel) -> None:
        """After the optimizer's step, before the average is updated. May correct what the step did to the network."""

    def as_saved(self, model: QuantizedModel) -> QuantizedModel:
        """The form in which a checkpoint holds the averaged network. ``model`` is left as it is."""
        return model

    def after_epoch(self, epoch: Epoch) -> bool:
        """After an epoch was validated and saved. Returns whether the run should end here."""
        return False

    def state(self) -> Mapping[str, Any]:
        """What cannot be had again from the network, the optimizer and the step's number: tensors and plain values."""
        return {}

    def load_state(self, state: Mapping[str, Any], epochs: int) -> None:
        """Go on after ``epochs`` finished epochs with what :meth:`state` returned then."""

    def end(self) -> None:
        """The run is over or has failed, perhaps before :meth:`begin`: close what is open."""
