"""A histogram for a terminal: columns of block characters, the range of the quantizer marked below them."""

from __future__ import annotations

import math
from typing import Final

from trt_qat.report.record import Histogram

COLUMNS: Final = 64
ROWS: Final = 6
_BLOCKS: Final = " ▁▂▃▄▅▆▇█"


def text_histogram(histogram: Histogram, ends: tuple[float, float]) -> list[str]:
    """Lines of one width: the columns, an axis with a mark at either end of the range, and its numbers.

    Heights are logarithmic: what stretches a range are the few values far out.

    Args:
        ends: the range; values beyond are clipped. An end of it that no value comes near is not drawn.
    """
    least, most = ends
    low = min(histogram.low, 0.0)
    high = max(histogram.high, most if histogram.high > 0 else 0.0)
    if least >= low or histogram.low < least / 2:
        low = min(low, least)
    heights = _heights(_columns(histogram, low, high))
    rows = ["".join(_block(height - 8 * row) for height in heights) for row in reversed(range(ROWS))]
    marks = {_column(edge, low, high) for edge in ends if low <= edge <= high}
    axis = "".join("┻" if column in marks else "─" for column in range(COLUMNS))
    return [*rows, axis, _numbers(low, high, most, histogram)]


def _columns(histogram: Histogram, low: float, high: float) -> list[float]:
    """The counts in each column; a bin that lies in several is shared among them."""
    found = [0.0] * COLUMNS
    scale = COLUMNS / ((high - low) or 1.0)
    width = (histogram.high - histogram.low) / len(histogram.counts)
    for index, count in enumerate(histogram.counts):
        start = min(COLUMNS - 1e-9, (histogram.low + width * index - low) * scale)
        end = min(float(COLUMNS), max(start + 1e-9, start + width * scale))
        for column in range(int(start), min(COLUMNS, math.ceil(end))):
            found[column] += count * (min(end, column + 1) - max(start, column)) / (end - start)
    return found


def _column(value: float, low: float, high: float) -> int:
    return min(COLUMNS - 1, max(0, int((value - low) / ((high - low) or 1.0) * COLUMNS)))


def _heights(counts: list[float]) -> list[int]:
    """In eighths of a row; any value at all is seen."""
    top = math.log1p(max(counts, default=0)) or 1.0
    return [math.ceil(8 * ROWS * math.log1p(count) / top) for count in counts]


def _block(eighths: int) -> str:
    return _BLOCKS[min(8, max(0, eighths))]


def _numbers(low: float, high: float, amax: float, histogram: Histogram) -> str:
    left = f"{histogram.low:.3g} seen" if histogram.low <= low else f"{low:.3g}"
    right = f"{histogram.high:.3g} seen"
    if amax < high:
        right = f"range {amax:.3g}, {right}"
    elif amax == high:
        right = f"{right}, range {amax:.3g}"
    return left + right.rjust(COLUMNS - len(left))
