"""A minute of bad streams: they drop, refuse to come back, fall silent, send garbage and damaged frames."""

from __future__ import annotations

import itertools
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clips import number_in
from stream_server import MULTIPART, Part, RtspServer, Stream, Ts, jpeg_part, serving

from trt_qat.progress import Silent
from trt_qat.runtime import decode
from trt_qat.runtime.live import Retry
from trt_qat.runtime.sources import open_sources, together

SECONDS = float(os.environ.get("TRT_QAT_SOAK_SECONDS", "60"))
FPS = 25
SIZE = (320, 240)
ALPHABET = bytes(byte for byte in range(256) if byte not in b"G$\n")


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


def _memory_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
def test_a_minute_of_bad_streams_loses_no_good_frame(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decode, "READ_SECONDS", 2.0)
    ts = Ts(SIZE, FPS)
    scripts = {
        "ts": Script(0, ts.frame, lambda n: _damaged(ts.frame(n)), lambda r: bytes(r.choices(ALPHABET, k=3000))),
        "jpeg": Script(
            1, lambda n: jpeg_part(n, SIZE), lambda n: jpeg_part(n, SIZE, 0.6), lambda r: r.randbytes(3000) + b"\r\n"
        ),  # fmt: skip
        "rtsp": Script(2, lambda n: n, None, lambda r: bytes(r.choices(ALPHABET, k=300))),
    }
    streams = {
        "/ts": Stream(scripts["ts"].connection),  # type: ignore[arg-type]
        "/jpeg": Stream(scripts["jpeg"].connection, MULTIPART),  # type: ignore[arg-type]
    }
    with serving(streams) as address, RtspServer(scripts["rtsp"].connection, SIZE, FPS) as rtsp:  # type: ignore[arg-type]
        urls = [f"{address}/ts", f"{address}/jpeg", rtsp.url]
        retry = Retry(first_seconds=0.05, longest_seconds=0.5, most=12)
        sources = open_sources(urls, hold=50, retry=retry, progress=Silent())
        found: dict[str, list[tuple[int, float, int | None]]] = {source.text: [] for source in sources}
        memory: list[float] = []
        begin = time.monotonic()
        for group in together(sources, 4):
            for frame in group:
                found[frame.source].append((frame.number, frame.seconds or 0, number_in(frame.image_bgr)))
            if time.monotonic() - begin > len(memory):
                memory.append(_memory_mb())
    report = {}
    for source, script in zip(sources, scripts.values(), strict=True):
        said = [number for _, _, number in found[source.text]]
        lost = sorted(set(script.sound) - set(said))
        report[source.text] = {
            "sent good": len(script.sound), "sent damaged": script.damaged, "received": len(said),
            "lost": lost, "unreadable": said.count(None), "broken": source.broken, "dropped": source.dropped,
            "reconnects": source.reconnects,
        }  # fmt: skip
    with capsys.disabled():
        print(json.dumps({"streams": report, "RSS MB": [round(value, 1) for value in memory]}, indent=1))
    for source, script in zip(sources, scripts.values(), strict=True):
        assert report[source.text]["lost"] == []
        assert [number for _, _, number in found[source.text] if number is not None] == sorted(script.sound)
        assert source.dropped == 0
        assert source.reconnects >= SECONDS / 15
        times = [(number, seconds) for number, seconds, _ in found[source.text]]
        assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(times))
    later = memory[len(memory) // 4 :]
    assert max(later) - min(later) < 30
    assert threading.active_count() < 20
