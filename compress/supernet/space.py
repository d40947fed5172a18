"""What an architecture chooses: a tuple of genes, each a place among a few choices.

Nothing here knows what a gene stands for (the width of a group of channels, or whether a block is
there), so laws of the space can be tried on made-up ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

Genes = tuple[int, ...]
Cost = Callable[[Genes], float]
"""What an architecture costs; it must not fall when a gene rises."""

GONE = 0
"""The value of a block's gene when the block is not there."""


@dataclass(frozen=True)
class Space:
    """Genes and what binds them; a gene's choices are numbered from the cheapest to the whole."""

    choices: tuple[int, ...]
    """How many choices each gene has."""
    needed: tuple[tuple[int, ...], ...] = ()
    """Sets of blocks' genes, of which one at least is not `GONE`."""
    homes: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Gene -> blocks' genes without all of which it means nothing: a width inside of a block."""

    @property
    def largest(self) -> Genes:
        return tuple(count - 1 for count in self.choices)

    @property
    def smallest(self) -> Genes:
        return self.settled([0] * len(self.choices))

    @property
    def size(self) -> int:
        """The number of tuples of genes; those that `settled` makes equal count each."""
        return prod(self.choices)

    def settled(self, genes: Sequence[int]) -> Genes:
        """Return genes that keep what is needed, those that mean nothing at their largest.

        So equal networks have equal genes.
        """
        result = list(genes)
        for blocks in self.needed:
            if all(result[gene] == GONE for gene in blocks):
                result[blocks[0]] = 1
        for gene in self.idle(result):
            result[gene] = self.choices[gene] - 1
        return tuple(result)

    def idle(self, genes: Sequence[int]) -> list[int]:
        """Return the genes that mean nothing, as no block is there that they are about."""
        return [
            gene
            for gene, blocks in self.homes.items()
            if all(genes[block] == GONE for block in blocks)
        ]

    def drawn(self, rng: np.random.Generator) -> Genes:
        """Return random genes, each choice of a gene as likely as the others."""
        return self.settled([int(rng.integers(count)) for count in self.choices])

    def mutated(self, genes: Genes, rate: float, rng: np.random.Generator) -> Genes:
        """Return genes of which each is drawn anew with a probability, one of them in any case."""
        if not genes:
            return genes
        chosen = rng.random(len(genes)) < rate
        chosen[rng.integers(len(genes))] = True
        fresh = [int(rng.integers(count)) for count in self.choices]
        pairs = zip(genes, fresh, chosen, strict=True)
        return self.settled([new if again else old for old, new, again in pairs])

    def crossed(self, first: Genes, second: Genes, rng: np.random.Generator) -> Genes:
        """Return genes that come from one or the other with equal probability."""
        mine = rng.random(len(first)) < 0.5
        return self.settled(
            [a if own else b for a, b, own in zip(first, second, mine, strict=True)]
        )

    def stepped(self, genes: Genes, gene: int, by: int) -> Genes | None:
        """Return genes with one of them a step further; None where that changes nothing."""
        value = genes[gene] + by
        if not 0 <= value < self.choices[gene] or gene in self.idle(genes):
            return None
        after = self.settled([*genes[:gene], value, *genes[gene + 1 :]])
        return after if after != genes else None


def within(
    space: Space, genes: Genes, cost: Cost, budget: float, rng: np.random.Generator
) -> Genes:
    """Return genes like these that cost at most `budget`, and that no single step could enlarge.

    Random genes take steps down until the budget is met, then up as long as it is. The space's
    smallest architecture must be within the budget; raises ValueError if it is not.
    """
    if cost(space.smallest) > budget:
        raise ValueError("the smallest architecture is beyond the budget")
    while cost(genes) > budget:
        for gene in rng.permutation(len(genes)).tolist():
            if (smaller := space.stepped(genes, gene, -1)) is not None:
                genes = smaller
                break
        else:
            genes = space.smallest
    return _filled(space, genes, cost, budget, rng)


def _filled(
    space: Space, genes: Genes, cost: Cost, budget: float, rng: np.random.Generator
) -> Genes:
    waiting = rng.permutation(len(genes)).tolist()
    while waiting:
        gene = waiting.pop(0)
        larger = space.stepped(genes, gene, 1)
        if larger is not None and cost(larger) <= budget:
            genes = larger
            waiting.append(gene)
    return genes
