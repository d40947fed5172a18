"""How a value changes in the course of a training: as a function of the fraction that is done."""

from __future__ import annotations

import math
from collections.abc import Callable

SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 0.0,
    "linear": lambda done: done,
    "cosine": lambda done: 0.5 * (1 - math.cos(math.pi * done)),
}
"""Name -> how much of the way is gone at a fraction of the training, both in [0, 1]."""


def between(first: float, last: float, shape: str, done: float) -> float:
    """Return the value at a fraction of a training that leads from `first` to `last`."""
    return first + (last - first) * SHAPES[shape](done)
