"""A chain in few columns, for tables that refer to it by its number."""

from __future__ import annotations

import re
from collections.abc import Sequence

from compress.report.layout import width

ARROW = "→"
LONGEST = 20
"""Letters of a name in a brief chain."""
_LONG = re.compile(rf"(['\"])((?:(?!\1).){{{LONGEST + 1},}})\1")


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
    return _LONG.sub(lambda found: f"{found[1]}{found[2][: LONGEST - 1]}…{found[1]}", chain)


def cut(text: str, limit: int) -> str:
    """Return the text, its end replaced by an ellipsis where it is wider than `limit`."""
    if width(text) <= limit:
        return text
    kept = ""
    for char in text:
        if width(kept + char) > limit - 1:
            break
        kept += char
    return kept.rstrip() + "…"
