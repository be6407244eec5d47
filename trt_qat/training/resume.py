"""What an interrupted run needs to go on as if nothing had happened, written after every epoch.

Within an epoch nothing has to be kept: order and augmentation follow from the seed and the epoch's number
(``DatasetTrainer``), so the interrupted epoch is done again and gives the same result.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, ValidationError, field_validator

from trt_qat.artifacts import atomic_path
from trt_qat.errors import ArtifactError
from trt_qat.memory import check_memory
from trt_qat.reading import FileModel, explain, regular_file, shortened

FILE = "resume.pt"
_FORMAT = "trt_qat-resume-3"
_SECTIONS = ("model", "data", "quantization", "sensitivity")  # beside qat


def run_fingerprint(provenance: Mapping[str, Any]) -> str:
    """One hash of everything that decides a run: weights, data, versions, and the settings that training reads.

    The calibration and what was decided on the head follow from these. ``qat.max_drop`` is left out: a finished run may
    be given another budget.
    """
    content = {key: value for key, value in provenance.items() if key not in ("calibration", "head_last")}
    config = provenance.get("config", {})
    content["config"] = {section: config.get(section) for section in _SECTIONS}
    content["config"]["qat"] = {key: value for key, value in config.get("qat", {}).items() if key != "max_drop"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def save_state(folder: Path, fingerprint: str, state: Mapping[str, Any]) -> None:
    """Write ``folder/resume.pt``, whole or not at all. Tensors and plain values only, so loading it runs no code."""
    content = {"format": _FORMAT, "fingerprint": fingerprint, **state}
    _check(content, folder / FILE)
    with atomic_path(folder / FILE) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as exc:  # its writer's word for a full disk
            raise ArtifactError(f"Cannot write '{folder / FILE}': {' '.join(str(exc).split())[:200]}.") from exc


def check_resumable(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Refuse what :func:`load_state` would refuse.

    Raises:
        ArtifactError: see there.
    """
    load_state(folder, run_fingerprint(provenance))


def load_state(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The state of the run in ``folder``; None if it was interrupted before its first epoch was done.

    Raises:
        ArtifactError: damaged, or the run had other weights, data, versions or settings.
    """
    path = folder / FILE
    if not os.path.lexists(path):
        return None
    regular_file(path, "State of the run")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # whatever a restricted unpickler does with damaged bytes: its errors share no base class
        raise ArtifactError(
            f"'{path}' is damaged ({' '.join(str(exc).split())[:100]}). Start without --resume."
        ) from exc
    if not isinstance(state, dict):
        raise ArtifactError(f"'{path}' is damaged (it holds a {type(state).__name__}). Start without --resume.")
    if state.get("format") != _FORMAT or state.get("fingerprint") != fingerprint:
        raise ArtifactError(
            f"'{path}' belongs to a run with other weights, data, versions or settings. "
            "Resume with the same ones, or start without --resume."
        )
    _check(state, path)
    return state


@contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """Within: a state is put back into networks, optimizer and features.

    Raises:
        ArtifactError: one of them does not fit.
    """
    try:
        yield
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as exc:
        check_memory(exc)
        reason = " ".join(str(exc).split())[:200]
        raise ArtifactError(f"'{folder / FILE}' does not fit this run ({reason}). Start without --resume.") from exc


class FinishedState(FileModel):
    """The state of a run that has nothing left to do."""

    format: str
    fingerprint: str
    finished: Literal[True]


class RunningState(FileModel):
    """The state after an epoch.

    Args:
        epoch: from 0, or -1 before the first.
        best_choice: of the best epoch, what it was chosen by; the highest is the best.
        stopper: best fitness and epoch of the early stopping.
        scaler: of float16's gradients; empty with any other type, and in files up to 0.1.
        features: what each feature's ``state()`` returned, by name.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    format: str
    fingerprint: str
    finished: Literal[False]
    epoch: Annotated[int, Field(ge=-1, lt=1_000_000)]
    model: dict[str, Any]
    ema: dict[str, Any]
    updates: Annotated[int, Field(ge=0)]
    optimizer: dict[str, Any]
    scaler: dict[str, float] = Field(default_factory=dict)
    best_fitness: float
    start_fitness: float
    best_choice: float
    stopper: tuple[float, int]
    results_csv: str
    features: dict[str, dict[str, Any]]

    @field_validator("model", "ema")
    @classmethod
    def _finite(cls, weights: dict[str, Any]) -> dict[str, Any]:
        for name, value in weights.items():
            if not isinstance(value, torch.Tensor):
                raise ValueError(f"{shortened(name)} is no tensor")
            _check_tensor(value, shortened(name))
        return weights

    @field_validator("optimizer", "features")
    @classmethod
    def _no_nan(cls, kept: dict[str, Any]) -> dict[str, Any]:
        for value in _values(kept):
            if isinstance(value, torch.Tensor):
                _check_tensor(value, "a tensor in it")
            if isinstance(value, float) and math.isnan(value):
                raise ValueError("it holds NaN")
        return kept

    @field_validator("results_csv")
    @classmethod
    def _table(cls, text: str) -> str:
        rows = [line.split(",") for line in text.splitlines() if line.strip()]
        for row in rows[1:]:
            if len(row) != len(rows[0]):
                raise ValueError(f"a row has {len(row)} values, the header {len(rows[0])}")
            for cell in row:
                float(cell)  # says itself which text is no number
        return text


def _check_tensor(value: torch.Tensor, name: str) -> None:
    if value._backward_hooks:  # restricted loading attaches whatever the file says
        raise ValueError(f"{name} has hooks")
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} holds NaN or infinity")


def _values(content: Any) -> Iterator[Any]:
    """What containers hold, however deep; one that holds itself is looked into once."""
    waiting, seen = [content], set[int]()
    while waiting:
        value = waiting.pop()
        if not isinstance(value, dict | list | tuple):
            yield value
        elif id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value


def _check(state: Mapping[str, Any], path: Path) -> None:
    kind: type[FileModel] = FinishedState if state.get("finished") is True else RunningState
    try:
        kind.model_validate(state)
    except ValidationError as exc:
        raise ArtifactError(f"'{path}' is damaged: {explain(exc)}. Start without --resume.") from exc
