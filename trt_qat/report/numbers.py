"""How figures are written for people; one form for the page, for Markdown and for what is said of a layer."""

from __future__ import annotations

from typing import Final

MINUS: Final = "\u2212"
NOTHING: Final = "\u2013"
_TARGETS: Final = {
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "ultralytics": "Ultralytics",
}


def signed(value: float, digits: int = 2) -> str:
    """``+0.34``, with a real minus."""
    return plain(f"{value:+.{digits}f}")


def number(value: float | None, digits: int = 1) -> str:
    """With so many digits behind the point; a dash for what was not measured."""
    return NOTHING if value is None else plain(f"{value:,.{digits}f}") if abs(value) < 1e12 else plain(f"{value:.3g}")


def short(value: float | None) -> str:
    """Three significant digits, for figures whose size is not known beforehand."""
    return NOTHING if value is None else plain(f"{value:.3g}")


def span(ends: tuple[float, float], digits: int = 3) -> str:
    """A range: ``\u00b12.5``, or ``\u22120.28 to 7.9``."""
    low, high = ends
    return f"\u00b1{high:.{digits}g}" if low == -high else plain(f"{low:.{digits}g} to {high:.{digits}g}")


def plain(text: str) -> str:
    """A formatted number with a real minus."""
    return text.replace("-", MINUS)


def fraction(value: float | None) -> str:
    """An mAP or an agreement, ``0.3810``."""
    return NOTHING if value is None else f"{value:.4f}"


def megabytes(size_bytes: int) -> str:
    """``12.26``."""
    return f"{size_bytes / 1e6:,.2f}"


def share(value: float) -> str:
    """A fraction in percent with two significant digits, ``0.013 %``."""
    if 0 < value < 1e-5:
        return "less than 0.001 %"
    return f"{100 * value:.2g} %" if value < 0.1 else f"{100 * value:.0f} %"


def decibels(value: float | None) -> str:
    """An SQNR without its unit; None says that no value differs."""
    return "exact" if value is None else plain(f"{value:.1f}")


def thousands(value: int) -> str:
    """``1,155``."""
    return f"{value:,}"


def seconds(value: float | None) -> str:
    """``63 s`` or ``6 min 53 s``."""
    if value is None:
        return NOTHING
    if value < 100:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes:,} min {rest} s"


def target_name(target: str) -> str:
    """As its makers write it."""
    return _TARGETS.get(target, target)


def coordinate(value: float) -> str:
    """For SVG, which knows no exponents that large."""
    return f"{min(max(value, -1e6), 1e6):.1f}"
