"""Placing short labels beside points so that nothing lies upon anything."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

Box = tuple[float, float, float, float]  # left, bottom, right, top


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    bounds: Box,
    radius: float,
    lines: Sequence[Box] = (),
) -> list[tuple[float, float]]:
    """Return the centre of each label (all in pixels).

    `sizes` are the labels' (width, height), `radius` the markers'. A label prefers the place
    to the right and a little up. It avoids leaving `bounds` and lying upon markers or other
    labels, and where it can the `lines` (error bars, as thin boxes) too.
    """
    markers = [(x - radius, y - radius, x + radius, y + radius) for x, y in points]
    placed: list[Box] = []
    centres = []
    for point, size in zip(points, sizes, strict=True):
        best, least = point, math.inf
        for order, centre in enumerate(_candidates(point, size, radius)):
            box = _around(centre, size)
            cost = order + 1000 * sum(_overlap(box, other) > 0 for other in [*markers, *placed])
            cost += 12 * sum(_overlap(box, line) > 0 for line in lines)
            cost += 5000 * (_overlap(box, bounds) < 0.999 * size[0] * size[1])
            if cost < least:
                best, least = centre, cost
        centres.append(best)
        placed.append(_around(best, size))
    return centres


def _candidates(
    point: tuple[float, float], size: tuple[float, float], radius: float
) -> Iterator[tuple[float, float]]:
    (x, y), (w, h) = point, size
    for ring in range(8):
        beside, above = radius + 2 + w / 2 + ring * 8, radius + 1 + h / 2 + ring * 8
        for rise in (0.6, -0.6, 0.0, 1.2, -1.2):  # a little off the middle: beside the bars
            yield x + beside, y + rise * (h + ring * 8)
            yield x - beside, y + rise * (h + ring * 8)
        for side in (0.0, 0.6, -0.6):
            yield x + side * w, y + above
            yield x + side * w, y - above


def _around(centre: tuple[float, float], size: tuple[float, float]) -> Box:
    (x, y), (w, h) = centre, size
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def _overlap(a: Box, b: Box) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, w) * max(0.0, h)
