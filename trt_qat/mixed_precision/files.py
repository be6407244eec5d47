"""What a budget leaves in the folder of a QAT run: the report, and the all-INT8 checkpoint beside the mixed one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from trt_qat.artifacts import write_json
from trt_qat.checkpoint import Model, save
from trt_qat.mixed_precision.budget_search import Weights
from trt_qat.mixed_precision.mixes import Budget
from trt_qat.reading import FileModel, read_json
from trt_qat.results import Fraction, Measure, Milliseconds, OutputError, Text, checked_measures, file_content

BEST, ALL_INT8, REPORT = "best.safetensors", "best_int8.safetensors", "mixed_precision.json"


class FloatFigures(FileModel):
    """The float model."""

    map50_95: Fraction
    latency_ms: Milliseconds


class StepContent(FileModel):
    """A mix that was measured, see :class:`~trt_qat.mixed_precision.budget_search.Step`."""

    k: Annotated[int, Field(ge=0)]
    weights: Weights
    order: str
    groups: tuple[str, ...]
    drop_points: Annotated[float, Field(ge=-100, le=100)]
    map50_95: Fraction
    latency_ms: Milliseconds
    int8_latency_ms: Milliseconds

    @model_validator(mode="after")
    def _counts(self) -> StepContent:
        if len(set(self.groups)) != self.k or len(self.groups) != self.k:
            raise ValueError(f"k = {self.k}, but {len(self.groups)} groups")
        return self


class CandidateContent(FileModel):
    """A group in the ranking, see :class:`~trt_qat.mixed_precision.mixes.Candidate`."""

    group: Text
    convs: Annotated[tuple[str, ...], Field(min_length=1)]
    error: OutputError | None = None
    map50_95_drop: float | None = None
    macs_share: Annotated[float, Field(gt=0, le=1)]
    error_per_share: float


class ChosenContent(StepContent):
    """The mix that is kept, with what is known about each group that it leaves float."""

    why: tuple[CandidateContent, ...]


class BudgetContent(FileModel):
    """The file ``mixed_precision.json``."""

    max_drop_points: Annotated[float, Field(ge=0)]
    met: bool
    orders: str
    weights: str
    of_float: Annotated[FloatFigures, Field(alias="float")]
    int8: StepContent
    steps: Annotated[tuple[StepContent, ...], Field(min_length=1)]
    chosen: ChosenContent
    measure: Measure = "mAP"
    ranking: tuple[CandidateContent, ...]


def read_budget(path: Path) -> BudgetContent:
    """A report that :func:`write_budget` wrote.

    Raises:
        ArtifactError: missing, not JSON, or something else; the line names the field.
    """
    content = read_json(path, "Mixed-precision report")
    return checked_measures(BudgetContent, content, path, "Run qat with --max-drop again.")


def write_budget(folder: Path, tuned: Model, budget: Budget) -> None:
    """Make ``best`` the model that the budget chose; where that is a mix, the all-INT8 one is kept under its own name.

    Args:
        tuned: what ``best`` holds now.
    """
    if budget.model is not tuned:
        (folder / BEST).replace(folder / ALL_INT8)
        save(folder / BEST, budget.model)
    checked_measures(BudgetContent, dict(budget.report), folder / REPORT, "Nothing was written.")
    write_json(folder / REPORT, budget.report)


def undo_budget(folder: Path, resume: bool) -> None:
    """Forget an earlier budget; a run that is resumed goes on from its all-INT8 checkpoint."""
    if resume and (folder / ALL_INT8).is_file():
        (folder / ALL_INT8).replace(folder / BEST)
    for stale in (REPORT, ALL_INT8):
        (folder / stale).unlink(missing_ok=True)


def kept_budget(folder: Path, model: Model) -> Budget:
    """What :func:`write_budget` left; ``model`` is its ``best``.

    Raises:
        ArtifactError: as :func:`read_budget`.
    """
    content = read_budget(folder / REPORT)
    return Budget(model, content.met, file_content(content.model_dump(mode="json", by_alias=True, exclude_none=True)))
