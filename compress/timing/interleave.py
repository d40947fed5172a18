"""Interleaved rounds: every candidate once per round, in a random order.

Only ratios within a round hold on a noisy machine, so candidates take turns, and each turn (a
block) is long enough for the clock. The clock and the candidates are arguments, so that tests can
replace them.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

Made = TypeVar("Made")
Clock = Callable[[], float]
Stopwatch = Callable[[Callable[[int], Any], int], tuple[float, Any]]

MAX_CALLS = 1000
"""The longest block, in calls."""
KEPT_CALLS = 8
"""How many of a block's raw seconds are kept, evenly spaced."""
LONG_CALL = 0.25
"""Seconds of a call beside which the delay of coming back to a model (below 1 ms) is negligible."""
RETURN_CALLS, RETURN_SECONDS = 30, 0.008
"""A turn begins with calls that do not count: at most so many, of about so many seconds in all.

After other models have run, a model comes back slowly, and the longer the smaller its calls are.
On Zen 4 the first call took up to 0.4 ms longer, the second 0.1 ms, the fourth none. On two cores
of Zen 3, four nets of 0.3 to 2 ms in four processes each took 1.1 to 1.7 times the time alone in
their first call, 1.0 to 1.25 in the fifth, and 1.0 to 1.15 in the ninth; after ten calls the
smallest of five was still at 1.034. What is left now, `benchmarks/measurement/alone.py` measures.
With longer turns, rounds become so few that ratios scatter more.
"""


@dataclass(frozen=True)
class Candidate:
    """Something to time: `call(i)` runs the i-th input; `check(i, outputs)` is not timed.

    `check` returns what is wrong with the outputs in plain English, or ''. `stopwatch` runs
    `call(i)` and returns its seconds and outputs, for a device that has a clock of its own; by
    default the clock is read before and after.
    """

    call: Callable[[int], Any]
    check: Callable[[int, Any], str] = lambda index, outputs: ""
    stopwatch: Stopwatch | None = None

    def timed(self, index: int, clock: Clock) -> tuple[float, Any]:
        """Run the i-th input; return its seconds and its outputs."""
        if self.stopwatch is not None:
            return self.stopwatch(self.call, index)
        started = clock()
        outputs = self.call(index)
        return clock() - started, outputs


def rotating(
    run: Callable[[Any], Any],
    inputs: Sequence[Any],
    check: Callable[[int, Any], str],
    stopwatch: Stopwatch | None = None,
) -> Candidate:
    """Return a candidate that runs inputs in turn; `check` is given an input's number."""
    count = len(inputs)
    return Candidate(
        lambda index: run(inputs[index % count]),
        lambda index, outputs: check(index % count, outputs),
        stopwatch,
    )


def make_in_random_order(
    makers: Mapping[str, Callable[[], Made]], seed: int, describe: Callable[[Exception], str]
) -> tuple[dict[str, Made], dict[str, str]]:
    """Return what the makers make, and a description of the error of each one that fails.

    The order is random: where in memory something lies depends on what was made before it.
    """
    order = list(makers)
    random.Random(seed).shuffle(order)
    made: dict[str, Made] = {}
    errors = {}
    for name in order:
        try:
            made[name] = makers[name]()
        except Exception as error:  # those of onnxruntime and torch share no base class
            errors[name] = describe(error)
    return made, errors


@dataclass(frozen=True)
class Plan:
    """How long to go on: at least `min_rounds`, then until `seconds` have passed.

    A block makes as many calls as take `block_seconds`, at least one.
    """

    seconds: float
    min_rounds: int = 5
    block_seconds: float = 0.001
    warm_calls: int = 3


@dataclass
class Series:
    """What was measured of one candidate: one list of per-call seconds for every block."""

    error: str = ""
    block_calls: int = 1
    fastest: float = 0.0
    """Seconds of the fastest call before the first round."""
    medians: list[float] = field(default_factory=list)
    calls: list[list[float]] = field(default_factory=list)


def interleave(
    candidates: Mapping[str, Candidate],
    plan: Plan,
    seed: int,
    clock: Clock = time.perf_counter,
    alive: Callable[[], None] = lambda: None,
    announce: Callable[[str], None] = lambda name: None,
) -> dict[str, Series]:
    """Time the candidates against each other; one that fails gets an error and drops out.

    Round r is entry r of every surviving candidate's lists. `alive` is called once a round and
    raises if nobody waits for the result any more; `announce` is given the name of each candidate
    before its first run, and '' after the last.
    """
    started = clock()
    series = {name: Series() for name in candidates}
    for name, candidate in candidates.items():
        announce(name)
        _guarded(series[name], partial(_warm, candidate, series[name], plan, clock))
    announce("")
    # The same for all: a candidate with cold caches must not compete with one with warm caches.
    cold = all(one.fastest >= LONG_CALL for one in series.values() if not one.error)
    order = random.Random(seed)
    done = 0
    while done < plan.min_rounds or clock() - started < plan.seconds:
        alive()
        running = [name for name in candidates if not series[name].error]
        if not running:
            break
        order.shuffle(running)
        for name in running:
            block = partial(_block, candidates[name], series[name], done, cold, clock)
            _guarded(series[name], block)
        done += 1
    return series


def _guarded(series: Series, action: Callable[[], str]) -> None:
    try:
        series.error = action()
    except Exception as error:  # a file can fail in any way; the others must still be timed
        series.error = f"{type(error).__name__}: {error}"


def _warm(candidate: Candidate, series: Series, plan: Plan, clock: Clock) -> str:
    """Run a few calls, check the outputs, and size the blocks by the fastest call."""
    fastest = math.inf
    for index in range(plan.warm_calls):
        seconds, outputs = candidate.timed(index, clock)
        fastest = min(fastest, seconds)
        wrong = candidate.check(index, outputs)
        if wrong:
            return wrong
    calls = math.ceil(plan.block_seconds / max(fastest, 1e-9))
    series.block_calls = max(1, min(calls, MAX_CALLS))
    series.fastest = fastest
    return ""


def _block(candidate: Candidate, series: Series, first: int, cold: bool, clock: Clock) -> str:
    uncounted = 0 if cold else math.ceil(RETURN_SECONDS / max(series.fastest, 1e-9))
    for extra in range(min(uncounted, RETURN_CALLS)):  # other inputs than those that count
        candidate.call(first + series.block_calls + extra)
    seconds = []
    for index in range(first, first + series.block_calls):
        spent, outputs = candidate.timed(index, clock)
        seconds.append(spent)
    series.medians.append(statistics.median(seconds))
    step = math.ceil(len(seconds) / KEPT_CALLS)
    series.calls.append(seconds[step // 2 :: step])  # not always a block's first
    return candidate.check(first + series.block_calls - 1, outputs)
