"""Means over seeds: against scipy, by hand, and a simulation."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from compress.stats.pairs import Difference
from compress.stats.replication import (
    deviation,
    envelope,
    mean_difference,
    mean_lower_bound,
    mean_noninferiority_p,
    mean_ratio,
)

differences = st.lists(st.integers(-1000, 1000).map(lambda items: items / 1000), min_size=2)


@given(differences)
def test_the_mean_difference_is_the_paired_t_tests(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Of intervals over items that are narrow, Student's is the wider one.
        own = [(value, value) for value in values]
        found = mean_difference(values, own, [0.5] * len(values))
    assert found.value == pytest.approx(np.mean(values))
    assert 0 <= found.p <= 1
    assert -1 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1
    if len(set(values)) > 1:
        # The t-test of related samples, on made-up pairs with these differences.
        before = np.linspace(0.2, 0.4, len(values))
        assert found.p == pytest.approx(stats.ttest_rel(before + values, before).pvalue, rel=1e-6)
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), error)
        assert (found.low, found.high) == pytest.approx((max(-1, low), min(1, high)))


def test_a_mean_difference_by_hand():
    # Mean 0.02, deviation 0.01, standard error 0.01 / sqrt(3); t(2) at 97.5 % is 4.302653.
    found = mean_difference([0.01, 0.02, 0.03], [], [])
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((0.02, 0.02 - half, 0.02 + half))
    # t = 2 sqrt(3); with two degrees of freedom p = 1 - t / sqrt(2 + t²).
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14))


def test_a_difference_must_hold_for_other_items_too():
    """Three seeds that agree to one item of 10 000 are not three samples of test items."""
    values, half = [8e-4, 9e-4, 8e-4], 14e-4
    intervals = [(value - half, value + half) for value in values]
    found = mean_difference(values, intervals, [0.33, 0.26, 0.34])
    assert stats.ttest_1samp(values, 0.0).pvalue < 0.002
    error = half / stats.norm.ppf(0.975)
    assert found.p == pytest.approx(2 * stats.norm.sf(np.mean(values) / error))
    assert (found.low, found.high) == pytest.approx(
        (np.mean(values) - half, np.mean(values) + half)
    )


def test_a_mean_ratio_is_no_surer_than_the_timing():
    ratios = [1.012, 1.011, 1.013]
    found = mean_ratio(ratios, [(0.99, 1.034)] * 3)
    half = math.log(1.034 / 0.99) / 2
    centre = math.exp(np.mean(np.log(ratios)))
    assert (found.low, found.high) == pytest.approx(
        (centre * math.exp(-half), centre * math.exp(half))
    )


def test_equal_differences_are_one_replication():
    intervals = [(-0.01, 0.03), (-0.02, 0.05), (0.0, 0.04)]
    # 0.3 - 0.1 and 0.2 differ by rounding only.
    found = mean_difference([0.2, 0.3 - 0.1, 0.2], intervals, [1e-9, 2e-4, 3e-8])
    assert (found.value, found.low, found.high) == (0.2, -0.02, 0.05)
    assert found.p == 2e-4  # neither certain nor lost: what one seed's items show
    same = mean_difference([0.0, 0.0], [(None, None), (-0.1, 0.1)], [1.0, 1.0])
    assert (same.value, same.low, same.high, same.p) == (0.0, None, None, 1.0)


def test_ratios_have_a_geometric_mean_and_a_t_interval_of_logarithms():
    found = mean_ratio([1.0, 2.0, 4.0], [(None, None)] * 3)
    half = 4.302653 * math.log(2) / math.sqrt(3)
    assert found.value == pytest.approx(2)
    assert (found.low, found.high) == pytest.approx((2 * math.exp(-half), 2 * math.exp(half)))


def test_few_or_equal_ratios_have_the_intervals_of_their_seeds():
    two = mean_ratio([2.0, 2.1], [(1.9, 2.05), (2.0, 2.3)])
    assert (two.low, two.high) == (1.9, 2.3)
    equal = mean_ratio([2.0] * 3, [(1.9, 2.1), (1.8, 2.1), (1.9, 2.4)])
    assert (equal.value, equal.low, equal.high) == (pytest.approx(2.0), 1.8, 2.4)
    assert envelope([]) == envelope([(1.0, None)]) == (None, None)


def test_the_deviation_is_a_samples():
    assert deviation([1.0, 2.0, 4.0]) == pytest.approx(np.std([1, 2, 4], ddof=1))


def test_equivalence_over_seeds_by_hand():
    """Seeds that lie far apart: Student's t is what binds, for the p and for the bound."""
    seeds = [
        Difference(100, 100, 10_000),
        Difference(150, 70, 10_000),
        Difference(120, 160, 10_000),
    ]
    values = np.array([0.0, -0.008, 0.004])
    error = np.std(values, ddof=1) / math.sqrt(3)
    p = stats.ttest_1samp(values, -0.02, alternative="greater").pvalue
    assert mean_noninferiority_p(seeds, 0.02) == pytest.approx(p)
    assert mean_lower_bound(seeds) == pytest.approx(np.mean(values) - 2.919986 * error)


def test_equivalence_must_hold_for_other_items_too():
    """Seeds that nearly agree are no further samples of test items: these are what binds."""
    seeds = [Difference(60, 40, 10_000), Difference(61, 40, 10_000), Difference(59, 40, 10_000)]
    assert mean_noninferiority_p(seeds, 0.005) == Difference(60, 40, 10_000).noninferiority_p(0.005)
    assert mean_lower_bound(seeds) == Difference(60, 40, 10_000).bound


def test_a_deterministic_chain_is_one_replication():
    seeds = [Difference(60, 40, 10_000), Difference(70, 50, 10_000), Difference(61, 41, 10_000)]
    assert mean_noninferiority_p(seeds, 0.005) == seeds[1].noninferiority_p(0.005)
    assert mean_lower_bound(seeds) == seeds[1].bound
    (alone,) = seeds[:1]
    assert mean_noninferiority_p([alone], 0.005) == alone.noninferiority_p(0.005)
    assert mean_lower_bound([alone]) == alone.bound


def test_seeds_answer_the_same_items():
    with pytest.raises(ValueError, match="unpack"):
        mean_lower_bound([Difference(60, 40, 10_000), Difference(61, 40, 20_000)])


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=5),
    st.floats(1e-3, 0.3),
)
def test_the_mean_bound_is_where_the_test_says_five_percent(flips, margin):
    seeds = [Difference(lost, gained, 200) for lost, gained in flips]
    bound, p = mean_lower_bound(seeds), mean_noninferiority_p(seeds, margin)
    assert -1 <= bound <= np.mean([seed.value for seed in seeds])
    # No surer than a single table of the mean counts, which is no surer than the seeds on average.
    lost, gained = np.mean(flips, axis=0)
    assert bound <= Difference(lost, gained, 200).bound + 1e-12
    assume(abs(bound + margin) > 1e-9)
    assert (bound > -margin) == (p < 0.05)


ITEMS, MARGIN, DISCORDANCE, TRIALS = 2000, 0.01, 0.02, 1000


def test_equal_seeds_on_other_items_are_seldom_falsely_equivalent():
    """What flips, flips in all seeds but for a few items: that is one sample of items."""
    generator = np.random.default_rng(0)
    claims = 0
    for _ in range(TRIALS):
        shares = [(DISCORDANCE + MARGIN) / 2, (DISCORDANCE - MARGIN) / 2]
        lost, gained, _ = generator.multinomial(ITEMS, [*shares, 1 - DISCORDANCE])
        seeds = [Difference(lost + i, gained + j, ITEMS) for i, j in ((0, 0), (1, 0), (0, 1))]
        claims += mean_noninferiority_p(seeds, MARGIN) <= 0.05
    assert 0.02 <= claims / TRIALS <= 0.05


def test_other_seeds_on_the_same_items_are_seldom_falsely_equivalent():
    """Seeds fall by the margin on average, by Student's law; 50 000 items show each one's fall."""
    generator = np.random.default_rng(1)
    claims = 0
    for fall in generator.normal(MARGIN, 0.004, (TRIALS, 3)):
        lost, gained = (np.rint(50_000 * (0.03 + sign * fall / 2)) for sign in (1, -1))
        seeds = [Difference(*counts, 50_000) for counts in zip(lost, gained, strict=True)]
        claims += mean_noninferiority_p(seeds, MARGIN) <= 0.05
    assert claims / TRIALS == pytest.approx(0.05, abs=0.015)
