"""A loopback server that sends streams as badly as asked: it stops, sends garbage, is silent, comes back."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import cv2
from clips import numbered

Part = bytes | float
"""What is sent, or how many seconds nothing is."""


@dataclass
class Stream:
    """What one path answers.

    Attributes:
        parts: makes what the nth connection (from 0) is sent; after it, the connection is closed. None refuses it.
        kind: the Content-Type.
        length: whether the length is told: then it is a file.
        connections: how many there were.
    """

    parts: Callable[[int], Iterable[Part] | None]
    kind: str = "video/mp2t"
    length: int | None = None
    connections: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextlib.contextmanager
def serving(streams: dict[str, Stream]) -> Iterator[str]:
    """Serve each path over HTTP; yields the address in front of it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            stream = streams.get(self.path)
            parts = None
            if stream is not None:
                with stream.lock:
                    connection, stream.connections = stream.connections, stream.connections + 1
                parts = stream.parts(connection)
            if stream is None or parts is None:
                self.send_error(503 if stream else 404)
                return
            self.send_response(200)
            self.send_header("Content-Type", stream.kind)
            if stream.length is not None:
                self.send_header("Content-Length", str(stream.length))
            self.end_headers()
            with contextlib.suppress(OSError):  # who reads has gone
                for part in parts:
                    if isinstance(part, bytes):
                        self.wfile.write(part)
                    elif stopped.wait(part):
                        return

    stopped = threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()


class Ts:
    """An MPEG-TS stream that goes on and on: frame after frame, each of them whole by itself (H.264, no references).

    Args:
        size_wh: of the frames.
        fps: by which they are stamped.
        keyframes: distance of frames that refer to no other.
    """

    def __init__(self, size_wh: tuple[int, int] = (128, 64), fps: int = 25, keyframes: int = 1) -> None:
        self._size_wh, self._tick = size_wh, Fraction(1, fps)
        self._bytes = bytearray()
        self._out = av.open(self, "w", format="mpegts", options={"flush_packets": "1", "pat_period": "0.2"})
        self._stream: Any = self._out.add_stream("libx264", rate=fps)
        self._stream.width, self._stream.height, self._stream.pix_fmt = *size_wh, "yuv420p"
        self._stream.gop_size = keyframes
        self._stream.options = {"tune": "zerolatency", "preset": "ultrafast"}
        self._stream.codec_context.time_base = self._tick
        self._next = 0

    def write(self, content: bytes) -> int:
        """What the muxer calls."""
        self._bytes += content
        return len(content)

    def frame(self, number: int) -> bytes:
        """The packets of the next frame, which says ``number``."""
        frame = av.VideoFrame.from_ndarray(numbered(number, *self._size_wh), format="bgr24").reformat(format="yuv420p")
        frame.pts, frame.time_base = self._next, self._tick
        self._next += 1
        self._out.mux(self._stream.encode(frame))
        packets = bytes(self._bytes)
        self._bytes.clear()
        return packets


def jpeg_part(number: int, size_wh: tuple[int, int] = (128, 64), share: float = 1.0) -> bytes:
    """One part of a ``multipart/x-mixed-replace; boundary=frame`` answer, as cameras send them; or its beginning."""
    content = cv2.imencode(".jpg", numbered(number, *size_wh))[1].tobytes()
    content = content[: round(len(content) * share)]
    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content + b"\r\n"


class RtspServer:
    """The least of RTSP (RFC 2326) that a client needs to play one H.264 stream over its own TCP connection.

    Args:
        frames: for the nth connection the numbers to send, paced by it; None closes the connection at once.
        size_wh: of the frames.
        fps: by which they are stamped.
    """

    _SDP = (
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
        "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track\r\n"
    )

    def __init__(
        self,
        frames: Callable[[int], Iterable[int | bytes | float] | None],
        size_wh: tuple[int, int] = (128, 64),
        fps: int = 25,
    ) -> None:
        self._frames, self._size_wh, self._tick = frames, size_wh, Fraction(1, fps)
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://127.0.0.1:{self._listener.getsockname()[1]}/cam"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> RtspServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            frames = self._frames(self.connections)
            self.connections += 1
            if frames is None:
                connection.close()
            else:
                threading.Thread(target=self._answer, args=(connection, frames), daemon=True).start()

    def _answer(self, connection: socket.socket, frames: Iterable[int | bytes | float]) -> None:
        with connection, contextlib.suppress(OSError):
            requests = connection.makefile("rb")
            while (request := requests.readline().decode("ascii", "replace").split()) != []:
                fields = dict(line.split(": ", 1) for line in iter(lambda: requests.readline().decode().strip(), ""))
                answer = {"CSeq": fields["CSeq"], "Session": "1"}
                body = ""
                if request[0] == "DESCRIBE":
                    body = self._SDP
                    answer |= {"Content-Base": f"{self.url}/", "Content-Type": "application/sdp"}
                elif request[0] == "SETUP":
                    answer["Transport"] = "RTP/AVP/TCP;unicast;interleaved=0-1"
                answer["Content-Length"] = str(len(body))
                head = "".join(f"{name}: {value}\r\n" for name, value in answer.items())
                connection.sendall(f"RTSP/1.0 200 OK\r\n{head}\r\n{body}".encode())
                if request[0] == "PLAY":
                    self._play(connection, frames)
                    return

    def _play(self, connection: socket.socket, frames: Iterable[int | bytes | float]) -> None:
        class Interleaved:
            def write(self, packet: bytes) -> int:
                channel = 1 if 200 <= packet[1] <= 204 else 0  # RTCP beside RTP
                connection.sendall(b"$" + bytes([channel]) + len(packet).to_bytes(2, "big") + packet)
                return len(packet)

        with av.open(Interleaved(), "w", format="rtp", options={"packetsize": "1400"}) as out:
            stream: Any = out.add_stream("libx264", rate=1 / self._tick)
            stream.width, stream.height, stream.pix_fmt, stream.gop_size = *self._size_wh, "yuv420p", 1
            stream.options = {"tune": "zerolatency", "preset": "ultrafast"}
            stream.codec_context.time_base = self._tick
            for at, part in enumerate(frames):
                if isinstance(part, bytes):
                    connection.sendall(part)
                elif isinstance(part, float):
                    if self._stopped.wait(part):
                        return
                else:
                    picture = numbered(part, *self._size_wh)
                    frame = av.VideoFrame.from_ndarray(picture, format="bgr24").reformat(format="yuv420p")
                    frame.pts, frame.time_base = at, self._tick
                    out.mux(stream.encode(frame))


MULTIPART = "multipart/x-mixed-replace; boundary=frame"


def paced(parts: Iterable[bytes], seconds: float) -> Iterator[Part]:
    """The parts, one every so many seconds by the clock."""
    begin = time.monotonic()
    for number, part in enumerate(parts):
        yield max(0.0, begin + number * seconds - time.monotonic())
        yield part
