"""What tables and pictures show of a row's chain: its number, a short form, and its look."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from compress.report.layout import cut, width
from compress.results.record import BASELINE, CONTROL, Step, flat
from compress.results.seeds import over_seeds, seeds_of
from compress.results.table import Row, ordered, text_of

ARROW = "→"
LONGEST = 20
"""Letters of a name in a brief chain."""
_LONG = re.compile(rf"(['\"])((?:(?!\1).){{{LONGEST + 1},}})\1")
_CORE = ("carve", "prune_weights", "prune_channels", "factorize", "search")
_RECOVERY = ("train", "finetune", "distill", "sparsify")


class Look(NamedTuple):
    """A colour (Okabe and Ito's, told apart by the colour-blind), a marker, and what they mean."""

    colour: str
    marker: str
    label: str


LOOKS = {
    BASELINE: Look("#000000", "*", "baseline"),
    "distill": Look("#0072B2", "o", "distill"),
    "prune_weights": Look("#E69F00", "s", "prune weights"),
    "prune_channels": Look("#D55E00", "D", "prune channels"),
    "factorize": Look("#009E73", "^", "factorize"),
    "carve": Look("#8C510A", "P", "carve"),
    "search": Look("#A89600", "<", "search"),
    "precision": Look("#CC79A7", "p", "precision only"),
    "combined": Look("#56B4E9", "h", "combined"),
    "other": Look("#6B6B6B", "v", "other"),
    CONTROL: Look("#8C8C8C", "x", "control"),
}
"""The look of every family of chains."""


def by_chain(rows: Iterable[Row], about: Mapping[str, Any]) -> tuple[list[Row], list[int]]:
    """Return one row for every chain, the baseline first, and the seeds they stand for."""
    single = ordered(rows)
    seeds = seeds_of(single)
    return [*over_seeds(single, about)] if len(seeds) > 1 else single, seeds


def number_chains(rows: Iterable[Row]) -> dict[str, str]:
    """Return a number for each chain, in order; the baseline needs none."""
    chains = dict.fromkeys(text_of(row, "chain") for row in rows)
    chains.pop(BASELINE, None)
    return {BASELINE: "", **{chain: str(i) for i, chain in enumerate(chains, 1)}}


def row_list(rows: Sequence[Row], labels: Mapping[str, str]) -> str:
    """Return the rows by their numbers, such as `baseline, rows 1, 3-5`."""
    numbers = sorted({int(label) for row in rows if (label := labels[text_of(row, "chain")])})
    spans: list[list[int]] = []
    for one in numbers:
        if spans and one == spans[-1][-1] + 1:
            spans[-1].append(one)
        else:
            spans.append([one])
    parts = ["baseline"] if any(text_of(row, "chain") == BASELINE for row in rows) else []
    if spans:
        text = ", ".join(f"{s[0]}" if len(s) == 1 else f"{s[0]}-{s[-1]}" for s in spans)
        parts.append(f"row{'' if len(numbers) == 1 else 's'} {text}")
    return ", ".join(parts)


def short(chain: str, limit: int, names: Sequence[str] = ()) -> str:
    """Return a chain, whose steps have these names, in at most `limit` columns.

    What fits is left alone, a single step is cut. Otherwise the steps' names must do, shortened
    where they have to be: `prune_c.→distill→quantize`.
    """
    if width(chain) <= limit:
        return chain
    if len(names) < 2:
        return cut(chain, limit)
    for longest in range(max(4, *map(len, names)), 3, -1):
        text = ARROW.join(n if len(n) <= longest else f"{n[: longest - 1]}." for n in names)
        if width(text) <= limit:
            return text
    return cut(text, limit)


def brief(chain: str) -> str:
    """Return a chain with its long names cut: `distill(student='torchvision:Visio…', epochs=3)`."""
    return _LONG.sub(lambda match: f"{match[1]}{match[2][: LONGEST - 1]}…{match[1]}", chain)


def step_names(row: Row) -> list[str]:
    """Return the names of a row's steps, in order; behind a `repeat` what it repeats."""

    def names(steps: Iterable[Step]) -> list[str]:
        return [name for step in steps for name in (step.name, *names(step.steps))]

    return names(_steps(row))


def family(row: Row) -> str:
    """Return the key of `LOOKS` for what a row's chain does.

    Steps that only recover accuracy, and those that write int8 or float16, do not count beside
    pruning or factorizing, but a distillation into a student does: `combined` is two or more of
    these. `precision` is a chain that does nothing but write the file in another precision.
    """
    if text_of(row, "chain") == BASELINE:
        return BASELINE
    steps = list(flat(_steps(row)))
    names = {step.name for step in steps if not step.lowers}
    families = [name for name in _CORE if name in names]
    families += ["other"] if names - {*_CORE, *_RECOVERY} else []
    if any(step.name == "distill" and step.builds for step in steps):
        families.append("distill")
    if len(families) > 1:
        return "combined"
    if families or "distill" in names:
        return families[0] if families else "distill"
    return "precision" if any(step.lowers for step in steps) else "other"


def look_name(row: Row) -> str:
    """Return the key of `LOOKS` for a row: its chain's family, or `control` whatever that is."""
    return CONTROL if text_of(row, "role") == CONTROL else family(row)


def precision(row: Row) -> str:
    """Return what the row's file is stored in: float32, float16 or int8."""
    return text_of(row, "precision") or "float32"


def _steps(row: Row) -> list[Step]:
    return list(map(Step.from_json, row.get("steps") or ()))
