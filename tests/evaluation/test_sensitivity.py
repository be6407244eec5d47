"""Each group alone: the one made bad is found, an interrupted ranking goes on, and another key starts anew."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import cv2
import pytest
from torch import Tensor

from trt_qat.config import Config
from trt_qat.data.dataset import Dataset
from trt_qat.evaluation.group_sensitivity import GroupSensitivity
from trt_qat.evaluation.sensitivity import SensitivityResult, measure_groups, rank_groups
from trt_qat.evaluation.sensitivity_chart import draw_sensitivity
from trt_qat.quantization.divergence import OutputDivergence
from trt_qat.quantization.insert import QuantizedModel

if TYPE_CHECKING:
    from conftest import Calibrated

Item = TypeVar("Item")


@pytest.fixture(scope="module")
def bad(calibrated: Calibrated) -> tuple[QuantizedModel, str]:
    """A calibrated network in which one group's range is far too small, and that group."""
    model = copy.deepcopy(calibrated())
    group = model.placement.groups[7]
    model.load_amax_({f"activation.{group.name}": model.amax()[f"activation.{group.name}"] / 100})
    return model, group.name


def test_output_error_is_zero_in_float_and_finds_the_bad_group(
    bad: tuple[QuantizedModel, str], calibrated: Calibrated, batches: tuple[Tensor, ...]
) -> None:
    model, worst = bad
    error = OutputDivergence(model, batches[:2])
    with model.quantizers_off():
        assert error() == pytest.approx(0, abs=1e-6)
    everything = error()
    rows = measure_groups(model, error, None)
    good = calibrated()
    assert measure_groups(good, OutputDivergence(good, batches[:2]), None)[0].group != worst
    assert rows[0].group == worst
    assert everything > 0.9 * rows[0].cost > 1.3 * rows[1].cost > 0
    assert {row.group: row.convs for row in rows} == {group.name: group.convs for group in model.placement.groups}
    assert [row.cost for row in rows] == sorted((row.cost for row in rows), reverse=True)


def test_error_is_a_mean_over_images(calibrated: Calibrated, batches: tuple[Tensor, ...]) -> None:
    """Batches of unequal size count by their images."""
    model = calibrated()
    parts = [OutputDivergence(model, [batch])() for batch in (batches[0], batches[1][:1])]
    both = OutputDivergence(model, [batches[0], batches[1][:1]])()
    assert both == pytest.approx((4 * parts[0] + parts[1]) / 5, rel=1e-4)


def test_ranked_by_map_where_it_was_measured(calibrated: Calibrated) -> None:
    model = calibrated()
    drops = iter(range(1000))
    rows = measure_groups(model, lambda: 5.0, lambda: float(next(drops)))
    assert [row.group for row in rows] == [group.name for group in reversed(model.placement.groups)]
    assert {row.error for row in rows} == {5.0}


class Stopping:
    """A progress that stops like Ctrl-C after some groups, and remembers how many were asked for."""

    def __init__(self, after: int = 1000) -> None:
        self.after = after
        self.asked = 0

    def __call__(self, items: Sequence[Item], description: str, /) -> Iterable[Item]:
        self.asked = len(items)
        for index, item in enumerate(items):
            if index == self.after:
                raise KeyboardInterrupt
            yield item


def rank(
    model: QuantizedModel, data: Dataset, batches: Sequence[Tensor], out: Path, progress: Stopping, *settings: str
) -> tuple[SensitivityResult, list[str]]:
    said: list[str] = []
    config = Config.load(overrides=["sensitivity.images=4", *settings])
    return rank_groups(model, 64, data, batches, config, out, progress, said.append), said


def test_an_interrupted_ranking_goes_on(
    calibrated: Calibrated, demo: Dataset, batches: tuple[Tensor, ...], tmp_path: Path
) -> None:
    model, batch = calibrated(), batches[:1]
    groups = len(model.placement.groups)
    straight, said = rank(model, demo, batch, tmp_path / "straight.json", Stopping())
    assert said == []
    out = tmp_path / "sens.json"
    with pytest.raises(KeyboardInterrupt):
        rank(model, demo, batch, out, Stopping(after=3))
    assert len(json.loads(out.read_text())["layers"]) == 3
    assert not out.with_suffix(".png").exists()
    again = Stopping()
    result, said = rank(model, demo, batch, out, again)
    assert said == [f"Continuing '{out}': 3 of {groups} groups are measured already."]
    assert again.asked == groups - 3
    assert json.loads(out.read_text()) == result.content == straight.content
    assert result.chart == out.with_suffix(".png")
    assert cv2.imread(str(result.chart)).shape[0] > 300
    finished = Stopping()
    assert rank(model, demo, batch, out, finished)[0].content == straight.content
    assert finished.asked == 0


def test_another_key_starts_anew_and_says_why(
    calibrated: Calibrated, demo: Dataset, batches: tuple[Tensor, ...], tmp_path: Path
) -> None:
    model, out = calibrated(), tmp_path / "sens.json"
    with pytest.raises(KeyboardInterrupt):
        rank(model, demo, batches[:1], out, Stopping(after=2))

    def why(model: QuantizedModel, data: Dataset, *settings: str) -> str:
        before = out.read_bytes()
        said: list[str] = []
        config = Config.load(overrides=["sensitivity.images=4", *settings])
        with pytest.raises(KeyboardInterrupt):
            rank_groups(model, 64, data, batches[:1], config, out, Stopping(after=0), said.append)
        assert out.read_bytes() == before  # nothing is overwritten before something is measured
        return said[0].removeprefix(f"Starting anew: '{out}' ")

    first = model.placement.groups[0].name
    other = copy.deepcopy(model)
    other.load_amax_({f"activation.{first}": other.amax()[f"activation.{first}"] * 2})
    assert why(other, demo) == "was made with other ranges."
    heavier = copy.deepcopy(model)
    next(heavier.network.parameters()).data.mul_(2)
    assert why(heavier, demo) == "was made with other weights."
    assert why(model, replace(demo, train=demo.train[1:])) == "was made with other data."
    assert why(model, demo, "sensitivity.images=5") == "was made with other data, images."
    assert why(model.leave_float([first], "test"), demo) == "was made with other placement, ranges."
    out.write_text("[1, 2")
    assert why(model, demo) == "is not a readable sensitivity file."
    out.write_text('{"key": [], "layers": [1], "float": {}}')
    assert why(model, demo) == "is not a readable sensitivity file."


def test_map_of_the_first_images_of_the_val_split(
    calibrated: Calibrated, demo: Dataset, batches: tuple[Tensor, ...], tmp_path: Path
) -> None:
    model = calibrated()
    few = replace(model, placement=replace(model.placement, groups=model.placement.groups[:3]))
    settings = ("sensitivity.metric=both", "sensitivity.map_images=4")
    result, _ = rank(few, demo, batches[:1], tmp_path / "sens.json", Stopping(), *settings)
    assert result.content["float"].keys() == {"map50_95", "map50", "images"}
    assert result.content["float"]["images"] == 4
    assert result.content["key"]["map_images"] == 4
    for row in result.content["layers"]:
        assert row.keys() == {"group", "convs", "error", "map50_95_drop"}
        assert -1 < row["map50_95_drop"] < 1
    _, said = rank(few, demo, batches[:1], tmp_path / "sens.json", Stopping(), "sensitivity.metric=map", settings[1])
    assert said == [f"Starting anew: '{tmp_path / 'sens.json'}' was made with other data, images, metric."]


def test_chart_has_room_for_every_bar(tmp_path: Path) -> None:
    def height(count: int) -> int:
        rows = [GroupSensitivity(f"g{i}", (f"model.{i}.conv", "b"), 1 / (1 + i), 0.01) for i in range(count)]
        return int(cv2.imread(str(draw_sensitivity(rows, tmp_path / f"{count}.png"))).shape[0])

    assert height(80) - height(40) == pytest.approx(height(120) - height(80), abs=2)
    assert (height(80) - height(40)) / 40 > 18  # pixels per bar: room for its label


def test_label_names_the_first_convolution() -> None:
    assert GroupSensitivity("silu_3", ("model.2.cv1.conv",)).label == "model.2.cv1"
    assert GroupSensitivity("silu_3", ("model.2.cv1.conv", "a", "b")).label == "model.2.cv1 +2"
