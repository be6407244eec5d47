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

from trt_qat import api, pipeline
from trt_qat.checkpoint import Model, save
from trt_qat.config import Config, EvaluationSection, SensitivitySection
from trt_qat.data.dataset import Dataset
from trt_qat.evaluation.group_sensitivity import GroupSensitivity
from trt_qat.evaluation.sensitivity import Ranking, SensitivityFile, measure_groups, sensitivity_key
from trt_qat.evaluation.sensitivity_chart import draw_sensitivity
from trt_qat.progress import Silent
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


class Stopping(Silent):
    """A progress that stops like Ctrl-C after some groups, and remembers how many were asked for and what was said."""

    def __init__(self, after: int = 1000) -> None:
        self.after = after
        self.asked = 0
        self.said: list[str] = []

    def over(self, items: Sequence[Item], description: str) -> Iterable[Item]:
        self.asked = len(items)
        for index, item in enumerate(items):
            if index == self.after:
                raise KeyboardInterrupt
            yield item

    def note(self, line: str) -> None:
        self.said.append(line)


@pytest.fixture
def ptq(calibrated: Calibrated, detector: Model) -> Model:
    return detector.with_quantized(calibrated(), "ptq", {})


def test_an_interrupted_ranking_goes_on(ptq: Model, demo_yaml: Path, tmp_path: Path) -> None:
    groups = len(ptq.require_quantized().placement.groups)
    weights = save(tmp_path / "ptq.safetensors", ptq).path
    config = Config.load(overrides=["sensitivity.images=4"])

    def rank(out: Path, progress: Stopping) -> str:
        pipeline.sensitivity(weights, demo_yaml, out, config, progress)
        return out.read_text()

    first = Stopping()
    straight = rank(tmp_path / "straight.json", first)
    assert first.said == []
    out = tmp_path / "sens.json"
    with pytest.raises(KeyboardInterrupt):
        rank(out, Stopping(after=3))
    assert len(json.loads(out.read_text())["layers"]) == 3
    assert not out.with_suffix(".png").exists()
    again = Stopping()
    assert rank(out, again) == straight
    assert again.said == [f"Continuing '{out}': 3 of {groups} groups are measured already."]
    assert again.asked == groups - 3
    assert cv2.imread(str(out.with_suffix(".png"))).shape[0] > 300
    finished = Stopping()
    assert rank(out, finished) == straight
    assert finished.asked == 0


def test_ranking_leaves_the_quantizers_as_they_were(ptq: Model, demo: Dataset) -> None:
    quantized = ptq.require_quantized()
    first = quantized.placement.groups[0].name
    with quantized.only([first]):
        ranking = api.sensitivity(ptq, demo, images=2)
        on = {name for name, q in quantized.activation_quantizers().items() if quantized.toolkit.enabled(q)}
        assert on == {first}
    assert {row.group for row in ranking.rows} == {group.name for group in quantized.placement.groups}
    assert ranking.float_figures == {}


def test_another_key_starts_anew_and_says_why(ptq: Model, demo: Dataset, tmp_path: Path) -> None:
    out, section = tmp_path / "sens.json", SensitivitySection(images=4)

    def file(model: Model, data: Dataset = demo, section: SensitivitySection = section) -> SensitivityFile:
        return SensitivityFile(out, sensitivity_key(model, data, section, EvaluationSection()), 40)

    assert file(ptq).read() == (None, "")
    made = Ranking([GroupSensitivity("silu_3", ("a", "b"), 0.25)], {})
    file(ptq).write(made)
    assert file(ptq).read() == (made, f"Continuing '{out}': 1 of 40 groups are measured already.")

    def why(model: Model, data: Dataset = demo, section: SensitivitySection = section) -> str:
        found, said = file(model, data, section).read()
        assert found is None
        return said.removeprefix(f"Starting anew: '{out}' ")

    def changed(quantized: QuantizedModel) -> Model:
        return ptq.with_quantized(quantized, "ptq", {})

    quantized = ptq.require_quantized()
    first = quantized.placement.groups[0].name
    other = copy.deepcopy(quantized)
    other.load_amax_({f"activation.{first}": other.amax()[f"activation.{first}"] * 2})
    assert why(changed(other)) == "was made with other ranges."
    heavier = copy.deepcopy(quantized)
    next(heavier.network.parameters()).data.mul_(2)
    assert why(changed(heavier)) == "was made with other weights."
    assert why(replace(ptq, imgsz=(96, 96))) == "was made with other imgsz."
    assert why(ptq, replace(demo, train=demo.train[1:])) == "was made with other data."
    assert why(ptq, section=section.replace(images=5)) == "was made with other data, images."
    assert why(changed(quantized.leave_float([first], "test"))) == "was made with other placement, ranges."
    for content in ("[1, 2", '{"key": [], "layers": [1], "float": {}}'):
        out.write_text(content)
        assert why(ptq).startswith("is not a readable sensitivity file. ")


def test_map_of_the_first_images_of_the_val_split(demo_int8: Model, demo_set: Path, tmp_path: Path) -> None:
    """On a trained detector the group whose range is ruined costs nearly everything, the others nearly nothing."""
    quantized = copy.deepcopy(demo_int8.require_quantized())
    quantized = replace(quantized, placement=replace(quantized.placement, groups=quantized.placement.groups[:3]))
    ruined = quantized.placement.groups[1].name
    quantized.load_amax_({f"activation.{ruined}": quantized.amax()[f"activation.{ruined}"] / 100})
    weights = tmp_path / "ptq.safetensors"
    save(weights, replace(demo_int8.with_quantized(quantized, "ptq", {}), imgsz=(160, 160)))
    config = Config.load(overrides=["sensitivity.metric=both", "sensitivity.val_images=4", "sensitivity.images=4"])
    pipeline.sensitivity(weights, demo_set, tmp_path / "sens.json", config)
    content = json.loads((tmp_path / "sens.json").read_text())
    assert content["float"].keys() == {"map50_95", "map50", "images"}
    assert content["float"]["images"] == 4
    assert content["float"]["map50_95"] > 0.2
    assert content["key"]["val_images"] == 4
    rows = content["layers"]
    assert all(row.keys() == {"group", "convs", "error", "map50_95_drop"} for row in rows)
    assert rows[0]["group"] == ruined
    assert rows[0]["map50_95_drop"] > 0.5 * content["float"]["map50_95"]
    assert all(abs(row["map50_95_drop"]) < 0.05 for row in rows[1:])
    stopping = Stopping(after=0)
    with pytest.raises(KeyboardInterrupt):
        pipeline.sensitivity(
            weights, demo_set, tmp_path / "sens.json", config.with_values("sensitivity", metric="drop"), stopping
        )
    assert stopping.said == [f"Starting anew: '{tmp_path / 'sens.json'}' was made with other data, images, metric."]
    assert json.loads((tmp_path / "sens.json").read_text()) == content  # kept until something is measured


@pytest.mark.slow
def test_chart_has_room_for_every_bar(tmp_path: Path) -> None:
    def height(count: int) -> int:
        rows = [GroupSensitivity(f"g{i}", (f"model.{i}.conv", "b"), 1 / (1 + i), 0.01) for i in range(count)]
        return int(cv2.imread(str(draw_sensitivity(rows, tmp_path / f"{count}.png", "mAP"))).shape[0])

    assert height(80) - height(40) == pytest.approx(height(120) - height(80), abs=2)
    assert (height(80) - height(40)) / 40 > 18  # pixels per bar: room for its label


def test_label_names_the_first_convolution() -> None:
    assert GroupSensitivity("silu_3", ("model.2.cv1.conv",)).label == "model.2.cv1"
    assert GroupSensitivity("silu_3", ("model.2.cv1.conv", "a", "b")).label == "model.2.cv1 +2"
