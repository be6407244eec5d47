"""Where quantizers would go if the head's last convolutions, which the defaults leave float, were INT8 too.

They predict, and TensorRT's files leave them float. On a CPU they are the last float convolutions, so that INT8 is a
little faster; what it costs is measured, see :mod:`trt_qat.evaluation.head`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ultralytics.nn.tasks import DetectionModel

from trt_qat.config import QuantizationSection
from trt_qat.model.graph import trace
from trt_qat.quantization.placement import Placement, place


@dataclass(frozen=True)
class HeadPlan:
    """A placement with the head's last convolutions in INT8.

    Args:
        groups: the scale groups that would not be there without them.
    """

    placement: Placement
    groups: tuple[str, ...]


def plan_head(network: DetectionModel, section: QuantizationSection) -> HeadPlan | None:
    """The plan for a float network.

    Returns:
        None where these convolutions are not float by their role, or share an input with another one.
    """
    graph = trace(network)
    roles = tuple(role for role in section.float_roles if role != "head_last")
    narrow, wide = place(network, graph, section), place(network, graph, section.replace(float_roles=roles))
    without = {group.name for group in narrow.groups}
    groups = tuple(group.name for group in wide.groups if group.name not in without)
    apart = narrow.groups == tuple(group for group in wide.groups if group.name in without)
    return HeadPlan(wide, groups) if groups and apart else None
