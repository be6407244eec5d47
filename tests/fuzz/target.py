"""What a fuzz target is.

An input is bytes. A target either returns, and its own invariants held, or raises a :class:`TrtQatError` whose message is
one line. Everything else is a finding: another exception, a warning that reaches the terminal, too much time or memory.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hypothesis.strategies import SearchStrategy

from trt_qat.errors import ArtifactError, TrtQatError


@dataclass(frozen=True)
class Target:
    """A parser under test.

    Args:
        inputs: makes the strategy of its inputs; called once.
        check: parses one; asserts what must hold for a value that is accepted.
    """

    name: str
    inputs: Callable[[], SearchStrategy[bytes]]
    check: Callable[[bytes, Path], None]


def parsed(target: Target, content: bytes) -> bool:
    """Let a target see an input; whether it accepted it.

    Raises:
        AssertionError: an invariant does not hold, or the message of the refusal is not one line.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, _nothing_logged():
        try:
            target.check(content, Path(folder))
        except TrtQatError as exc:
            assert_one_line(str(exc))
            return False
    return True


@contextlib.contextmanager
def _nothing_logged() -> Iterator[None]:
    """Within: converters that log what they leave out, and caches that are made anew, do it for nobody."""
    log = logging.getLogger("trt_qat")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def assert_one_line(text: str) -> None:
    """A message or a note: one line, of a length that is read, and nothing in it that a terminal obeys."""
    assert text.strip(), "an empty message"
    assert len(text.splitlines()) == 1, "a message of several lines"
    assert not any(unicodedata.category(character) == "Cc" for character in text), "a control character in a message"
    assert len(text) < 2500, f"a message of {len(text)} characters"


def written(folder: Path, name: str, content: bytes) -> Path:
    """The input as a file."""
    path = folder / name
    path.write_bytes(content)
    return path


def made_anew(what: str) -> ArtifactError:
    """What a target raises where the reader gives nothing and says why: the input counts as refused."""
    return ArtifactError(f"{what} is made anew")
