"""From the raw splits of a source to `Data`: hold-out, calibration, preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from compress.errors import UserError
from compress.tasks.base import Data, Split, Subset, Tensors, spaced
from compress.tasks.image_classification import ImageClassification, Preprocessing, check_classes

HELD_OUT = 0.1
STRETCHED = "stretched to the size, bilinear with antialiasing"
CALIBRATION_ITEMS = 512
STATISTICS_BATCH = 4096
PROBED = 4
"""Images on which models are tried out."""

PerChannel = float | Sequence[float] | None
Size = int | tuple[int, int] | None


@dataclass(frozen=True)
class Source:
    """What a data source gives: uint8 images (N, C, H, W), labels, and its usual settings.

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
    """Whether the classes have names, and not numbers alone."""
    resize: str = "none"
    """In words, how the source itself brings its images to `size`."""
    training_fingerprint: str = ""


class Resized(Split):
    """Another split with its images resized, batch by batch, to (height, width)."""

    def __init__(self, whole: Split, size: tuple[int, int]) -> None:
        self.whole = whole
        self.size = size

    def __len__(self) -> int:
        return len(self.whole)

    def fetch(self, index: Tensor) -> tuple[Tensors, Tensor]:
        (images,), targets = self.whole.fetch(index)
        return (resize(images, self.size),), targets


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
    wanted = height_width(size) or source.size
    train, validation = _hold_out(source)
    drawn = _order(source, len(train), "calibration")[:CALIBRATION_ITEMS]
    calibration: Split = Subset(train, torch.from_numpy(drawn))
    task = _task(source, train, wanted, mean, std, augment)
    test = source.test
    if wanted != source.size:
        train, validation, calibration, test = (
            Resized(split, wanted) for split in (train, validation, calibration, test)
        )
    return Data(
        task,
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
    held, kept = (torch.from_numpy(np.sort(part)) for part in (order[:count], order[count:]))
    return Subset(source.train, kept), Subset(source.train, held)


def _order(source: Source, count: int, purpose: str) -> np.ndarray:
    """Return a permutation that depends on the training data alone, never on a run's seed.

    (Of a published source, on the whole of it: results on it depend on that hold-out.)
    NumPy freezes the stream of the legacy RandomState; torch promises nothing across versions.
    """
    at = {"validation": 0, "calibration": 8}[purpose]
    seed = int((source.training_fingerprint or source.fingerprint)[at : at + 8], 16)
    return np.random.RandomState(seed).permutation(count).astype(np.int64)


def _task(
    source: Source,
    train: Split,
    size: tuple[int, int],
    mean: PerChannel,
    std: PerChannel,
    augment: str | None,
) -> ImageClassification:
    usual_mean, usual_std = source.mean, source.std
    if (usual_mean is None or usual_std is None) and (mean is None or std is None):
        usual_mean, usual_std = channel_statistics(train)
    chosen = augment if augment is not None else source.augment
    try:
        preprocessing = Preprocessing(
            source.channels,
            size,
            _values(mean, usual_mean),
            _values(std, usual_std),
            resize=source.resize if size == source.size else STRETCHED,
        )
        (images,), _ = train.fetch(spaced(PROBED, len(train)))
        return ImageClassification(
            source.name,
            check_classes(source.classes),
            preprocessing,
            augment=chosen,
            samples=images if size == source.size else resize(images, size),
        )
    except ValueError as error:
        raise UserError(f"{source.name}: {error}") from None


def _values(given: PerChannel, usual: tuple[float, ...] | None) -> tuple[float, ...]:
    if given is None:
        return usual or ()
    try:
        values = given if isinstance(given, Sequence) else [given]
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise UserError(f"mean and std are numbers, one per channel, not {given!r}") from None


def channel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of each channel, for values in [0, 1].

    Counted exactly through a histogram of the 256 levels and rounded to 4 digits; the standard
    deviation is at least one level, so that constant images do not divide by zero.
    """
    counts: Tensor | None = None
    for (images,), _ in split.batches(STATISTICS_BATCH):
        levels = images.transpose(0, 1).flatten(1)
        new = torch.stack([torch.bincount(row, minlength=256) for row in levels])
        counts = new if counts is None else counts + new
    assert counts is not None, "an empty split was refused before"
    share = counts.double() / counts.sum(1, keepdim=True)
    level = torch.arange(256, dtype=torch.float64) / 255
    mean = (share * level).sum(1)
    std = (share * (level - mean[:, None]) ** 2).sum(1).sqrt().clamp_min(1 / 255)
    return _rounded(mean), _rounded(std)


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)
