from __future__ import annotations

import itertools
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clips import number_in, write_clip
from stream_server import MULTIPART, Part, RtspServer, Stream, Ts, jpeg_part, paced, serving

from trt_qat.errors import DatasetError
from trt_qat.progress import Silent
from trt_qat.runtime import decode
from trt_qat.runtime.frames import Frame, Source
from trt_qat.runtime.live import Live, Retry
from trt_qat.runtime.sources import open_sources, together


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, line: str) -> None:
        self.notes.append(line)


QUICK = Retry(first_seconds=0.02, longest_seconds=0.1, most=3)


def _open(url: str, **settings: object) -> Live:
    (source,) = open_sources([url], **{"retry": QUICK, "hold": 500, **settings})  # type: ignore[arg-type]
    assert isinstance(source, Live)
    return source


def _said(frames: list[Frame]) -> list[int | None]:
    return [number_in(frame.image_bgr) for frame in frames]


def _rises(frames: list[Frame]) -> bool:
    return all(
        later.number > earlier.number and (later.seconds or 0) > (earlier.seconds or 0)
        for earlier, later in itertools.pairwise(frames)
    )


def test_a_stream_that_drops_and_sends_garbage_loses_no_good_frame() -> None:
    ts, chosen, notes = Ts(), random.Random(0), Notes()
    aligned = b"".join(b"G\x1f\xfe" + chosen.randbytes(185) for _ in range(20))  # packets of a PID that nobody reads
    sent: list[int] = []

    def parts(connection: int) -> Iterator[Part] | None:
        if connection == 1:
            return None  # the first try to come back fails
        return _parts(connection)

    def _parts(connection: int) -> Iterator[Part]:
        for index in range(30):
            number = 100 * connection + index
            yield ts.frame(number)
            sent.append(number)
            if index % 7 == 3:
                yield aligned

    with serving({"/cam": Stream(lambda n: None if n > 3 else parts(n))}) as address:
        source = _open(f"{address}/cam", progress=notes)
        assert (source.live, source.announced, source.size_wh, source.fps) == (True, None, (128, 64), 25)
        frames = list(source.frames())
    assert _said(frames) == sent == [*range(30), *range(200, 230), *range(300, 330)]
    assert _rises(frames)
    assert (source.broken, source.dropped, source.reconnects) == (0, 0, 2)
    text = f"Stream '{address}/cam'"
    back = [line for line in notes.notes if line.startswith(f"{text} is back after ")]
    assert [line.split(",")[0] for line in back] == [f"{text} is back after {tries}" for tries in ("2 tries", "1 try")]
    assert sum(line.startswith(f"{text} broke off: ") for line in notes.notes) == 3
    assert notes.notes[-1].startswith(f"{text} is given up after 3 tries")
    assert [name for name, _ in source.errors] == [f"{address}/cam"]


def test_parts_of_jpegs_with_garbage_between_them_and_within() -> None:
    chosen = random.Random(0)

    def parts(connection: int) -> Iterator[Part] | None:
        return None if connection else _parts()

    def _parts() -> Iterator[Part]:
        for number in range(40):
            yield jpeg_part(number, share=0.7 if number in (10, 20) else 1)
            if number % 10 == 5:
                yield chosen.randbytes(3000) + b"\r\n"

    with serving({"/cam": Stream(parts, MULTIPART)}) as address:
        source = _open(f"{address}/cam")
        frames = list(source.frames())
    assert _said(frames) == [number for number in range(40) if number not in (10, 20)]
    assert source.broken == 2
    assert _rises(frames)


def test_frames_without_timestamps_are_timed_by_the_clock() -> None:
    stream = Stream(lambda n: None if n else paced(map(jpeg_part, range(8)), 0.1), MULTIPART)
    with serving({"/cam": stream}) as address:
        seconds = [frame.seconds or 0 for frame in _open(f"{address}/cam").frames()]
    assert len(seconds) == 8
    assert seconds[-1] - seconds[-4] == pytest.approx(0.3, abs=0.1)  # the first ones are known at once


def test_a_slow_consumer_drops_the_oldest_frame_of_a_live_source() -> None:
    ts = Ts()
    with serving({"/cam": Stream(lambda n: None if n else map(ts.frame, range(60)))}) as address:
        source = _open(f"{address}/cam", hold=3)
        frames = source.frames()
        first = next(frames)
        _until(lambda: source.errors != [])  # given up: all have come
        rest = list(frames)
    assert _said([first, *rest]) == [first.number, 57, 58, 59]
    assert [frame.number for frame in rest] == [57, 58, 59]
    assert source.dropped == 60 - 3 - (first.number + 1)


def test_close_ends_the_frames_even_where_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "READ_SECONDS", 1.0)
    ts = Ts()
    silent: list[Part] = [*(ts.frame(number) for number in range(25)), 30.0]
    with serving({"/cam": Stream(lambda _: silent)}) as address:
        source = _open(f"{address}/cam")
        threading.Timer(0.3, source.close).start()
        begin = time.monotonic()
        assert len(list(source.frames())) >= 20
        assert time.monotonic() - begin < 1.2
        _until(lambda: not any(thread.name == f"reads {source.text}" for thread in threading.enumerate()))


def test_a_stream_that_falls_silent_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "READ_SECONDS", 0.3)
    ts, notes = Ts(), Notes()

    def parts(connection: int) -> list[Part] | None:
        frames: list[Part] = [ts.frame(100 * connection + number) for number in range(25)]
        return [*frames, 30.0] if connection == 0 else frames if connection == 1 else None

    with serving({"/cam": Stream(parts)}) as address:
        source = _open(f"{address}/cam", progress=notes)
        frames = list(source.frames())
    assert _said(frames) == [*range(25), *range(100, 125)]
    assert _rises(frames)
    assert source.reconnects == 1
    assert "broke off: nothing came for too long" in notes.notes[0]


def test_an_address_of_a_file_is_a_file(tmp_path: Path) -> None:
    content = write_clip(tmp_path / "x.mp4", 30, options={"bf": "0"}).read_bytes()
    with serving({"/x.mp4": Stream(lambda _: [content], "video/mp4", len(content))}) as address:
        (source,) = open_sources([f"{address}/x.mp4"])
        assert (source.live, source.announced, source.size_wh) == (False, 30, (128, 64))
        frames = list(source.frames())
    assert _said(frames) == list(range(30))
    assert source.reconnects == 0


def test_a_stream_that_is_not_there_is_one_line_without_its_password() -> None:
    with serving({}) as address:
        url = f"{address.replace('//', '//me:geheim@')}/cam?token=geheim"
        with pytest.raises(DatasetError) as caught:
            open_sources([url])
    assert str(caught.value).startswith(f"Source '{address.replace('//', '//***@')}/cam?token=***' cannot be opened: ")
    assert "404" in str(caught.value)
    with pytest.raises(DatasetError, match="cannot be opened: "):
        open_sources(["rtsp://127.0.0.1:9/cam"])


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:{there}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nconcat:{there}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{there}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {there}\n",
    ],
    ids=["file", "concat", "path", "script"],
)
def test_an_address_opens_no_file_here(tmp_path: Path, playlist: str) -> None:
    there = write_clip(tmp_path / "there.ts", 5)
    content = playlist.format(there=there).encode()
    stream = Stream(lambda _: [content], "application/vnd.apple.mpegurl", len(content))
    with serving({"/x.m3u8": stream}) as address, pytest.raises(DatasetError, match="cannot be"):
        open_sources([f"{address}/x.m3u8"])


def test_a_playlist_of_addresses_is_followed(tmp_path: Path) -> None:
    segment = write_clip(tmp_path / "there.ts", 30).read_bytes()
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.2,\n0.ts\n#EXT-X-ENDLIST\n"
    streams = {
        "/x.m3u8": Stream(lambda _: [playlist], "application/vnd.apple.mpegurl", len(playlist)),
        "/0.ts": Stream(lambda _: [segment], length=len(segment)),
    }
    with serving(streams) as address:
        (source,) = open_sources([f"{address}/x.m3u8"])
        assert not source.live
        assert _said(list(source.frames())) == list(range(30))


def test_rtsp_comes_back() -> None:
    def frames(connection: int) -> list[int] | None:
        return list(range(100 * connection, 100 * connection + 40)) if connection in (0, 2) else None

    with RtspServer(frames) as server:
        source = _open(server.url)
        found = list(source.frames())
    assert _said(found) == [*range(40), *range(200, 240)]
    assert _rises(found)
    assert (source.reconnects, source.broken, source.dropped) == (1, 0, 0)


def test_udp() -> None:
    ts = Ts()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stopped = threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for number in itertools.count():
                packets = ts.frame(number)
                for at in range(0, len(packets), 7 * 188):
                    sender.sendto(packets[at : at + 7 * 188], ("127.0.0.1", port))
                if stopped.wait(0.01):
                    return

    thread = threading.Thread(target=send)
    thread.start()
    try:
        source = _open(f"udp://127.0.0.1:{port}")
        said = _said(list(itertools.islice(source.frames(), 30)))
        source.close()
    finally:
        stopped.set()
        thread.join()
    first = said[0]
    assert first is not None
    assert said == list(range(first, first + 30))


def test_live_ones_and_files_together(tmp_path: Path) -> None:
    file = write_clip(tmp_path / "x.mkv", 12)
    streams: dict[str, Stream] = {}
    for name in ("/a", "/b"):
        ts = Ts()
        streams[name] = Stream(lambda n, ts=ts: None if n else paced(map(ts.frame, range(40)), 0.01))
    with serving(streams) as address:
        sources: list[Source] = [*open_sources([str(file)]), _open(f"{address}/a"), _open(f"{address}/b")]
        groups = list(together(sources, 4))
    assert all(1 <= len(group) <= 4 for group in groups)
    for source, count in zip(sources, (12, 40, 40), strict=True):
        mine = [frame for group in groups for frame in group if frame.source == source.text]
        assert _said(mine) == list(range(count))
    assert sum(source.dropped for source in sources) == 0


def _until(condition: object, seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)
