"""The rows of a forest plot: every row's ratios and differences, each with its interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from compress.report.chains import Look
from compress.report.pareto_data import is_drawn
from compress.report.timing_words import About, timed_words
from compress.results.record import BASELINE
from compress.results.table import Row, number, text_of
from compress.results.timed import Timed, of_files

# Okabe and Ito's colours, told apart by the colour-blind; the markers differ too.
LOOKS = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "p"),
)
DELTA_LOOKS = (
    Look("#000000", "o", "over the baseline"),
    Look("#CC79A7", "D", "over its control of equal cost"),
)
CLAIMS = ("better", "equivalent", "worse", "faster", "slower")
STEPS = (2.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # points
NEAR = 10.0  # points: what lies within is always on the axis


class Interval(NamedTuple):
    """A figure with its 95 % interval (its own value where there is none).

    `series` is the number of its series; `claimed` says that there is a verdict other than
    inconclusive.
    """

    series: int
    value: float
    low: float
    high: float
    claimed: bool


class Series(NamedTuple):
    """A latency setting, and how its speed-ups are drawn."""

    look: Look
    timed: Timed

    @property
    def margin(self) -> float:
        """What a verdict must exceed, a fraction (0 if that is not known)."""
        known = self.timed.known
        return float(known.get("bar") or known.get("margin") or 0.0)


class ForestRow(NamedTuple):
    """A row with its speed-ups and its differences in accuracy."""

    row: Row
    speeds: list[Interval]
    deltas: list[Interval]


def speed_series(rows: Sequence[Row], about: About) -> list[Series]:
    """Return the latency settings in which a speed-up has an interval."""
    series: list[Series] = []
    for timed in of_files(about):
        if any(number(row, timed.names["speedup_high"]) is not None for row in rows):
            words = timed_words(timed, about) + ("" if timed.trusted else " (not trusted)")
            series.append(Series(Look(*LOOKS[len(series) % len(LOOKS)], words), timed))
    return series


def speed_intervals(row: Row, series: Iterable[Series]) -> list[Interval]:
    """Return the row's speed-ups, as ratios."""
    names = [one.timed.names for one in series]
    intervals = (_interval(row, i, n["speedup"], n["verdict"]) for i, n in enumerate(names))
    return [interval for interval in intervals if interval and interval.low > 0]


def delta_intervals(row: Row) -> list[Interval]:
    """Return the row's differences in accuracy, in points: over the baseline, over its control."""
    if not is_drawn(row):
        return []
    intervals = (
        _interval(row, number, f"{question}_delta", f"{question}_verdict", 100.0)
        for number, question in enumerate(("accuracy", "control"))
    )
    return [interval for interval in intervals if interval]


def forest_rows(rows: Iterable[Row], series: Sequence[Series]) -> list[ForestRow]:
    """Return the rows with figures, without the baseline; none if no figure has an interval."""
    drawn = [
        ForestRow(row, speed_intervals(row, series), delta_intervals(row))
        for row in rows
        if text_of(row, "chain") != BASELINE
    ]
    figures = [interval for one in drawn for interval in (*one.speeds, *one.deltas)]
    if not any(interval.low < interval.high for interval in figures):
        return []
    return [one for one in drawn if one.speeds or one.deltas]


def delta_range(intervals: Sequence[Interval]) -> tuple[float, float]:
    """Return the ends of an axis of points; what lies beyond it is drawn at its edge.

    A few collapsed rows would squeeze the others: the lower end is the nearest of 2, 5, 10, ...
    points below zero that shows all values within 10 points, and five sixths of the differences
    to the baseline (all but one, where there are fewer than six).
    """
    values = sorted((one.value for one in intervals if one.series == 0), reverse=True) or [0.0]
    shown = max(1, len(values) - max(1, len(values) // 6))
    needed = min([values[shown - 1], *(one.value for one in intervals if one.value >= -NEAR)])
    low = next((-step for step in STEPS if -step <= needed), -100.0)
    inside = [one for one in intervals if one.value >= low]
    # Intervals from two or three seeds can be wider than all that is to be seen.
    left = max(min((one.low for one in inside), default=low), 1.5 * low)
    best = max((one.value for one in inside), default=0.0)
    right = max(0.0, min(max((one.high for one in inside), default=0.0), best - 1.5 * low))
    room = 0.06 * (right - left)
    return left - room, right + room


def beyond_words(interval: Interval) -> str:
    """Return what stands at the axis' edge beside a value that lies beyond it."""
    low, high = interval.low, interval.high
    ends = f" [{low:+.1f}, {high:+.1f}]" if low < high else ""
    return f"{interval.value:+.1f}{ends}"


def explanation(rows: Iterable[Row], series: Sequence[Series], several: bool) -> str:
    """Return how the picture is to be read; `several` seeds are behind each."""
    verdicts = ["accuracy_verdict", *(one.timed.names["verdict"] for one in series)]
    claims = "These results have no verdicts."
    if any(text_of(row, verdict) for row in rows for verdict in verdicts):
        trusted = all(one.timed.trusted for one in series)
        doubt = "" if trusted else ", or timing not to be trusted"
        claims = f"Filled markers: a verdict; hollow ones: inconclusive{doubt}."
    margins = any(one.margin for one in series)
    sentences = (
        "Means over the seeds." if several else "",
        "Bars: 95 % intervals.",
        claims,
        "Grey: what a verdict must exceed by the A/A control." if margins else "",
    )
    return " ".join(filter(None, sentences))


def _interval(row: Row, series: int, key: str, verdict: str, scale: float = 1.0) -> Interval | None:
    value = number(row, key)
    if value is None:
        return None
    low, high = number(row, f"{key}_low"), number(row, f"{key}_high")
    if low is None or high is None:
        low = high = value
    claimed = text_of(row, verdict) in CLAIMS
    ends = (scale * min(low, value), scale * max(high, value))
    return Interval(series, scale * value, *ends, claimed)
