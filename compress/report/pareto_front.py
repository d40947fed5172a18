"""Which points are worth having, and where an axis may be cut."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
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
