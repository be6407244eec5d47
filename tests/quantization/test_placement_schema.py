"""A placement from a file: every field is checked, and the layers that it names must be there."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch

from trt_qat.errors import QuantizationError
from trt_qat.quantization.insert import insert_quantizers_
from trt_qat.quantization.placement import Placement, ScaleGroup
from trt_qat.quantization.toolkits.choose import toolkit_from_name

if TYPE_CHECKING:
    from conftest import Calibrated

    from trt_qat.checkpoint import Model

GROUP: dict[str, Any] = {
    "name": "g",
    "convs": ["a", "b"],
    "adds": [["m", 0, 1]],
    "observed": ["a"],
    "observed_adds": [["m", 0, 1]],
}
OTHER = {**GROUP, "name": "h", "convs": ["c"], "observed": [], "adds": [], "observed_adds": []}


def _content(**change: Any) -> dict[str, Any]:
    content = {"groups": [GROUP | change, OTHER], "float_convs": {"d": "role dfl"}}
    return {**content, "weights": "channel", "scheme": "symmetric"}


def test_a_good_one() -> None:
    assert Placement.from_dict(_content()).as_dict() == _content()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (_content(name=""), "groups.0.name"),
        (_content(name=3), "groups.0.name = 3"),
        (_content(name="h"), "group 'h' is there twice"),
        (_content(convs=[]), "groups.0.convs"),
        (_content(convs="a"), "groups.0.convs = 'a'"),
        (_content(convs=["a", 1]), "groups.0.convs.1 = 1"),
        (_content(convs=["a", "c"]), "convolution 'c' is there twice"),
        (_content(convs=["a", "d"]), "convolution 'd' is there twice"),
        (_content(adds=[["m", 0, 2]]), "groups.0.adds.0.2 = 2"),
        (_content(adds=[["m", -1, 0]]), "groups.0.adds.0.1 = -1"),
        (_content(adds=[["m", 0]]), "groups.0.adds.0"),
        (_content(adds=[["m", 1e300, 0]]), "groups.0.adds.0.1"),
        (_content(observed=["z"]), "observes what is not in it"),
        (_content(observed_adds=[["z", 0, 0]]), "observes what is not in it"),
        (_content(extra=1), "groups.0.extra = 1"),
        ({"groups": []}, "float_convs"),
        ({"groups": {}, "float_convs": {}}, "groups = {}"),
        ({"groups": [], "float_convs": {"a": 1}}, "float_convs.a = 1"),
        ([], "should be an object"),
        (None, "should be an object"),
        ({"a": object()}, "no JSON value"),
    ],
)
def test_a_violation_is_one_line(content: Any, found: str) -> None:
    with pytest.raises(ValueError, match=re.escape(found)) as caught:
        Placement.from_dict(content)
    assert "\n" not in str(caught.value)


def test_a_layer_that_is_not_there(detector: Model) -> None:
    placement = Placement((ScaleGroup("g", ("model.99.conv",), (), ()),), {})
    with pytest.raises(QuantizationError, match=r"names 'model\.99\.conv', which the network does not have"):
        insert_quantizers_(copy.deepcopy(detector.network), placement, toolkit_from_name("modelopt"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0.0])
def test_a_range_that_is_none_is_refused(value: float, calibrated: Calibrated) -> None:
    model = copy.deepcopy(calibrated())
    before = model.amax()
    name = next(iter(before))
    with pytest.raises(QuantizationError, match="is not finite and positive"):
        model.load_amax_({name: torch.tensor(value)})
    weight = next(name for name in before if name.startswith("weight."))
    with pytest.raises(QuantizationError, match="is not finite and positive"):
        model.load_amax_({weight: torch.full_like(before[weight], value)})
    with pytest.raises(QuantizationError, match=r"has shape \(2,\)"):
        model.load_amax_({name: torch.ones(2)})
