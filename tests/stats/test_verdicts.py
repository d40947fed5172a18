"""Verdicts in words: each rule, its order, and Holm's adjustment over the rows."""

from __future__ import annotations

import pytest

from compress.stats.ratios import Ratio
from compress.stats.verdicts import (
    common_verdict,
    difference_verdicts,
    equivalence_verdicts,
    speed_verdicts,
)


def test_a_difference() -> None:
    assert difference_verdicts([0.1], [0.05]) == ["better"]
    assert difference_verdicts([-0.1], [0.05]) == ["worse"]
    assert difference_verdicts([-0.1], [0.0501]) == ["not shown"]
    assert difference_verdicts([], []) == []


def test_what_is_shown_alone_is_not_shown_beside_another() -> None:
    assert difference_verdicts([0.1, 0.1], [0.03, 0.03]) == ["not shown"] * 2
    assert difference_verdicts([0.1, -0.1], [0.02, 0.05]) == ["better", "worse"]


@pytest.mark.parametrize(
    ("value", "p", "noninferiority_p", "verdict"),
    [
        (0.01, 0.05, 1e-9, "better"),
        (0.01, 0.06, 0.05, "equivalent"),
        (-0.005, 0.8, 0.05, "equivalent"),
        (-0.005, 1e-9, 0.01, "equivalent"),  # surely worse, and surely by less than the margin
        (-0.03, 0.04, 0.06, "worse"),
        (-0.03, 0.06, 0.06, "not shown"),
        (0.03, 0.04, 0.06, "better"),
        (0.0, 1.0, 0.06, "not shown"),
    ],
)
def test_the_first_that_applies(
    value: float, p: float, noninferiority_p: float, verdict: str
) -> None:
    assert equivalence_verdicts([value], [p], [noninferiority_p]) == [verdict]


def test_each_question_is_adjusted_by_itself() -> None:
    """0.03 twice is not enough; beside a p of 0.5, 0.02 is, whatever the other question says."""
    values, same = [-0.01, -0.01], [0.5, 0.5]
    assert equivalence_verdicts(values, same, [0.03, 0.03]) == ["not shown"] * 2
    assert equivalence_verdicts(values, same, [0.02, 0.04]) == ["equivalent"] * 2
    assert equivalence_verdicts(values, [0.02, 0.5], [0.5, 0.02]) == ["worse", "equivalent"]


def test_speed() -> None:
    fast, slow = Ratio(1.2, 1.1, 1.3, 0.01, 9), Ratio(0.8, 0.7, 0.9, 0.01, 9)
    near = Ratio(1.03, 1.0, 1.06, 0.01, 9)
    words = ["faster", "slower", "indistinguishable"]
    assert speed_verdicts([fast, slow, near], 0.02, True) == words
    assert speed_verdicts([fast, slow, near], 0.02, False) == ["faster", "slower", ""]


def test_what_seeds_say_together() -> None:
    assert common_verdict(["faster", "faster"]) == "faster"
    assert common_verdict(["faster", "slower"]) == "mixed"
    assert common_verdict(["faster", ""]) == ""
    assert common_verdict([]) == ""
