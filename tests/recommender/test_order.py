"""Which of the screened chains is trained next."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_lab import BASE, made

from compress.recommender.goal import Goal, Judge
from compress.recommender.measured import FULL, OK, SHORT, Measured, Trial
from compress.recommender.order import LEFT, UNKNOWN, Order, most_promising
from compress.techniques import chain as parse

CUT = made(parse("prune_channels(macs=0.7)"))
DEEP = made(parse("prune_channels(macs=0.3)"))
STUDENT = Measured("untrained", items=10_000, lost=8000, speedup=3.0, candidate=False)


def order() -> Order:
    return Order(Judge(Goal(max_drop=1.0), BASE, 10_000))


def trained(before: Measured, share: float, reached: str = FULL) -> Trial:
    lost = before.gained + round(share * (before.lost - before.gained))
    after = Measured("x", items=before.items, lost=lost, gained=before.gained, speedup=2.0)
    return Trial(0, {}, "x", OK, reached, "", (before, after))


def test_the_share_that_stays_lost_is_the_median_of_those_seen() -> None:
    one = order()
    before = one.chance(CUT)
    for share in (0.0, 0.0, 1.0):
        one.learn(trained(CUT, share))
    assert one.left == [0.0, 0.0, 1.0]
    assert one.chance(CUT) > before
    one.learn(trained(CUT, 0.5, SHORT))  # it did not go through all of its training
    assert len(one.left) == 3


def test_until_something_was_seen_a_tenth_stays_lost() -> None:
    assert LEFT == 0.1
    one, seen = order(), order()
    seen.learn(trained(DEEP, LEFT))
    assert one.chance(DEEP) == pytest.approx(seen.chance(DEEP), abs=0.01)


def test_of_a_student_nothing_is_known_before_its_training() -> None:
    one = order()
    assert one.chance(STUDENT) == UNKNOWN
    one.learn(trained(STUDENT, 0.0))
    assert one.chance(STUDENT) > UNKNOWN
    assert one.left == []


def test_a_smaller_student_is_less_likely_to_learn_all() -> None:
    one, base = order(), BASE.macs
    sizes = [replace(STUDENT, macs=macs) for macs in (base // 16, base // 4, base)]
    before = [one.chance(student) for student in sizes]
    assert before == pytest.approx([UNKNOWN / 4, UNKNOWN / 2, UNKNOWN], rel=0.01)
    one.learn(trained(sizes[0], 0.0))
    assert all(now > then for now, then in zip(map(one.chance, sizes), before, strict=True))


def test_what_saves_more_at_the_same_chance_and_seconds_comes_first() -> None:
    one = order()
    safe = [made(parse(f"prune_channels(macs={macs}) -> quantize()")) for macs in (0.95, 0.9)]
    assert most_promising([(safe[0], 10.0), (safe[1], 10.0)], one, None) == [1, 0]
    assert most_promising([(safe[0], 1.0), (safe[1], 100.0)], one, None) == [0, 1]


def test_what_costs_more_than_the_best_is_worth_less() -> None:
    one = order()
    best = made(parse("prune_channels(macs=0.9) -> quantize()"))
    assert one.worth(CUT, best, 10.0) < one.worth(CUT, None, 10.0)
    assert one.worth(CUT, best, 10.0) > 0
