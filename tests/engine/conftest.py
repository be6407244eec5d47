"""Logs of the compiler, recorded."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

LOGS = Path(__file__).with_name("logs")


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], str]:
    """A recorded log of tensorrt-rtx 1.7.1, from the last words before the layers on, by name."""

    def read(name: str) -> str:
        return gzip.decompress((LOGS / f"{name}.txt.gz").read_bytes()).decode("utf-8")

    return read
