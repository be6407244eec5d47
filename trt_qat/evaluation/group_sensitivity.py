"""One line of a sensitivity ranking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from trt_qat.results import OutputError


@dataclass(frozen=True)
class GroupSensitivity:
    """What one group costs when it alone is INT8.

    Args:
        group: name in the placement.
        convs: convolutions of the group.
        error: see :class:`~trt_qat.quantization.divergence.OutputDivergence`; None if it was not measured.
        map50_95_drop: float mAP50-95 (or agreement) less that with this group in INT8, a fraction; None if it was not
            measured.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # it is its file's schema

    group: Annotated[str, Field(min_length=1)]
    convs: Annotated[tuple[str, ...], Field(min_length=1)]
    error: OutputError | None = None
    map50_95_drop: float | None = None

    @property
    def cost(self) -> float:
        """What groups are ranked by: the drop where it was measured, else the output error."""
        value = self.error if self.map50_95_drop is None else self.map50_95_drop
        return 0.0 if value is None else value

    def as_dict(self) -> dict[str, Any]:
        """The JSON object; what was not measured is left out."""
        measured = {"error": self.error, "map50_95_drop": self.map50_95_drop}
        return {"group": self.group, "convs": list(self.convs)} | {
            key: value for key, value in measured.items() if value is not None
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> GroupSensitivity:
        """Read what :meth:`as_dict` wrote."""
        values = [None if content.get(key) is None else float(content[key]) for key in ("error", "map50_95_drop")]
        return cls(str(content["group"]), tuple(content["convs"]), *values)

    @property
    def label(self) -> str:
        """The first convolution and how many more there are: names of traced tensors tell a reader little."""
        more = len(self.convs) - 1
        return self.convs[0].removesuffix(".conv") + (f" +{more}" if more else "")
