"""Chances, by what tests on the test split ask for."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_lab import BASE

from compress.errors import UserError
from compress.recommender.goal import (
    FINALISTS,
    Goal,
    Judge,
    finalists_for,
    finalists_measured,
    least_p,
    warning_of,
)
from compress.recommender.measured import Measured
from compress.stats.levels import ALPHA
from compress.stats.pairs import Difference
from compress.stats.verdicts import EQUIVALENT, equivalence_verdicts


def judge(drop: float = 1.0, test_items: int = 5000, finalists: int = 2, **goal: object) -> Judge:
    return Judge(Goal(max_drop=drop, **goal), BASE, test_items, finalists)  # type: ignore[arg-type]


def one(lost: int, gained: int, items: int = 2000, speedup: float = 2.0) -> Measured:
    return Measured(
        "x",
        items=items,
        right=1000,
        lost=lost,
        gained=gained,
        speedup=speedup,
        onnx_bytes=1000,
        macs=500,
        params=250,
        ms=1 / speedup,
    )


@pytest.mark.parametrize("drop", [0, -1, 100, math.inf])
def test_a_margin_that_is_none_is_refused(drop: float) -> None:
    with pytest.raises(UserError, match="max-drop is the loss of accuracy in points"):
        Goal(max_drop=drop)


def test_other_goals_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match=r"unknown quantity to make small \(--by\) 'speed'"):
        Goal(by="speed")
    with pytest.raises(UserError, match="one of --max-drop POINTS and --target-ms"):
        Goal(max_drop=1.0, target_ms=5.0)
    with pytest.raises(UserError, match="target-ms is a positive number"):
        Goal(max_drop=None, target_ms=0.0)
    with pytest.raises(UserError, match="leave out --by"):
        Goal(by="size", max_drop=None, target_ms=5.0)


def test_goals_in_words() -> None:
    said = {by: Goal(by=by).words() for by in ("latency", "size", "macs", "params")}
    assert said == {
        "latency": "the fastest within a loss of 1 point",
        "size": "the smallest within a loss of 1 point",
        "macs": "the fewest MACs within a loss of 1 point",
        "params": "the fewest parameters within a loss of 1 point",
    }


def test_costs_are_relative_to_the_baseline() -> None:
    figures = {"latency": 0.5, "size": 0.25, "macs": 0.5, "params": 0.25}
    for by, cost in figures.items():
        assert judge(by=by).cost(one(0, 0)) == cost
    assert judge().cost(replace(one(0, 0), speedup=None)) is None


def test_the_chance_is_that_of_passing_the_test() -> None:
    """Against draws of both splits from the shares that were found."""
    found, items, test_items = one(12, 8), 2000, 5000
    judged = judge(0.8, test_items, finalists=1)
    generator = np.random.default_rng(0)
    lost, gained = (12 + 1) / (items + 2), (8 + 1) / (items + 2)
    # The true change scatters about the one that was found, as that scattered about the true one.
    trials = 4000
    error = math.sqrt((gained + lost - (gained - lost) ** 2) / (items + 2))
    change = generator.normal((8 - 12) / items, error, trials)
    flips = lost + gained
    passed = 0
    for true in change:
        shares = [max(0.0, (flips - true) / 2), max(0.0, (flips + true) / 2)]
        losses, gains, _ = generator.multinomial(test_items, [*shares, 1 - sum(shares)])
        passed += Difference(int(losses), int(gains), test_items).noninferiority_p(0.008) <= ALPHA
    assert judged.chance(found) == pytest.approx(passed / trials, abs=0.04)


@given(lost=st.integers(0, 300), gained=st.integers(0, 300))
def test_more_losses_never_raise_the_chance(lost: int, gained: int) -> None:
    judged = judge()
    # The test moves in steps of an item, and losses and gains can hit them better or worse.
    assert judged.chance(one(lost + 1, gained)) <= judged.chance(one(lost, gained)) + 0.005
    assert (judged.violation(one(lost, gained)) <= 0) == (
        one(lost, gained).change >= judged.needed(one(lost, gained))
    )


def test_a_gain_counts_as_none() -> None:
    judged = judge()
    even = judged.chance(one(5, 5))
    assert judged.chance(one(4, 6)) == pytest.approx(even, rel=1e-4)
    assert judged.chance(one(1, 9)) == pytest.approx(even, rel=1e-4)


def test_more_finalists_need_more() -> None:
    found = one(15, 5)
    chances = [judge(finalists=n).chance(found) for n in (1, 2, 4)]
    assert chances == sorted(chances, reverse=True)
    assert chances[0] > chances[-1]


def test_there_are_as_many_finalists_as_the_test_items_bear() -> None:
    assert finalists_for(Goal(max_drop=1.0), 10_000) == FINALISTS
    assert finalists_for(Goal(max_drop=1.0), 300) == 1
    assert finalists_for(Goal(max_drop=None, target_ms=1.0), 300) == FINALISTS
    for items in (300, 500, 700, 1000, 2000):
        count = finalists_for(Goal(max_drop=1.0), items)
        if count > 1:
            assert least_p(Goal(max_drop=1.0), items) <= ALPHA / count


def test_too_few_test_items_are_said_beforehand() -> None:
    assert "300 test items are too few to show a loss below 1 point," in warning_of(Goal(), 300)
    assert "a loss below 0.5 points," in warning_of(Goal(max_drop=0.5), 300)
    assert Difference(0, 0, 300).noninferiority_p(0.01) > ALPHA
    assert warning_of(Goal(max_drop=1.0), 1000) == ""
    assert Difference(0, 0, 1000).noninferiority_p(0.01) <= ALPHA


def test_where_nothing_can_qualify_nothing_has_a_chance() -> None:
    """However many validation items there are: the test split has too few. Nothing is sure then."""
    same = one(0, 0, items=1000)
    few = judge(test_items=360, finalists=1)
    assert few.hopeless
    assert few.chance(same) == few.chance(one(0, 3, items=1000)) == 0
    assert few.needed(same) > 0
    enough = judge(test_items=450, finalists=1)
    assert not enough.hopeless
    assert 0.7 < enough.chance(same) < 0.8, "a single loss or two are too many"
    assert judge(test_items=450, finalists=4).chance(same) == 0, "too many to correct for"


@pytest.mark.parametrize("items", [360, 450, 700, 1000, 5000])
@pytest.mark.parametrize("drop", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("flips", [(0, 0), (3, 1), (20, 5)])
def test_the_chance_is_that_of_the_verdict(items: int, drop: float, flips: tuple[int, int]) -> None:
    """That it says equivalent, of draws from what 1,000 validation items leave possible."""
    judged = judge(drop, items, finalists=1)
    generator, draws = np.random.default_rng(1), 1000
    shares = generator.dirichlet([flips[0] + 1, flips[1] + 1, 1000 - sum(flips)], draws)
    found = [
        Difference(int(lost), int(gained), items)
        for lost, gained, _ in generator.multinomial(items, shares)
    ]
    verdicts = [
        equivalence_verdicts([x.value], [1.0], [x.noninferiority_p(judged.goal.margin)])
        for x in found
    ]
    passed = verdicts.count([EQUIVALENT]) / draws
    if judged.hopeless:
        assert judged.chance(one(*flips, items=1000)) == 0
    else:
        assert judged.chance(one(*flips, items=1000)) == pytest.approx(passed, abs=0.05)


def test_what_is_likely_comes_before_what_is_cheap() -> None:
    judged = judge()
    safe, fast, faster = one(2, 2, speedup=1.5), one(300, 0, speedup=9.0), one(3, 3, speedup=1.7)
    assert judged.better(safe, None)
    assert not judged.better(fast, safe)
    assert judged.better(safe, fast)
    assert judged.better(faster, safe)


def test_where_nothing_can_qualify_some_are_tested_all_the_same() -> None:
    few, enough = 360, 500
    assert judge(test_items=few).hopeless
    assert finalists_measured(Goal(), few) == FINALISTS
    assert not judge(test_items=enough).hopeless
    assert finalists_measured(Goal(), enough) == finalists_for(Goal(), enough) == 1


def test_a_lucky_gain_brings_nothing_nearer() -> None:
    """Of 143 items one more is right, by flips that a test would not bear."""
    judged = judge(0.01, test_items=360, finalists=1)
    same, lucky = one(0, 0, items=143), one(1, 2, items=143)
    assert judged.distance(same) < judged.distance(lucky)
    assert judged.better(same, lucky)
    assert judged.better(lucky, one(0, 0, items=143, speedup=0.9)), "that is no cheaper"


SHORT, LONG = "distill(epochs=7)", "distill(epochs=30)"


def test_of_equal_sizes_the_better_one_by_validation_is_preferred() -> None:
    """The file of a chain with a longer text is longer by that, and its model is not."""
    judged = judge(by="size")
    short = replace(one(6, 4), chain=SHORT, onnx_bytes=1000)
    full = replace(one(4, 8), chain=LONG, onnx_bytes=1000 + len(LONG) - len(SHORT))
    assert judged.better(full, short)
    assert not judged.better(short, full)
    smaller = replace(short, onnx_bytes=980)
    assert judged.better(smaller, full)
    assert not judged.better(full, smaller)
    longest = replace(full, chain=" -> ".join([LONG] * 8))  # its length takes a byte more, twice
    longest = replace(longest, onnx_bytes=1002 + len(longest.chain) - len(SHORT))
    assert judged.better(longest, short)


@pytest.mark.parametrize("by", ["macs", "params"])
def test_of_equal_counts_the_better_one_by_validation_is_preferred(by: str) -> None:
    judged = judge(by=by)
    assert judged.better(one(4, 8), one(6, 4))
    assert not judged.better(one(6, 4), one(4, 8))
    assert judged.better(replace(one(6, 4), macs=499, params=249), one(4, 8))


def test_of_latencies_that_are_not_told_apart_the_better_one_is_preferred() -> None:
    def timed(found: Measured, speedup: float, times: float) -> Measured:
        low, high = speedup / times, speedup * times
        return replace(found, speedup=speedup, speedup_low=low, speedup_high=high)

    worse, better = timed(one(6, 4), 2.02, 1.02), timed(one(4, 8), 2.0, 1.02)
    assert judge().better(better, worse)
    assert not judge().better(worse, better)
    sharp = timed(worse, 2.02, 1.001), timed(better, 2.0, 1.001)
    assert judge().better(*sharp)
    # However wide intervals are, a tenth is told apart: files were timed in turns.
    assert judge().better(timed(worse, 2.3, 2.0), timed(better, 2.0, 2.0))


def test_within_a_latency_accuracy_counts() -> None:
    judged = Judge(Goal(max_drop=None, target_ms=0.6), BASE, 5000, 4)
    slow, quick = one(0, 0, speedup=1.2), replace(one(50, 0, speedup=2.0), right=950)
    better = replace(one(20, 0, speedup=1.8), right=980)
    assert [judged.chance(x) for x in (slow, quick, better)] == [0.0, 1.0, 1.0]
    assert judged.better(quick, slow)
    assert judged.better(better, quick)
    assert judged.violation(slow) > 0 > judged.violation(quick)
