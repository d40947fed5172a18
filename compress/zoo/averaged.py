"""Averaged weights (EMA, SWA), as checkpoints hold them: what tells them from all else."""

from __future__ import annotations

import re
from collections.abc import Iterable

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""Where checkpoints have averaged weights, which are meant to be used: they come first."""
LIKE_AVERAGED = re.compile(
    r"(?i:averag|(?<![a-z])(ema|swa|avg|shadow)(?![a-z])|model_?ema|ema_?model)"
    r"|(?<=[a-z])(Ema|EMA|Swa|SWA|Avg)(?![a-z])|(?<![A-Za-z])(EMA|SWA)(?=[A-Z][a-z])"
)
"""Other names of averaged weights. ('schema' and 'semantic' are none.)"""
UNLIKE_AVERAGED = re.compile(
    r"(?i:optim|(exp|square|grad)_avg|avg_sq|(?<![a-z])(backup|collected|online|current|raw)(?![a-z]))"
)
"""Names of what lies beside averages or looks like them: an optimizer's means of gradients, and the
weights themselves, which an average keeps for the time that it takes their place."""


def is_averaged(key: str) -> bool:
    """Whether a key is one under which averaged weights are saved: the last part that tells."""
    for part in reversed(key.split(".")):
        if UNLIKE_AVERAGED.search(part):
            return False
        if LIKE_AVERAGED.search(part):
            return True
    return False


def averaged_prefixes(names: Iterable[str]) -> list[str]:
    """Return what averaged weights among others have in front of their names, once each."""
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")[:-1]
        for count in range(1, len(parts) + 1):
            prefix = ".".join(parts[:count])
            if is_averaged(prefix):
                found[f"{prefix}."] = None
                break
    return list(found)
