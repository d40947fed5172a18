"""Holm's adjustment against its published example, Bonferroni, and its laws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.stats.verdicts import holm

PROBABILITIES = st.lists(st.floats(0, 1), max_size=12)


def test_by_hand() -> None:
    # 0.005 · 4 = 0.02; 0.01 · 3 = 0.03; 0.03 · 2 = 0.06; 0.04 · 1 = 0.04, but never below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.04]) == [0.04]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(PROBABILITIES)
def test_laws(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for p, value in zip(p_values, adjusted, strict=True):
        # Never easier than without adjustment, never harder than Bonferroni's.
        assert p <= value <= min(1.0, len(p_values) * p) + 1e-12
    pairs = sorted(zip(p_values, adjusted, strict=True))
    assert all(low[1] <= high[1] for low, high in itertools.pairwise(pairs))


@given(PROBABILITIES, st.randoms())
def test_the_order_of_the_rows_is_nothing(p_values: list[float], random: object) -> None:
    order = list(range(len(p_values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    adjusted = holm(p_values)
    assert holm([p_values[i] for i in order]) == [adjusted[i] for i in order]


def test_false_claims_are_rare_together() -> None:
    """2000 tables of 20 true null hypotheses: at most about 5 % hold any claim at all."""
    tables = np.random.default_rng(0).uniform(size=(2000, 20))
    share = np.mean([min(holm(table)) <= 0.05 for table in tables])
    assert share == pytest.approx(1 - (1 - 0.05 / 20) ** 20, abs=0.015)


@pytest.mark.parametrize("wrong", [[-0.1], [1.1], [float("nan")]])
def test_what_is_no_probability_is_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm(wrong)
