"""The rows of a comparison as points: accuracy against latency, and against size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compress.report.columns import CONTROL, Row, number, text_of
from compress.report.words import About, is_trusted, main_setting, setting_words


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
    control: bool = False


def latency_points(rows: Sequence[Row], labels: Mapping[str, str]) -> list[Point]:
    """Return the points of accuracy against latency, in ms.

    The speed-up was timed in pairs, so its interval says more than a latency's own: the bar is
    that interval relative to the speed-up, on the row's latency. (The baseline's latency would
    not do for it: a speed-up may refer to another optimization level, or another seed.)
    """
    setting = main_setting(rows)
    points = []
    for row in rows:
        if (x := number(row, f"{setting}_ms_p50")) is None:
            continue
        speedup = number(row, f"{setting}_speedup")
        ends = (number(row, f"{setting}_speedup_{end}") for end in ("low", "high"))
        points += _point(row, labels, x, [x * speedup / end for end in ends if end and speedup])
    return points


def latency_axis(rows: Sequence[Row], about: About) -> str:
    """Return what the axis of `latency_points` shows."""
    setting = main_setting(rows)
    doubt = "" if is_trusted(setting, about) else " (not to be trusted)"
    return f"CPU latency, ms ({setting_words(setting, about)}){doubt}"


def size_points(rows: Sequence[Row], labels: Mapping[str, str]) -> list[Point]:
    """Return the points of accuracy against the size of the ONNX file, in kB."""
    sizes = ((row, number(row, "onnx_bytes")) for row in rows)
    return [p for row, size in sizes if size is not None for p in _point(row, labels, size / 1e3)]


def is_drawn(row: Row) -> bool:
    """Return whether a row has an accuracy that may be taken for one."""
    sound = text_of(row, "status") not in ("failed", "unverified")
    return sound and number(row, "accuracy") is not None


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
            control=text_of(row, "role") == CONTROL,
        )
    ]
