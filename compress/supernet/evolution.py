"""Finding good architectures: evolution, and the random draws that it has to beat.

After Real et al. 2019 (arXiv 1802.01548) and Cai et al. 2020 (arXiv 1908.09791): the best of what
has been judged so far become parents, half of the children are mutations of one and half are
crossed from two, and all are brought within the budget before they are judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from compress.supernet.space import Genes, Space

Score = tuple[float, ...]
"""How good an architecture is; of two, the larger tuple is the better."""
Judge = Callable[[Sequence[Genes]], Sequence[Score]]
Fits = Callable[[Genes, np.random.Generator], Genes]
"""Brings genes within the budget."""

RATE = 0.1
"""The probability that a gene is drawn anew in a mutation (Cai et al. 2020)."""
PARENTS = 0.25
"""The share of a population's size that become parents (Cai et al. 2020)."""
TRIES = 20
"""How often a child that is known already is made anew, before the generation is smaller."""


@dataclass(frozen=True)
class Judged:
    """An architecture and how good it is."""

    genes: Genes
    score: Score


def evolved(
    space: Space,
    fits: Fits,
    judge: Judge,
    starts: Sequence[Genes],
    population: int,
    candidates: int,
    rng: np.random.Generator,
) -> list[Judged]:
    """Judge `candidates` different architectures, or all there are; return them, the best first.

    The first generation is `starts` (within the budget) and random ones, a population together.
    """
    judged: dict[Genes, Score] = {}

    def ranked() -> list[Judged]:
        order = sorted(judged.items(), key=lambda one: one[1], reverse=True)
        return [Judged(genes, score) for genes, score in order]

    def child() -> Genes:
        parents = ranked()[: max(2, round(PARENTS * population))]
        first, second = (parents[int(rng.integers(len(parents)))].genes for _ in range(2))
        if rng.random() < 0.5:
            return space.mutated(first, RATE, rng)
        return space.crossed(first, second, rng)

    first = list(dict.fromkeys(starts))[: min(population, candidates)]
    while len(judged) < candidates:
        size = min(population, candidates - len(judged))
        make = child if judged else (lambda: space.drawn(rng))
        generation = _different([] if judged else first, judged, make, fits, size, rng)
        if not generation:
            break
        judged |= dict(zip(generation, judge(generation), strict=True))
    return ranked()


def sampled(
    space: Space,
    fits: Fits,
    judge: Judge,
    population: int,
    candidates: int,
    rng: np.random.Generator,
) -> list[Judged]:
    """Judge random architectures within the budget, as many as `evolved` does; the best first."""
    judged: dict[Genes, Score] = {}
    while len(judged) < candidates:
        size = min(population, candidates - len(judged))
        some = _different([], judged, lambda: space.drawn(rng), fits, size, rng)
        if not some:
            break
        judged |= dict(zip(some, judge(some), strict=True))
    order = sorted(judged.items(), key=lambda one: one[1], reverse=True)
    return [Judged(genes, score) for genes, score in order]


def _different(
    starts: Sequence[Genes],
    known: dict[Genes, Score],
    make: Callable[[], Genes],
    fits: Fits,
    count: int,
    rng: np.random.Generator,
) -> list[Genes]:
    """Return up to `count` architectures within the budget that are not known, `starts` first."""
    found = dict.fromkeys(starts)
    failed = 0
    while len(found) < count and failed < TRIES * count:
        genes = fits(make(), rng)
        if genes in known or genes in found:
            failed += 1
        else:
            found[genes] = None
    return list(found)
