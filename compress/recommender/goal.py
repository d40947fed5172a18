"""What a search is for, and how likely a chain reaches it: from answers to validation items."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist

from compress.errors import UserError, unknown
from compress.parts import is_number
from compress.recommender.measured import Measured
from compress.stats.levels import ALPHA
from compress.stats.pairs import Difference
from compress.stats.passing import needed_change, passing_chance
from compress.system.amounts import decimal

BY: Mapping[str, str] = {
    "latency": "faster",
    "size": "smaller",
    "macs": "fewer MACs",
    "params": "fewer parameters",
}
"""What can be made small, and in words by how many times it is."""
FIGURES: Mapping[str, str] = {"size": "onnx_bytes", "macs": "macs", "params": "params"}
"""Figures of rows that are costs; latency is a ratio of timings."""
LIKELY = 0.5
"""A chain with at least this chance of holding the margin is one to recommend."""
HOPELESS = 0.05
"""A chance below which a chain is not trained on, nor tested beside others."""
SURE = 0.9
"""What a chain with such a chance beats in cost need not be trained."""
FINALISTS = 4
MOST_SLACK = 1.1
"""A few processes give wide intervals; what was timed in turns is hardly as far off as this."""
LENGTHS = 4
"""Bytes of a file that tell how long the chain's text in it is, at most."""

Span = tuple[float, float]
"""The least and the most that a cost may be, over the baseline's."""


@dataclass(frozen=True)
class Goal:
    """The lowest cost `by` within a loss of `max_drop` points, or the best within `target_ms`."""

    by: str = "latency"
    max_drop: float | None = 1.0
    """Points that may be lost, from the baseline's accuracy; None with a target."""
    target_ms: float | None = None
    """Milliseconds that an item may take (median)."""

    def __post_init__(self) -> None:
        if not isinstance(self.by, str) or self.by not in BY:
            raise unknown("quantity to make small (--by)", self.by, BY)
        if (self.max_drop is None) == (self.target_ms is None):
            raise UserError("give one of --max-drop POINTS and --target-ms MILLISECONDS")
        if self.max_drop is not None and not (is_number(self.max_drop) and 0 < self.max_drop < 100):
            raise UserError(
                f"--max-drop is the loss of accuracy in points that a model must be shown to stay "
                f"below: above 0 and below 100, not {self.max_drop!r}. No test can show a loss of 0"
            )
        if self.target_ms is not None and not (is_number(self.target_ms) and self.target_ms > 0):
            raise UserError(f"--target-ms is a positive number of ms, not {self.target_ms!r}")
        if self.target_ms is not None and self.by != "latency":
            raise UserError("--target-ms is a latency: leave out --by")

    @property
    def margin(self) -> float:
        """The loss that is allowed, as a fraction; of a search within a latency, a point."""
        return min((self.max_drop or 1.0) / 100, 1 - 1e-9)

    @property
    def times(self) -> bool:
        """Whether files have to be timed to know the cost."""
        return self.by == "latency"

    def words(self) -> str:
        if self.target_ms is not None:
            return f"the most accurate within {decimal(self.target_ms)} ms"
        what = {"latency": "fastest", "size": "smallest"}.get(self.by, BY[self.by])
        what = what.replace("fewer", "fewest")
        points = f"{decimal(self.max_drop or 0)} point{'' if self.max_drop == 1 else 's'}"
        return f"the {what} within a loss of {points}"


@dataclass(frozen=True)
class Judge:
    """Judges chains by a goal, given the baseline and how many test items decide in the end."""

    goal: Goal
    baseline: Measured
    test_items: int
    finalists: int = 1
    """Rows of the final table: with more of them, each must be shown more clearly (Holm)."""

    def cost(self, one: Measured) -> float | None:
        """Return the cost relative to the baseline's; None where it was not measured."""
        base = self.baseline
        if self.goal.by == "latency":
            return 1 / one.speedup if one.speedup else None
        name = FIGURES[self.goal.by]
        return float(getattr(one, name)) / getattr(base, name) if getattr(one, name) else None

    def tied(self, one: Measured, other: Measured) -> bool:
        """Whether nothing tells which of two chains costs less."""
        return overlap(self._span(one), self._span(other))

    def _span(self, one: Measured) -> Span:
        if (cost := self.cost(one)) is None:
            return 0.0, math.inf
        if self.goal.by == "size":
            return size_span(one.onnx_bytes, one.chain, self.baseline.onnx_bytes)
        if self.goal.by == "latency" and one.speedup and one.speedup_low and one.speedup_high:
            most = math.sqrt(MOST_SLACK)  # so that two that tie are at most this far apart
            down, up = one.speedup_high / one.speedup, one.speedup / one.speedup_low
            return cost / min(down, most), cost * min(up, most)
        return cost, cost

    @property
    def _level(self) -> float:
        """The normal quantile that a test's score must reach: of Holm's first step over all."""
        return NormalDist().inv_cdf(1 - ALPHA / self.finalists)

    def needed(self, one: Measured) -> float:
        """Return the change of accuracy (a fraction) with which the test on the test items passes.

        Among as many flips as the validation items let expect there. At least -margin; above 0
        where the test items are too few for a file that changes nothing.
        """
        flips = (one.lost, one.gained, one.items)
        return needed_change(*flips, self.test_items, self.goal.margin, self._level)

    def chance(self, one: Measured) -> float:
        """Return the probability of reaching the goal on the test split, by the validation items.

        That of the verdict itself, over all that they leave possible of the test items
        (`compress.stats.passing`). Within a latency, 1 or 0 by the median: accuracy is what is
        sought there.
        """
        if one.status != "ok" or one.items == 0:
            return 0.0
        if self.goal.target_ms is not None:
            return float(one.ms is not None and one.ms <= self.goal.target_ms)
        # Where a file that changes nothing does not pass, only luck would.
        if least_p(self.goal, self.test_items) > ALPHA / self.finalists:
            return 0.0
        # What is cheaper is hardly better: where it looks so, that is luck, too.
        even = (one.lost + one.gained) / 2
        flips = (max(one.lost, even), min(one.gained, even), one.items)
        return passing_chance(*flips, self.test_items, self.goal.margin, self._level)

    def promise(self, one: Measured) -> float:
        """Return the chance by which a search decides what is worth its time.

        Where nothing can qualify the nearest is sought, and every chance is 0: it is that with as
        many test items as would be enough, by doubling.
        """
        enough = self
        while enough.hopeless:
            enough = replace(enough, test_items=2 * enough.test_items)
        return enough.chance(one)

    def violation(self, one: Measured) -> float:
        """Return by how much the goal is missed: 0 or less if it is likely to be reached."""
        if self.goal.target_ms is not None:
            return math.log(one.ms / self.goal.target_ms) if one.ms else 1.0
        return 100 * (self.needed(one) - one.change)

    def value(self, one: Measured) -> float:
        """Return what the sampler minimises: the logarithm of the cost, or the error rate."""
        if self.goal.target_ms is not None:
            return 1 - one.accuracy
        cost = self.cost(one)
        return math.log(cost) if cost else 0.0

    def better(self, one: Measured, best: Measured | None) -> bool:
        """Whether one chain is to be preferred to the best so far: by its chance, then its cost."""
        if best is not None and min(self.chance(one), self.chance(best)) >= LIKELY:
            return self.ahead(one, best)
        return best is None or self._rank(one) < self._rank(best)

    def ahead(self, one: Measured, other: Measured) -> bool:
        """Whether a chain is worth more than another if both reach the goal.

        It costs less; where nothing tells which one does, it is the better one on validation items.
        """
        values = self.value(one), self.value(other)
        if self.goal.target_ms is None and self.tied(one, other):
            return (-one.change, values[0]) < (-other.change, values[1])
        return values[0] < values[1]

    def _rank(self, one: Measured) -> tuple[float, ...]:
        likely = self.chance(one) >= LIKELY
        if self.goal.target_ms is not None and not likely:
            return (1.0, one.ms or math.inf)
        if likely:
            return (0.0, self.value(one))
        return (1.0, *self.distance(one))

    def distance(self, one: Measured) -> tuple[float, ...]:
        """Return how far from the goal a chain that will hardly reach it is: a key to sort by.

        What costs no less than the baseline comes last. A gain counts as none, as in `chance`.
        """
        missed = self.needed(one) - min(0.0, one.change)
        return (float(self.value(one) >= 0), missed, self.value(one))

    @property
    def hopeless(self) -> bool:
        """Whether no chain can reach the goal, however good."""
        return bool(warning_of(self.goal, self.test_items))


def overlap(one: Span, other: Span) -> bool:
    """Whether two costs may be equal."""
    return one[0] <= other[1] and other[0] <= one[1]


def size_span(size: int, chain: str, base: int) -> Span:
    """Return the size of a file, over the baseline's, apart from its chain's text.

    The text stands in the file's metadata: a longer one makes no model larger.
    """
    rest = size - len(chain.encode())
    return (rest - LENGTHS) / base, rest / base


def finalists_for(goal: Goal, test_items: int) -> int:
    """Return how many rows a final table may have so that each of them can still qualify.

    Up to `FINALISTS`, as a file without a single flip would: each of n needs a p of 5 % / n (Holm),
    and half of that leaves room for some flips. At least 1.
    """
    if goal.target_ms is not None:
        return FINALISTS
    p = least_p(goal, test_items)
    return next((n for n in range(FINALISTS, 1, -1) if p <= ALPHA / n / 2), 1)


def finalists_measured(goal: Goal, test_items: int) -> int:
    """Return how many finalists are measured: where none can qualify, some, to name the nearest."""
    return FINALISTS if warning_of(goal, test_items) else finalists_for(goal, test_items)


def least_p(goal: Goal, test_items: int) -> float:
    """Return the p of non-inferiority of a file whose answers are all the baseline's."""
    return Difference(0, 0, test_items).noninferiority_p(goal.margin)


def warning_of(goal: Goal, test_items: int) -> str:
    """Return why no chain can qualify, however good; '' if one can."""
    if goal.max_drop is None or least_p(goal, test_items) <= ALPHA:
        return ""
    return (
        f"{test_items:,} test items are too few to show a loss below {decimal(goal.max_drop)} "
        f"point{'' if goal.max_drop == 1 else 's'}, even of a file that answers as the baseline "
        f"does. So nothing can qualify here, and the nearest will be named; give more test items, "
        f"or a larger --max-drop"
    )
