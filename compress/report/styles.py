"""Which kind of compression a row is, by its steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from compress.results.record import BASELINE, CONTROL, Step, flat
from compress.results.table import Row, text_of

_CORE = ("carve", "prune_weights", "prune_channels", "factorize")
_RECOVERY = ("train", "finetune", "distill")


@dataclass(frozen=True)
class Look:
    """A family's colour (Okabe and Ito's, told apart by the colour-blind) and marker."""

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
    "precision": Look("#CC79A7", "p", "precision only"),
    "combined": Look("#56B4E9", "h", "combined"),
    "other": Look("#6B6B6B", "v", "other"),
    CONTROL: Look("#8C8C8C", "x", "control"),
}


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
    found = [name for name in _CORE if name in names]
    found += ["other"] if names - {*_CORE, *_RECOVERY} else []
    if any(step.name == "distill" and step.builds for step in steps):
        found.append("distill")
    if len(found) > 1:
        return "combined"
    if found or "distill" in names:
        return found[0] if found else "distill"
    return "precision" if any(step.lowers for step in steps) else "other"


def look_name(row: Row) -> str:
    """Return the key of `LOOKS` for a row: its chain's family, or `control` whatever that is."""
    return CONTROL if text_of(row, "role") == CONTROL else family(row)


def precision(row: Row) -> str:
    """Return what the row's file is stored in: float32, float16 or int8."""
    return text_of(row, "precision") or "float32"


def precisions(rows: Iterable[Row]) -> list[str]:
    """Return the precisions that a key explains: float16 only if one of the files has it."""
    found = {precision(row) for row in rows}
    return ["float32", *(["float16"] if "float16" in found else []), "int8"]


def step_names(row: Row) -> list[str]:
    """Return the names of a row's steps, in order; behind a `repeat` what it repeats."""

    def names(steps: Iterable[Step]) -> list[str]:
        return [name for step in steps for name in (step.name, *names(step.steps))]

    return names(_steps(row))


def _steps(row: Row) -> list[Step]:
    return list(map(Step.from_json, row.get("steps") or ()))
