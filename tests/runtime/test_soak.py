"""A minute of bad streams: they drop, refuse to come back, fall silent, send garbage and damaged frames."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from stream_server import MULTIPART, RtspServer, Stream, Ts, jpeg_part, serving

SECONDS = float(os.environ.get("TRT_QAT_SOAK_SECONDS", "60"))
FPS = 25
SIZE = (320, 240)
NO_SYNC = bytes(byte for byte in range(256) if byte != 0x47)  # what is no beginning of an MPEG-TS packet


class Script:
    """What one stream sends, and what of it was sound."""

    def __init__(self, seed: int, good: object, bad: object, garbage: object) -> None:
        self._chosen, self._good, self._bad, self._garbage = random.Random(seed), good, bad, garbage
        self.number = 0
        self.sound: list[int] = []
        self.damaged = 0
        self._end = time.monotonic() + SECONDS

    def connection(self, index: int) -> Iterator[object] | None:
        if index and (self._chosen.random() < 0.3 or time.monotonic() > self._end):
            return None
        return self._parts()

    def _parts(self) -> Iterator[object]:
        begin, first = time.monotonic(), self.number
        length = self._chosen.randrange(3 * FPS, 8 * FPS)
        while self.number - first < length and time.monotonic() < self._end:
            yield max(0.0, begin + (self.number - first) / FPS - time.monotonic())
            number, self.number = self.number, self.number + 1
            if self._bad is not None and number % 40 == 39:
                yield self._bad(number)  # type: ignore[operator]
                self.damaged += 1
            else:
                yield self._good(number)  # type: ignore[operator]
                self.sound.append(number)
            if number % 20 == 10:
                yield self._garbage(self._chosen)  # type: ignore[operator]
        if self._chosen.random() < 0.25:
            yield 30.0  # silent, but not closed


def _damaged(packets: bytes) -> bytes:
    """A frame of which only the first packets come."""
    return packets[:188] + packets[188 * 4 :]


def _rtp_garbage(chosen: random.Random) -> bytes:
    """Packets framed as RTSP's connection wants it (RFC 2326, 10.12), but no RTP, or of a channel that is nobody's."""
    packets = [(channel, bytes([chosen.randrange(0x80)]) + chosen.randbytes(chosen.randrange(12, 1200)))
               for channel in (0, 0, 1, 7)]  # fmt: skip
    return b"".join(b"$" + bytes([channel]) + len(packet).to_bytes(2, "big") + packet for channel, packet in packets)


READER = """
import json, os, sys, threading, time
from pathlib import Path
from clips import number_in
from trt_qat.runtime import decode
from trt_qat.runtime.live import Retry
from trt_qat.runtime.sources import open_sources, together
decode.READ_SECONDS = 2.0
retry = Retry(first_seconds=0.05, longest_seconds=0.5, most=12)
sources = open_sources(sys.argv[1:], hold=50, retry=retry)
found = {source.text: [] for source in sources}
memory = []
begin = time.monotonic()
for group in together(sources, 4):
    for frame in group:
        found[frame.source].append((frame.number, frame.seconds, number_in(frame.image_bgr)))
    if time.monotonic() - begin > len(memory):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory.append(round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1))
counts = {s.text: {"broken": s.broken, "dropped": s.dropped, "reconnects": s.reconnects} for s in sources}
json.dump({"found": found, "counts": counts, "RSS": memory, "threads": threading.active_count()}, sys.stdout)
"""


@pytest.mark.slow
def test_a_minute_of_bad_streams_loses_no_good_frame(capsys: pytest.CaptureFixture[str]) -> None:
    ts = Ts(SIZE, FPS)
    scripts = {
        "/ts": Script(0, ts.frame, lambda n: _damaged(ts.frame(n)), lambda r: bytes(r.choices(NO_SYNC, k=3000))),
        "/jpeg": Script(
            1, lambda n: jpeg_part(n, SIZE), lambda n: jpeg_part(n, SIZE, 0.6), lambda r: r.randbytes(3000) + b"\r\n"
        ),
        "rtsp": Script(2, lambda n: n, None, _rtp_garbage),
    }
    streams = {
        "/ts": Stream(scripts["/ts"].connection),  # type: ignore[arg-type]
        "/jpeg": Stream(scripts["/jpeg"].connection, MULTIPART),  # type: ignore[arg-type]
    }
    with serving(streams) as address, RtspServer(scripts["rtsp"].connection, SIZE, FPS) as rtsp:  # type: ignore[arg-type]
        urls = [f"{address}/ts", f"{address}/jpeg", rtsp.url]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", READER, *urls]
        done = subprocess.run(command, capture_output=True, check=True, env=environment, timeout=2 * SECONDS + 60)
    assert done.stderr == b""
    report = json.loads(done.stdout)
    for url, script in zip(urls, scripts.values(), strict=True):
        said = [number for _, _, number in report["found"][url]]
        counts = report["counts"][url]
        lost = sorted(set(script.sound) - set(said))
        with capsys.disabled():
            print(f"\n{url}: {len(script.sound)} good and {script.damaged} damaged frames sent, {len(said)} received, "
                  f"{len(lost)} lost, {counts}", end="")  # fmt: skip
        assert lost == []
        assert [number for number in said if number is not None] == sorted(script.sound)
        assert counts["dropped"] == 0
        assert counts["reconnects"] >= SECONDS / 15
        assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(report["found"][url]))
    memory = report["RSS"]
    with capsys.disabled():
        print(f"\nmemory in MB, each second: {memory}")
    later = memory[len(memory) // 4 :]
    assert max(later) - min(later) < 30
    assert report["threads"] <= 4
