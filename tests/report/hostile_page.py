"""The page of a record in which every text tries to run something and every free number is as large as can be."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from example_record import example_record

from trt_qat.report.page import html_page
from trt_qat.report.record import RunRecord


@cache
def hostile_page() -> str:
    return html_page(hostile_record())


def hostile_record() -> RunRecord:
    """Every free text tries to run something, every free number is as large as can be."""
    content = example_record().model_dump(mode="json")
    texts = iter(range(10_000))
    kept = {"format", "step", "kind", "severity", "sha256", "data_sha256", "calibration_sha256", "jpeg", "size"}
    kept |= {"first", "second", "built_from", "deployed", "weights", "measure"}

    def spoiled(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {
                _text(name) if key in ("losses", "versions") else name: spoiled(v, name) for name, v in value.items()
            }
        if isinstance(value, list):
            return [spoiled(entry, key) for entry in value]
        if isinstance(value, str) and key not in kept:
            return _text(value)
        if isinstance(value, float) and key in (
            "sqnr_db",
            "amax",
            "error",
            "x",
            "y",
            "xyxy",
            "points",
            "low",
            "losses",
        ):
            return 1e308
        return value

    def _text(value: str) -> str:
        return (
            f'"\'><script>document.title="ran"</script><img src=x onerror="document.title=1"></style></title>'
            f"<svg onload=alert(1)>javascript:alert(1) {{{{ 7*7 }}}} $\\frac$ \u202e\x07\x1b[31m{value}{next(texts)}"
            + 2000
            * "W"
        )

    for name in ("files", "inputs", "placement", "training", "drawing", "warnings", "stages", "machine", "versions"):
        content[name] = spoiled(content[name], name)
    content |= {"command": _text(""), "created": _text("")}
    for entry, original in zip(content["files"], example_record().files, strict=True):
        entry["name"] = original.name
    content["disagreements"]["worst"][0] |= {"image": _text(""), "jpeg": "PHN2Zz48L3N2Zz4="}
    content["settings"] = {"qat": {_text(""): _text("")}, _text(""): [_text("")]}
    return RunRecord.model_validate_json(json.dumps(content))
