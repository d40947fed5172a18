"""The end of a search: its finalists, measured once on the test split and timed together anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

from compress.benchmark.plan.plan import Plan
from compress.benchmark.plan.suite import FINAL, Suite
from compress.recommender.goal import FIGURES, HOPELESS, Goal, Judge, Span, overlap, size_span
from compress.recommender.measured import Measured
from compress.results.record import BASELINE
from compress.results.table import Row, number, text_of
from compress.stats.levels import ALPHA
from compress.stats.pairs import Difference
from compress.stats.verdicts import BETTER, EQUIVALENT, FASTER, equivalence_verdicts, holm

LEAST_CHANCE = 1e-3
"""So that what is nearest is among the finalists, if nothing has a chance."""
MOST_CHANCE = 0.95
"""So that a safer one is among the finalists: validation items, by which all were chosen and which
given weights may have been trained on, make no chain certain."""
SAFE = 0.9
"""Share of a latency within which a quick timing is hardly wrong about who holds it."""
Tested = tuple[str, float | None, float | None, float | None]
"""A verdict on accuracy, and bounds: the lower, the upper, and the lower one of a single test."""
MS, SPEEDUP, SPEED_VERDICT = "cpu_ms_p50", "cpu_speedup", "cpu_verdict"


def finalists(candidates: Iterable[Measured], judge: Judge, most: int) -> list[Measured]:
    """Return the chains to be judged on the test split, at most so many.

    Those that are worth most together: the expected saving of the cheapest one that qualifies, if
    each does so with its own chance. For each number of finalists, by which chances fall (Holm),
    one after another is added that raises it most; the best number is taken. What has hardly a
    chance is left out if anything has one. Where nothing can qualify: the nearest. Within a
    latency: the most accurate ones that hold it, else the fastest.
    """
    ready = [one for one in candidates if judge.cost(one) is not None and one.items]
    if judge.goal.target_ms is not None:
        return _within(ready, judge, judge.goal.target_ms, most)
    if judge.hopeless:
        return sorted(ready, key=judge.distance)[:most]
    # What has hardly a chance makes the test stricter for all, and is worth that only by itself.
    ready = [one for one in ready if judge.chance(one) >= HOPELESS] or ready
    best: list[Measured] = []
    worth = -1.0
    for count in range(1, most + 1):
        strict = replace(judge, finalists=count)
        chosen = _greedy(ready, strict, count)
        if chosen and _worth(chosen, strict) > worth:
            best, worth = chosen, _worth(chosen, strict)
    return best


def affordable(
    candidates: Mapping[str, Measured],
    judge: Judge,
    most: int,
    remaking: Callable[[Sequence[str]], float],
    left: float,
    proven: str = "",
) -> list[Measured]:
    """Return finalists whose files are there, or can be made again in the seconds `left`.

    `remaking` tells what that takes of some chains. One that is `proven` by earlier finals comes
    first, and besides it at most so many that look better than it: who calls this has seen to it
    that there is time for it.
    """
    able = dict(candidates)
    first = [able.pop(proven)] if proven in able else []
    if first:
        able = {text: one for text, one in able.items() if judge.ahead(one, first[0])}
    while True:
        chosen = finalists(able.values(), judge, most)
        lost = {one.chain: remaking([one.chain]) for one in chosen}
        if not any(lost.values()) or remaking([one.chain for one in [*first, *chosen]]) <= left:
            return [*first, *chosen]
        del able[max(lost, key=lambda text: lost[text])]


def _within(ready: Sequence[Measured], judge: Judge, target: float, most: int) -> list[Measured]:
    """Return the most accurate within a latency, one of them well within it; else the fastest."""

    def rank(one: Measured) -> tuple[float, float]:
        chance = judge.chance(one)
        return -chance, judge.value(one) if chance else one.ms or math.inf

    ranked = sorted(ready, key=rank)
    chosen = ranked[:most]
    safe = [one for one in ranked if one.ms is not None and one.ms <= SAFE * target]
    if len(chosen) > 1 and safe and not any(one in chosen for one in safe):
        chosen[-1] = safe[0]
    return chosen


def _greedy(ready: Sequence[Measured], judge: Judge, count: int) -> list[Measured]:
    """Return so many chains, or fewer, each of which raises the worth of those before it most."""
    chosen: list[Measured] = []
    while len(chosen) < min(count, len(ready)):
        rest = [one for one in ready if one not in chosen]
        chosen.append(
            max(rest, key=lambda one: (_worth([*chosen, one], judge), -judge.violation(one)))
        )
    return chosen


def _worth(chosen: Sequence[Measured], judge: Judge) -> float:
    """Return the expected -log(cost) of the cheapest of some chains that qualifies."""
    worth, none_yet = 0.0, 1.0
    for one in sorted(chosen, key=judge.value):
        chance = min(max(LEAST_CHANCE, judge.chance(one)), MOST_CHANCE)
        worth += none_yet * chance * max(0.0, -judge.value(one))
        none_yet *= 1 - chance
    return worth


def final_suite(plan: Plan, chains: Sequence[str], timing_seconds: float, margin: float) -> Suite:
    """Return the suite of a search's final run."""
    return replace(
        plan.suite,
        name="finalists",
        chains=tuple(chains),
        splits=FINAL,
        controls=False,
        margin=margin,
        timing_seconds=timing_seconds,
        description="what a search found, on the test split",
    )


@dataclass(frozen=True)
class Final:
    """A finalist on both splits."""

    chain: str
    row: Row
    validation: Measured
    cost: float | None
    """Over the baseline's, in the final run."""
    qualifies: bool
    verdict: str = ""
    """On its accuracy, among the finalists of this run; '' if there is none."""
    bound: float | None = None
    """The lower bound of its change of accuracy (a fraction), at the level of the verdict."""
    span: Span = (0.0, math.inf)
    """What its cost may be."""
    top: float | None = None
    """The upper bound of its change, at the same level."""
    alone: float | None = None
    """The lower bound that it would have as the only finalist."""

    @property
    def optimism(self) -> float | None:
        """How much better its change of accuracy was on the validation items (a fraction).

        None of the baseline, which changes nothing on either split.
        """
        if self.chain == BASELINE:
            return None
        change = number(self.row, "accuracy_delta")
        return None if change is None else self.validation.change - change


def judged(
    rows: Iterable[Row], goal: Goal, candidates: Mapping[str, Measured], proven: str = ""
) -> tuple[Final | None, list[Final]]:
    """Return the winner, if a finalist reaches the goal on the test split, and all finalists.

    The cheapest one that is equivalent within the margin (or better) wins; by latency it must be
    shown to be faster. Of those that are not known to cost more than it, and within a latency, it
    is the one with the best accuracy on *validation* items: the test has the last word on how good
    it is, not on which. Within a latency the baseline is a candidate like others, if `candidates`
    has it. One that is `proven` by earlier finals qualifies by them, and the others' verdicts are
    corrected for one another alone. Finalists are ordered by how near they are, of those that do
    not qualify the cheaper ones than the baseline first.
    """
    rows = [row for row in rows if text_of(row, "chain") in (BASELINE, *candidates)]
    base = next(row for row in rows if text_of(row, "chain") == BASELINE)
    shown = _accuracy_verdicts(rows, goal, proven)
    found = []
    for row in rows:
        chain = text_of(row, "chain")
        if chain not in candidates:
            continue
        cost = 1.0 if row is base else _cost(row, base, goal)
        verdict, bound, top, alone = shown.get(chain, ("", None, None, None))
        verdict = EQUIVALENT if chain == proven else verdict
        qualifies = chain == proven or _qualifies(row, goal, cost, verdict)
        span = _span(row, base, goal, cost)
        known = candidates[chain]
        found.append(Final(chain, row, known, cost, qualifies, verdict, bound, span, top, alone))
    if goal.target_ms is not None:
        takes = {one.chain: number(one.row, MS) or math.inf for one in found}
        found.sort(key=lambda f: (not f.qualifies, -f.validation.accuracy, takes[f.chain]))
        if not any(one.qualifies for one in found):
            found.sort(key=lambda f: takes[f.chain])
    else:
        missed = [one for one in found if not one.qualifies]
        held = _by_cost([one for one in found if one.qualifies], proven)
        found = [*held, *sorted(missed, key=_distance)]
    winner = next((one for one in found if one.qualifies), None)
    return winner, found


def _accuracy_verdicts(rows: Iterable[Row], goal: Goal, proven: str) -> dict[str, Tested]:
    """Return verdicts on finalists' changes of accuracy, all tested together, and bounds of these.

    Of k finalists that Holm's procedure does not show to hold the margin, each has bounds of level
    5 % / k (Guilbaud 2008): the lower one is at or below -margin, as the verdict says. Those that
    it shows have them at the level of their own step, so that theirs is above it.
    """
    tested = {}
    for row in rows:
        lost, gained, items = (number(row, name) for name in ("lost", "gained", "items"))
        if lost is not None and gained is not None and items and text_of(row, "status") == "ok":
            tested[text_of(row, "chain")] = Difference(int(lost), int(gained), int(items))
    tested.pop(proven, None)
    differences = list(tested.values())
    ps = [one.noninferiority_p(goal.margin) for one in differences]
    verdicts = equivalence_verdicts(
        [one.value for one in differences], [one.p for one in differences], ps
    )
    left = sum(p > ALPHA for p in holm(ps))
    found: dict[str, Tested] = {}
    for (chain, one), verdict, p in zip(tested.items(), verdicts, ps, strict=True):
        step = sum(other >= p for other in ps)  # Holm judges it beside so many, with itself
        z = NormalDist().inv_cdf(1 - ALPHA / max(left, step))
        found[chain] = (verdict, *one.interval_at(z), one.bound)
    return found


def _by_cost(held: Iterable[Final], proven: str) -> list[Final]:
    """Return finalists that qualify, the cheapest first; ties by their validation items."""
    left = sorted(held, key=lambda one: one.cost or math.inf)
    ordered = []
    while left:
        ties = [one for one in left if overlap(one.span, left[0].span)]
        ordered.append(max(ties, key=lambda one: (one.validation.change, one.chain == proven)))
        left.remove(ordered[-1])
    return ordered


def _distance(one: Final) -> tuple[bool, float]:
    """Return how far from qualifying a finalist is: by its bound, the cheaper ones first."""
    cheaper = one.cost is not None and one.cost < 1
    return not cheaper, math.inf if one.bound is None else -one.bound


def _qualifies(row: Row, goal: Goal, cost: float | None, verdict: str) -> bool:
    if text_of(row, "status") != "ok" or cost is None:
        return False
    if goal.target_ms is not None:
        ms = number(row, MS)
        return ms is not None and ms <= goal.target_ms
    if goal.times and text_of(row, SPEED_VERDICT) != FASTER:
        return False
    return cost < 1 and verdict in (BETTER, EQUIVALENT)


def _cost(row: Row, base: Row, goal: Goal) -> float | None:
    if goal.by == "latency":
        speedup = number(row, SPEEDUP)
        return 1 / speedup if speedup else None
    name = FIGURES[goal.by]
    ours, theirs = number(row, name), number(base, name)
    return ours / theirs if ours and theirs else None


def _span(row: Row, base: Row, goal: Goal, cost: float | None) -> Span:
    """Return what the cost of a row may be, over the baseline's."""
    if cost is None:
        return 0.0, math.inf
    if goal.by == "latency":
        low, high = (number(row, f"{SPEEDUP}_{end}") for end in ("low", "high"))
        return (1 / high, 1 / low) if low and high else (cost, cost)
    if goal.by == "size":
        sizes = [int(number(one, "onnx_bytes") or 0) for one in (row, base)]
        return size_span(sizes[0], text_of(row, "chain"), sizes[1])
    return cost, cost


def optimism(found: Iterable[Final]) -> dict[str, Any]:
    """Return how much better finalists looked on validation items, mean and range, in points."""
    values = [100 * one.optimism for one in found if one.optimism is not None]
    if not values:
        return {}
    mean = sum(values) / len(values)
    return {"mean": mean, "least": min(values), "most": max(values), "finalists": len(values)}


def files_of(folder: Path, row: Row) -> Path | None:
    """Return the folder of a final row's files."""
    place = text_of(row, "onnx_path")
    return (folder / place).parent if place else None
