"""Quantization-aware fine-tuning: Ultralytics' training loop on a calibrated network.

The best epoch is the one nearest to the float network on the val images, by the terms that it is trained with: they
count every anchor. mAP, or agreement, counts few boxes there, and its chance is as large as what an epoch brings. It
chooses where people's labels are what training follows.

Each idea is a feature with a file of its own and a key in the ``qat`` section; the trainer calls all of them alike and
knows none by name, see :mod:`trt_qat.training.features.base`.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override
from ultralytics.nn.tasks import DetectionModel

from trt_qat import distributed
from trt_qat.artifacts import CheckpointArtifact
from trt_qat.checkpoint import Model, save
from trt_qat.config import QatSection
from trt_qat.data.dataset import Dataset
from trt_qat.halving import halving
from trt_qat.model.device import CPU
from trt_qat.model.loading import is_end_to_end
from trt_qat.progress import SILENT, Progress
from trt_qat.quantization.insert import QuantizedModel
from trt_qat.results import file_content
from trt_qat.training.criterion import QATCriterion, deployed_criterion
from trt_qat.training.detection_trainer import DatasetTrainer, common_overrides, quiet_ultralytics
from trt_qat.training.features.base import Epoch, Feature, ParamGroup, Start, Step
from trt_qat.training.features.choose import features_from_section
from trt_qat.training.precision import Precision, is_scale_too_large
from trt_qat.training.resume import FILE, fitting, load_state, run_fingerprint, save_state

LOG = logging.getLogger(__name__)
_GRADIENT_NORM = 10.0  # Ultralytics' own limit
_LEARNING_RATES = {"lr/pg0", "lr/pg1", "lr/pg2"}  # Ultralytics' own groups: weights, norms, biases


class QATTrainer(DatasetTrainer):
    """Fine-tunes a calibrated network in place.

    Args:
        detector: calibrated, in the form in which it is trained (``Feature.as_trained``).
        features: the ideas that take part, in the order in which their hooks are called.
        dataset: trained on, and validated on its val split.
        out: folder for ``best.safetensors``, ``last.safetensors``, ``results.csv``, ``resume.pt``.
        provenance: goes into the checkpoints and decides whether a run may be resumed.
        state: what ``resume.pt`` held, None for a new run.
        batch: images at once where ``section.batch`` of them do not fit into memory; gradients of that many are summed.
        device: where it is trained.
    """

    stage = "QAT"

    def __init__(
        self,
        detector: Model,
        features: Sequence[Feature],
        dataset: Dataset,
        out: Path,
        section: QatSection,
        provenance: Mapping[str, Any],
        progress: Progress = SILENT,
        state: Mapping[str, Any] | None = None,
        batch: int | None = None,
        device: torch.device = CPU,
    ) -> None:
        self._detector = detector
        self._quantized = model = detector.require_quantized()
        self._features = features
        self._with_labels = section.loss != "distill"
        self._provenance = provenance
        self._state = state
        self._out = out
        self.start_fitness = 0.0
        self._by_error = section.loss == "distill" or (section.loss == "both" and dataset.measure == "agreement")
        self._best_choice: float | None = None  # of what the best epoch is chosen by: fitness, or less the error
        self._is_best = False
        if not model.placement.groups:  # see activation.py
            self.stage = "activation"
        overrides = _overrides(section, out, batch or section.batch, device)
        for feature in features:
            overrides |= feature.ultralytics_arguments()
        if is_end_to_end(model.network):
            overrides["iou"] = 1.0  # validation suppresses no box, as deployment
        precision = Precision(section.amp, device)
        super().__init__(model.network, dataset, detector.imgsz, overrides, progress, precision)
        self.best, self.last = out / "best.safetensors", out / "last.safetensors"
        self.add_callback("on_train_epoch_start", QATTrainer._seed_epoch)
        self.add_callback("on_train_batch_start", QATTrainer._before_step)
        if state is None:
            self.add_callback("on_train_start", QATTrainer._validate_start)
        if distributed.is_main():  # the others wait while it measures, see distributed.py
            self.add_callback("on_train_start", QATTrainer._begin)
            self.add_callback("on_fit_epoch_end", QATTrainer._after_epoch)
        self.add_callback("teardown", QATTrainer._end)

    @override
    def _setup_train(self) -> None:
        for parameter in self._quantized.network.parameters():
            parameter.requires_grad_(True)
        for feature in self._features:
            feature.prepare_(self._quantized, self.device)
        super()._setup_train()
        network = self._quantized.network
        self._precision.forward_in_16_bit_(network)
        network.criterion = QATCriterion(deployed_criterion(network), self._with_labels, self._features, self._by_error)
        self.ema.ema.criterion = network.criterion  # the copy was made before; it is the one that validation asks

    @override
    def build_optimizer(self, model: nn.Module, *args: Any, **keys: Any) -> Optimizer:
        """Ultralytics' optimizer, with the features' groups behind its own."""
        optimizer: Optimizer = super().build_optimizer(model, *args, **keys)
        for feature in self._features:
            _move_(optimizer, feature.param_groups(self._quantized))
        return optimizer

    @override
    def optimizer_step(self) -> None:
        """One step with clipped gradients; a step that is not finite is left out and ends the run.

        With float16 it only is left out as long as a smaller scale may help, see :meth:`Precision.scaler`.
        """
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), _GRADIENT_NORM)
        if torch.isfinite(norm):
            self.scaler.step(self.optimizer)
            for feature in self._features:
                feature.after_step(self._quantized)
            self.ema.update(self.model)
        elif not is_scale_too_large(self.scaler):
            LOG.warning(
                "%s diverged: the gradient of step %d is not finite. Stopped; the best checkpoint is kept. "
                "Lower qat.%s.",
                self.stage,
                self.steps_done,
                "lr0" if self._quantized.placement.groups else "activation_lr0",
            )
            self.stop = True
        self.scaler.update()
        self.optimizer.zero_grad()

    @override
    def _model_train(self) -> None:
        super()._model_train()
        for feature in self._features:
            feature.train_mode_(self._quantized, self.epoch)

    @override
    def validate(self) -> tuple[Any, Any]:
        """As Ultralytics validates, and whether this epoch is the best so far."""
        metrics, fitness = super().validate()
        if metrics is None or fitness is None:  # another process measures
            return metrics, fitness
        choice = float(fitness)
        if self._by_error:
            terms = [f"val/{name}" for feature in self._features if feature.teaches for name in feature.terms]
            choice = -sum(float(metrics[name]) for name in terms)
        self._is_best = self._best_choice is None or choice >= self._best_choice
        if self._is_best:
            self._best_choice = choice
        return metrics, fitness

    @override
    def save_metrics(self, metrics: Mapping[str, float]) -> None:
        """Ultralytics' results.csv, without a column for every group that a feature has added to the optimizer."""
        super().save_metrics({k: v for k, v in metrics.items() if not k.startswith("lr/pg") or k in _LEARNING_RATES})

    @override
    def save_model(self) -> bool:
        """Write ``last``, and ``best`` when this epoch is the best so far."""
        model = self._evaluated_model()
        for feature in self._features:
            model = feature.as_saved(model)
        fitness = {
            "measure": self._dataset.measure,
            "epoch": self.epoch + 1,
            "fake_quant_map50_95": float(self.fitness),
            "start_fake_quant_map50_95": self.start_fitness,  # of the calibrated network, which no table of epochs has
        }
        provenance = {**self._provenance, "training": file_content(fitness)}
        detector = self._detector.with_quantized(model, "qat", provenance)
        if not model.placement.groups:  # a float network
            detector = replace(detector, quantized=None, stage="fp32")
        save(self.last, detector)
        if self._is_best:
            save(self.best, detector)
        return True

    @override
    def final_eval(self) -> None:
        """Nothing: the exported file is what gets evaluated."""

    @override
    def resume_training(self, ckpt: Any) -> None:
        """Go on from the state of an interrupted run."""
        del ckpt  # Ultralytics' own kind of checkpoint
        if self._state is None:
            return
        with fitting(self._out):
            self._restore(self._state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._quantized.network.load_state_dict(state["model"])
        self.ema.ema.load_state_dict(state["ema"])
        self.ema.updates = state["updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.best_fitness, self.start_fitness = state["best_fitness"], state["start_fitness"]
        self._best_choice = state["best_choice"]
        self.stopper.best_fitness, self.stopper.best_epoch = state["stopper"]
        self.start_epoch = state["epoch"] + 1
        for feature in self._features:
            feature.load_state(state["features"][feature.name], self.start_epoch)
        if distributed.is_main():
            self.csv.write_text(state["results_csv"], encoding="utf-8")

    @override
    def _handle_nan_recovery(self, epoch: int) -> bool:
        """Never: a step that is not finite was left out."""
        del epoch
        return False

    def _evaluated_model(self) -> QuantizedModel:
        """The averaged network (EMA) that is validated and saved."""
        return replace(self._quantized, network=self.ema.ema)

    def _validation_images(self) -> Iterator[Tensor]:
        for batch in self.test_loader:
            yield self.preprocess_batch(batch)["img"]

    def _seed_epoch(self) -> None:
        """Order and augmentation depend on seed and epoch alone, so that an interrupted epoch can be done again."""
        # a prime far above any number of processes: no two pairs of epoch and process share a seed
        seed = self.args.seed + 7919 * (self.epoch + 1) + distributed.rank()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        self.train_loader.reset()  # else the loader goes on where the last epoch's sampler stood
        self.train_loader.generator.manual_seed(seed)

    def _before_step(self) -> None:
        step = Step(self.steps_done, len(self.train_loader), self.epochs)
        for feature in self._features:
            feature.before_step(step, self.optimizer)

    def _validate_start(self) -> None:
        """Epoch 0: the calibrated network itself is a candidate, so QAT never returns something worse."""
        self.epoch = -1
        # Ultralytics' validator asks the trainer's last loss for the names of its parts, and no step was made yet
        batch = self.preprocess_batch(next(iter(self.train_loader)))
        with torch.no_grad():
            self.loss, self.loss_items = self.ema.ema(batch)
        self.metrics, self.fitness = self.validate()
        if distributed.is_main():
            self.start_fitness = float(self.fitness)
            self.save_model()
        self.epoch = 0

    def _begin(self) -> None:
        for feature in self._features:
            feature.begin(self._evaluated_model(), self._validation_images())

    def _after_epoch(self) -> None:
        fitness = float(self.fitness), float(self.best_fitness)
        epoch = Epoch(self.epoch + 1, self._evaluated_model(), *fitness, self._dataset.measure)
        ends = [feature.after_epoch(epoch) for feature in self._features]  # each is told, whatever another says
        self.stop |= any(ends)
        self._save_state()

    def _end(self) -> None:
        for feature in self._features:
            feature.end()

    def _save_state(self) -> None:
        fingerprint = run_fingerprint(self._provenance)
        if self.stop:
            save_state(self._out, fingerprint, {"finished": True})
            return
        state = {
            "epoch": self.epoch,
            "finished": False,
            "model": self._quantized.network.state_dict(),
            "ema": self.ema.ema.state_dict(),
            "updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best_fitness": float(self.best_fitness),
            "start_fitness": self.start_fitness,
            "best_choice": self._best_choice,
            "stopper": (float(self.stopper.best_fitness), int(self.stopper.best_epoch)),
            "results_csv": self.csv.read_text(encoding="utf-8"),
            "features": {feature.name: dict(feature.state()) for feature in self._features},
        }
        save_state(self._out, fingerprint, state)


def _move_(optimizer: Optimizer, groups: Sequence[ParamGroup]) -> None:
    """Take the groups' parameters out of the optimizer's groups and give each group its own, in place."""
    moved = {id(parameter) for group in groups for parameter in group.params}
    for existing in optimizer.param_groups:
        existing["params"] = [parameter for parameter in existing["params"] if id(parameter) not in moved]
    for group in groups:
        optimizer.add_param_group({"params": list(group.params), "lr": group.lr, "weight_decay": group.weight_decay})


def _overrides(section: QatSection, out: Path, batch: int, device: torch.device) -> dict[str, Any]:
    overrides = common_overrides(out, section.epochs, batch, section.seed, device)
    # the images as calibration saw them, but for what the section asks for
    return overrides | {
        "optimizer": section.optimizer,
        "lr0": section.lr0,
        "lrf": section.lrf,
        "cos_lr": True,
        "weight_decay": section.weight_decay,
        "warmup_epochs": section.warmup_epochs,
        "warmup_bias_lr": 0.0,  # Ultralytics starts the biases at 0.1, which ruins trained ones
        "nbs": section.batch,  # else it would sum gradients up to a batch of 64
        "mosaic": 0.0,
        "close_mosaic": 0,
        "erasing": 0.0,
        "augmentations": [],  # Ultralytics would use Albumentations wherever it happens to be installed
        "hsv_h": section.hsv * 0.05,
        "hsv_s": section.hsv,
        "hsv_v": section.hsv,
        "scale": section.scale,
        "translate": section.translate,
        "fliplr": section.fliplr,
        "fraction": section.fraction,
        "pretrained": False,
    }


def train_qat(
    model: Model,
    dataset: Dataset,
    out: Path,
    section: QatSection,
    provenance: Mapping[str, Any],
    progress: Progress = SILENT,
    *,
    device: torch.device = CPU,
    order: Sequence[str] = (),
    teacher: DetectionModel | None = None,
    resume: bool = False,
) -> CheckpointArtifact:
    """Fine-tune and return the best checkpoint, ``out/best.safetensors``. ``model`` is left as it was.

    Args:
        model: calibrated.
        device: where it is trained; a run may be resumed on another.
        order: scale groups in the order of progressive quantization; by depth if empty.
        teacher: float network that distillation follows; None is the one that ``model`` was calibrated from.
        resume: go on with the run in ``out`` where it was interrupted; begin if there is none.

    Raises:
        QuantizationError: the model is float.
        ArtifactError: ``bn: freeze`` of folded weights; ``resume`` with other weights, data,
            versions or settings than the interrupted run's.
    """
    fingerprint, interrupted = run_fingerprint(provenance), resume
    if resume and (load_state(out, fingerprint) or {}).get("finished"):
        return CheckpointArtifact(out / "best.safetensors")

    def attempt(batch: int) -> CheckpointArtifact:
        nonlocal interrupted
        state = load_state(out, fingerprint) if interrupted else None
        interrupted = True  # where memory runs out in a later epoch, the ones before it are kept
        if state is not None:
            progress.note(f"Fine-tuning goes on after epoch {state['epoch'] + 1} of {section.epochs}.")
        elif distributed.is_main():
            (out / FILE).unlink(missing_ok=True)  # of an earlier run, whose place this one takes
        start = Start(model, out, order, teacher)
        return _train(start, dataset, section, provenance, progress, state, batch, device)

    return halving(attempt, section.batch, "qat.batch", progress)


def _train(
    start: Start,
    dataset: Dataset,
    section: QatSection,
    provenance: Mapping[str, Any],
    progress: Progress,
    state: Mapping[str, Any] | None,
    batch: int,
    device: torch.device,
) -> CheckpointArtifact:
    features = features_from_section(section, start)
    model, quantized = start.model, start.model.require_quantized()
    trained = replace(quantized, network=copy.deepcopy(quantized.network))
    for feature in features:
        trained = feature.as_trained(trained, model)
    detector = replace(model, network=trained.network, quantized=trained)
    with quiet_ultralytics():
        trainer = QATTrainer(
            detector, features, dataset, start.out, section, provenance, progress, state, batch, device
        )
        trainer.train()
    if distributed.is_main():
        (start.out / "weights").rmdir()  # Ultralytics' folder for its own checkpoints, which QAT does not write
    return CheckpointArtifact(Path(trainer.best))
