from __future__ import annotations

import math

import pytest

from trt_qat.errors import ConfigError
from trt_qat.runtime.pace import Clock, Pace


def _taken(pace: Pace, seconds: list[float | None]) -> list[int]:
    return [number for number, at in enumerate(seconds) if pace.takes(number, at)]


def test_every_and_max_fps() -> None:
    steady: list[float | None] = [number / 25 for number in range(10)]
    assert _taken(Pace(), steady) == list(range(10))
    assert _taken(Pace(every=4), steady) == [0, 4, 8]
    assert _taken(Pace(max_fps=25), steady) == list(range(10))
    assert _taken(Pace(max_fps=12.5), steady) == [0, 2, 4, 6, 8]
    assert _taken(Pace(max_fps=10), steady) == [0, 3, 6, 9]
    assert _taken(Pace(every=3, max_fps=1), steady) == [0]
    assert _taken(Pace(max_fps=2), [0.0, 0.1, 5.0, 5.1, 5.6]) == [0, 2, 4]  # a variable rate
    assert _taken(Pace(every=2, max_fps=1), [None] * 5) == [0, 2, 4]  # images have no time
    # Matroska rounds to thousandths
    assert _taken(Pace(max_fps=30), [round(number / 30, 3) for number in range(10)]) == list(range(10))


def test_what_is_announced() -> None:
    assert Pace().announced(10, 25) == 10
    assert Pace(every=4).announced(10, 25) == 3
    assert Pace(every=4).announced(None, 25) is None
    assert Pace(max_fps=30).announced(10, 25) == 10
    assert Pace(max_fps=24).announced(10, 25) is None
    assert Pace(every=2, max_fps=24).announced(10, 25) == 5


@pytest.mark.parametrize("settings", [{"every": 0}, {"every": -1}, {"max_fps": 0}, {"max_fps": math.nan}])
def test_no_pace(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        Pace(**settings)  # type: ignore[arg-type]


def test_a_file_keeps_its_timestamps() -> None:
    clock = Clock(25)
    given = [7.0, 7.04, 7.5, 7.52, 99.0]
    assert [clock.seconds(n, at) for n, at in enumerate(given)] == pytest.approx([0, 0.04, 0.5, 0.52, 92])


def test_missing_timestamps_are_counted() -> None:
    clock = Clock(10)
    assert [clock.seconds(n, None) for n in (0, 1, 2, 5)] == pytest.approx([0, 0.1, 0.2, 0.5])  # 3 and 4 were broken
    assert clock.seconds(6, 3.0) == pytest.approx(0.6)
    assert clock.seconds(7, 3.3) == pytest.approx(0.9)


def test_time_rises_whatever_timestamps_do() -> None:
    clock = Clock(25)
    found = [clock.seconds(n, at) for n, at in enumerate([0.0, 0.04, 0.04, 0.03, 0.08, 20.0, 3.0, 3.04])]
    assert found == pytest.approx([0, 0.04, 0.041, 0.042, 0.08, 20.0, 20.04, 20.08])


def test_a_live_clock_follows_the_wall_where_the_stream_leaves_it() -> None:
    clock = Clock(25, live=True)
    assert clock.seconds(0, 500.0, 0.0) == 0
    assert clock.seconds(1, 500.04, 0.3) == pytest.approx(0.04)
    assert clock.seconds(2, 90_000.0, 0.4) == pytest.approx(0.4)  # a damaged timestamp
    assert clock.seconds(3, 500.12, 0.45) == pytest.approx(0.45)
    clock.restart()
    assert clock.seconds(4, 0.0, 7.0) == pytest.approx(7.0)  # away for seconds
    assert clock.seconds(5, 0.04, 7.2) == pytest.approx(7.04)
    assert clock.seconds(6, None, 7.3) == pytest.approx(7.3)
