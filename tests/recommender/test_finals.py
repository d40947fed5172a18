"""The end: which finalists, and who wins."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finished import BASELINE, measured, row
from hypothesis import given
from hypothesis import strategies as st
from made_lab import BASE

from compress.recommender.finals import (
    MOST_CHANCE,
    Final,
    affordable,
    finalists,
    judged,
    optimism,
)
from compress.recommender.folder import SearchFolder
from compress.recommender.goal import HOPELESS, Goal, Judge, finalists_for, finalists_measured
from compress.recommender.measured import Measured
from compress.recommender.search import _Search
from compress.recommender.words import optimism_words, sentence
from compress.stats.pairs import Difference


def test_a_safer_one_is_tested_beside_what_looks_certain() -> None:
    """Rather than what saves more and has no chance: no validation items make a chain certain."""
    judge = Judge(Goal(max_drop=1.0), BASE, 10_000)
    sure, safer = measured("sure", 3.0, 1), measured("safer", 2.9, 0)
    hopeless = [measured(f"hopeless {n}", 8.0 + n, 1700 + n) for n in range(3)]
    assert judge.chance(sure) > MOST_CHANCE
    assert {one.chain for one in finalists([sure, safer, *hopeless], judge, 4)} == {"sure", "safer"}
    assert len(finalists(hopeless, judge, 4)) > 0, "the nearest, where nothing else has a chance"


@given(
    st.lists(st.tuples(st.floats(1.05, 9), st.integers(0, 60)), min_size=1, max_size=6, unique=True)
)
def test_finalists_are_worth_most_by_the_definition(drawn: list[tuple[float, int]]) -> None:
    """Over all outcomes, the saving of the cheapest one that passes; each of n by Holm's level."""
    judge = Judge(Goal(max_drop=1.0), BASE, 5000)
    ones = [measured(f"c{n}", speedup, lost) for n, (speedup, lost) in enumerate(drawn)]

    def worth(chosen: Sequence[Measured]) -> float:
        total, strict = 0.0, replace(judge, finalists=len(chosen))
        for outcome in itertools.product((True, False), repeat=len(chosen)):
            share, savings = 1.0, [0.0]
            for passes, one in zip(outcome, chosen, strict=True):
                chance = min(max(1e-3, strict.chance(one)), MOST_CHANCE)
                share *= chance if passes else 1 - chance
                savings += [-judge.value(one)] if passes else []
            total += share * max(savings)
        return total

    # What has hardly a chance is not asked, if anything has one.
    asked = [one for one in ones if judge.chance(one) >= HOPELESS] or ones
    chosen = finalists(ones, judge, 2)
    alone = max(worth([one]) for one in asked)
    assert worth(chosen) >= alone - 1e-12
    if len(chosen) == 1:
        assert worth(chosen) == pytest.approx(alone)
    assert finalists(ones, judge, 1) == [max(asked, key=lambda one: worth([one]))] or worth(
        finalists(ones, judge, 1)
    ) == pytest.approx(alone)


def test_the_cheapest_that_was_shown_to_hold_the_margin_wins() -> None:
    goal = Goal(max_drop=1.0)
    candidates = {name: measured(name, 3.0, 5) for name in "abc"}
    rows = [
        BASELINE,
        row("a", cpu_speedup=2.0),
        row("b", cpu_speedup=3.0),
        row("c", cpu_speedup=9.0, lost=90),
    ]
    winner, found = judged(rows, goal, candidates)
    assert winner is not None
    assert winner.chain == "b"
    assert [one.chain for one in found] == ["b", "a", "c"]


@pytest.mark.parametrize("test_of_short", [0, 40])
def test_of_equally_cheap_ones_validation_decides_and_never_the_test(test_of_short: int) -> None:
    short, full = "distill(epochs=7)", "distill(epochs=30)"
    known = {short: measured(short, 3.0, 5), full: measured(full, 3.0, 2)}
    rows = [
        BASELINE,
        row(short, lost=test_of_short, onnx_bytes=1000, cpu_speedup=3.95),
        row(full, lost=20, onnx_bytes=1001),
    ]
    for by in ("latency", "size", "macs", "params"):  # the intervals of both speed-ups overlap
        winner, found = judged(rows, Goal(by=by), known)
        assert winner is not None
        assert winner.chain == full
        assert [one.chain for one in found] == [full, short]
    rows[1] = row(short, cpu_speedup=4.5, onnx_bytes=990, macs=499, params=499)
    for by in ("latency", "size", "macs", "params"):
        winner, _ = judged(rows, Goal(by=by), known)
        assert winner is not None
        assert winner.chain == short


def test_what_is_as_cheap_as_the_proven_one_is_tested_only_if_it_looks_better() -> None:
    judge = Judge(Goal(by="size"), BASE, 5000)
    names = ("proven()", "worse()", "better()")
    known = {n: measured(n, 3.0, lost) for n, lost in zip(names, (5, 9, 2), strict=True)}
    known = {n: replace(one, onnx_bytes=1000 + len(n)) for n, one in known.items()}
    known["worse()"] = replace(known["worse()"], onnx_bytes=1005)
    chosen = affordable(known, judge, 4, lambda chains: 0.0, 10.0, "proven()")
    assert [one.chain for one in chosen] == ["proven()", "better()"]


def test_nothing_qualifies_and_the_nearest_comes_first() -> None:
    rows = [
        BASELINE,
        row("a", lost=400),
        row("b", lost=90),
        row("c", status="unverified"),
        row("d", cpu_speedup=0.8, cpu_verdict="slower"),  # equivalent, but dearer
    ]
    winner, found = judged(rows, Goal(max_drop=1.0), {n: measured(n, 3.0, 5) for n in "abcd"})
    assert winner is None
    assert [one.chain for one in found] == ["b", "a", "c", "d"]
    assert [one.verdict for one in found] == ["worse", "worse", "", "equivalent"]


@pytest.mark.parametrize(
    ("goal", "values", "wins"),
    [
        (Goal(), {"cpu_speedup": 0.9, "cpu_verdict": "slower"}, False),
        (Goal(), {"cpu_speedup": 1.01, "cpu_verdict": "indistinguishable"}, False),
        (Goal(), {"cpu_speedup": 1.01, "cpu_verdict": "faster"}, True),
        (Goal(by="size"), {"cpu_speedup": 0.9, "cpu_verdict": "slower"}, True),
        (Goal(by="size"), {"onnx_bytes": 6800}, False),
    ],
)
def test_what_was_not_shown_to_be_cheaper_does_not_win(
    goal: Goal, values: dict[str, Any], wins: bool
) -> None:
    winner, [one] = judged([BASELINE, row("a", **values)], goal, {"a": measured("a", 1.1, 0)})
    assert (winner is not None) == wins
    if not wins:
        assert "equivalent within 1 point, but NOT shown to be" in sentence(one, BASELINE, goal)


def test_what_reached_the_goal_before_wins_until_something_better_does() -> None:
    goal, known = Goal(max_drop=1.0), {name: measured(name, 3.0, 5) for name in "ab"}
    # Alone each would pass (p of 3 %), together with a hopeless one neither does (6 %).
    close = next(n for n in range(100, 0, -1) if Difference(n, 0, 10_000).bound > -0.01)
    weak = row("b", lost=300, cpu_speedup=9.0)
    assert judged([BASELINE, row("a", lost=close), weak], goal, known)[0] is None
    winner, found = judged([BASELINE, row("a", lost=close), weak], goal, known, "a")
    assert winner is not None
    assert winner.chain == "a"
    assert [one.verdict for one in found] == ["equivalent", "worse"]
    # It is not one of those that are corrected for one another, and noise takes nothing from it.
    slow = row("a", lost=300, cpu_speedup=0.98, cpu_verdict="indistinguishable")
    assert judged([BASELINE, slow, weak], goal, known, "a")[0] is not None
    better = row("b", lost=close, cpu_speedup=9.0)
    winner, _ = judged([BASELINE, slow, better], goal, known, "a")
    assert winner is not None
    assert winner.chain == "b"
    dearer = row("b", lost=0, cpu_speedup=2.0)
    winner, _ = judged([BASELINE, row("a"), dearer], goal, known, "a")
    assert winner is not None
    assert winner.chain == "a"


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 40)), min_size=1, max_size=4),
    st.sampled_from([0.5, 1.0, 2.0]),
)
def test_the_bound_says_what_the_verdict_does(flips: list[tuple[int, int]], drop: float) -> None:
    names = [f"c{n}" for n in range(len(flips))]
    rows = [row(name, *pair) for name, pair in zip(names, flips, strict=True)]
    goal = Goal(max_drop=drop)
    _, found = judged([BASELINE, *rows], goal, {name: measured(name, 3.0, 5) for name in names})
    for one in found:
        assert one.bound is not None
        if one.verdict in ("not shown", "worse"):
            assert one.bound <= -goal.margin + 1e-9
            said = sentence(one, BASELINE, goal).split("it may be −")[1]
            assert float(said.split(" points")[0]) >= drop


def test_within_a_latency_the_baseline_is_a_candidate() -> None:
    goal = Goal(max_drop=None, target_ms=2.0)
    candidates = {"a": measured("a", 0.9, 100), "baseline": BASE}
    rows = [{**BASELINE, "cpu_ms_p50": 1.0}, row("a", cpu_ms_p50=1.11, cpu_speedup=0.9)]
    winner, _ = judged(rows, goal, candidates)
    assert winner is not None
    assert winner.chain == "baseline"
    assert sentence(winner, rows[0], goal) == (
        "The baseline itself is the most accurate: 1 ms an item, 2 ms was the target"
    )
    # It was not chosen for looking good, and would water down the optimism of those that were.
    both = [{**rows[0], "accuracy_delta": 0.0}, {**rows[1], "accuracy_delta": -0.06}]
    assert optimism(judged(both, goal, candidates)[1]) == pytest.approx(
        {"mean": 1.0, "least": 1.0, "most": 1.0, "finalists": 1}
    )
    tight = Goal(max_drop=None, target_ms=0.5)
    winner, [nearest, _] = judged(rows, tight, candidates)
    assert winner is None
    assert sentence(nearest, rows[0], tight) == (
        "The baseline itself is the fastest: 1 ms an item, 0.5 ms was the target"
    )
    slow = [{**BASELINE, "cpu_ms_p50": 2.1}, rows[1]]
    winner, _ = judged(slow, goal, candidates)
    assert winner is not None
    assert winner.chain == "a"


def test_where_the_baseline_wins_nothing_stays_proven(tmp_path: Path) -> None:
    """Its file is at the top then, which the next report would say is the proven one's."""
    goal = Goal(max_drop=None, target_ms=2.5)
    candidates = {"a": measured("a", 0.9, 100), "baseline": BASE}
    run = object.__new__(_Search)
    run.out, run.there = tmp_path, SearchFolder(tmp_path)
    for ms, winner in ((3.0, "a"), (1.0, "")):
        rows = [{**BASELINE, "cpu_ms_p50": ms}, row("a", cpu_speedup=0.9)]
        run.about = {"winner": "a", "said": "earlier"}
        best, found = judged(rows, goal, candidates, "a")
        said = run._publish(found, best, rows[0], goal)
        assert run.about == {"winner": winner, "said": said if winner else ""}


def test_within_a_latency_validation_chooses_and_the_test_only_measures() -> None:
    goal = Goal(max_drop=None, target_ms=2.5)
    candidates = {
        "a": measured("a", 3.0, 5),
        "b": measured("b", 3.0, 50),
        "c": measured("c", 1.0, 0),
    }
    rows = [
        BASELINE,
        row("a", accuracy_delta=-0.02),
        row("b", accuracy_delta=0.01),
        row("c", cpu_ms_p50=2.6),
    ]
    winner, found = judged(rows, goal, candidates)
    assert winner is not None
    assert winner.chain == "a"
    assert [one.qualifies for one in found] == [True, True, False]


def test_where_nothing_can_qualify_the_nearest_are_tested_and_the_nearest_is_named() -> None:
    goal = Goal(max_drop=0.01)
    judge = Judge(goal, BASE, 360, finalists_for(goal, 360))
    same, lucky = measured("same", 1.1, 0), replace(measured("lucky", 1.4, 1), gained=2)
    far = [measured(f"far {n}", 2.0, 90 + n) for n in range(3)]
    dearer = measured("dearer", 0.9, 0)
    chosen = finalists([*far, dearer, lucky, same], judge, finalists_measured(goal, 360))
    assert [one.chain for one in chosen] == ["same", "lucky", "far 0", "far 1"]
    rows = [
        BASELINE,
        row("same", items=360, lost=1, cpu_speedup=1.1),
        row("lucky", items=360, lost=9, cpu_speedup=1.4),
    ]
    winner, found = judged(rows, goal, {one.chain: one for one in (same, lucky)})
    assert winner is None
    assert [one.chain for one in found] == ["same", "lucky"]


def test_where_nothing_is_within_a_latency_the_fastest_are_finalists() -> None:
    judge = Judge(Goal(max_drop=None, target_ms=0.1), BASE, 2000)
    slow = [measured(f"slow {n}", 1.2 + n / 100, n) for n in range(4)]
    fast = measured("fast", 9.5, 200)
    assert finalists([*slow, fast], judge, 4)[0] == fast


def test_one_finalist_is_well_within_a_latency() -> None:
    judge = Judge(Goal(max_drop=None, target_ms=0.5), BASE, 2000)
    close = [measured(f"close {n}", 2.01, n) for n in range(4)]
    safe = [measured(f"safe {n}", 2.5, 20 + n) for n in range(2)]
    chosen = finalists([*close, *safe], judge, 4)
    assert chosen == [*close[:3], safe[0]]


def test_optimism_is_validation_less_test() -> None:
    finals = [
        Final("a", row("a", accuracy_delta=-0.01), measured("a", 3.0, 10), 0.3, True),
        Final("b", row("b", accuracy_delta=0.0), measured("b", 3.0, 20), 0.3, True),
    ]
    found = optimism(finals)
    # On validation -0.5 and -1.0 points, on test -1.0 and 0.
    assert found["mean"] == pytest.approx((0.5 - 1.0) / 2)
    assert (found["least"], found["most"]) == pytest.approx((-1.0, 0.5))
    assert optimism([]) == {}
    assert (
        "looked 0.2 points worse than on the test split (mean of 2 finalists; from −1.0 to +0.5"
        in (optimism_words(found))
    )
    alone = {"mean": 3.2, "least": 3.2, "most": 3.2, "finalists": 1}
    assert "3.2 points better than on the test split (one finalist)." in optimism_words(alone)
    even = {"mean": 0.01, "least": -0.1, "most": 0.0, "finalists": 2}
    assert "looked as good as on the test split" in optimism_words(even)


def test_finalists_whose_steps_are_lost_are_chosen_as_far_as_time_allows() -> None:
    judge = Judge(Goal(max_drop=5.0), BASE, 5000)
    known = {name: measured(name, 1 + i, 4) for i, name in enumerate("abcd")}
    seconds = {"a": 0.0, "b": 30.0, "c": 20.0, "d": 50.0}

    def chosen(left: float, most: int = 2, proven: str = "") -> list[str]:
        def remaking(names: Sequence[str]) -> float:
            return sum(seconds[name] for name in names)

        found = affordable(known, judge, most, remaking, left, proven)
        return [one.chain for one in found]

    everything = chosen(1000.0)
    assert "d" in everything, "the fastest, if there is time for it"
    for left in (0.0, 10.0, 25.0, 45.0, 60.0):
        assert sum(seconds[name] for name in chosen(left)) <= left
    assert "a" in chosen(0.0)
    assert "d" not in chosen(45.0)
    assert chosen(0.0, proven="d") == ["d"], "nothing is better than what has won"
    assert chosen(1000.0, most=1, proven="b") == ["b", "d"], "one that is better, besides it"
