"""Figures as short texts: three significant digits, and half of an interval's width after ±."""

from __future__ import annotations

from compress.report.columns import BASELINE, Row, number, text_of

MISSING = "-"


def accuracy(row: Row) -> str:
    """Return the accuracy in percent, or why it must not be taken for one."""
    if (status := text_of(row, "status")) in ("failed", "unverified"):
        return status
    value = number(row, "accuracy")
    if value is None:
        return MISSING
    half = _half(row, "accuracy")
    return f"{100 * value:.2f}" if half is None else f"{100 * value:.2f} ±{_points(100 * half)}"


def delta(row: Row) -> str:
    """Return the difference to the baseline in points, with its sign."""
    value = number(row, "accuracy_delta")
    if value is None or row.get("chain") == BASELINE:
        return MISSING
    text = f"{100 * value:+.2f}"
    return "0.00" if float(text) == 0 else text


def speedup(row: Row) -> str:
    """Return how many times faster than the baseline."""
    value = number(row, "cpu_speedup")
    if value is None:
        return MISSING
    half = _half(row, "cpu_speedup")
    text = _large(value) or f"{value:.{_decimals(value)}f}"
    if half is None:
        return text
    rounded = _large(half) or f"{half:.{min(_decimals(value), _decimals(half))}f}"
    if half > 0 and float(rounded) == 0:  # ±.00 would claim certainty
        rounded = f"{half:.1g}"
    return f"{text} ±{rounded.removeprefix('0') if '.' in rounded else rounded}"


def count(value: float | None) -> str:
    """Return a count with its unit prefix, such as 76.7k or 11.2M."""
    if value is None:
        return MISSING
    rounded = float(f"{value:.3g}")
    if rounded < 1000:
        return f"{rounded:.0f}"
    for scale, suffix in ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")):
        if rounded < 1000 * scale:
            return f"{rounded / scale:#.3g}".rstrip(".") + suffix
    return f"{value:.0e}"


def plain(value: float | None) -> str:
    """Return a positive figure with three significant digits, or all those before the point."""
    if value is None:
        return MISSING
    if 0 < value < 1e-3:
        return f"{value:.1e}"
    return _large(value) or (f"{value:.0f}" if value >= 100 else f"{value:#.3g}")


def kilobytes(row: Row) -> str:
    """Return the size of the ONNX file in thousands of bytes."""
    size = number(row, "onnx_bytes")
    return plain(None if size is None else size / 1000)


def _half(row: Row, key: str) -> float | None:
    low, high = number(row, f"{key}_low"), number(row, f"{key}_high")
    return None if low is None or high is None else (high - low) / 2


def _points(half: float) -> str:
    if half >= 9.95:
        return f"{half:.0f}"
    if 0 < half < 1e-3:  # no real interval is that narrow; its digits must not widen the table
        return "<.001"
    return f"{half:.1f}" if half >= 0.05 or half == 0 else f"{half:.1g}"


def _decimals(value: float) -> int:
    return 2 if value < 9.995 else 1 if value < 99.95 else 0


def _large(value: float) -> str:
    return f"{value:.1e}" if value >= 1e6 else ""
