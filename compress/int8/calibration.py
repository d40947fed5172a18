"""Whether calibration items can show what a network will see."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.errors import UserError
from compress.system.amounts import plural
from compress.tasks.base import Split, Subset, Task, Tensors, prepared_batches, spaced

FEW = 16
LOOKED_AT = 4
"""Batches whose first images may turn out to be noise."""
FAR = 8.0
"""Times as large as the median item that an outlier is."""
FEW_OUTLIERS = 0.05
"""The share of items up to which they are outliers."""
ALIKE = 1e-6
"""Items that differ by less than this share of their size are one item."""
RELATED = 0.2
"""The least correlation of neighbouring pixels in images of anything. Noise has none."""
SMALLEST = 8
"""Pixels a side from which on neighbours say something."""


@dataclass(frozen=True)
class Calibration:
    """Batches of items, prepared anew in every pass: memory does not grow with their number."""

    task: Task
    items: Split
    size: int = 32

    def __iter__(self) -> Iterator[Tensors]:
        return (inputs for inputs, _ in self.pairs())

    def pairs(self) -> Iterator[tuple[Tensors, Tensor]]:
        """Yield (inputs, targets)."""
        return prepared_batches(self.task, self.items, self.size)


Batches = Calibration | Sequence[Tensors]


def number_of(batches: Batches) -> int:
    """Return how many items there are."""
    if isinstance(batches, Calibration):
        return len(batches.items)
    return sum(len(batch[0]) for batch in batches)


def some_of(batches: Batches, count: int) -> Batches:
    """Return at most `count` items, of a split evenly spaced ones."""
    if number_of(batches) <= count:
        return batches
    if isinstance(batches, Calibration):
        return replace(batches, items=Subset(batches.items, spaced(count, len(batches.items))))
    found: list[Tensors] = []
    for batch in batches:
        if count > 0:
            found.append(tuple(tensor[:count] for tensor in batch))
        count -= len(batch[0])
    return found


def suspicions(batches: Batches) -> Iterator[str]:
    """Yield, in words, why items may be no good for calibration.

    Raises UserError without items, where they are not finite, and where all are one and the same.
    """
    count = number_of(batches)
    if not count:
        raise UserError("quantization needs calibration data, and there is none")
    first: Tensors = ()
    images: list[Tensor] = []
    same = True
    classes: set[int] = set()
    for batch, targets in _with_targets(batches):
        classes |= set(targets.tolist())
        if any(one.is_floating_point() and not one.isfinite().all() for one in batch):
            raise UserError("calibration items hold NaN or infinite values")
        first = first or tuple(tensor[:1].clone() for tensor in batch)
        same = same and all(map(_alike, batch, first))
        if len(images) < LOOKED_AT:
            images.append(batch[0][:FEW].clone())
    if count > 1 and same:
        raise UserError(
            f"all {count} calibration items are the same: ranges need items as the network will "
            f"see them"
        )
    if count < FEW:
        yield (
            f"only {plural(count, 'calibration item')}, and {FEW} are the least that ranges can "
            f"rest on"
        )
    elif len(classes) == 1:
        yield (
            f"all {count} calibration items are of one class: ranges may be wrong for items of "
            f"others"
        )
    if _noise(images):
        yield (
            "the calibration images look like noise, as their neighbouring pixels are unrelated: "
            "ranges are right only for inputs of the same kind"
        )


def _with_targets(batches: Batches) -> Iterator[tuple[Tensors, Tensor]]:
    """Yield batches with their classes, where these are known; else with none."""
    if isinstance(batches, Calibration) and batches.items.labelled:
        yield from batches.pairs()
    else:
        yield from ((batch, torch.zeros(0)) for batch in batches)


def identities(batch: Tensors) -> list[bytes]:
    """Return what tells the items of a batch from one another: hashes of their contents."""
    return [
        hashlib.sha256(b"".join(one.contiguous().numpy().tobytes() for one in item)).digest()
        for item in zip(*batch, strict=True)
    ]


def outliers(batches: Batches) -> list[int]:
    """Return the items whose values are far larger than those of nearly all others, by number.

    Such as an image in a file that was not scaled as the others were. They would set every range.
    None count as such where they are more than a few.
    """
    largest = torch.cat(
        [
            torch.stack([_largest(one) for one in batch if one.is_floating_point()]).amax(0)
            for batch in batches
            if any(one.is_floating_point() for one in batch)
        ]
        or [torch.zeros(0)]
    )
    if not len(largest):
        return []
    found = torch.nonzero(largest > FAR * largest.median())[:, 0].tolist()
    return found if len(found) <= FEW_OUTLIERS * len(largest) else []


def _largest(tensor: Tensor) -> Tensor:
    """Return the largest absolute value of each item."""
    return tensor.reshape(len(tensor), -1).abs().amax(1)


def _alike(tensor: Tensor, one: Tensor) -> bool:
    values = tensor.double()
    return bool(((values - one.double()).abs() <= ALIKE * one.double().abs().max()).all())


def _noise(images: Sequence[Tensor]) -> bool:
    """Whether neighbouring pixels of images (N, C, H, W) are unrelated."""
    if images[0].ndim != 4 or min(images[0].shape[2:]) < SMALLEST:
        return False
    pixels = torch.cat(list(images)).double()
    pixels = pixels - pixels.mean((2, 3), keepdim=True)
    product = (pixels[..., :-1] * pixels[..., 1:]).mean()
    return bool(product < RELATED * (pixels**2).mean())
