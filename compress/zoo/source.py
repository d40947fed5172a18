"""From the raw splits of a source to `Data`: hold-out, calibration, preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from compress.errors import UserError
from compress.tasks.base import Data, Split, Subset, Tensors, spaced
from compress.tasks.image_classification import ImageClassification, Preprocessing

HELD_OUT = 0.1
STRETCHED = "stretched to the size, bilinear with antialiasing"
CALIBRATION_ITEMS = 512
STATISTICS_BATCH = 4096
PROBED = 4
"""Images of the task's probe."""

PerChannel = float | Sequence[float] | None
Size = int | tuple[int, int] | None


@dataclass(frozen=True)
class Source:
    """The raw splits of a data source, uint8 images (N, C, H, W), and its usual settings.

    `size` is the (height, width) of the images. A `mean` or `std` of None is measured on the
    training split. `validation` is None where the source has no such split of its own.
    `training_fingerprint` covers what is not for testing; '' where the whole source never changes.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    train: Split
    test: Split
    validation: Split | None
    fingerprint: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: str = "none"
    note: str = ""
    named: bool = True
    """Whether the classes have names, not just numbers."""
    resize: str = "none"
    """In words, how the source itself brings its images to `size`."""
    training_fingerprint: str = ""


class Changed(Split):
    """Another split whose raw images are changed, batch by batch, by a function of them.

    Where it is not `labelled`, all its targets are zero.
    """

    def __init__(
        self, whole: Split, change: Callable[[Tensor], Tensor], labelled: bool = True
    ) -> None:
        self.whole = whole
        self.change = change
        self.labelled = labelled

    def __len__(self) -> int:
        return len(self.whole)

    def fetch(self, index: Tensor) -> tuple[Tensors, Tensor]:
        (images,), targets = self.whole.fetch(index)
        return (self.change(images),), targets if self.labelled else torch.zeros_like(targets)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 images (N, C, H, W) with antialiased bilinear interpolation."""
    smooth = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
    return smooth.round_().clamp_(0, 255).to(torch.uint8)


def height_width(size: Size) -> tuple[int, int] | None:
    """Return a size as (height, width). Raises UserError unless it is one or two positive ints."""
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise UserError(f"size must be one or two positive whole numbers of pixels, not {size!r}")
    return pair[0], pair[1]


def assemble(
    source: Source,
    *,
    mean: PerChannel = None,
    std: PerChannel = None,
    size: Size = None,
    augment: str | None = None,
) -> Data:
    """Return the `Data` of a source; what is None keeps the source's usual setting.

    Raises UserError if a split is empty or a setting does not fit the images.
    """
    _check_lengths(source)
    train, validation = _hold_out(source)
    order = _order(source, len(train), "calibration")[:CALIBRATION_ITEMS]
    calibration: Split = Subset(train, torch.from_numpy(order))
    test = source.test
    settings = {"mean": _values(mean), "std": _values(std), "augment": augment}
    changes: Any = {name: value for name, value in settings.items() if value is not None}
    source = replace(source, **changes)
    if source.mean is None or source.std is None:
        usual_mean, usual_std = channel_statistics(train)
        own_mean = usual_mean if source.mean is None else source.mean
        own_std = usual_std if source.std is None else source.std
        source = replace(source, mean=own_mean, std=own_std)
    new_size = height_width(size) or source.size
    if new_size != source.size:
        change = partial(resize, size=new_size)
        train, validation, calibration, test = (
            Changed(split, change) for split in (train, validation, calibration, test)
        )
        source = replace(source, size=new_size, resize=STRETCHED)
    return Data(
        _task(source, train),
        train,
        validation,
        calibration,
        test,
        source.fingerprint,
        source.note,
        source.training_fingerprint,
    )


def _check_lengths(source: Source) -> None:
    least = 1 if source.validation is not None else 2
    if len(source.train) < least:
        raise UserError(
            f"{source.name} has {len(source.train)} training images, which is too few: "
            f"at least {least} are needed"
        )
    for name, split in (("test", source.test), ("validation", source.validation)):
        if split is not None and len(split) == 0:
            raise UserError(f"the {name} split of {source.name} is empty")


def _hold_out(source: Source) -> tuple[Split, Split]:
    if source.validation is not None:
        return source.train, source.validation
    order = _order(source, len(source.train), "validation")
    count = max(1, int(len(order) * HELD_OUT))
    held_out, rest = (torch.from_numpy(np.sort(part)) for part in (order[:count], order[count:]))
    return Subset(source.train, rest), Subset(source.train, held_out)


def _order(source: Source, count: int, purpose: str) -> np.ndarray:
    """Return a permutation that depends on the training data alone, never on a run's seed.

    (Of a published source, on the whole of it: results on it depend on that hold-out.)
    NumPy freezes the stream of the legacy RandomState; torch promises nothing across versions.
    """
    start = {"validation": 0, "calibration": 8}[purpose]
    seed = int((source.training_fingerprint or source.fingerprint)[start : start + 8], 16)
    return np.random.RandomState(seed).permutation(count).astype(np.int64)


def _task(source: Source, train: Split) -> ImageClassification:
    assert source.mean is not None, "else it was measured"
    assert source.std is not None, "else it was measured"
    (samples,), _ = train.fetch(spaced(PROBED, len(train)))
    try:
        preprocessing = Preprocessing(
            source.channels, source.size, source.mean, source.std, source.resize
        )
        return ImageClassification(
            source.name, source.classes, preprocessing, augment=source.augment, samples=samples
        )
    except ValueError as error:
        raise UserError(f"{source.name}: {error}") from None


def _values(value: PerChannel) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(map(float, value if isinstance(value, Sequence) else [value]))
    except (TypeError, ValueError):
        raise UserError(f"mean and std are numbers, one per channel, not {value!r}") from None


def channel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of each channel, for values in [0, 1].

    Counted exactly through a histogram of the 256 levels and rounded to 4 digits; the standard
    deviation is at least one level, so that constant images do not divide by zero.
    """
    counts = torch.stack(
        [
            torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in channels])
            for channels in (images.unbind(1) for (images,), _ in split.batches(STATISTICS_BATCH))
        ]
    ).sum(0)
    share = counts.double() / counts.sum(1, keepdim=True)
    level = torch.arange(256, dtype=torch.float64) / 255
    mean = (share * level).sum(1)
    std = (share * (level - mean[:, None]) ** 2).sum(1).sqrt().clamp_min(1 / 255)
    means, stds = (tuple(round(value, 4) for value in values.tolist()) for values in (mean, std))
    return means, stds
