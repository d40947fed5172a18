"""Figures as short texts: three significant digits, an uncertainty after ±, a verdict's sign."""

from __future__ import annotations

import math
from collections.abc import Callable

from compress.results.columns import Column
from compress.results.record import BASELINE
from compress.results.table import Row, is_sound, number, text_of
from compress.results.timed import Timed
from compress.stats.spread import is_noisy
from compress.system import amounts

MISSING = "-"
SIGNS = {
    "better": "▲",
    "faster": "▲",
    "equivalent": "=",
    "worse": "▼",
    "slower": "▼",
    "not shown": "≈",
    "indistinguishable": "≈",
    "mixed": "?",
}
LONG = 1e8
"""From here on a figure would leave its table no room for chains."""
WIDE = 0.2
"""Where half of a speed-up's interval is a larger share of it, the interval itself is shown.

It is one of the logarithm, from v / f to v · f. Up to here the ends that ± suggests lie within 2 %
of v beside the real ones; a half as large as v would suggest a speed-up of zero.
"""
UNTRUSTED = "!"
NOISY = "~"


def accuracy(row: Row) -> str:
    """Return the accuracy in percent, or why it must not be taken for one.

    Over several seeds it is the mean, with the standard deviation after ±.
    """
    if not is_sound(row):
        return text_of(row, "status")
    value = number(row, "accuracy")
    if value is None:
        return MISSING
    deviation = number(row, "accuracy_sd")
    return f"{100 * value:.2f}" + ("" if deviation is None else _within(100 * deviation, 2))


def share_interval(row: Row) -> str:
    """Return the 95 % interval of the accuracy, in percent."""
    return (_interval(row, "accuracy", percent).strip() if is_sound(row) else "") or MISSING


def delta(row: Row) -> str:
    """Return the difference to the baseline in points, with its sign, margin and verdict."""
    value = number(row, "accuracy_delta")
    if value is None or row.get("chain") == BASELINE or not is_sound(row):
        return MISSING
    decimals = 2 if abs(100 * value) < 9.995 else 1
    margin = _margin(row, "accuracy_delta", decimals, 100)
    return _points(value, decimals) + margin + sign(row, "accuracy_verdict")


def difference(row: Row, question: str) -> str:
    """Return a difference in points with its 95 % interval and verdict.

    `question` is `accuracy` (over the baseline) or `control` (over the row's control).
    """
    value = number(row, key := f"{question}_delta")
    if value is None or row.get("chain") == BASELINE:
        return MISSING
    return _points(value) + _interval(row, key, _points) + sign(row, f"{question}_verdict")


def speedup(row: Row, timed: Timed, narrow: bool = False) -> str:
    """Return how many times faster than the baseline, with its margin and verdict.

    Where that is wide it is the interval, such as `3.23 (1.2 to 8.7)`; nothing if `narrow`.
    """
    value = number(row, key := timed.names["speedup"])
    if value is None:
        return MISSING
    low, high = number(row, f"{key}_low"), number(row, f"{key}_high")
    if low is None or high is None or value >= 9999.5:
        margin = ""
    elif (high - low) / 2 <= WIDE * value:
        margin = _within((high - low) / 2, _decimals(value))
    else:
        margin = "" if narrow else f" ({_rough(low)} to {_rough(high)})"
    return _ratio(value) + margin + _timed_sign(row, timed)


def ratio(row: Row, timed: Timed) -> str:
    """Return a speed-up with its 95 % interval and verdict."""
    value = number(row, key := timed.names["speedup"])
    if value is None:
        return MISSING
    return _ratio(value) + _interval(row, key, _ratio) + _timed_sign(row, timed)


def sign(row: Row, verdict: str, trusted: bool = True) -> str:
    """Return a blank and the sign of a verdict, such as `cpu_verdict`; '' if there is none.

    Of a latency that is not to be trusted only `faster` and `slower` count: these lie beyond
    what the control doubts.
    """
    if row.get("chain") == BASELINE:
        return ""
    value = text_of(row, verdict)
    if not trusted and value not in ("faster", "slower"):
        return f" {UNTRUSTED}"
    mark = SIGNS.get(value)
    return f" {mark}" if mark else ""


def milliseconds(row: Row, timed: Timed) -> str:
    """Return the median and the 90th percentile of a call, marked where the calls are noisy."""
    p50, p90, spread = (number(row, timed.names[key]) for key in ("ms_p50", "ms_p90", "ms_iqr"))
    if p50 is None:
        return MISSING
    text = plain(p50) + ("" if p90 is None else f" / {plain(p90)}")
    return f"{text} {NOISY}" if is_noisy(p50, spread) else text


def p_value(value: float) -> str:
    """Return a p-value with two significant digits."""
    if value < 1e-3:
        return f"{max(value, 1e-99):.0e}"
    return "1" if value >= 0.995 else f"{value:.2g}".removeprefix("0")


def plain(value: float) -> str:
    """Return a positive figure with three significant digits, or all those before the point.

    Below a thousandth one digit is enough; from `LONG` on a prefix stands for the digits.
    """
    if LONG <= value < math.inf:
        return amounts.count(value)
    return amounts.decimal(value, 1 if 0 < value < 1e-3 else 3, zeros=True)


def brief(value: float) -> str:
    """Return `plain`'s text, with two significant digits below a tenth."""
    return amounts.decimal(value, 2, zeros=True) if 1e-3 <= value < 0.0995 else plain(value)


def percent(value: float) -> str:
    """Return a fraction in percent."""
    return f"{100 * value:.2f}"


def whole(value: float) -> str:
    """Return a count of items or nodes, which is a mean over seeds where it has a fraction."""
    if value >= 1e5:
        return amounts.count(value)
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"


def size_in(value: float, unit: float) -> str:
    """Return bytes in a column's unit; with a unit of their own where that has too many digits."""
    if value == 0 or 1e-3 <= value / unit < LONG:
        return plain(value / unit)
    return amounts.size(value)


FORMATS: dict[str, Callable[[float], str]] = {
    "%": percent,
    "whole %": lambda value: f"{100 * value:.0f}",
    "count": amounts.count,
    "kB": lambda value: size_in(value, 1e3),
    "MB": lambda value: size_in(value, 1e6),
    "figure": lambda value: amounts.decimal(value, 4),
    "pair": whole,
}
"""What `shown` in the table of columns may say: how a figure is written."""


def show(row: Row, key: str, write: Callable[[float], str]) -> str:
    """Return a figure of the row as `write` shows it, a dash where it was not measured."""
    value = number(row, key)
    return MISSING if value is None else write(value)


def cell(row: Row, column: Column) -> str:
    """Return a column's figure as a table shows it, two counts as `first/second`."""
    names = [column.name, column.beside] if column.beside else [column.name]
    figures = [show(row, name, FORMATS[column.shown]) for name in names]
    return MISSING if set(figures) == {MISSING} else "/".join(figures)


def _timed_sign(row: Row, timed: Timed) -> str:
    return sign(row, timed.names.get("verdict", ""), timed.trusted)


def _interval(row: Row, key: str, write: Callable[[float], str]) -> str:
    """Return a blank and the 95 % interval of a figure; '' if it has none."""
    low, high = number(row, f"{key}_low"), number(row, f"{key}_high")
    return "" if low is None or high is None else f" [{write(low)}, {write(high)}]"


def _margin(row: Row, key: str, decimals: int, scale: float = 1.0) -> str:
    """Return a blank, ± and half of the 95 % interval of a figure; '' if it has none."""
    low, high = number(row, f"{key}_low"), number(row, f"{key}_high")
    return "" if low is None or high is None else _within(scale * ((high - low) / 2), decimals)


def _within(half: float, decimals: int) -> str:
    """Return ± and an uncertainty in the digits of its figure; it is never rounded to nothing."""
    if half <= 0:
        return " ±0"
    if half >= 999.5:
        return " ±>999"
    decimals = min(decimals, _decimals(10 * half))
    return " ±" + f"{max(half, 10.0**-decimals):.{decimals}f}".removeprefix("0")


def _points(value: float, decimals: int = 2) -> str:
    text = f"{100 * value:+.{decimals}f}"
    return text.removeprefix(text[0]) if float(text) == 0 else text


def _ratio(value: float) -> str:
    if value >= 9999.5:
        return plain(value)
    return f"{value:.{_decimals(value)}f}"


def _rough(value: float) -> str:
    """Return an end of a wide interval with two significant digits, of large ones all."""
    if value >= 9999.5:
        return ">9999"
    decimals = 3 if value < 0.0995 else 2 if value < 0.995 else 1 if value < 9.95 else 0
    return f"{value:.{decimals}f}"


def _decimals(value: float) -> int:
    return 2 if value < 9.995 else 1 if value < 99.95 else 0
