"""Preprocessing as a user writes it: checked, one key after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from compress.errors import UserError, unknown
from compress.tasks.preprocessing import COLORS, INTERPOLATIONS, RESIZES, Settings

PerChannel = float | Sequence[float] | None
Size = int | tuple[int, int] | None
WORDS = {"resize": RESIZES, "interpolation": INTERPOLATIONS, "colors": COLORS}
MOST = 4
"""The image that is cropped is at most so many times as long as its crop, or the reverse."""


def settings_of(
    mean: PerChannel = None,
    std: PerChannel = None,
    size: Size = None,
    crop_pct: float | None = None,
    scale: float | None = None,
    antialias: bool | None = None,
    exif: bool | None = None,
    **words: str | None,
) -> Settings:
    """Return a user's settings of preprocessing; None leaves one open.

    `words` are those of `WORDS`. Raises UserError for a value that is none of its kind.
    """
    for key, value in words.items():
        if key not in WORDS:
            known_keys = {item.name for item in fields(Settings)} - {"to"}
            raise unknown("option", key, known_keys)
        if value is not None and value not in WORDS[key]:
            raise unknown(key, str(value), WORDS[key])
    if crop_pct is not None and not 1 / MOST <= crop_pct <= MOST:
        raise UserError(
            f"crop_pct must be from {1 / MOST} to {MOST}, such as 0.875: the share of the "
            f"resized image's side that is kept, not {crop_pct!r}"
        )
    if scale is not None and not 0 < scale < float("inf"):
        raise UserError(f"scale must be positive and finite, such as 0.00392 (1/255), not {scale}")
    if scale is not None and (mean is None or std is None):
        raise UserError(
            "scale needs mean and std beside it, which refer to levels times scale: those that are "
            "usual are for another scale. Give all three, or leave scale out"
        )
    known: Any = words
    return Settings(
        mean=_values(mean),
        std=_values(std),
        size=height_width(size),
        crop_pct=crop_pct,
        scale=scale,
        antialias=antialias,
        exif=exif,
        **known,
    )


def height_width(size: Size) -> tuple[int, int] | None:
    """Return a size as (height, width). Raises UserError unless it is one or two positive ints."""
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise UserError(f"size must be one or two positive whole numbers of pixels, not {size!r}")
    return pair[0], pair[1]


def _values(value: PerChannel) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(map(float, value if isinstance(value, Sequence) else [value]))
    except (TypeError, ValueError):
        raise UserError(f"mean and std are numbers, one per channel, not {value!r}") from None
