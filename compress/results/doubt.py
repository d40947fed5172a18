"""Whether a model that came with weights is right as often as it should be."""

from __future__ import annotations

from compress.stats.proportions import wilson

SHORT = 0.05
"""A share of right answers that is surely so far below what was promised is doubted."""
CAUSES = (
    "the usual causes are another preprocessing (keys mean, std, size, crop_pct, resize, "
    "interpolation, colors, scale), another order of the classes (class_order) and, of weights of "
    "your own, too little training"
)


def doubt_of(right: int, count: int, classes: int, promised: float | None = None) -> str:
    """Return what is odd about so many right answers; '' if nothing is.

    `promised` is the share that whoever trained the weights gives.
    """
    low, high = wilson(right, count)
    share = f"{right / max(count, 1):.1%} of {count:,} items"
    if low <= 1 / classes:
        among = f"not shown to be better than a guess among {classes:,} classes"
        return f"right on {share}, {among}: {CAUSES}"
    if promised is not None and high < promised - SHORT:
        return f"right on {share}, where {promised:.1%} are promised for its weights: {CAUSES}"
    return ""
