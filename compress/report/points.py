"""The rows of a comparison as points: accuracy against latency, and against size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compress.report.columns import BASELINE, CONTROL, Row, number, text_of
from compress.report.words import main_setting


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

    The speed-up was timed in pairs, so its interval says more than a latency's own: the bar
    spans the baseline's latency (of the same seed) divided by that interval.
    """
    setting = main_setting(rows)
    key = f"{setting}_ms_p50"
    baseline = {r.get("seed"): number(r, key) for r in rows if text_of(r, "chain") == BASELINE}
    points = []
    for row in rows:
        if (x := number(row, key)) is None:
            continue
        base = baseline.get(row.get("seed"))
        ends = (number(row, f"{setting}_speedup_{end}") for end in ("low", "high"))
        points += _point(row, labels, x, [base / end for end in ends if end and base])
    return points


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
