"""The rows of a comparison as marks of a forest plot: a ratio or difference with its interval."""

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


class Mark(NamedTuple):
    """A figure with its 95 % interval (its own value where there is none), and the lane it is in.

    `claimed` says that there is a verdict other than that no difference is shown.
    """

    lane: int
    value: float
    low: float
    high: float
    claimed: bool


class Lane(NamedTuple):
    """A latency setting, and how its speed-ups are drawn."""

    look: Look
    timed: Timed

    @property
    def margin(self) -> float:
        """What a verdict must exceed, a fraction (0 if that is not known)."""
        known = self.timed.known
        return float(known.get("bar") or known.get("margin") or 0.0)


class Marked(NamedTuple):
    """A row with its speed-ups and its differences in accuracy."""

    row: Row
    speeds: list[Mark]
    deltas: list[Mark]


def speed_lanes(rows: Sequence[Row], about: About) -> list[Lane]:
    """Return the latency settings in which a speed-up has an interval."""
    lanes: list[Lane] = []
    for timed in of_files(about):
        if any(number(row, timed.names["speedup_high"]) is not None for row in rows):
            words = timed_words(timed, about) + ("" if timed.trusted else " (not trusted)")
            lanes.append(Lane(Look(*LOOKS[len(lanes) % len(LOOKS)], words), timed))
    return lanes


def speed_marks(row: Row, lanes: Iterable[Lane]) -> list[Mark]:
    """Return the row's speed-ups, as ratios."""
    names = [lane.timed.names for lane in lanes]
    marks = (_mark(row, i, name["speedup"], name["verdict"]) for i, name in enumerate(names))
    return [mark for mark in marks if mark and mark.low > 0]


def delta_marks(row: Row) -> list[Mark]:
    """Return the row's differences in accuracy, in points: over the baseline, over its control."""
    if not is_drawn(row):
        return []
    marks = (
        _mark(row, lane, f"{question}_delta", f"{question}_verdict", 100.0)
        for lane, question in enumerate(("accuracy", "control"))
    )
    return [mark for mark in marks if mark]


def marked_rows(rows: Iterable[Row], lanes: Sequence[Lane]) -> list[Marked]:
    """Return the rows that have a mark, without the baseline; none if no mark has an interval."""
    marked = [
        Marked(row, speed_marks(row, lanes), delta_marks(row))
        for row in rows
        if text_of(row, "chain") != BASELINE
    ]
    if not any(mark.low < mark.high for one in marked for mark in (*one.speeds, *one.deltas)):
        return []
    return [one for one in marked if one.speeds or one.deltas]


def delta_range(marks: Sequence[Mark]) -> tuple[float, float]:
    """Return the ends of an axis of points; what lies beyond it is drawn at its edge.

    A few collapsed rows would squeeze the others: the lower end is the nearest of 2, 5, 10, ...
    points below zero that shows all marks within 10 points, and five sixths of the differences
    to the baseline (all but one, where there are fewer than six).
    """
    values = sorted((mark.value for mark in marks if mark.lane == 0), reverse=True) or [0.0]
    shown = max(1, len(values) - max(1, len(values) // 6))
    needed = min([values[shown - 1], *(mark.value for mark in marks if mark.value >= -NEAR)])
    low = next((-step for step in STEPS if -step <= needed), -100.0)
    inside = [mark for mark in marks if mark.value >= low]
    # Intervals from two or three seeds can be wider than all that is to be seen.
    left = max(min((mark.low for mark in inside), default=low), 1.5 * low)
    best = max((mark.value for mark in inside), default=0.0)
    right = max(0.0, min(max((mark.high for mark in inside), default=0.0), best - 1.5 * low))
    room = 0.06 * (right - left)
    return left - room, right + room


def beyond_words(mark: Mark) -> str:
    """Return what stands at the axis' edge beside a mark that lies beyond it."""
    interval = f" [{mark.low:+.1f}, {mark.high:+.1f}]" if mark.low < mark.high else ""
    return f"{mark.value:+.1f}{interval}"


def explanation(rows: Iterable[Row], lanes: Sequence[Lane], several: bool) -> str:
    """Return how the marks of the rows are to be read; `several` seeds are behind each."""
    verdicts = ["accuracy_verdict", *(lane.timed.names["verdict"] for lane in lanes)]
    claims = "These results have no verdicts."
    if any(text_of(row, verdict) for row in rows for verdict in verdicts):
        trusted = all(lane.timed.trusted for lane in lanes)
        doubt = "" if trusted else ", or timing not to be trusted"
        claims = f"Filled markers: a verdict; hollow ones: no difference shown{doubt}."
    margins = any(lane.margin for lane in lanes)
    sentences = (
        "Means over the seeds." if several else "",
        "Bars: 95 % intervals.",
        claims,
        "Grey: what a verdict must exceed by the A/A control." if margins else "",
    )
    return " ".join(filter(None, sentences))


def _mark(row: Row, lane: int, key: str, verdict: str, scale: float = 1.0) -> Mark | None:
    value = number(row, key)
    if value is None:
        return None
    low, high = number(row, f"{key}_low"), number(row, f"{key}_high")
    if low is None or high is None:
        low = high = value
    claimed = text_of(row, verdict) in CLAIMS
    ends = (scale * min(low, value), scale * max(high, value))
    return Mark(lane, scale * value, *ends, claimed)
