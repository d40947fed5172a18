"""The rows of a comparison as points: accuracy against latency, and against size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compress.report.styles import look_name, precision
from compress.report.words import About, timed_words
from compress.results.table import Row, is_sound, number, text_of
from compress.results.timed import main_timed


@dataclass(frozen=True)
class Point:
    """A row in one panel: x in the panel's unit, accuracies in percent."""

    label: str
    chain: str
    x: float
    y: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    look: str = "other"
    """A key of `compress.report.styles.LOOKS`."""
    precision: str = "float32"


def latency_points(rows: Sequence[Row], labels: Mapping[str, str], about: About) -> list[Point]:
    """Return the points of accuracy against latency, in ms.

    The speed-up was timed in pairs, so its interval says more than a latency's own: the bar is
    that interval relative to the speed-up, on the row's latency. (The baseline's latency would
    not do for it: a speed-up may refer to another optimization level, or another seed.)
    """
    names = main_timed(about).names
    points = []
    for row in rows:
        if (x := number(row, names["ms_p50"])) is None:
            continue
        speedup = number(row, names["speedup"])
        ends = (number(row, names[f"speedup_{end}"]) for end in ("low", "high"))
        points += _point(row, labels, x, [x * speedup / end for end in ends if end and speedup])
    return points


def latency_axis(about: About) -> str:
    """Return what the axis of `latency_points` shows."""
    timed = main_timed(about)
    doubt = "" if timed.trusted else " (not to be trusted)"
    return f"CPU latency, ms ({timed_words(timed, about)}){doubt}"


def size_points(rows: Sequence[Row], labels: Mapping[str, str]) -> list[Point]:
    """Return the points of accuracy against the size of the ONNX file, in kB."""
    sizes = ((row, number(row, "onnx_bytes")) for row in rows)
    return [p for row, size in sizes if size is not None for p in _point(row, labels, size / 1e3)]


def is_drawn(row: Row) -> bool:
    """Return whether a row has an accuracy that may be taken for one."""
    return is_sound(row) and number(row, "accuracy") is not None


def _point(
    row: Row, labels: Mapping[str, str], x: float, ends: Sequence[float] = ()
) -> list[Point]:
    y = number(row, "accuracy")
    if y is None or x <= 0 or not is_drawn(row):
        return []
    low, high = number(row, "accuracy_low"), number(row, "accuracy_high")
    chain = text_of(row, "chain")
    return [
        Point(
            labels[chain],
            chain,
            x,
            100 * y,
            *(min([x, *ends]), max([x, *ends])),
            *(
                100 * (y if low is None else min(y, low)),
                100 * (y if high is None else max(y, high)),
            ),
            look=look_name(row),
            precision=precision(row),
        )
    ]
