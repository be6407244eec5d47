"""Opening and running a model writes nothing into the home folder and opens no connection."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_onnx import write_tiny_detector

SCRIPT = """
import socket, sys
seen = []
sys.addaudithook(lambda event, arguments: seen.append(event) if event.startswith("socket.") else None)
from pathlib import Path
import numpy as np
from trt_qat.runtime.selection import open_runner
with open_runner(Path(sys.argv[1]), sys.argv[2]) as runner:
    assert runner.infer(np.zeros((1, 3, 64, 64), np.float32))[0].shape == (1, 7, 64)
print([event for event in seen if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto")])
"""


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_no_telemetry(runtime: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    left_out = ("CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY")  # openvino-telemetry is off where it sees CI
    environment = {key: value for key, value in os.environ.items() if key not in left_out and "XDG" not in key}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(write_tiny_detector(tmp_path / "tiny.onnx")), runtime],
        env=environment | {"HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
    assert not list(home.rglob("*"))
