"""Successive halving: many train for a little, the better ones go on.

Jamieson and Talwalkar 2016 (arXiv 1502.07943). What has learnt learns on, and is not begun anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compress.supernet.evolution import Score


@dataclass(frozen=True)
class Rung:
    """How many take part, and for how many epochs each of them trains."""

    entrants: int
    epochs: int


def rungs(count: int, epochs: int) -> list[Rung]:
    """Return the rungs for so many candidates, of which the winner trains for `epochs` in all.

    Each rung has about half of the entrants of the one before it and twice its epochs; where there
    are too few epochs for that, there are fewer rungs, of which each leaves less.
    """
    number = max(1, min(epochs, math.ceil(math.log2(count)))) if count > 1 else 1
    left = [max(1, round(count ** (1 - place / number))) for place in range(number)]
    shares = [2**place / (2**number - 1) for place in range(number)]
    spent = [max(1, math.floor(epochs * share)) for share in shares]
    for place in reversed(range(number)):  # what rounding took off, or put on
        spent[place] = max(1, spent[place] + epochs - sum(spent))
    return [Rung(entrants, each) for entrants, each in zip(left, spent, strict=True)]


def halved(
    names: Sequence[str], epochs: int, train: Callable[[str, int, int], Score]
) -> list[list[tuple[str, Score]]]:
    """Return by rung who took part and how good they were then, the best first.

    `train(name, place of the rung, epochs)` trains a candidate on and returns how good it is.
    """
    results: list[list[tuple[str, Score]]] = []
    left = list(names)
    for place, rung in enumerate(rungs(len(names), epochs)):
        scores = [(name, train(name, place, rung.epochs)) for name in left[: rung.entrants]]
        results.append(sorted(scores, key=lambda one: one[1], reverse=True))
        left = [name for name, _ in results[-1]]
    return results
