"""What the ``data`` of a verb stands for: a dataset with labels, or images and videos, labelled by a model.

A verb takes all of them (docs/label-free.md) and works on a :class:`~trt_qat.data.dataset.Dataset`. The verbs are
:mod:`trt_qat.api`; what is footage and how it becomes a dataset is :mod:`trt_qat.footage`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_qat.artifacts import file_sha256
from trt_qat.checkpoint import Model
from trt_qat.config import DataSection, EvaluationSection
from trt_qat.data.dataset import Dataset, calibration_images, check_classes, load_dataset
from trt_qat.data.images import Image, evenly_spaced
from trt_qat.data.labelled import labelled_split
from trt_qat.data.leaks import note_leaks
from trt_qat.errors import DatasetError
from trt_qat.evaluation.parity import Side
from trt_qat.footage.dataset import Labeller, Making
from trt_qat.footage.frames import FEWEST
from trt_qat.footage.labelling import float_runner
from trt_qat.footage.named import Data, footage_in
from trt_qat.model.device import torch_device
from trt_qat.progress import SILENT, Progress
from trt_qat.runtime.runner import Runner, class_names
from trt_qat.vision.image import IMAGE_SUFFIXES

FOOTAGE = "footage"
"""The folder of images and videos without labels, in that of a run."""


@contextmanager
def given_dataset(
    model: Model, data: Data, *, folder: Path | None = None, progress: Progress = SILENT, **how: Any
) -> Iterator[Dataset]:
    """Within: the dataset that ``data`` names, with the model's classes; images and videos become one.

    Args:
        folder: where that one is kept; None is a temporary folder, which is there within the ``with`` block only.
        how: see :func:`footage_for`.

    Raises:
        DatasetError: it cannot be read, has another number of classes, or the model cannot label it.
    """
    with ExitStack() as stack:
        place = folder
        if place is None and footage_in(data) is not None:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory())) / FOOTAGE
        making = None if place is None else footage_for(model, data, place, progress=progress, **how)
        yield dataset_for(model, data) if making is None else replace(making, kept=folder is not None).dataset()


def footage_for(
    model: Model,
    data: Data,
    folder: Path,
    *,
    section: DataSection | None = None,
    evaluation: EvaluationSection | None = None,
    labels: bool = True,
    to_train: bool = False,
    sized: Callable[[Model, Dataset], Model] | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Making | None:
    """The dataset to be made of images and videos, labelled by a model; None if ``data`` names one with labels.

    Args:
        labels: whether its labels are needed.
        to_train: whether it must be one that can be fine-tuned on.
        sized: the model at the size that it runs at on such a dataset; None is its own.

    Raises:
        DatasetError: there is nothing of the kind.
    """
    footage = footage_in(data, folder)
    if footage is None:
        return None

    @contextmanager
    def opened(train: Sequence[Path]) -> Iterator[Runner]:
        seen = Dataset(Path(footage.shown), tuple(train), tuple(train), model.names)
        with float_runner(sized(model, seen) if sized else model, torch_device(device)) as runner:
            yield runner

    size = f"{'auto ' if sized else ''}{list(model.imgsz)}"
    labeller = Labeller(model.source.name, model.weights_sha256, size, opened) if labels else None
    section, evaluation = section or DataSection(), evaluation or EvaluationSection()
    check = partial(check_trainable_dataset, model) if to_train else None
    return Making(footage, folder, model.names, labeller, section, evaluation, progress, check)


def labelled_footage(model: Model, data: Data, folder: Path, *, progress: Progress = SILENT, **how: Any) -> Dataset:
    """Images and videos as a dataset in ``folder``, labelled by a model.

    Args:
        how: see :func:`footage_for`.

    Raises:
        DatasetError: ``data`` has labels, cannot be read, or the model cannot label it.
    """
    making = footage_for(model, data, folder, progress=progress, **how)
    if making is None:
        source = labelled_dataset(data, model.names).source  # which says what is wrong with it
        raise DatasetError(f"'{source}' has labels. Images and videos without labels are labelled.")
    return making.dataset()


def dataset_for(model: Model, data: Data) -> Dataset:
    """The dataset, with as many classes as the model.

    Raises:
        DatasetError: it cannot be read, has another number of classes, or is images and videos without labels.
    """
    dataset = labelled_dataset(data, model.names)
    check_classes(dataset, model.names)
    return dataset


def labelled_dataset(data: Data, names: Mapping[int, str] | None) -> Dataset:
    """The dataset that ``data`` names.

    Args:
        names: the model's, used where the dataset brings none.

    Raises:
        DatasetError: it cannot be read, or is images and videos without labels.
    """
    if isinstance(data, Dataset):
        return data
    if (footage := footage_in(data)) is not None:
        raise DatasetError(
            f"'{footage.shown}' has no labels, which training a float model needs. Give a data.yaml; what needs no "
            "labels of people is calibrate, qat and run."
        )
    return load_dataset(Path(data if isinstance(data, str | Path) else data[0]), names)


def trainable_dataset(model: Model, data: Data, progress: Progress = SILENT) -> Dataset:
    """:func:`dataset_for` and :func:`check_trainable_dataset`; val images that are in train as well are noted."""
    dataset = dataset_for(model, data)
    check_trainable_dataset(model, dataset)
    note_leaks(dataset, progress)
    return dataset


def check_trainable_dataset(model: Model, dataset: Dataset) -> None:
    """Refuse what fine-tuning cannot start with, asked before calibration takes its time.

    Raises:
        DatasetError: no label of a split is usable; labels of another model; too few images to hold some out.
    """
    if dataset.labelled_by == "model":
        _check_labelled_by(model, dataset)
    labelled_split(dataset, "train")
    labelled_split(dataset, "val")


def _check_labelled_by(model: Model, dataset: Dataset) -> None:
    sha256 = model.weights_sha256
    if dataset.weights_sha256 and sha256 and sha256 != dataset.weights_sha256:
        raise DatasetError(
            f"The labels of '{dataset.source}' are of another model ({dataset.weights_sha256[:12]}) than "
            f"'{model.source}' ({sha256[:12]}). Give the images or videos instead, to be labelled anew."
        )
    if dataset.train == dataset.val:
        count = len(dataset.train)
        raise DatasetError(
            f"{count} image{' is' if count == 1 else 's are'} too few to fine-tune on and to hold some out: "
            f"'{dataset.source}' needs {FEWEST} or more. Give more, or lower data.difference if a video shows more."
        )


@contextmanager
def labelled_by_side(
    sides: Sequence[Side],
    data: Data,
    section: DataSection | None,
    evaluation: EvaluationSection,
    progress: Progress,
    *,
    needed: bool = True,
) -> Iterator[Dataset]:
    """Within: images and videos as a dataset whose labels are of the first float model.

    Args:
        needed: whether it is an error that none is float; else there are no labels then.
    """
    footage = footage_in(data)
    if footage is None:
        raise DatasetError("A dataset with labels needs none of a model.")
    of = next((side for side in sides if side.runner.metadata.get("precision") in ("fp32", "fp16")), None)
    if of is None and needed:
        raise DatasetError(
            f"'{footage.shown}' has no labels, and none of the models is a float one that could label it. Name the "
            "model it is to agree with: --labels-from best.pt."
        )
    names = class_names((of or sides[0]).runner.metadata)
    if not names:
        raise DatasetError(f"'{(of or sides[0]).label}' names no classes, which labelling needs. Export it again.")
    labeller = None
    if of is not None:
        runner, file = of.runner, Path(of.label)
        sha256 = file_sha256(file) if file.is_file() else ""
        labeller = Labeller(file.name, sha256, str(runner.input_shape), lambda train: nullcontext(runner))
    with tempfile.TemporaryDirectory() as folder:
        out, section = Path(folder) / FOOTAGE, section or DataSection()
        yield Making(footage, out, names, labeller, section, evaluation, progress, kept=False).dataset()


@contextmanager
def images_to_calibrate(
    model: Model, data: Data | Sequence[str | Path | NDArray[np.uint8]], count: int, progress: Progress
) -> Iterator[Sequence[Image]]:
    """Within: ``count`` images to calibrate on, spread over what ``data`` names.

    Args:
        data: as every verb takes it, or the images themselves: files or uint8 BGR pixels (h, w, 3).

    Raises:
        DatasetError: there is none, or one is neither.
    """
    if not isinstance(data, str | Path | Dataset):
        data = list(data)  # an iterator is read once
    if isinstance(data, str | Path | Dataset) or any(_is_source(image) for image in data):
        with given_dataset(model, data, labels=False, progress=progress) as dataset:  # type: ignore[arg-type]
            yield calibration_images(dataset, count)
        return
    images = [Path(image) if isinstance(image, str | Path) else _checked(image) for image in data]
    if not images:
        raise DatasetError("Calibration got no image. Give at least one file or array.")
    yield evenly_spaced(images, count)


def _is_source(image: str | Path | NDArray[np.uint8]) -> bool:
    """Whether it is something else than one image."""
    return isinstance(image, str | Path) and Path(image).suffix.lower() not in IMAGE_SUFFIXES


def _checked(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,) and image.size:
        return image
    kind, shape = getattr(image, "dtype", type(image).__name__), getattr(image, "shape", ())
    raise DatasetError(f"A calibration image must be a file or uint8 BGR pixels (h, w, 3), found {kind} {shape}.")
