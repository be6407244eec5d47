"""What FFmpeg may open for a source, and how long it may wait.

A playlist, a session description or a redirection inside of what is read can name further files and addresses. So each
kind of source has the protocols that it needs and no others: a file on this machine opens neither a connection nor a
second file, and nothing that comes over the network opens a file here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from trt_qat.errors import DatasetError
from trt_qat.redact import redacted

OPEN_SECONDS = 15.0
"""How long a connection may take until its first frames are known."""

READ_SECONDS = 10.0
"""How long a stream may be silent until it counts as dead."""

_ANALYSE_SECONDS = 3  # of a live stream, until what is known of it by then has to do
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # two letters at least: c:// is a drive

# FFmpeg's demuxers of videos that stand for themselves. Left out are those that read a list of other files (hls, dash,
# concat, sdp, image2), those that take any bytes for a picture (rawvideo), and those that make pictures up (lavfi).
_CONTAINERS = (
    "apng", "asf", "av1", "avi", "dv", "flv", "gif", "h261", "h263", "h264", "hevc", "ivf", "m4v", "matroska,webm",
    "mjpeg", "mov,mp4,m4a,3gp,3g2,mj2", "mpeg", "mpegts", "mpegvideo", "mpjpeg", "mxf", "nut", "obu", "ogg", "rm",
    "vc1", "vvc", "wtv", "yuv4mpegpipe",
)  # fmt: skip
_PICTURES = ("bmp_pipe", "jpeg_pipe", "png_pipe", "webp_pipe")  # what a camera's snapshot address answers
_HTTP = ("crypto", "data", "http", "httpproxy", "https", "tcp", "tls")
_RTP = ("rtp", "srtp", "tcp", "tls", "udp")


class Bytes(Protocol):
    """Something that FFmpeg asks for bytes."""

    def read(self, most: int, /) -> bytes:
        """At most so many bytes; none at the end."""
        ...


@dataclass(frozen=True)
class Access:
    """How to open one thing.

    Attributes:
        shown: what messages call it, without passwords.
        target: what PyAV opens.
        format: the demuxer; None where it is found by the content.
        protocols: all that may be used, also by what the content names.
        containers: demuxers that may be used.
        options: further ones of FFmpeg.
        network: whether it may be silent, break off and come back.
    """

    shown: str
    target: str | Bytes
    format: str | None = None
    protocols: tuple[str, ...] = ()
    containers: tuple[str, ...] = _CONTAINERS
    options: Mapping[str, str] = field(default_factory=dict)
    network: bool = False

    @property
    def av_options(self) -> dict[str, str]:
        """What ``av.open`` is given."""
        return {
            "protocol_whitelist": ",".join(self.protocols) or "none",
            "format_whitelist": ",".join(self.containers),
            **self.options,
        }


# Scheme -> protocols, containers, options. prefer_tcp: over UDP a busy receiver loses packets, and pictures break.
_SCHEMES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], Mapping[str, str]]] = {
    **dict.fromkeys(("http", "https"), (_HTTP, (*_CONTAINERS, *_PICTURES, "hls"), {"reconnect": "1"})),
    **dict.fromkeys(("rtsp", "rtsps"), ((*_RTP, *_HTTP), ("rtsp", "rtp", "sdp"), {"rtsp_flags": "prefer_tcp"})),
    **dict.fromkeys(
        ("rtmp", "rtmps", "rtmpt", "rtmpts"),
        (("rtmp", "rtmps", "rtmpt", "rtmpts", "ffrtmphttp", *_HTTP), ("flv", "live_flv"), {}),
    ),
    "udp": (("udp",), _CONTAINERS, {"fifo_size": "65536", "overrun_nonfatal": "1"}),
    "tcp": (("tcp",), _CONTAINERS, {}),
    "srt": (("srt",), _CONTAINERS, {}),
}


def is_url(text: str) -> bool:
    """Whether a text is an address and not a path."""
    return _URL.match(text) is not None


def file_access(path: Path) -> Access:
    """A video file. Its name is taken as it is: no pattern, no protocol, any bytes."""
    return Access(shown=str(path), target=f"file:{path}", protocols=("file",))


def stream_access(shown: str, stream: Bytes) -> Access:
    """An encoded stream that somebody else opened, e.g. standard input."""
    return Access(shown=shown, target=stream)


def url_access(url: str) -> Access:
    """A stream or file on another machine.

    Raises:
        DatasetError: an address of another scheme, or no address at all.
    """
    shown = redacted(url)
    scheme = url.partition(":")[0].lower()
    if scheme not in _SCHEMES:
        raise DatasetError(f"Source '{shown}' cannot be opened: known are {', '.join(sorted(_SCHEMES))} addresses.")
    if not url.isprintable() or " " in url:  # FFmpeg's own reading of a name ends at NUL; requests end at a line break
        raise DatasetError(f"Source '{shown}' is no address: it holds a space or a control character. Escape it.")
    protocols, containers, options = _SCHEMES[scheme]
    analyse = {"analyzeduration": str(_ANALYSE_SECONDS * 1_000_000)}
    return Access(shown, url, protocols=protocols, containers=containers, options={**options, **analyse}, network=True)


def camera_access(device: str) -> Access:
    """A camera of this machine by its device, e.g. "/dev/video0", through Video4Linux."""
    return Access(device, device, format="v4l2", protocols=("file",), containers=("video4linux2,v4l2",), network=True)
