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
NEAR = 10.0  # points: up to here no difference is a collapse
SQUEEZED = 10.0  # times the length that the others need: more would leave them too little
SMALLEST = 1e-9  # points: what reaches less far has no length to draw


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


class Axis(NamedTuple):
    """The ends of an axis of points; beyond ± `linear` it is logarithmic (0: nowhere)."""

    low: float
    high: float
    linear: float

    @property
    def ticks(self) -> list[float]:
        """What is written at an axis that is partly logarithmic."""
        sizes = [self.linear / 2, *(step for step in STEPS if step >= self.linear)]
        ticks = [0.0, *sizes, *(-size for size in sizes)]
        return sorted(tick for tick in ticks if self.low <= tick <= self.high)


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


def delta_axis(intervals: Sequence[Interval]) -> Axis:
    """Return an axis of points that holds every interval.

    A few collapsed rows, or the intervals of two or three seeds, would squeeze the others. So
    where they reach much farther than `near`, the axis is linear up to there alone. That is the
    nearest of 2, 5, 10, ... points that holds all values within 10, and five sixths of the
    differences to the baseline (all but one, where there are fewer than six).
    """
    sizes = sorted(abs(one.value) for one in intervals if one.series == 0) or [0.0]
    shown = max(1, len(sizes) - max(1, len(sizes) // 6))
    inside = [abs(one.value) for one in intervals if abs(one.value) <= NEAR]
    needed = max([sizes[shown - 1], *inside])
    near = next((step for step in STEPS if step >= needed), STEPS[-1])
    low = min([0.0, *(one.low for one in intervals)])
    high = max([0.0, *(one.high for one in intervals)])
    if high - low < SMALLEST:
        low = -near
    if max(-low, high) <= SQUEEZED * near:
        room = 0.06 * (high - low)
        return Axis(low - room, high + room, 0.0)
    left, right = (end * 1.2 if end > near else end + 0.1 * near for end in (-low, high))
    return Axis(-left, right, near)


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
