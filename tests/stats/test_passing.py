"""The chance of passing on other items: against all outcomes one by one, and against draws."""

from __future__ import annotations

from math import lgamma
from statistics import NormalDist

import numpy as np
import pytest

from compress.stats.levels import ALPHA
from compress.stats.pairs import Difference
from compress.stats.passing import needed_change, passing_chance, passing_losses


def z(level: float = ALPHA) -> float:
    return NormalDist().inv_cdf(1 - level)


@pytest.mark.parametrize("items", [60, 360, 1000, 5000])
@pytest.mark.parametrize("margin", [0.005, 0.01, 0.05])
@pytest.mark.parametrize("level", [ALPHA, ALPHA / 4])
def test_the_most_losses_are_those_of_the_test(items: int, margin: float, level: float) -> None:
    flips = np.array([0, 1, 2, 7, 40, 60])
    for count, most in zip(flips, passing_losses(flips, items, margin, z(level)), strict=True):
        for lost in range(count + 1):
            passes = Difference(lost, int(count) - lost, items).noninferiority_p(margin) <= level
            assert passes == (lost <= most)


def outcome(lost: int, gained: int, items: int, alphas: tuple[float, float, float]) -> float:
    """Return the Dirichlet-multinomial probability of so many losses and gains."""
    counts = lost, gained, items - lost - gained
    total = sum(alphas)
    log = lgamma(items + 1) + lgamma(total) - lgamma(items + total)
    for count, alpha in zip(counts, alphas, strict=True):
        log += lgamma(count + alpha) - lgamma(alpha) - lgamma(count + 1)
    return float(np.exp(log))


@pytest.mark.parametrize(
    ("lost", "gained", "seen", "items", "margin", "finalists"),
    [
        (0, 0, 1000, 380, 0.01, 1),
        (2, 1, 1500, 500, 0.02, 1),
        (5, 2, 1000, 300, 0.03, 2),
        (1, 1, 300, 150, 0.08, 1),
        (8, 0, 900, 400, 0.02, 1),
        (3, 3, 2000, 700, 0.01, 4),
    ],
)
def test_the_chance_is_the_sum_over_all_outcomes_that_pass(
    lost: int, gained: int, seen: int, items: int, margin: float, finalists: int
) -> None:
    alphas = lost + 1, gained + 1, seen - lost - gained
    sums = {True: 0.0, False: 0.0}
    for losses in range(60):
        for gains in range(60):
            p = Difference(losses, gains, items).noninferiority_p(margin)
            sums[p <= ALPHA / finalists] += outcome(losses, gains, items, alphas)
    assert sum(sums.values()) == pytest.approx(1, abs=1e-6)
    found = passing_chance(lost, gained, seen, items, margin, z(ALPHA / finalists))
    assert found == pytest.approx(sums[True], abs=5e-4)


@pytest.mark.parametrize(
    ("lost", "gained", "seen", "items", "margin", "finalists"),
    [
        (12, 8, 2000, 5000, 0.008, 1),
        (60, 40, 5000, 10_000, 0.01, 2),
        (300, 250, 10_000, 50_000, 0.01, 1),
        (2000, 1800, 50_000, 10_000, 0.01, 4),
        (20, 10, 500, 50_000, 0.03, 1),
        (3, 1, 143, 1000, 0.05, 2),
    ],
)
def test_the_chance_is_that_of_draws(
    lost: int, gained: int, seen: int, items: int, margin: float, finalists: int
) -> None:
    generator, draws = np.random.default_rng(0), 4000
    shares = generator.dirichlet([lost + 1, gained + 1, seen - lost - gained], draws)
    passed = sum(
        Difference(int(losses), int(gains), items).noninferiority_p(margin) <= ALPHA / finalists
        for losses, gains, _ in generator.multinomial(items, shares)
    )
    found = passing_chance(lost, gained, seen, items, margin, z(ALPHA / finalists))
    assert found == pytest.approx(passed / draws, abs=0.025)  # three standard errors of the draws


@pytest.mark.parametrize("items", [1, 360, 1000, 50_000])
@pytest.mark.parametrize(("lost", "gained", "seen"), [(0, 0, 143), (30, 10, 1000), (9, 0, 9)])
def test_the_needed_change_is_where_the_test_passes(
    items: int, lost: int, gained: int, seen: int
) -> None:
    needed = needed_change(lost, gained, seen, items, 0.01, z())
    flips = items * (lost + gained + 2) / (seen + 2)

    def passes(change: float) -> bool:
        losses, gains = (flips - change * items) / 2, (flips + change * items) / 2
        return Difference(losses, gains, items).noninferiority_p(0.01) <= ALPHA

    assert not passes(needed - 1e-6)
    assert passes(min(1.0, needed + 1e-6)) or needed == 1
    assert 0 <= passing_chance(lost, gained, seen, items, 0.01, z()) <= 1
