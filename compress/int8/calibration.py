"""Whether calibration items can show what a network will see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from compress.errors import UserError
from compress.tasks.base import Tensors

FEW = 16
ALIKE = 1e-6
"""Items that differ by less than this share of their size are one item."""
RELATED = 0.2
"""The least correlation of neighbouring pixels in images of anything. Noise has none."""
SMALLEST = 8
"""Pixels a side from which on neighbours say something."""


def suspicions(batches: Sequence[Tensors]) -> Iterator[str]:
    """Yield, in words, why items may be no good for calibration.

    Raises UserError without items, where they are not finite, and where all are one and the same.
    """
    count = sum(len(batch[0]) for batch in batches)
    if not count:
        raise UserError("quantization needs calibration data, and there is none")
    for batch in batches:
        for tensor in batch:
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise UserError("calibration items hold NaN or infinite values")
    first = [tensor[:1] for tensor in batches[0]]
    if count > 1 and all(
        _alike(tensor, one) for batch in batches for tensor, one in zip(batch, first, strict=True)
    ):
        raise UserError(
            f"all {count} calibration items are the same: ranges need items as the network will "
            f"see them"
        )
    if count < FEW:
        yield f"only {count} calibration items, and {FEW} are the least that ranges can rest on"
    if _noise([batch[0] for batch in batches]):
        yield (
            "the calibration images look like noise, as their neighbouring pixels are unrelated: "
            "ranges are right only for inputs of the same kind"
        )


def _alike(tensor: Tensor, one: Tensor) -> bool:
    values = tensor.double()
    return bool(((values - one.double()).abs() <= ALIKE * one.double().abs().max()).all())


def _noise(images: Sequence[Tensor]) -> bool:
    """Whether neighbouring pixels of images (N, C, H, W) are unrelated."""
    if images[0].ndim != 4 or min(images[0].shape[2:]) < SMALLEST:
        return False
    pixels = torch.cat([batch[:FEW].double() for batch in images[:4]])
    pixels = pixels - pixels.mean((2, 3), keepdim=True)
    product = (pixels[..., :-1] * pixels[..., 1:]).mean()
    return bool(product < RELATED * (pixels**2).mean())
