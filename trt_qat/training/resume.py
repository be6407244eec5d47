"""What an interrupted run needs to go on as if nothing had happened, written after every epoch.

Within an epoch nothing has to be kept: order and augmentation follow from the seed and the epoch's number
(``DatasetTrainer``), so the interrupted epoch is done again and gives the same result.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trt_qat.artifacts import atomic_path
from trt_qat.errors import ArtifactError

FILE = "resume.pt"
_FORMAT = "trt_qat-resume-2"
_SECTIONS = ("model", "data", "quantization", "sensitivity")  # beside qat


def run_fingerprint(provenance: Mapping[str, Any]) -> str:
    """One hash of everything that decides a run: weights, data, versions, and the settings that training reads.

    The calibration follows from these. ``qat.max_drop`` is left out: a finished run may be given another budget.
    """
    content = {key: value for key, value in provenance.items() if key != "calibration"}
    config = provenance.get("config", {})
    content["config"] = {section: config.get(section) for section in _SECTIONS}
    content["config"]["qat"] = {key: value for key, value in config.get("qat", {}).items() if key != "max_drop"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def save_state(folder: Path, fingerprint: str, state: Mapping[str, Any]) -> None:
    """Write ``folder/resume.pt``, whole or not at all. Tensors and plain values only, so loading it runs no code."""
    with atomic_path(folder / FILE) as temporary:
        torch.save({"format": _FORMAT, "fingerprint": fingerprint, **state}, temporary)


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
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as exc:
        raise ArtifactError(
            f"'{path}' is damaged ({' '.join(str(exc).split())[:100]}). Start without --resume."
        ) from exc
    if state.get("format") != _FORMAT or state.get("fingerprint") != fingerprint:
        raise ArtifactError(
            f"'{path}' belongs to a run with other weights, data, versions or settings. "
            "Resume with the same ones, or start without --resume."
        )
    return state
