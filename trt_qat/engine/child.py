"""A question to a child process: a request on its stdin, an answer in a file.

TensorRT is native code: in a process of its own a crash becomes an error message and not the end of a pipeline, and
each process imports one of the two TensorRT packages only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trt_qat import errors
from trt_qat.errors import EngineError, TrtQatError


def ask_child(module: str, request: Mapping[str, Any], report: Path, flavor: str, what: str) -> dict[str, Any]:
    """Run ``python -m module`` with a JSON request and return the JSON object that it leaves in ``report``.

    Args:
        report: a file that is not there yet, named in the request under "report" too.
        flavor: the TensorRT package that Polygraphy is to take in the child.
        what: begins the message, e.g. "TensorRT could not build 'x.onnx'".

    Raises:
        EngineError: the process ended without an answer.
        TrtQatError: what the child reports with "error" and "kind".
    """
    child = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps({**request, "report": str(report)}),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1" if flavor == "tensorrt-rtx" else "0"},
        check=False,
    )
    if child.returncode != 0 or not report.is_file():
        last = _last_line(f"{child.stdout}\n{child.stderr}")
        raise EngineError(f"{what}: {_ending(child.returncode)}. {last}")
    answer: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    if "error" in answer:
        kind: type[TrtQatError] = getattr(errors, answer["kind"])
        raise kind(answer["error"])
    return answer


def _ending(returncode: int) -> str:
    if returncode < 0:
        return f"the build process was ended by {signal.Signals(-returncode).name}"
    return f"the build process ended with exit code {returncode}"


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return f"Its last words: {lines[-1]}" if lines else "It said nothing."
