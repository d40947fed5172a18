"""Which kind of compression a chain is, read from its text alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from compress.report.columns import BASELINE, CONTROL

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_PARTS = re.compile(r"(?<!step)=\w*\((?:[^()]|\w+\([^()]*\))*\)")
"""An option's value that is a part, such as a loss, or in parentheses."""
_CALL = re.compile(r"([A-Za-z_][\w.]*)\(")
_CORE = ("carve", "prune_weights", "prune_channels", "factorize")
_LOWERED = {"quantize": "int8", "cast": "float16"}
_NEUTRAL = frozenset({"train", "finetune", "distill", "repeat", *_LOWERED})


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


def family(chain: str) -> str:
    """Return the key of `LOOKS` for a chain.

    Steps that only recover accuracy, and int8 or float16, do not count beside pruning or
    factorizing, but a distillation into a student does: `combined` is two or more of these.
    `precision` is a chain that does nothing but lower that, by `quantize` or `cast`.
    """
    if chain == BASELINE:
        return BASELINE
    names = set(step_names(chain))
    found = [name for name in _CORE if name in names]
    found += ["other"] if names - set(_CORE) - _NEUTRAL else []
    if "distill" in names and re.search(r"distill\([^)]*student=", _plain(chain)):
        found.append("distill")
    if len(found) > 1:
        return "combined"
    if found or "distill" in names:
        return found[0] if found else "distill"
    return "precision" if names & set(_LOWERED) else "other"


def look_name(chain: str, control: bool) -> str:
    """Return the key of `LOOKS` for a row: its chain's family, or `control` whatever that is."""
    return CONTROL if control else family(chain)


def precision(chain: str) -> str:
    """Return what the chain's file computes in: float32, float16 or int8."""
    names = step_names(chain)
    return next((number for name, number in _LOWERED.items() if name in names), "float32")


def precisions(chains: Iterable[str]) -> list[str]:
    """Return the precisions that a key explains: float16 only if one of the files has it."""
    found = {precision(chain) for chain in chains}
    return ["float32", *(["float16"] if "float16" in found else []), "int8"]


def step_names(chain: str) -> list[str]:
    """Return the names of a chain's steps, in order; neither quotes nor parts are looked into."""
    return _CALL.findall(_plain(chain))


def _plain(chain: str) -> str:
    """Return a chain with nothing inside quotes, and nothing in place of parts."""
    text, longer = _QUOTED.sub("''", chain), ""
    while text != longer:
        text, longer = _PARTS.sub("=", text), text
    return text
