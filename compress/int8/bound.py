"""How many products must stay float for a loss of accuracy to keep below a bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compress.int8.lower import Lowered


@dataclass(frozen=True)
class Bounded:
    """A file, the products that stay float in it, its drop, and the drop with none of them."""

    lowered: Lowered
    floats: frozenset[str]
    drop: float
    first: float


def within(
    worst_first: Sequence[str],
    lowered: Callable[[frozenset[str]], Lowered],
    drop: Callable[[Lowered], float],
    most: float,
) -> Bounded:
    """Return the file with the fewest products in float whose drop is at most `most`.

    Products go back to float in the order given: one, two, four and so on until the bound holds,
    then by halves back to the fewest. If even all products in float
    do not reach the bound, the file with the least drop is kept.
    """
    tried: dict[int, Bounded] = {}

    def attempt(count: int) -> Bounded:
        if count not in tried:
            floats = frozenset(worst_first[:count])
            made = lowered(floats)
            value = drop(made)
            first = tried[0].drop if 0 in tried else value
            tried[count] = Bounded(made, floats, value, first)
        return tried[count]

    count, failed = 0, -1
    while attempt(count).drop > most:
        failed = count
        if count == len(worst_first):
            return min(tried.values(), key=lambda one: (one.drop, len(one.floats)))
        count = min(max(1, 2 * count), len(worst_first))
    while count - failed > 1:
        middle = (count + failed) // 2
        if attempt(middle).drop > most:
            failed = middle
        else:
            count = middle
    return attempt(count)
