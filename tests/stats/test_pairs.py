"""Paired differences: published tables, tables by hand, laws, and simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import xlogy
from scipy.stats import binom, norm

from compress.stats.levels import ALPHA
from compress.stats.pairs import Difference, difference, score

PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80).map(
    lambda pairs: (np.array([a for a, _ in pairs]), np.array([b for _, b in pairs]))
)


def table(both: int, lost: int, gained: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether each item was right before and after, from the four counts."""
    before = [True] * both + [True] * lost + [False] * gained + [False] * neither
    after = [True] * both + [False] * lost + [True] * gained + [False] * neither
    return np.array(before), np.array(after)


def interval(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    return difference(before, after).interval


def p_value(before: np.ndarray, after: np.ndarray) -> float:
    return difference(before, after).p


# Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables (2017), chapter 8.
BENTUR = table(1, 7, 1, 12)  # airway hyper-responsiveness before and after transplantation
CAVO = table(59, 16, 6, 80)  # complete response before and after consolidation therapy


def test_published_examples() -> None:
    assert interval(*CAVO) == pytest.approx((-0.1195, -0.0032), abs=5e-5)
    assert interval(*BENTUR) == pytest.approx((-0.508, -0.013), abs=5e-4)
    assert p_value(*BENTUR) == pytest.approx(0.0703, abs=5e-5)


def test_mcnemar_by_hand() -> None:
    # One flip of eight the other way: 2 · (1 + 8) / 2⁸.
    assert p_value(*table(0, 7, 1, 0)) == pytest.approx(18 / 256)
    assert p_value(*table(50, 0, 6, 3)) == pytest.approx(2 / 2**6)
    assert p_value(*table(50, 5, 5, 3)) == 1.0
    assert p_value(*table(50, 0, 0, 3)) == 1.0


def test_the_interval_by_hand() -> None:
    # N = 98, gained 9, lost 4: 0.1 - 0.05 ± 1.96 · sqrt((0.15 - 0.05²) / 100).
    half = 1.959964 * (0.1475 / 100) ** 0.5
    low, high = interval(*table(50, 4, 9, 35))
    assert (low, high) == pytest.approx((0.05 - half, 0.05 + half), abs=1e-6)


def test_where_nothing_flips_the_interval_still_has_a_width() -> None:
    low, high = interval(*table(98, 0, 0, 0))
    assert -low == pytest.approx(high)
    assert high == pytest.approx(1.959964 * (0.02 / 100) ** 0.5, abs=1e-6)


@given(PAIRS)
def test_laws(pair: tuple[np.ndarray, np.ndarray]) -> None:
    before, after = pair
    found, back = difference(before, after), difference(after, before)
    assert (back.lost, back.gained) == (found.gained, found.lost)
    assert found.value == pytest.approx(after.mean() - before.mean())
    assert 0 < p_value(before, after) <= 1
    assert p_value(before, after) == p_value(after, before)
    low, high = interval(before, after)
    assert -1 <= low <= after.mean() - before.mean() <= high <= 1
    assert interval(after, before) == pytest.approx((-high, -low))


@pytest.mark.parametrize(("loss", "gain"), [(0.03, 0.05), (0.02, 0.02), (0.01, 0.2)])
def test_the_interval_holds_the_truth_95_times_in_100(loss: float, gain: float) -> None:
    draws = np.random.default_rng(0).uniform(size=(2000, 200))
    held = 0
    for draw in draws:
        low, high = interval(draw < loss, (draw >= 1 - gain))
        held += low <= gain - loss <= high
    # With few flips it errs on the safe side.
    assert 0.94 <= held / len(draws) <= 0.985


def test_mcnemar_claims_a_difference_that_is_none_at_most_5_times_in_100() -> None:
    draws = np.random.default_rng(1).uniform(size=(1000, 300))
    false = [p_value(draw < 0.05, draw > 0.95) <= 0.05 for draw in draws]
    assert 0.01 < np.mean(false) <= 0.05


def test_a_difference_counts_what_was_lost_and_gained() -> None:
    found = difference(*table(50, 4, 9, 35))
    assert found == Difference(lost=4, gained=9, items=98)
    assert found.value == 5 / 98


def test_tangos_published_example() -> None:
    """Of 44 lenses one was disinfected by heat alone: Z = 1.709 at a margin of 10 % (Tango 1998).

    Half an item is taken off: with 2 p + Δ (1 - Δ) under the root, Z falls by 0.5 / sqrt(44 ·
    that). The likeliest share of losses solves 88 p² - (1 + 89 · 0.1) p + 0.1 · 1.1 = 0.
    """
    loss = (9.9 + math.sqrt(9.9**2 - 4 * 88 * 0.11)) / (2 * 88)
    spread = math.sqrt(44 * (2 * loss - 0.11))
    assert 3.4 / spread == pytest.approx(1.709, abs=5e-4)
    assert score(1, 0, 44, -0.1) == pytest.approx(2.9 / spread)
    assert Difference(1, 0, 44).noninferiority_p(0.1) == pytest.approx(norm.sf(2.9 / spread))


COUNTS = st.tuples(*[st.integers(0, 60)] * 3).filter(any)
"""Items lost, gained, and the others."""
MARGINS = st.floats(1e-3, 0.3)


@given(COUNTS, MARGINS)
def test_the_score_has_the_standard_error_of_the_likeliest_tables(
    counts: tuple[int, int, int], margin: float
) -> None:
    """Found by maximising the likelihood of a fall by the margin, instead of Tango's formula."""
    lost, gained, others = counts
    items = sum(counts)

    def unlikelihood(gain: float) -> float:
        shares = (gain + margin, gain, 1 - 2 * gain - margin)
        return -float(sum(xlogy(n, p) for n, p in zip((lost, gained, others), shares, strict=True)))

    most = (1 - margin) / 2
    found = minimize_scalar(unlikelihood, bounds=(0, most), options={"xatol": 1e-12})
    gain = min((0.0, float(found.x), most), key=unlikelihood)
    error = math.sqrt(items * (2 * gain + margin - margin**2))
    z = (gained - lost + items * margin - 0.5) / error
    assert score(lost, gained, items, -margin) == pytest.approx(z, rel=1e-4, abs=1e-4)


@given(COUNTS, MARGINS)
def test_the_bound_is_where_the_test_says_five_percent(
    counts: tuple[int, int, int], margin: float
) -> None:
    lost, gained, _ = counts
    found = Difference(lost, gained, sum(counts))
    bound = found.bound
    assert -1 <= bound <= found.value
    assume(abs(bound + margin) > 1e-9)
    assert (bound > -margin) == (found.noninferiority_p(margin) < ALPHA)
    if -1 < bound < 0:
        assert found.noninferiority_p(-bound) == pytest.approx(ALPHA)


@given(COUNTS, MARGINS, MARGINS)
def test_a_wider_margin_is_easier_to_keep(
    counts: tuple[int, int, int], one: float, other: float
) -> None:
    lost, gained, _ = counts
    narrow, wide = sorted((one, other))
    found = Difference(lost, gained, sum(counts))
    p = [found.noninferiority_p(margin) for margin in (narrow, wide)]
    assert p[0] >= p[1] - 1e-12


@pytest.mark.parametrize("margin", [-0.01, 0.0, 1.0])
def test_a_margin_that_is_none(margin: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Difference(1, 1, 10).noninferiority_p(margin)


def claims(items: int, discordance: float, fall: float, margin: float, level: float) -> float:
    """Return how often the test claims that accuracy fell by less than the margin.

    The sum over all tables (but those of 1e-10) of items lost and gained, if accuracy falls by
    `fall` and a share of `discordance` flips.
    """
    loss, gain = (discordance + fall) / 2, max((discordance - fall) / 2, 0.0)
    tails = np.array([1e-10, 1 - 1e-10])
    lost, gained = (
        np.arange(low, high + 1.0)
        for low, high in (binom.ppf(tails, items, p) for p in (loss, gain))
    )
    lost, gained = lost[:, None], gained[None, :]
    chances = binom.pmf(lost, items, loss) * binom.pmf(gained, items - lost, gain / (1 - loss))
    return float(chances[score(lost, gained, items, -margin) > norm.isf(level)].sum())


@pytest.mark.parametrize("items", [200, 1000, 10_000])
@pytest.mark.parametrize("rows", [1, 20], ids=["one row", "the first of twenty by Holm"])
def test_false_equivalence_is_claimed_at_most_as_often_as_it_says(items: int, rows: int) -> None:
    level = ALPHA / rows
    sizes = [
        claims(items, discordance, margin, margin, level)
        for margin in (0.005, 0.01, 0.02)
        for discordance in (0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1)
        if discordance >= margin
    ]
    assert max(sizes) <= level
    assert max(sizes) > 0.7 * level or rows > 1  # it is no test that never claims anything


def test_equivalence_is_found_where_it_is() -> None:
    """Equal accuracy, 2 % of the answers flip: a margin of a point needs a few thousand items."""
    powers = [claims(items, 0.02, 0.0, 0.01, ALPHA) for items in (200, 1000, 5000)]
    assert powers == sorted(powers)
    assert powers[0] < 0.2
    assert powers[-1] > 0.99


@pytest.mark.parametrize("z", [0.5, 1.6448536269514722, 2.5])
def test_a_bound_inverts_the_score(z: float) -> None:
    found = Difference(30, 12, 2000)
    bound = found.bound_at(z)
    assert score(30, 12, 2000, bound) == pytest.approx(z, rel=1e-6)
