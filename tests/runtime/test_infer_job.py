from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from tiny_onnx import Recorded, colour_image, write_tiny_detector

from trt_qat.errors import ArtifactError, DatasetError
from trt_qat.progress import Silent
from trt_qat.runtime import infer as module
from trt_qat.runtime.access import file_access
from trt_qat.runtime.decode import Converter, Decoder
from trt_qat.runtime.detector import Detector
from trt_qat.runtime.frames import Frame, Result
from trt_qat.runtime.infer import Inferred, infer, mode_of
from trt_qat.runtime.sinks.choice import Outputs
from trt_qat.runtime.sinks.jsonl import detection_records
from trt_qat.runtime.sinks.video import VideoSink
from trt_qat.vision.detections import Detections

if TYPE_CHECKING:
    from trt_qat.checkpoint import Model

NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_detector(tmp_path / "tiny.onnx")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "source.avi"
    with VideoSink(path, 10.0) as sink:
        for number in range(5):
            frame = colour_image(128, 128)
            frame[32:64, 32:64] = (0, 0, 255)
            sink.write(Result(Frame(frame, "", number, number / 10), NOTHING, annotated_bgr=frame))
    return path


def _infer(video: Path, out: Path, model: Path, progress: Silent | None = None) -> Inferred:
    outputs = Outputs(out=out, results=True)
    return infer([video], model, outputs=outputs, runtime="onnxruntime", progress=progress or Silent(), conf=0.5)


def _images(video: Path) -> list[np.ndarray]:
    decoder, converter = Decoder(file_access(video)), Converter()
    found = [converter.bgr(decoded[0]) for decoded in decoder.frames() if decoded is not None]
    decoder.close()
    return [image for image in found if image is not None]


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".mov"])
def test_every_frame_is_annotated(tmp_path: Path, model: Path, video: Path, suffix: str) -> None:
    progress = Recorded()
    out = tmp_path / "out" / f"result{suffix}"
    done = _infer(video, out, model, progress)
    assert (done.frames, done.announced, done.detections, done.errors) == (5, 5, 5 * 4, [])
    assert [row["frame"] for row in done.results or ()] == [0, 1, 2, 3, 4]
    assert done.median_ms is not None
    assert done.median_ms > 0
    assert done.written == [str(out)]
    assert progress.steps == [("frames", frame, 5) for frame in range(1, 6)]
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    decoder = Decoder(file_access(out))
    assert (decoder.fps, decoder.size_wh) == (pytest.approx(10), (128, 128))
    decoder.close()
    pairs = list(zip(_images(out), _images(video), strict=True))
    assert len(pairs) == 5
    for drawn, plain in pairs:  # boxes and labels of one class, in its colour
        assert np.abs(drawn.astype(int) - plain).max() > 100


def test_a_damaged_video_is_annotated_as_far_as_it_goes(tmp_path: Path, model: Path, video: Path) -> None:
    content = video.read_bytes()
    video.write_bytes(content[: content.rindex(b"00dc", 0, content.index(b"idx1"))])  # the last frame and the index
    done = _infer(video, tmp_path / "out.avi", model)
    assert done.frames == 4
    assert done.announced == 5


def test_unreadable_videos(tmp_path: Path, model: Path) -> None:
    for name, content in {"empty.mp4": b"", "text.mp4": b"hello\n" * 100, "text.avi": b"RIFF"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DatasetError, match=name):
            _infer(tmp_path / name, tmp_path / "out" / "x.mp4", model)
    with pytest.raises(DatasetError, match="does not exist"):
        _infer(tmp_path / "none.mp4", tmp_path / "out" / "x.mp4", model)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_outputs_that_cannot_be(tmp_path: Path, model: Path, video: Path) -> None:
    with pytest.raises(ArtifactError, match="must end in"):
        _infer(video, tmp_path / "x.txt", model)
    before = video.read_bytes()
    with pytest.raises(ArtifactError, match="is the source itself"):
        _infer(video, video, model)
    assert video.read_bytes() == before


def test_ctrl_c_finishes_every_file_and_ends_every_thread(tmp_path: Path, model: Path, video: Path) -> None:
    class Stop(Recorded):
        def step(self, description: str, done: int, total: int, detail: str = "") -> None:
            if done == 3:
                raise KeyboardInterrupt

    stop = Stop()
    before = threading.active_count()
    outputs = Outputs(out=tmp_path / "out" / "x.mp4", jsonl=tmp_path / "x.jsonl", csv=tmp_path / "x.csv")
    with pytest.raises(KeyboardInterrupt):
        infer([video], model, outputs=outputs, runtime="onnxruntime", progress=stop)
    assert "3 frames, 12 detections" in stop.notes[0]
    assert f"Written: {outputs.out}, {outputs.jsonl}, {outputs.csv}" in stop.notes[0]
    assert threading.active_count() == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x.mp4"]
    assert len(_images(tmp_path / "out" / "x.mp4")) == 3
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [len(line["detections"]) for line in lines] == [4, 4, 4]
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 1 + 3 * 4


@pytest.mark.parametrize("stage", ["detecting", "drawing", "writing"])
def test_an_error_in_a_stage_is_its_message_and_ends_every_thread(
    tmp_path: Path, model: Path, video: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name = {
        "detecting": (Detector, "batch"),
        "drawing": (module.Annotator, "__call__"),
        "writing": (VideoSink, "write"),
    }[stage]
    calls, right = [], getattr(owner, name)

    def fails(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 3:
            raise ArtifactError(f"{stage} failed")
        return right(*arguments)

    monkeypatch.setattr(owner, name, fails)
    before = threading.active_count()
    with pytest.raises(ArtifactError, match=f"^{stage} failed$"):
        _infer(video, tmp_path / "out" / "x.mp4", model)
    assert threading.active_count() == before
    assert len(_images(tmp_path / "out" / "x.mp4")) == 2  # what came before it is kept


def test_several_sources_go_through_one_forward_pass(tmp_path: Path, video: Path) -> None:
    free = write_tiny_detector(tmp_path / "free.onnx", batch=None)
    image = colour_image(64, 64)
    image[8:16, 8:16] = (255, 0, 0)
    cv2.imwrite(str(tmp_path / "one.png"), image)
    outputs = Outputs(out=tmp_path / "out", results=True)
    done = infer([video, tmp_path / "one.png"], free, outputs=outputs, runtime="onnxruntime", batch=4, conf=0.5)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.png", "source.avi"]
    by_source = {source: [row for row in done.results or () if row["source"] == source] for source in done.sources}
    assert [len(rows) for rows in by_source.values()] == [5, 1]
    assert [row["frame"] for row in by_source[str(video)]] == [0, 1, 2, 3, 4]
    assert [box["name"] for box in by_source[str(tmp_path / "one.png")][0]["detections"]] == ["blue"]
    assert done.mode == "throughput"


@dataclass
class Announced:
    """A source as far as the choice of a mode looks at it."""

    live: bool
    announced: int | None
    errors: list[tuple[str, str]] = field(default_factory=list)


def test_the_mode_follows_the_sources_and_can_be_forced() -> None:
    camera, picture, clip = Announced(True, None), Announced(False, 1), Announced(False, 500)
    assert [mode_of("auto", [source]) for source in (camera, picture, clip)] == ["latency", "latency", "throughput"]  # type: ignore[list-item]
    assert mode_of("auto", [camera, camera]) == "throughput"  # type: ignore[list-item]
    assert mode_of("throughput", [camera]) == "throughput"  # type: ignore[list-item]
    assert mode_of("latency", [clip]) == "latency"  # type: ignore[list-item]


@pytest.fixture(scope="module")
def signs(demo_int8: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo detector in INT8, any batch."""
    from trt_qat.api import export

    out = tmp_path_factory.mktemp("signs") / "signs.onnx"
    export(demo_int8, out, target="openvino", dynamic_batch=True, check=False)
    return out


def test_stream_batch_and_single_frame_are_equal(signs: Path, demo_set: Path, tmp_path: Path) -> None:
    """To the last bit, whatever computes at once with what, and from there to the last line that is written."""
    folder = demo_set.parent / "images" / "val"
    images = [cv2.imread(str(path)) for path in sorted(folder.iterdir())]
    with Detector(signs) as detect:
        alone = [detect(image) for image in images]
        batched = [*detect.batch(images[:5]), *detect.batch(images[5:])]
    with Detector(signs, mode="throughput") as detect:
        assert detect.runner.parallel > 1
        streams = [[found for _, found in detect.stream(images, batch)] for batch in (1, 4)]
    assert sum(map(len, alone)) > 10
    for other in (batched, *streams):
        for one, same in zip(alone, other, strict=True):
            np.testing.assert_array_equal(one.boxes_xyxy, same.boxes_xyxy)
            np.testing.assert_array_equal(one.scores, same.scores)
            np.testing.assert_array_equal(one.class_ids, same.class_ids)
    done = infer([folder], signs, outputs=Outputs(save=False, jsonl=tmp_path / "x.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [line["detections"] for line in lines] == [detection_records(found, detect.names) for found in alone]
    assert (done.frames, done.mode) == (16, "throughput")
