"""The rows of a comparison as points (accuracy against latency or size), and their labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compress.report.chains import look_name, precision
from compress.report.timing_words import About, timed_words
from compress.results.table import Row, is_sound, number, text_of
from compress.results.timed import main_timed

Pair = tuple[float, float]


class Point(NamedTuple):
    """A row in one panel: x in the panel's unit, accuracies in percent."""

    label: str
    chain: str
    x: float
    x_low: float
    x_high: float
    y: float
    y_low: float
    y_high: float
    look: str
    """A key of `compress.report.chains.LOOKS`."""
    precision: str


def latency_points(rows: Iterable[Row], labels: Mapping[str, str], about: About) -> list[Point]:
    """Return the points of accuracy against latency, in ms.

    The speed-up was timed in pairs, so its interval says more than a latency's own: the bar is
    that interval relative to the speed-up, on the row's latency. (The baseline's latency would
    not do for it: a speed-up may refer to another optimization level, or another seed.)
    """
    names = main_timed(about).names
    points = []
    for row in filter(is_drawn, rows):
        if (x := number(row, names["ms_p50"])) and x > 0:
            speedup = number(row, names["speedup"])
            ends = (number(row, names[f"speedup_{end}"]) for end in ("low", "high"))
            bar = [x * speedup / end for end in ends if end and speedup]
            points.append(_point(row, labels, x, bar))
    return points


def latency_axis(about: About) -> str:
    """Return what the axis of `latency_points` shows."""
    timed = main_timed(about)
    doubt = "" if timed.trusted else " (not to be trusted)"
    return f"CPU latency, ms ({timed_words(timed, about)}){doubt}"


COUNTS: Mapping[str, tuple[str, float]] = {
    "macs": ("multiply-accumulates, millions", 1e6),
    "params": ("parameters, thousands", 1e3),
}
"""Columns of counts that can be an axis, in words, with the unit."""


def size_points(rows: Iterable[Row], labels: Mapping[str, str]) -> list[Point]:
    """Return the points of accuracy against the size of the ONNX file, in kB."""
    return _plain_points(rows, labels, "onnx_bytes", 1e3)


def count_points(rows: Iterable[Row], labels: Mapping[str, str], count: str) -> list[Point]:
    """Return the points of accuracy against one of `COUNTS`."""
    return _plain_points(rows, labels, count, COUNTS[count][1])


def _plain_points(
    rows: Iterable[Row], labels: Mapping[str, str], name: str, unit: float
) -> list[Point]:
    known = ((row, number(row, name)) for row in rows if is_drawn(row))
    return [_point(row, labels, value / unit) for row, value in known if value]


def is_drawn(row: Row) -> bool:
    """Return whether a row has an accuracy that may be taken for one."""
    return is_sound(row) and number(row, "accuracy") is not None


def pareto_front(points: Sequence[Pair]) -> list[int]:
    """Return the indices of the points (cost, value) that no other point dominates, by cost.

    A point dominates another if it costs no more and is worth no less, and differs from it; so
    equal points stay together.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for i in order:
        if not front or points[i][1] > points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front


def cut_below(values: Sequence[float], gap: float = 15.0, spread: float = 3.0) -> float | None:
    """Return the value below which points would only squeeze the others, else None.

    That is where the values (in percent) leave a gap of at least `gap` points that is also
    `spread` times as wide as all that lies above it, and at least half of them lie above it.
    """
    ranked = sorted(values, reverse=True)
    for i in range(max(2, (len(ranked) + 1) // 2), len(ranked)):
        step, above = ranked[i - 1] - ranked[i], ranked[0] - ranked[i - 1]
        if step >= gap and step >= spread * above:
            return ranked[i - 1]
    return None


def place_labels(
    points: Sequence[Pair],
    sizes: Sequence[Pair],
    bounds: Sequence[float],
    radius: float,
    lines: Sequence[Sequence[float]] = (),
) -> list[Pair]:
    """Return the centre of each label, so that nothing lies upon anything (all in pixels).

    `sizes` are the labels' (width, height), `radius` the markers', boxes are (left, bottom, right,
    top). A label prefers the place to the right and a little up. It avoids leaving `bounds` and
    lying upon markers or other labels, and where it can the `lines` (error bars, as thin boxes)
    too.
    """
    low, high = np.array(bounds).reshape(2, 2)
    taken = [[x - radius, y - radius, x + radius, y + radius] for x, y in points]
    centres: list[Pair] = []
    for point, size in zip(points, sizes, strict=True):
        places = np.array([*_candidates(point, size, radius)])
        boxes = np.hstack([places - np.divide(size, 2), places + np.divide(size, 2)])
        outside = (boxes[:, :2] < low).any(1) | (boxes[:, 2:] > high).any(1)
        cost = 1000 * _overlaps(boxes, taken) + 12 * _overlaps(boxes, lines) + 5000 * outside
        best = (cost + np.arange(len(places))).argmin()
        centres.append((float(places[best][0]), float(places[best][1])))
        taken.append(boxes[best].tolist())
    return centres


def _point(row: Row, labels: Mapping[str, str], x: float, bar: Sequence[float] = ()) -> Point:
    chain, xs = text_of(row, "chain"), sorted([x, *bar])
    accuracies = (number(row, f"accuracy{end}") for end in ("", "_low", "_high"))
    y, *ends = (100 * accuracy for accuracy in accuracies if accuracy is not None)
    ys = sorted([y, *ends])
    looks = look_name(row), precision(row)
    return Point(labels[chain], chain, x, xs[0], xs[-1], y, ys[0], ys[-1], *looks)


def _candidates(point: Pair, size: Pair, radius: float) -> Iterator[Pair]:
    (x, y), (w, h) = point, size
    for ring in range(8):
        beside, above = radius + 2 + w / 2 + ring * 8, radius + 1 + h / 2 + ring * 8
        for rise in (0.6, -0.6, 0.0, 1.2, -1.2):  # a little off the middle: beside the bars
            yield x + beside, y + rise * (h + ring * 8)
            yield x - beside, y + rise * (h + ring * 8)
        for side in (0.0, 0.6, -0.6):
            yield x + side * w, y + above
            yield x + side * w, y - above


def _overlaps(boxes: NDArray[np.float64], others: Sequence[Sequence[float]]) -> NDArray[np.int64]:
    """Return upon how many of the others each box lies."""
    mine, theirs = boxes[:, None], np.array(others).reshape(-1, 4)
    meet = (mine[..., :2] < theirs[:, 2:]) & (theirs[:, :2] < mine[..., 2:])
    return meet.all(-1).sum(-1)
