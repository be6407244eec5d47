"""Nothing is looked up, downloaded, installed or reported: every use of the network is a test failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

# Python tells its audit hooks about every name that is looked up, every connection and every program that is started.
WATCH = """
import json, sys
seen = []
def watch(event, args):
    if event.startswith(("socket.connect", "socket.getaddrinfo", "socket.gethostby", "socket.sendto", "urllib.")):
        seen.append(f"{event} {args[:3]}")
    elif event in ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork"):
        if not any(known in str(args[:2]) for known in ("ldconfig", "trt_qat.engine.build_process")):
            seen.append(f"{event} {args[:2]}")
sys.addaudithook(watch)
"""
ALL_STAGES = """
from pathlib import Path
import trt_qat
from trt_qat.demo.generate import generate_demo_set
from trt_qat.demo.shipped import DETECTOR

data = generate_demo_set(Path("set"), train=4, val=2)
model = trt_qat.load(DETECTOR, imgsz=64)  # small: what is watched does not depend on it
trt_qat.export(model, "a.onnx", target="onnxruntime")
trt_qat.export(model, "b.onnx", target="openvino")
trt_qat.export(model, "c.onnx", target="ultralytics")
trt_qat.evaluate(["a.onnx", "b.onnx"], data, latency_iterations=3, latency_warmup=0)
int8 = trt_qat.quantize(model, data, calibrator="max")
trt_qat.export(int8, "d.onnx", target="onnxruntime")
best = trt_qat.train(trt_qat.load("yolov8n.yaml", imgsz=64), data, out="run", epochs=1, batch=2)
for name in ("yolov8n.pt", "yolo11x.pt", "no_such.yaml", "https://example.com/yolov8n.pt", "ul://a/b.yaml"):
    try:
        trt_qat.load(name)
    except trt_qat.TrtQatError:
        continue
    raise SystemExit(f"{name} was loaded")
with trt_qat.Detector("a.onnx") as detect:
    import numpy
    detect(numpy.zeros((64, 64, 3), numpy.uint8))
"""


def seen_by(script: str, folder: Path) -> list[str]:
    home = folder / "home"
    home.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("YOLO_", "ULTRALYTICS_"))}
    done = subprocess.run(
        [sys.executable, "-c", f"{WATCH}\n{script}\nprint(json.dumps(seen))"],
        cwd=folder,
        env={**kept, "HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen: list[str] = json.loads(done.stdout.splitlines()[-1])
    return seen


def test_every_stage_stays_at_home(tmp_path: Path) -> None:
    assert seen_by(ALL_STAGES, tmp_path) == []
    assert not (tmp_path / "home" / "intel").exists()  # where OpenVINO's telemetry keeps who you are


def test_the_watch_works(tmp_path: Path) -> None:
    looked = "import socket\ntry:\n    socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError:\n    pass"
    assert any("socket.connect" in line for line in seen_by(looked, tmp_path))
