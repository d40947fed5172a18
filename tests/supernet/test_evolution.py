"""Evolution finds what is known to be the best, for fewer judgements than chance needs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_spaces import priced, spaces

from compress.supernet.evolution import Score, evolved, sampled
from compress.supernet.halving import Rung, halved, rungs
from compress.supernet.space import Genes, Space, within

SPACE = Space((5,) * 8)
BEST = (4, 0, 2, 1, 3, 4, 2, 0)
LIMIT = sum(BEST)


def fits(genes: Genes, rng: np.random.Generator) -> Genes:
    return within(SPACE, genes, lambda one: float(sum(one)), LIMIT, rng)


def judge(some: Sequence[Genes]) -> list[Score]:
    """The nearer to the best, the better."""
    return [
        (-float(sum((a - b) ** 2 for a, b in zip(genes, BEST, strict=True))),) for genes in some
    ]


def search(seed: int, candidates: int = 800) -> list[Genes]:
    rng = np.random.default_rng(seed)
    found = evolved(SPACE, fits, judge, [], 40, candidates, rng)
    return [one.genes for one in found]


@pytest.mark.parametrize("seed", range(5))
def test_evolution_finds_the_known_optimum(seed: int) -> None:
    found = search(seed)
    assert found[0] == BEST
    assert len(found) == len(set(found)) == 800, "each of them is another one"
    by_chance = sampled(SPACE, fits, judge, 40, 800, np.random.default_rng(seed))
    assert judge([by_chance[0].genes])[0] < (0.0,), "chance does not, of 40,000"


def test_the_same_seed_finds_the_same() -> None:
    assert search(7, 120) == search(7, 120) != search(8, 120)


def test_starts_are_judged_first_and_all_are_ranked() -> None:
    asked: list[Genes] = []

    def noting(some: Sequence[Genes]) -> list[Score]:
        asked.extend(some)
        return judge(some)

    found = evolved(SPACE, fits, noting, [BEST], 10, 30, np.random.default_rng(0))
    assert asked[0] == found[0].genes == BEST
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert sorted(asked) == sorted(one.genes for one in found)


@given(spaces(), st.integers(0, 9), st.floats(0, 1))
def test_a_small_space_is_judged_once_and_within_the_budget(
    space: Space, seed: int, share: float
) -> None:
    least, most = (priced(space, seed, one) for one in (space.smallest, space.largest))
    budget = least + share * (most - least)

    def fit(genes: Genes, rng: np.random.Generator) -> Genes:
        return within(space, genes, lambda one: priced(space, seed, one), budget, rng)

    def score(some: Sequence[Genes]) -> list[Score]:
        return [(float(hash(genes) % 101),) for genes in some]

    rng = np.random.default_rng(seed)
    found = evolved(space, fit, score, [fit(space.smallest, rng)], 4, 12, rng)
    assert 1 <= len(found) <= 12
    assert len({one.genes for one in found}) == len(found)
    assert all(priced(space, seed, one.genes) <= budget for one in found)


@given(st.integers(1, 40), st.integers(1, 60))
def test_rungs_spend_the_winners_epochs(count: int, epochs: int) -> None:
    found = rungs(count, epochs)
    assert sum(rung.epochs for rung in found) == epochs
    assert found[0].entrants == count
    entrants = [rung.entrants for rung in found]
    assert all(a > b for a, b in itertools.pairwise(entrants))
    assert all(rung.epochs >= 1 for rung in found)


def test_halving_lets_the_better_half_learn_on() -> None:
    assert rungs(8, 7) == [Rung(8, 1), Rung(4, 2), Rung(2, 4)]
    learnt: dict[str, list[int]] = {}

    def train(name: str, place: int, epochs: int) -> Score:
        learnt.setdefault(name, []).append(epochs)
        return (float(name),)

    found = halved([str(number) for number in range(8)], 7, train)
    assert [[name for name, _ in some] for some in found] == [
        ["7", "6", "5", "4", "3", "2", "1", "0"],
        ["7", "6", "5", "4"],
        ["7", "6"],
    ]
    assert learnt["7"] == [1, 2, 4]
    assert learnt["0"] == [1]
