"""Long work tells one object what it does; nothing that this object does changes a result."""

from __future__ import annotations

import inspect
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from recording import Recording
from rich.console import Console
from rich.progress import Progress as Bar

from trt_qat import api
from trt_qat.checkpoint import Model
from trt_qat.cli import Bars, cli
from trt_qat.data.dataset import Dataset
from trt_qat.progress import SILENT, Noting, Progress, Silent

VERBS = [
    verb
    for name, verb in inspect.getmembers(api, inspect.isfunction)
    if verb.__module__ == api.__name__ and not name.startswith("_")
]


def methods(kind: type) -> dict[str, inspect.Signature]:
    return {name: inspect.signature(getattr(kind, name)) for name in ("over", "step", "note")}


def test_what_was_said_is_shown_and_kept_with_the_warnings() -> None:
    shown = Recording()
    noting, logger = Noting(shown), logging.getLogger("trt_qat.training")
    logger.warning("before")
    noting.note("first")
    with noting.with_warnings():
        logger.warning("SQNR of %s fell.", "model.0")
        logger.info("no warning")
        noting.note("last")
    logger.warning("after")
    assert noting.lines == ["first", "SQNR of model.0 fell.", "last"]
    assert shown.notes == ["first", "last"]
    assert list(noting.over([1, 2], "counting")) == [1, 2]
    noting.step("training", 1, 2)
    assert (shown.seen, shown.steps) == ({"counting": 2}, [("training", 1, 2)])


@pytest.mark.parametrize("kind", [Silent, Bars, Recording, Noting])
def test_every_progress_has_the_methods_of_the_protocol(kind: type) -> None:
    """With the protocol's own parameter names, for verbs may give them by name."""
    for name, promised in methods(Progress).items():
        assert list(methods(kind)[name].parameters) == list(promised.parameters), name


def test_silence_gives_the_items_themselves() -> None:
    items = [object(), object()]
    assert SILENT.over(items, "anything") is items
    assert SILENT.step("anything", 1, 0) is None
    assert SILENT.note("anything") is None


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_every_verb_takes_one_and_is_silent_by_itself(verb: Callable[..., Any]) -> None:
    parameter = inspect.signature(verb).parameters["progress"]
    assert (parameter.default, parameter.kind) == (SILENT, inspect.Parameter.KEYWORD_ONLY)


def test_calibration_says_what_it_does_and_is_the_same_as_in_silence(detector: Model, demo: Dataset) -> None:
    recording = Recording()
    settings: dict[str, Any] = {"images": 8, "batch": 4, "auto_images": 4, "exclude": ["model.[4-9].*", "model.1*"]}
    told = api.quantize(detector, demo, progress=recording, **settings)
    assert recording.seen == {"calibrating": 2, "comparing calibrators": 7}
    silent = api.quantize(detector, demo, **settings)
    assert told.provenance == silent.provenance
    ranges = silent.require_quantized().amax()
    assert all(torch.equal(amax, ranges[name]) for name, amax in told.require_quantized().amax().items())


def test_training_reports_steps_that_end_at_their_total(ptq: Model, demo_yaml: Path, tmp_path: Path) -> None:
    recording = Recording()
    api.finetune(ptq, demo_yaml, tmp_path / "run", epochs=2, batch=4, progress=recording)
    assert recording.steps
    for description in {description for description, _, _ in recording.steps}:
        done = [done for name, done, _ in recording.steps if name == description]
        totals = {total for name, _, total in recording.steps if name == description}
        assert done == sorted(done)
        assert totals == {done[-1]}


@pytest.fixture
def ptq(detector: Model, calibrated: Callable[..., Any]) -> Model:
    return detector.with_quantized(calibrated(), "ptq", {})


def terminal() -> tuple[Bar, io.StringIO]:
    stream = io.StringIO()
    return Bar(console=Console(file=stream, force_terminal=True, width=100), auto_refresh=False), stream


def test_bars_show_what_is_done() -> None:
    bar, stream = terminal()
    with bar:
        bars = Bars(bar)
        assert list(bars.over(["a", "b", "c"], "calibrating")) == ["a", "b", "c"]
        for done in (1, 2):
            bars.step("training", done, 5)
        bars.step("video", 7, 0)
        tasks = {task.description: (task.completed, task.total) for task in bar.tasks if task.visible}
        assert tasks == {"calibrating": (3, 3), "training": (2, 5), "video": (7, None)}  # "starting" is gone
    assert "training" in stream.getvalue()


def test_an_interrupted_loop_is_not_finished() -> None:
    bar, _ = terminal()
    with bar:
        iterator = iter(Bars(bar).over([1, 2, 3], "work"))
        next(iterator)
        next(iterator)
        assert [task.completed for task in bar.tasks if task.description == "work"] == [1]


def test_notes_are_lines_of_the_result_and_bars_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is piped is the result alone."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["data", "demo", "--train", "1", "--val", "1", "--out", "demo"])
    assert (result.stdout, result.stderr) == ("Generated: demo/data.yaml\n", "")
