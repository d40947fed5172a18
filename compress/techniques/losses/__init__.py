"""The losses of distillation by name: ours, and those that installed packages bring."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from compress.parts import by_name
from compress.techniques.losses.base import Loss, SoftenedLoss
from compress.techniques.losses.dist import Dist
from compress.techniques.losses.dkd import Dkd
from compress.techniques.losses.kd import Kd
from compress.techniques.losses.logits import Logits

BUILT_IN: tuple[type[Loss], ...] = (Kd, Logits, Dkd, Dist)


@functools.cache
def losses() -> Mapping[str, type[Loss]]:
    """Return every loss by its name in chain text: entry points `compress.losses` included."""
    return by_name(Loss, "compress.losses", BUILT_IN)


__all__ = ["Dist", "Dkd", "Kd", "Logits", "Loss", "SoftenedLoss", "losses"]
