"""Frames per second from a video file to an annotated one: ours beside Ultralytics' predict, interleaved in one run.

    python benchmarks/infer.py --weights W.pt --data data.yaml --video clip.mp4 --out runs/bench [--before CHECKOUT]

Every measurement is a process of its own (``--worker``), one round after the other, medians at the end. Frames per
second count from the first result to the closed file. ``--before`` is a checkout of another revision of trt_qat whose
``annotate_files`` is measured beside.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

SQUARE, RECTANGLE = 640, [384, 640]
FRAMES, MANY_FRAMES = 500, 5000
STARTED = "BENCHMARK_STARTED"


class Clock:
    """Told of each result; says afterwards how fast they came and what they took."""

    def __init__(self) -> None:
        self.first: tuple[float, float] | None = None
        self.frames = 0
        self.first_s = 0.0
        self.resident: list[float] = []

    def result(self) -> None:
        """One more frame has its detections."""
        self.frames += 1
        if self.first is None:
            self.first_s = time.time() - float(os.environ[STARTED])
            self.first = time.perf_counter(), cpu_seconds()
        if self.frames % 500 == 0:
            self.resident.append(resident_mb())

    def done(self) -> dict[str, Any]:
        """The figures; called when every file is closed."""
        if self.first is None:
            raise SystemExit("There was no frame.")
        wall, cpu = time.perf_counter() - self.first[0], cpu_seconds() - self.first[1]
        return {
            "frames": self.frames,
            "fps": (self.frames - 1) / wall,
            "busy": cpu / wall / len(os.sched_getaffinity(0)),
            "core_ms": 1000 * cpu / (self.frames - 1),
            "first_s": self.first_s,
            "resident_mb": self.resident or [resident_mb()],
        }


class Calls:
    """When at least one of several threads is inside of a function."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with every call noted."""

        def called(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.spans.append((start, time.perf_counter()))

        return called

    def share(self) -> float:
        """Of the time between the first and the last call."""
        covered, end = 0.0, float("-inf")
        for start, stop in sorted(self.spans):
            covered += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return covered / (end - min(self.spans)[0])


def cpu_seconds() -> float:
    """Of this process, over all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def resident_mb() -> float:
    """Memory of this process that is in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def ours(model: str, clip: str, out: Path, sink: str) -> dict[str, Any]:
    """``trt-qat infer``."""
    from trt_qat.progress import Silent
    from trt_qat.runtime.infer import infer
    from trt_qat.runtime.openvino import OpenVinoRunner
    from trt_qat.runtime.sinks.choice import Outputs

    clock, calls = Clock(), Calls()
    OpenVinoRunner.infer = calls.around(OpenVinoRunner.infer)  # type: ignore[method-assign]

    class Told(Silent):
        def step(self, description: str, done: int, total: int, detail: str = "") -> None:
            clock.result()

    jsonl = out / "out.jsonl" if sink == "jsonl" else None
    outputs = Outputs(out=out / "out.mp4", save=sink == "video", jsonl=jsonl)
    infer([clip], model, outputs=outputs, progress=Told())
    return {**clock.done(), "runtime": calls.share()}


def before(model: str, clip: str, out: Path, sink: str) -> dict[str, Any]:
    """``annotate_files`` of the checkout that PYTHONPATH names."""
    from trt_qat.runtime.annotate import annotate_files  # type: ignore[import-not-found]

    from trt_qat.progress import Silent

    clock = Clock()

    class Told(Silent):
        def step(self, *_: object) -> None:
            clock.result()

    annotate_files(clip, out / "out.mp4", model, progress=Told())
    return clock.done()


def ultralytics(model: str, clip: str, out: Path, sink: str) -> dict[str, Any]:
    """``yolo predict`` on an exported folder."""
    from ultralytics import YOLO

    clock = Clock()
    network = YOLO(model, task="detect")
    with (out / "out.jsonl").open("w") as lines:
        for result in network.predict(clip, stream=True, save=sink == "video", project=str(out)):
            clock.result()
            if sink == "jsonl":
                boxes = result.boxes
                lines.write(json.dumps([boxes.xyxy.tolist(), boxes.conf.tolist(), boxes.cls.tolist()]) + "\n")
    return clock.done()


def main() -> None:
    """Export what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--before", type=Path, help="checkout of another revision")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    clip = made_clip(arguments.video, arguments.out / f"clip_{FRAMES}.mp4", FRAMES)
    rows = variants(arguments)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name, *_ in rows}
    for _ in range(arguments.rounds):
        for name, worker, model, sink, checkout in rows:
            found[name].append(measured(worker, model, clip, arguments.out / "written", sink, checkout))
            print(f"{name}: {found[name][-1]['fps']:.1f} frames/s", flush=True)
    report(found)
    print("Core-milliseconds per frame, one stage at a time:")
    for name, model in (("square", "ours_int8.onnx"), ("rectangle", "ours_int8_rectangle.onnx")):
        costs = measured("stages", str(arguments.out / model), clip, arguments.out / "written", "video")
        print(f"  {name}: {', '.join(f'{stage} {value:.2f}' for stage, value in costs.items())}")
    many = made_clip(arguments.video, arguments.out / f"clip_{MANY_FRAMES}.mp4", MANY_FRAMES)
    last = measured("ours", str(arguments.out / "ours_int8_rectangle.onnx"), many, arguments.out / "written", "video")
    sizes = last["resident_mb"]
    print(f"Resident memory at frame 500: {sizes[0]:.0f} MB, at {last['frames']}: {sizes[-1]:.0f} MB")


Row = tuple[str, str, str, str, Path | None]  # name, worker, model, sink, checkout


def variants(arguments: argparse.Namespace) -> list[Row]:
    """What is measured; exports the files of it that are not there."""
    out: Path = arguments.out
    rows: list[Row] = []
    for shape, imgsz in (("square", SQUARE), ("rectangle", RECTANGLE)):
        suffix = "" if shape == "square" else "_rectangle"
        for precision in ("int8", "fp32"):
            file = out / f"ours_{precision}{suffix}.onnx"
            if not file.exists():
                export_ours(arguments, file, precision, imgsz)
            rows.append((f"ours, {precision}, {shape}, video", "ours", str(file), "video", None))
            if precision == "int8":
                rows.append((f"ours, {precision}, {shape}, JSONL only", "ours", str(file), "jsonl", None))
            if precision == "fp32" and shape == "rectangle":
                continue
            folder = export_ultralytics(arguments, precision, suffix, imgsz)
            name = f"Ultralytics, {precision}, {shape}"
            rows.append((f"{name}, video", "ultralytics", str(folder), "video", None))
            if precision == "int8":
                rows.append((f"{name}, JSONL only", "ultralytics", str(folder), "jsonl", None))
    if arguments.before:
        model = str(out / "ours_int8.onnx")
        rows.append(("ours before, int8, square, video", "before", model, "video", arguments.before.resolve()))
    return rows


def export_ours(arguments: argparse.Namespace, file: Path, precision: str, imgsz: int | list[int]) -> None:
    """With ``trt-qat``, as a user does."""
    size = ["--set", f"model.imgsz={imgsz}"]
    weights = arguments.weights
    if precision == "int8":
        weights = file.with_suffix(".safetensors")
        data = ["--weights", arguments.weights, "--data", arguments.data, "--out", weights]
        run(sys.executable, "-m", "trt_qat", "calibrate", *data, *size, "--set", "quantization.images=128")
        size = []
    given = ["--target", "openvino", "--out", file, *size]
    if precision == "fp32":
        given += ["--precision", "fp32"]
    run(sys.executable, "-m", "trt_qat", "export", weights, *given)


def export_ultralytics(arguments: argparse.Namespace, precision: str, suffix: str, imgsz: int | list[int]) -> Path:
    """With Ultralytics' own export, INT8 by NNCF on the same data."""
    stem: str = f"ultralytics_{precision}{suffix}"
    folder: Path = arguments.out / f"{stem}{'_int8' if precision == 'int8' else ''}_openvino_model"
    if not folder.exists():
        weights: Path = arguments.out / f"{stem}.pt"
        weights.write_bytes(arguments.weights.read_bytes())  # it writes beside the weights
        data = f", int8=True, data={str(arguments.data)!r}, fraction=0.2" if precision == "int8" else ""
        code = f"from ultralytics import YOLO; YOLO({str(weights)!r}).export(format='openvino', imgsz={imgsz}{data})"
        run(sys.executable, "-c", code)
    return folder


def run(*command: object) -> None:
    """A step of the preparation, silent unless it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def made_clip(video: Path, clip: Path, count: int) -> Path:
    """The packets of a video again and again, as they are: nothing is encoded anew."""
    import av

    if clip.exists():
        return clip
    with av.open(str(clip), "w") as container:
        stream, written = None, 0
        while written < count:
            with av.open(str(video)) as source:
                stream = stream or container.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.dts is None or written == count:
                        continue
                    packet.pts = packet.dts = written * (packet.duration or 1)  # a video without B-frames
                    packet.stream = stream
                    container.mux(packet)
                    written += 1
    return clip


def measured(worker: str, model: str, clip: Path, out: Path, sink: str, checkout: Path | None = None) -> dict[str, Any]:
    """One run in a process of its own."""
    out.mkdir(exist_ok=True)
    paths = [str(checkout or Path(__file__).resolve().parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), STARTED: str(time.time())}
    given = ["--worker", worker, model, str(clip), str(out), sink]
    done = subprocess.run(
        [sys.executable, __file__, *given], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{worker} {model} failed:\n{done.stdout}{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(found: dict[str, list[dict[str, Any]]]) -> None:
    """Medians, lowest and highest."""
    for name, runs in found.items():
        fps = [entry["fps"] for entry in runs]
        middle = {key: statistics.median(entry[key] for entry in runs) for key in ("busy", "core_ms", "first_s")}
        runtime = [entry["runtime"] for entry in runs if "runtime" in entry]
        print(
            f"{name}: {statistics.median(fps):.1f} frames/s ({min(fps):.1f} to {max(fps):.1f}), "
            f"{middle['core_ms']:.1f} core-ms per frame, processor busy {middle['busy']:.1%}"
            + (f", runtime busy {statistics.median(runtime):.1%}" if runtime else "")
            + f", first frame after {middle['first_s']:.2f} s"
        )


def stages(model: str, clip: str, out: Path, sink: str) -> dict[str, Any]:
    """Core-milliseconds of this process per frame of every stage, each alone on the same frames."""
    import cv2
    import numpy as np

    from trt_qat.runtime.access import file_access
    from trt_qat.runtime.annotator import Annotator
    from trt_qat.runtime.decode import Converter, Decoder
    from trt_qat.runtime.detector import Detector
    from trt_qat.runtime.frames import Frame
    from trt_qat.runtime.sinks.video import VideoSink
    from trt_qat.vision.letterbox import network_input
    from trt_qat.vision.postprocess import detections_from_output

    cv2.setNumThreads(1)
    found: dict[str, float] = {}

    def timed(name: str, work: Callable[[], list[Any]]) -> list[Any]:
        start = time.process_time()
        made = work()
        found[name] = 1000 * (time.process_time() - start) / len(made)
        return made

    decoder, converter = Decoder(file_access(Path(clip))), Converter()
    decoded = timed("decode", lambda: [entry for entry in islice(decoder.frames(), 200) if entry is not None])
    images = timed("to BGR", lambda: [converter.bgr(frame) for frame, _ in decoded])
    frames = [Frame(image, clip, number, number / 25) for number, image in enumerate(images)]
    with Detector(model, mode="throughput") as detect:
        batch = np.zeros((1, 3, *detect.imgsz), np.float32)
        timed("letterbox", lambda: [network_input(image, detect.imgsz, out=batch[0]) for image in images])
        detections = [detect(image) for image in images]
        outputs = timed("inference", lambda: [detect.runner.infer(batch)[0] for _ in images])
        section = detect.section
        timed("post-processing", lambda: [detections_from_output(o[0], section.conf, section.iou) for o in outputs])
        annotator = Annotator(detect.names, draw=True)
        pairs = list(zip(frames, detections, strict=True))
        annotator([pairs[0]])  # imports what draws
        results = timed("drawing", lambda: [annotator([pair])[0] for pair in pairs])
    with VideoSink(out / "stages.mp4", 25.0) as writer:
        start = time.process_time()
        for result in results:
            writer.write(result)
    found["encoding"] = 1000 * (time.process_time() - start) / len(results)
    return {name: round(value, 2) for name, value in found.items()}


WORKERS = {"ours": ours, "before": before, "ultralytics": ultralytics, "stages": stages}


def work(arguments: Sequence[str]) -> None:
    """A measurement, in this process; its last line is the result."""
    worker, model, clip, out, sink = arguments
    print(json.dumps(WORKERS[worker](model, clip, Path(out), sink)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2:])
    else:
        main()
