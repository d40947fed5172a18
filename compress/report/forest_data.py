"""The rows of a comparison as marks of a forest plot: a ratio or difference with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from compress.report.pareto_data import is_drawn
from compress.report.words import About, timed_words
from compress.results.record import BASELINE
from compress.results.table import Row, number, text_of
from compress.results.timed import Known, of_files

# Okabe and Ito's colours, told apart by the colour-blind; the markers differ too.
LOOKS = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "p"),
)
CLAIMS = ("better", "equivalent", "worse", "faster", "slower")
STEPS = (2.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # points
NEAR = 10.0  # points: what lies within is always on the axis


@dataclass(frozen=True)
class Mark:
    """A figure with its 95 % interval (its own value where there is none), and the lane it is in.

    `claimed` says that there is a verdict other than that no difference is shown.
    """

    lane: int
    value: float
    low: float
    high: float
    claimed: bool


@dataclass(frozen=True)
class Lane:
    """What the marks of a lane have in common; `margin` (a fraction) is what a verdict must exceed.

    `trusted` says that the timing may be trusted, `names` are the columns of its figures.
    """

    words: str
    colour: str
    marker: str
    margin: float = 0.0
    trusted: bool = True
    names: Mapping[str, str] = field(default_factory=dict)


DELTA_LANES = (
    Lane("over the baseline", "#000000", "o"),
    Lane("over its control of equal cost", "#CC79A7", "D"),
)


def speed_lanes(rows: Sequence[Row], about: About) -> list[Lane]:
    """Return the latency settings in which a speed-up has an interval."""
    found = [
        timed
        for timed in of_files(about)
        if any(number(row, timed.names["speedup_high"]) is not None for row in rows)
    ]
    return [
        Lane(
            timed_words(timed, about) + ("" if timed.trusted else " (not trusted)"),
            *LOOKS[i % len(LOOKS)],
            _bar(timed.known),
            timed.trusted,
            timed.names,
        )
        for i, timed in enumerate(found)
    ]


def speed_marks(row: Row, lanes: Sequence[Lane]) -> list[Mark]:
    """Return the row's speed-ups, as ratios."""
    return [
        mark
        for number, lane in enumerate(lanes)
        if (mark := _mark(row, number, lane.names["speedup"], lane.names["verdict"]))
        and mark.low > 0
    ]


def delta_marks(row: Row) -> list[Mark]:
    """Return the row's differences in accuracy, in points: over the baseline, over its control."""
    if not is_drawn(row):
        return []
    found = (
        _mark(row, lane, f"{question}_delta", f"{question}_verdict", 100.0)
        for lane, question in enumerate(("accuracy", "control"))
    )
    return [mark for mark in found if mark]


def forest_rows(rows: Sequence[Row], lanes: Sequence[Lane]) -> list[Row]:
    """Return the rows that have a mark, without the baseline; none if no mark has an interval."""
    drawn = {
        number: [*speed_marks(row, lanes), *delta_marks(row)]
        for number, row in enumerate(rows)
        if text_of(row, "chain") != BASELINE
    }
    if not any(mark.low < mark.high for marks in drawn.values() for mark in marks):
        return []
    return [rows[number] for number, marks in drawn.items() if marks]


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


def reading(rows: Sequence[Row], lanes: Sequence[Lane], several: bool) -> str:
    """Return how the marks of the rows are to be read; `several` seeds are behind each."""
    said = ["Means over the seeds."] if several else []
    said.append("Bars: 95 % intervals.")
    verdicts = ["accuracy_verdict", *(lane.names["verdict"] for lane in lanes)]
    if any(text_of(row, verdict) for row in rows for verdict in verdicts):
        doubt = "" if all(lane.trusted for lane in lanes) else ", or timing not to be trusted"
        said.append(f"Filled markers: a verdict; hollow ones: no difference shown{doubt}.")
    else:
        said.append("These results have no verdicts.")
    if any(lane.margin for lane in lanes):
        said.append("Grey: what a verdict must exceed by the A/A control.")
    return " ".join(said)


def _bar(known: Known) -> float:
    """Return what a verdict of a setting must exceed, a fraction (0 if that is not known)."""
    return float(known.get("bar") or known.get("margin") or 0.0)


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
