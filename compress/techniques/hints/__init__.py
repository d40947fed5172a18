"""The hints by name: ours, and those that installed packages bring."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from compress.parts import by_name
from compress.techniques.hints.attention import Attention
from compress.techniques.hints.base import Hint
from compress.techniques.hints.fitnets import Fitnets

BUILT_IN: tuple[type[Hint], ...] = (Fitnets, Attention)


@functools.cache
def hints() -> Mapping[str, type[Hint]]:
    """Return every hint by its name in chain text: entry points `compress.hints` included."""
    return by_name(Hint, "compress.hints", BUILT_IN)


__all__ = ["Attention", "Fitnets", "Hint", "hints"]
