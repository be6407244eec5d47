from __future__ import annotations

import socket
import threading
from collections.abc import Mapping

import av
import numpy as np
import pytest

from trt_qat.errors import ArtifactError
from trt_qat.runtime.frames import Frame, Result
from trt_qat.runtime.sinks.stream import StreamSink, is_stream
from trt_qat.vision.detections import Detections

NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
FRAMES = 30


def _free_port(kind: int) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _result(number: int) -> Result:
    picture = np.full((64, 96, 3), 20 + 7 * number, np.uint8)
    return Result(Frame(picture, "camera", number, number / 25), NOTHING, annotated_bgr=picture)


class _Receiver(threading.Thread):
    """Reads a stream until it ends; what a player does."""

    def __init__(self, address: str, options: Mapping[str, str]) -> None:
        super().__init__(daemon=True)
        self._address, self._options = address, options
        self.brightness: list[float] = []

    def run(self) -> None:
        try:
            with av.open(self._address, options=dict(self._options)) as container:
                for frame in container.decode(video=0):
                    self.brightness.append(float(frame.to_ndarray(format="bgr24").mean()))
        except (av.FFmpegError, OSError):
            pass  # no end is sent by UDP: the receiver's patience ends


@pytest.mark.parametrize("protocol", ["udp", "rtsp"])
def test_frames_arrive_elsewhere(protocol: str) -> None:
    if protocol == "udp":
        address = f"udp://127.0.0.1:{_free_port(socket.SOCK_DGRAM)}"
        receiver = _Receiver(f"{address}?timeout=300000", {"analyzeduration": "200000"})
    else:
        address = f"rtsp://127.0.0.1:{_free_port(socket.SOCK_STREAM)}/x"
        receiver = _Receiver(address, {"rtsp_flags": "listen", "listen_timeout": "10"})
    receiver.start()
    for _ in range(50):  # until it listens
        threading.Event().wait(0.02)
        try:
            with StreamSink(address, 25) as sink:
                for number in range(FRAMES):
                    sink.write(_result(number))
                    threading.Event().wait(0.005)
            break
        except ArtifactError:
            continue
    receiver.join(10)
    expected = [20 + 7 * number for number in range(FRAMES)]
    assert receiver.brightness[-1] == pytest.approx(expected[-1], abs=3)
    assert len(receiver.brightness) >= FRAMES - 2


def test_nobody_there_is_one_line_without_the_password() -> None:
    port = _free_port(socket.SOCK_STREAM)
    with pytest.raises(ArtifactError) as caught, StreamSink(f"rtsp://me:secret@127.0.0.1:{port}/x", 25) as sink:
        sink.write(_result(0))
    assert str(caught.value) == (
        f"Cannot send to 'rtsp://***@127.0.0.1:{port}/x': Connection refused. Is the server or receiver there?"
    )


def test_what_is_an_address() -> None:
    assert is_stream("rtsp://host/x")
    assert is_stream("UDP://host:1")
    assert not is_stream("street.mp4")
    assert not is_stream("rtsp")
    with pytest.raises(ArtifactError, match=r"begins with rtsp://, rtmp://, udp://"):
        StreamSink("http://host/x")
