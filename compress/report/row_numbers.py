"""The numbers by which tables and pictures refer to rows."""

from __future__ import annotations

from collections.abc import Iterable

from compress.results.record import BASELINE
from compress.results.table import Row, text_of


def number_chains(rows: Iterable[Row]) -> dict[str, str]:
    """Return a number for each chain, in order; the baseline needs none."""
    chains = dict.fromkeys(text_of(row, "chain") for row in rows)
    chains.pop(BASELINE, None)
    return {BASELINE: "", **{chain: str(i) for i, chain in enumerate(chains, 1)}}
