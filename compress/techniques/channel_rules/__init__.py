"""What each operator of the dispatcher does to labels of channels (see `channel_trace`).

A rule gets the tracer, the operator, its arguments and its result. A file holds the rules of one
kind of operator, and names in its table those that follow them.
"""

from __future__ import annotations

from compress.techniques.channel_rules import (
    blocks,
    norms,
    parts,
    pointwise,
    products,
    reductions,
    shape,
)
from compress.techniques.channel_rules.common import Rule

KINDS = (pointwise, shape, parts, blocks, reductions, products, norms)
RULES: dict[str, Rule] = {name: rule for kind in KINDS for name, rule in kind.RULES.items()}
"""Operator (in place or not) -> its rule. Operators that torch calls pointwise need none."""
