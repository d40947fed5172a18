"""How many products must stay float for a loss of accuracy to keep below a bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from compress.deploy.session import predict, session
from compress.int8.lower import Draft, Lowered
from compress.tasks.base import Tensors

TRIED, FEWEST = 64, 8
"""Products of which each is tried alone, at most; and at least, if the files are large."""
WRITTEN = 4e9
"""Bytes of files that are written for that, as far as `FEWEST` allows."""
DIFFERING = 64
"""Items that they are tried on."""


@dataclass(frozen=True)
class Bounded:
    """A file, the products that stay float in it, its drop, and the drop with none of them."""

    lowered: Lowered
    floats: frozenset[str]
    drop: float
    first: float


def within(
    worst_first: Callable[[], Sequence[str]],
    lowered: Callable[[frozenset[str]], Lowered],
    drop: Callable[[Lowered], float],
    most: float,
) -> Bounded:
    """Return the file with the fewest products in float whose drop is at most `most`.

    Products go back to float in an order that is asked for if the bound does not hold at once: one,
    two, four and so on until it does, then by halves back to the fewest. If even all products in
    float do not reach the bound, the file with the least drop is kept.
    """
    tried: dict[int, Bounded] = {}
    order: list[str] = []

    def attempt(count: int) -> Bounded:
        if count not in tried:
            floats = frozenset(order[:count])
            made = lowered(floats)
            value = drop(made)
            first = tried[0].drop if 0 in tried else value
            tried[count] = Bounded(made, floats, value, first)
        return tried[count]

    if attempt(0).drop <= most:
        return attempt(0)
    order += worst_first()
    count, failed = min(1, len(order)), 0
    while attempt(count).drop > most:
        failed = count
        if count == len(order):
            return min(tried.values(), key=lambda one: (one.drop, len(one.floats)))
        count = min(2 * count, len(order))
    while count - failed > 1:
        middle = (count + failed) // 2
        if attempt(middle).drop > most:
            failed = middle
        else:
            count = middle
    return attempt(count)


def differing(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the numbers of the items whose answers, (N, classes), differ most, in order.

    Those of another class come first.
    """
    size = ((after - before) ** 2).sum(1)
    other = after.argmax(1) != before.argmax(1)
    return np.sort(np.lexsort((-size, ~other))[:DIFFERING])


def by_harm(made: Draft, inputs: Sequence[Tensors], wanted: np.ndarray) -> list[str]:
    """Return the products, those first that move the answers most where they alone are int8.

    `wanted` are the float answers to the inputs, (N, classes). Of more than `TRIED` products, or
    fewer where files are large, those with the largest errors of their own are tried, and the
    others follow.
    """
    every = frozenset(made.wrong)

    def harm(name: str) -> float:
        content = made.lowered(every - {name}).content
        return float(((predict(session(content), inputs) - wanted) ** 2).sum())

    first = made.worst_first
    size = len(made.lowered(every).content)
    most = max(FEWEST, min(TRIED, int(WRITTEN / size)))
    harms = {name: harm(name) for name in first[:most]}
    return sorted(harms, key=harms.__getitem__, reverse=True) + first[most:]
