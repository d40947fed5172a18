"""The rows of a grid: a chain on validation and test items, and what it took."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "measurement"))

from kept_rows import KeptRows

from compress.recommender.measured import Measured
from compress.recommender.work import shapes_of
from compress.results.record import BASELINE
from compress.stats.pairs import Difference
from compress.techniques import chain as parse
from compress.techniques.quantize import ROUGHLY

TIMES = ("speedup", "speedup_low", "speedup_high", "ms")
"""What the timing of a file tells of a chain."""


@dataclass(frozen=True)
class GridRow:
    """A chain: on validation items (with its speed-up), on test items, and what it took."""

    full: str
    """The chain of the grid that it belongs to."""
    level: str
    """'untrained', 'short', 'full' or 'baseline'."""
    validation: Measured
    steps: tuple[tuple[str, float], ...]
    """Text and seconds of each step."""
    measuring: float
    timing: float = 0.0
    test_items: int = 0
    test_lost: int = 0
    test_gained: int = 0

    @property
    def test(self) -> Difference:
        return Difference(self.test_lost, self.test_gained, self.test_items)


def rows_path(out: Path, grid: str) -> Path:
    return out / f"grid-{grid}.jsonl"


def times_of(out: Path, grid: str) -> KeptRows:
    """Return the rows of a grid's timing, where that came after the rest."""
    return KeptRows(out / f"grid-{grid}-times.jsonl", "chain")


def stored(rows: Mapping[str, Any], text: str) -> str:
    """Return by which chain a chain is known: a grid's rows may be placed for as long as usual.

    (What is only screened is placed for a shorter time.)
    """
    return text if text in rows else text.replace(f"seconds={ROUGHLY}, ", "")


def read(out: Path, grid: str) -> dict[str, GridRow]:
    """Return the rows of a grid by their chains, with the times that there are."""
    path = rows_path(out, grid)
    rows: dict[str, GridRow] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        row = msgspec.convert(json.loads(line), GridRow)
        rows[row.validation.chain] = row
    known = {chain: times for (chain,), times in times_of(out, grid).read().items()}
    for text, row in rows.items():
        chain = parse(text) if known and text != BASELINE else None
        shapes = "" if chain is None else stored(known, repr(shapes_of(chain) or chain))
        if (times := known.get(shapes)) and row.level == "full":
            figures = {name: times[name] for name in TIMES}
            timed = replace(row.validation, timed=text, **figures)
            rows[text] = replace(row, validation=timed, timing=times["seconds"])
    return rows
