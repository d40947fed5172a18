"""Random numbers by item and view: against SplitMix64 in plain Python, and laws."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from compress.stateless_rng import StatelessRNG, seed_of

MASK = 2**64 - 1


def splitmix(state: int) -> int:
    """SplitMix64's finaliser on unsigned integers (Steele, Lea and Flood 2014, figure 17)."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20), st.integers(0, 500))
def test_equals_splitmix_in_plain_python(items: list[int], view: int) -> None:
    rng = StatelessRNG(torch.tensor(items), view, seed=7)
    key = seed_of(7, view, "top")
    bits = [splitmix((item * 0x9E3779B97F4A7C15 + key) & MASK) for item in items]
    assert rng.below("top", 9).tolist() == [(value >> 1) % 9 for value in bits]
    assert rng.uniform("top").tolist() == [(value >> 40) / 2**24 for value in bits]


@given(st.permutations(range(30)), st.integers(0, 9), st.integers(0, 9))
def test_an_items_numbers_do_not_depend_on_its_batch(
    order: list[int], view: int, seed: int
) -> None:
    whole = StatelessRNG(torch.arange(30), view, seed)
    some = StatelessRNG(torch.tensor(order[:7]), view, seed)
    assert torch.equal(some.uniform("flip"), whole.uniform("flip")[order[:7]])
    assert torch.equal(some.of(torch.arange(30)).below("x", 5), whole.below("x", 5))


def test_numbers_are_uniform_and_independent_over_items_views_purposes_and_seeds() -> None:
    items = torch.arange(20_000)
    base = StatelessRNG(items, 0, 0).uniform("a")
    others = [
        StatelessRNG(items, 1, 0).uniform("a"),
        StatelessRNG(items, 0, 1).uniform("a"),
        StatelessRNG(items, 0, 0).uniform("b"),
        base.roll(1),
    ]
    for values in (base, *others):
        assert stats.kstest(values.numpy(), "uniform").pvalue > 1e-3
    for values in others:
        assert abs(stats.pearsonr(base.numpy(), values.numpy()).statistic) < 0.03
    counts = torch.bincount(StatelessRNG(items, 3, 5).below("top", 9), minlength=9)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
