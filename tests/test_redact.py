from __future__ import annotations

import time

import pytest

from trt_qat.errors import ArtifactError, ConfigError, TrtQatError
from trt_qat.redact import redacted, redacted_message

VALUES = [
    ("rtsp://user:geheim@host:554/cam", "rtsp://***@host:554/cam"),
    ("RTSP://geheim@host/cam", "RTSP://***@host/cam"),
    ("rtsp://user:ge/he:i@m@host/cam", "rtsp://***@host/cam"),
    ("https://@geheim@host/cam", "https://***@host/cam"),
    ("https://me@mail:geheim@host/cam", "https://***@host/cam"),
    ("https://@me:geheim@host/cam", "https://***@host/cam"),
    ("rtsps://:geheim@host/cam", "rtsps://***@host/cam"),
    ("https:/me:ge@heim@host/data.yaml", "https:/***@host/data.yaml"),  # a path makes one slash of two
    ("admin:geheim@10.0.0.2/cam", "***@10.0.0.2/cam"),
    ("https://host/cam?user=me&pwd=geheim&size=2#x", "https://host/cam?user=***&pwd=***&size=2#x"),
    ("https://host/a.jpg?X-Amz-Signature=geheim", "https://host/a.jpg?X-Amz-Signature=***"),
    ("https://host/a.mp4#access_token=geheim", "https://host/a.mp4#access_token=***"),
    (
        "rtspsrc location=rtsp://h/x user-id=me user-pw=geheim ! y",
        "rtspsrc location=rtsp://h/x user-id=*** user-pw=*** ! y",
    ),
    ("https://host:554/a?token=gehe@im@geheim&b=2", "https://***&b=2"),  # the token may be a password, too
    ("https://host/a?token=ge@heim&b=2", "https://host/a?token=***&b=2"),
    ("rtsp://me:ge?key=he@im@host/cam", "rtsp://***"),
]
PLAIN = ["rtsp://host/cam", "photos/a:b@2x.png", "C:/a@b.png", "one.png", "udp://@239.0.0.1:1234", "a@b.c", "qat.lr0=1"]


@pytest.mark.parametrize(("value", "shown"), VALUES + [(plain, plain) for plain in PLAIN])
def test_secrets_go_and_the_rest_stays(value: str, shown: str) -> None:
    assert redacted(value) == shown
    for sentence in ("{}", "Dataset '{}' does not exist.", '"{}" and a@b.c', "--set data.path={} is unknown"):
        assert redacted_message(sentence.format(value)) == sentence.format(shown)


@pytest.mark.parametrize("kind", [TrtQatError, ConfigError, ArtifactError])
def test_no_error_holds_one(kind: type[TrtQatError]) -> None:
    assert "geheim" not in repr(kind("'path: https://me:geheim@host/set' does not exist. Correct or remove 'path'."))


def test_no_text_takes_long() -> None:
    started = time.perf_counter()
    for text in (
        "aa:/" * 25_000 + "@",
        "aa:x " * 25_000 + "=",
        "?pass" * 20_000 + "=",
        "pass" * 20_000 + "=",
        " pass" * 20_000,
        "a" * 100_000 + ":@=",
    ):
        redacted(text)
        redacted_message(text)
    assert time.perf_counter() - started < 10
