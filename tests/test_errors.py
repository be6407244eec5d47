"""Every message is one line that a terminal only shows."""

from __future__ import annotations

import copy
import pickle

import pytest

from trt_qat.errors import ArtifactError, ConfigError, TrtQatError


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("a\nb\r\nc\u2028d", "a b c d"),
        ("names.0 = 'a\x1b[2J\x07\x9b1m'", r"names.0 = 'a\x1b[2J\x07\x9b1m'"),
        ("'Cấm rẽ trái.pt' is not there", "'Cấm rẽ trái.pt' is not there"),
        ("'\udcff.pt' is not there", "'\udcff.pt' is not there"),  # a name that is not UTF-8; the stream shows it
        ("", ""),
    ],
)
def test_one_line_without_control_characters(given: str, said: str) -> None:
    error = TrtQatError(given)
    assert str(error) == said
    assert str(pickle.loads(pickle.dumps(error))) == said
    assert str(copy.copy(error)) == said


def test_a_long_message_keeps_its_beginning_and_its_advice() -> None:
    said = str(ArtifactError(f"'a.json': {'x' * 100_000}. Make it again."))
    assert said.startswith("'a.json': xxx")
    assert said.endswith("xxx. Make it again.")
    assert len(said) < 2000
    assert str(ConfigError("x" * 2000)) == "x" * 2000
