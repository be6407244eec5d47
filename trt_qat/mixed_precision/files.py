"""What a budget leaves in the folder of a QAT run: the report, and the all-INT8 checkpoint beside the mixed one."""

from __future__ import annotations

from pathlib import Path

from trt_qat.artifacts import write_json
from trt_qat.checkpoint import Model, save
from trt_qat.mixed_precision.mixes import Budget
from trt_qat.reading import read_json

BEST, ALL_INT8, REPORT = "best.safetensors", "best_int8.safetensors", "mixed_precision.json"


def write_budget(folder: Path, tuned: Model, budget: Budget) -> None:
    """Make ``best`` the model that the budget chose; where that is a mix, the all-INT8 one is kept under its own name.

    Args:
        tuned: what ``best`` holds now.
    """
    if budget.model is not tuned:
        (folder / BEST).replace(folder / ALL_INT8)
        save(folder / BEST, budget.model)
    write_json(folder / REPORT, budget.report)


def undo_budget(folder: Path, resume: bool) -> None:
    """Forget an earlier budget; a run that is resumed goes on from its all-INT8 checkpoint."""
    if resume and (folder / ALL_INT8).is_file():
        (folder / ALL_INT8).replace(folder / BEST)
    for stale in (REPORT, ALL_INT8):
        (folder / stale).unlink(missing_ok=True)


def read_budget(folder: Path, model: Model) -> Budget:
    """What :func:`write_budget` left; ``model`` is its ``best``."""
    report = read_json(folder / REPORT, "Mixed-precision report")
    return Budget(model, bool(report["met"]), report)
