"""Spaces of architectures that tests draw, and costs on them."""

from __future__ import annotations

from functools import cache

import numpy as np
from hypothesis import strategies as st

from compress.supernet.space import Genes, Space


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Return a space of some widths, and of blocks of which some hold some of the widths."""
    widths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    blocks = draw(st.integers(0, 4))
    first = len(widths)
    genes = range(first, first + blocks)
    needed = (tuple(genes),) if blocks and draw(st.booleans()) else ()
    homes = {}
    for width in range(first):
        inside = draw(st.sets(st.sampled_from(genes), max_size=2)) if blocks else set()
        if inside:
            homes[width] = tuple(sorted(inside))
    return Space((*widths, *[2] * blocks), needed, homes)


@cache
def _weights(count: int, seed: int) -> list[float]:
    return np.random.default_rng(seed).random(1 + count).tolist()


def priced(space: Space, seed: int, genes: Genes) -> float:
    """Return a cost that does not fall when a gene rises: idle genes cost nothing."""
    base, *weights = _weights(len(genes), seed)
    idle = set(space.idle(genes))
    return base + sum(weights[i] * gene for i, gene in enumerate(genes) if i not in idle)
