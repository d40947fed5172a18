"""Every architecture that is drawn is one of the space, and within the budget."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_spaces import priced, spaces

from compress.supernet.space import Genes, Space, within


def sound(space: Space, genes: Genes) -> bool:
    """Say by the words of the space whether genes are settled (an oracle apart from the code's)."""
    in_range = all(0 <= g < n for g, n in zip(genes, space.choices, strict=True))
    kept = all(any(genes[block] for block in blocks) for blocks in space.needed)
    idle = [gene for gene, homes in space.homes.items() if not any(genes[one] for one in homes)]
    return in_range and kept and all(genes[gene] == space.choices[gene] - 1 for gene in idle)


@given(spaces(), st.integers(0, 99))
def test_whatever_is_drawn_mutated_or_crossed_is_of_the_space(space: Space, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = space.drawn(rng), space.drawn(rng)
    made = [first, space.mutated(first, 0.3, rng), space.crossed(first, second, rng)]
    assert all(sound(space, genes) for genes in [*made, space.smallest, space.largest])
    assert space.settled(first) == first


@given(spaces(), st.integers(0, 99), st.floats(0, 1))
def test_all_that_is_drawn_is_within_the_budget_and_no_step_is_left(
    space: Space, seed: int, share: float
) -> None:
    cost = partial(priced, space, seed)
    least = cost(space.smallest)
    budget = least + share * (cost(space.largest) - least)
    rng = np.random.default_rng(seed)
    for _ in range(5):
        genes = within(space, space.drawn(rng), cost, budget, rng)
        assert sound(space, genes)
        assert cost(genes) <= budget
        larger = [space.stepped(genes, gene, 1) for gene in range(len(genes))]
        assert all(one is None or cost(one) > budget for one in larger)


def test_a_budget_below_the_smallest_is_refused() -> None:
    space = Space((3, 3))
    with pytest.raises(ValueError, match="beyond the budget"):
        within(space, (2, 2), lambda genes: 1.0 + sum(genes), 0.5, np.random.default_rng(0))


def test_what_is_inside_a_block_that_is_not_there_means_nothing() -> None:
    space = Space((4, 2, 2), needed=((1, 2),), homes={0: (1,)})
    assert space.settled((1, 0, 1)) == space.settled((2, 0, 1)) == (3, 0, 1)
    assert space.smallest == (0, 1, 0)
    assert space.stepped((3, 0, 1), 0, -1) is None
    assert space.stepped((0, 1, 0), 1, -1) is None, "one of the blocks stays"
