"""From the raw splits of a source to `Data`: hold-out, calibration, preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from compress.errors import UserError
from compress.tasks.base import Data, Split, Subset, Tensors, spaced
from compress.tasks.image_classification import PROBED, ImageClassification
from compress.tasks.preprocessing import LEVELS, Fit, Preprocessing, Settings

HELD_OUT = 0.1
CALIBRATION_ITEMS = 512
STATISTICS_BATCH = 4096


@dataclass(frozen=True)
class Source:
    """The raw splits of a data source, uint8 images (N, C, H, W), and its usual settings.

    `size` is the (height, width) of the images. `mean` and `std` are in the images' own order of
    channels; one of None is measured on the training split. `validation` is None where the source
    has no such split of its own. `training_fingerprint` covers what is not for testing; '' where
    the whole source never changes.
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
    fit: Fit | None = None
    """How the source itself brings its images to `size`; None where they have it."""
    training_fingerprint: str = ""
    untrainable: str = ""
    """Why nothing can be trained on it: then `train` is the validation split, too."""


class Changed(Split):
    """Another split whose raw images are changed, batch by batch, by a function of them.

    None leaves them as they are. Where it is not `labelled`, all its targets are zero.
    """

    def __init__(
        self, whole: Split, change: Callable[[Tensor], Tensor] | None, labelled: bool = True
    ) -> None:
        self.whole = whole
        self.change = change
        self.labelled = labelled and whole.labelled

    def __len__(self) -> int:
        return len(self.whole)

    def fetch(self, index: Tensor) -> tuple[Tensors, Tensor]:
        (images,), targets = self.whole.fetch(index)
        if self.change is not None:
            images = self.change(images)
        return (images,), targets if self.labelled else torch.zeros_like(targets)

    def remade(self, how: Any) -> Split | None:
        whole = self.whole.remade(how)
        if self.change is not None or whole is None:
            return None
        return Changed(whole, None, self.labelled)


def fitted(images: Tensor, fit: Fit) -> Tensor:
    """Return uint8 images (N, C, H, W) of another size, each channel by itself."""
    count, channels = images.shape[:2]
    fits = [replace(fit, fill=fit.fill[at : at + 1]) for at in range(channels)]
    planes = [
        fit_one(Image.fromarray(plane))
        for image in images.cpu().numpy()
        for fit_one, plane in zip(fits, image, strict=True)
    ]
    pixels = np.stack(planes) if planes else np.zeros((0, *fit.size), np.uint8)
    return torch.from_numpy(pixels).view(count, channels, *fit.size).to(images.device)


def assemble(
    source: Source, settings: Settings, augment: str | None = None, origin: str = ""
) -> Data:
    """Return the `Data` of a source; what is None keeps the source's usual setting.

    `origin` says in words where the settings come from.

    Raises UserError if a split is empty or a setting does not fit the images.
    """
    _check_lengths(source)
    train, validation = _hold_out(source)
    order = _order(source, len(train), "calibration")[:CALIBRATION_ITEMS]
    calibration: Split = Subset(train, torch.from_numpy(order))
    test = source.test
    settings = settings.over(Settings(mean=source.mean, std=source.std))
    if settings.mean is None or settings.std is None:
        usual_mean, usual_std = channel_statistics(train)
        settings = settings.over(Settings(mean=usual_mean, std=usual_std))
    fit = source.fit
    wanted = settings.fit(source.size, "exact") if settings.geometry else None
    if fit is None and wanted is not None and wanted.changes(source.size):
        _check_resizes(source, wanted)
        fit = wanted
        change = partial(fitted, fit=fit)
        train, validation, calibration, test = (
            Changed(split, change) for split in (train, validation, calibration, test)
        )
    return Data(
        _task(source, settings, fit, augment, train, origin),
        train,
        validation,
        calibration,
        test,
        source.fingerprint,
        source.note,
        source.training_fingerprint,
        source.untrainable,
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


def _check_resizes(source: Source, wanted: Fit) -> None:
    if wanted.resize == "none":
        have, size = (f"{height}x{width}" for height, width in (source.size, wanted.size))
        raise UserError(
            f"{source.name} has images of {have} pixels, not {size}, and resize is 'none': give "
            f"their size, or another resize ('exact', 'shorter' or 'longer')"
        )


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


def _task(
    source: Source,
    settings: Settings,
    fit: Fit | None,
    augment: str | None,
    train: Split,
    origin: str,
) -> ImageClassification:
    assert settings.mean is not None, "else it was measured"
    assert settings.std is not None, "else it was measured"
    (samples,), _ = train.fetch(spaced(PROBED, len(train)))
    try:
        preprocessing = Preprocessing(
            source.channels,
            source.size if fit is None else fit.size,
            settings.mean,
            settings.std,
            fit,
            settings.scale or 1 / LEVELS,
            settings.colors or "RGB",
        )
        return ImageClassification(
            source.name,
            source.classes,
            preprocessing,
            augment=source.augment if augment is None else augment,
            samples=samples,
            origin=origin,
        )
    except ValueError as error:
        raise UserError(f"{source.name}: {error}") from None


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
