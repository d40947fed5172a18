"""Placing short labels beside points so that nothing lies upon anything."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from matplotlib.transforms import Bbox

Pair = tuple[float, float]


def place_labels(
    points: Sequence[Pair],
    sizes: Sequence[Pair],
    bounds: Bbox,
    radius: float,
    lines: Sequence[Bbox] = (),
) -> list[Pair]:
    """Return the centre of each label (all in pixels).

    `sizes` are the labels' (width, height), `radius` the markers'. A label prefers the place
    to the right and a little up. It avoids leaving `bounds` and lying upon markers or other
    labels, and where it can the `lines` (error bars, as thin boxes) too.
    """
    taken = [Bbox([point, point]).padded(radius) for point in points]
    centres = []
    for point, size in zip(points, sizes, strict=True):
        best, best_box, least = point, taken[0], math.inf
        for order, (x, y) in enumerate(_candidates(point, size, radius)):
            box = Bbox.from_bounds(x - size[0] / 2, y - size[1] / 2, *size)
            cost = order + 1000 * box.count_overlaps(taken) + 12 * box.count_overlaps(lines)
            cost += 5000 * (not bounds.contains(*box.min) or not bounds.contains(*box.max))
            if cost < least:
                best, best_box, least = (x, y), box, cost
        centres.append(best)
        taken.append(best_box)
    return centres


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
