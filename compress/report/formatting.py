"""Figures as short texts: three significant digits, an uncertainty after ±, a verdict's sign."""

from __future__ import annotations

from compress import amounts
from compress.report.columns import BASELINE, Row, number, text_of

MISSING = "-"
SIGNS = {
    "better": "▲",
    "faster": "▲",
    "worse": "▼",
    "slower": "▼",
    "indistinguishable": "≈",
    "mixed": "?",
}
UNTRUSTED = "!"
NOISY = "~"
NOISE = 0.2  # of the median: how far half of the calls may lie apart before a cell says so


def accuracy(row: Row) -> str:
    """Return the accuracy in percent, or why it must not be taken for one.

    Over several seeds it is the mean, with the standard deviation after ±.
    """
    if (status := text_of(row, "status")) in ("failed", "unverified"):
        return status
    value = number(row, "accuracy")
    if value is None:
        return MISSING
    deviation = number(row, "accuracy_sd")
    return f"{100 * value:.2f}" + ("" if deviation is None else f" {_within(100 * deviation, 2)}")


def delta(row: Row) -> str:
    """Return the difference to the baseline in points, with its sign, margin and verdict."""
    value = number(row, "accuracy_delta")
    if value is None or row.get("chain") == BASELINE:
        return MISSING
    decimals = 2 if abs(100 * value) < 9.995 else 1
    half = _half(row, "accuracy_delta")
    margin = "" if half is None else " " + _within(100 * half, decimals)
    return _signed(100 * value, decimals) + margin + sign(row, "accuracy")


def speedup(row: Row, setting: str, trusted: bool = True) -> str:
    """Return how many times faster than the baseline, with its margin and verdict."""
    value = number(row, f"{setting}_speedup")
    if value is None:
        return MISSING
    text, decimals = _ratio(value), _decimals(value)
    half = _half(row, f"{setting}_speedup")
    if half is not None and value < 9999.5:
        text += f" {_within(half, decimals)}"
    return text + sign(row, setting, trusted)


def sign(row: Row, question: str, trusted: bool = True) -> str:
    """Return a blank and the sign of a verdict, such as that of `cpu_verdict`; '' if there is none.

    Of a latency that is not to be trusted only `faster` and `slower` count: these lie beyond
    what the control doubts.
    """
    if row.get("chain") == BASELINE:
        return ""
    verdict = text_of(row, f"{question}_verdict")
    if not trusted and verdict not in ("faster", "slower"):
        return f" {UNTRUSTED}"
    mark = SIGNS.get(verdict)
    return f" {mark}" if mark else ""


def share_interval(row: Row) -> str:
    """Return the 95 % interval of the accuracy, in percent."""
    low, high = number(row, "accuracy_low"), number(row, "accuracy_high")
    if low is None or high is None or text_of(row, "status") in ("failed", "unverified"):
        return MISSING
    return f"[{100 * low:.2f}, {100 * high:.2f}]"


def difference(row: Row, question: str) -> str:
    """Return a difference in points with its 95 % interval and verdict.

    `question` is `accuracy` (over the baseline) or `control` (over the row's control).
    """
    value = number(row, f"{question}_delta")
    if value is None or row.get("chain") == BASELINE:
        return MISSING
    low, high = number(row, f"{question}_delta_low"), number(row, f"{question}_delta_high")
    text = _signed(100 * value, 2)
    if low is not None and high is not None:
        text += f" [{_signed(100 * low, 2)}, {_signed(100 * high, 2)}]"
    return text + sign(row, question)


def ratio(row: Row, setting: str, trusted: bool = True) -> str:
    """Return a speed-up with its 95 % interval and verdict."""
    value = number(row, f"{setting}_speedup")
    if value is None:
        return MISSING
    low, high = number(row, f"{setting}_speedup_low"), number(row, f"{setting}_speedup_high")
    text = _ratio(value)
    if low is not None and high is not None:
        text += f" [{_ratio(low)}, {_ratio(high)}]"
    return text + sign(row, setting, trusted)


def milliseconds(row: Row, setting: str) -> str:
    """Return the median and the 90th percentile of a call, marked where the calls are noisy."""
    p50, p90 = number(row, f"{setting}_ms_p50"), number(row, f"{setting}_ms_p90")
    if p50 is None:
        return MISSING
    text = plain(p50) + ("" if p90 is None else f" / {plain(p90)}")
    spread = number(row, f"{setting}_ms_iqr")
    return f"{text} {NOISY}" if spread is not None and spread > NOISE * p50 else text


def percent(row: Row, key: str, decimals: int = 2) -> str:
    """Return a fraction in percent."""
    value = number(row, key)
    return MISSING if value is None else f"{100 * value:.{decimals}f}"


def p_value(value: float | None) -> str:
    """Return a p-value with two significant digits."""
    if value is None:
        return MISSING
    if value < 1e-3:
        return f"{max(value, 1e-99):.0e}"
    return "1" if value >= 0.995 else f"{value:.2g}".removeprefix("0")


def pair(row: Row, first: str, second: str) -> str:
    """Return two counts as `first/second`."""
    values = number(row, first), number(row, second)
    return MISSING if values == (None, None) else "/".join(_whole(value) for value in values)


def count(value: float | None) -> str:
    """Return a count with its unit prefix, such as 76.7k or 11.2M."""
    return MISSING if value is None else amounts.count(value)


def plain(value: float | None) -> str:
    """Return a positive figure with three significant digits, or all those before the point.

    Below a thousandth one digit is enough.
    """
    if value is None:
        return MISSING
    return amounts.decimal(value, 1 if 0 < value < 1e-3 else 3, zeros=True)


def brief(value: float | None) -> str:
    """Return `plain`'s text, with two significant digits below a tenth."""
    if value is None or not 1e-3 <= value < 0.0995:
        return plain(value)
    return amounts.decimal(value, 2, zeros=True)


def figure(value: float | None) -> str:
    """Return any figure, of either sign, with four significant digits."""
    return MISSING if value is None else amounts.decimal(value, 4)


def size(row: Row, key: str, unit: float) -> str:
    """Return a number of bytes in a unit of so many bytes."""
    value = number(row, key)
    return plain(None if value is None else value / unit)


def _half(row: Row, key: str) -> float | None:
    low, high = number(row, f"{key}_low"), number(row, f"{key}_high")
    return None if low is None or high is None else (high - low) / 2


def _within(half: float, decimals: int) -> str:
    """Return ± and an uncertainty in the digits of its figure; it is never rounded to nothing."""
    if half <= 0:
        return "±0"
    if half >= 999.5:
        return "±>999"
    decimals = min(decimals, _decimals(10 * half))
    return "±" + f"{max(half, 10.0**-decimals):.{decimals}f}".removeprefix("0")


def _signed(points: float, decimals: int) -> str:
    text = f"{points:+.{decimals}f}"
    return text.removeprefix(text[0]) if float(text) == 0 else text


def _ratio(value: float) -> str:
    if value >= 9999.5:
        return amounts.decimal(value)
    return f"{value:.{_decimals(value)}f}"


def _decimals(value: float) -> int:
    return 2 if value < 9.995 else 1 if value < 99.95 else 0


def _whole(value: float | None) -> str:
    if value is None or value >= 1e5:
        return count(value)
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"
