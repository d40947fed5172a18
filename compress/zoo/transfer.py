"""Transfer sets: images to learn from a teacher with, labelled or not, from any data source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from compress.context import Transfer
from compress.errors import UserError
from compress.system.files import digest, sha256
from compress.tasks.base import Data, Split, Subset, TensorSplit
from compress.tasks.image_classification import ImageClassification
from compress.tasks.preprocessing import Fit, Settings
from compress.zoo.archive import unpacked
from compress.zoo.arrays import channels_first, checked_images, read_npz
from compress.zoo.data import data_root, source_named
from compress.zoo.image_files import ImageFiles, check_images, images_below, sampled
from compress.zoo.source import CALIBRATION_ITEMS, Changed
from compress.zoo.source import fitted as fitted_to

FOR_TESTING = {"test", "val", "validation"}
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray (ITU-R BT.601)."""


class Images(NamedTuple):
    """The training images of a source. Without names of classes its labels mean nothing."""

    items: Split
    channels: int
    size: tuple[int, int]
    classes: Sequence[str]
    fingerprint: str
    """Of what is not for testing."""


def load_transfer(name: str, data: Data, root: Path | None = None) -> Transfer:
    """Return the training images of a data source, fit for the task of some data.

    `imagefolder:DIR` may hold its images directly, in any folders: then they have no labels,
    and so have those of an .npz file with an array `x` alone. Labels count only where the
    source names the task's own classes; arrays without names have class numbers, which may mean
    anything. Images of another size are resized, and gray ones coloured or the reverse; they
    are normalised as the task's are. Of the task's own source, the items that are held out for
    validation are left out. Raises UserError if there are no images, or some cannot be read.
    """
    task = data.task
    if not isinstance(task, ImageClassification):
        raise UserError(f"transfer sets are images, and {task.name} is a task of {task.kind}")
    items, channels, size, classes, fingerprint = _images(name, task, root)
    if fingerprint == (data.training_fingerprint or data.fingerprint):
        return Transfer(data.train, True, digest([fingerprint, "train"]))
    check_images(items)
    target = task.preprocessing
    if channels != target.channels and {channels, target.channels} != {1, 3}:
        raise UserError(
            f"the transfer set {name} has images of {channels} channels, and the task "
            f"{task.name} has {target.channels}: only 1 and 3 can be converted"
        )
    if len(items) == 0:
        raise UserError(f"the transfer set {name} holds no images")
    labelled = classes == task.classes
    if not labelled or (channels, size) != (target.channels, target.size):
        change = partial(fitted, channels=target.channels, size=target.size)
        items = Changed(items, change, labelled)
    return Transfer(items, labelled, digest([fingerprint, labelled]))


def calibrated(data: Data, name: str, root: Path | None = None) -> Data:
    """Return data whose calibration split is images of another source, labelled or not.

    They are drawn from what `load_transfer` finds, which raises UserError.
    """
    found = load_transfer(name, data, root)
    order = np.random.RandomState(0).permutation(len(found.items))[:CALIBRATION_ITEMS]
    return replace(
        data,
        calibration=Subset(found.items, torch.from_numpy(order.astype(np.int64))),
        calibration_fingerprint=found.fingerprint,
        note="; ".join(filter(None, [data.note, f"calibrated on images of {name}"])),
    )


def fitted(images: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """Return uint8 images (N, C, H, W) of another size and number of channels, 1 or 3."""
    fit = Fit(size, size, "exact")
    height, width = images.shape[2:]
    if fit.changes((height, width)):
        images = fitted_to(images, fit)
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    weights = torch.tensor(LUMA).view(1, 3, 1, 1)
    return (images.float() * weights).sum(1, keepdim=True).round_().to(torch.uint8)


def _images(name: str, task: ImageClassification, root: Path | None) -> Images:
    kind, _, place = name.partition(":")
    path = Path(place).expanduser()
    fit = task.preprocessing.fit or Settings(size=task.preprocessing.size).fit((0, 0))
    if kind == "imagefolder" and place:
        path = unpacked(path, data_root(root))
        if path.is_dir() and not _has_classes(path, task.classes):
            return _plain_folder(path, fit, task.preprocessing.channels)
    if kind == "arrays" and path.is_file() and (images := _images_alone(path)) is not None:
        tensor = channels_first(images)
        items = TensorSplit((tensor,), torch.zeros(len(tensor), dtype=torch.int64))
        channels, height, width = tensor.shape[1:]
        return Images(items, channels, (height, width), (), sha256(tensor.numpy().tobytes()))
    source = source_named(name, root, fit, 1 if task.preprocessing.channels == 1 else 3)
    classes = source.classes if source.named else ()
    fingerprint = source.training_fingerprint or source.fingerprint
    return Images(source.train, source.channels, source.size, classes, fingerprint)


def _has_classes(folder: Path, classes: Sequence[str]) -> bool:
    place = folder / "train" if (folder / "train").is_dir() else folder
    return set(classes) <= {path.name for path in place.iterdir() if path.is_dir()}


def _plain_folder(folder: Path, fit: Fit, channels: int) -> Images:
    # What is for testing is left alone: who learns from it cannot be judged by it.
    place = folder / "train" if (folder / "train").is_dir() else folder
    paths = [(path, path.relative_to(place)) for path in images_below(place)]
    paths = [(path, inside) for path, inside in paths if inside.parts[0] not in FOR_TESTING]
    fingerprint = digest([[inside.as_posix(), sampled(path)] for path, inside in paths])
    items = ImageFiles([path for path, _ in paths], [0] * len(paths), fit, channels)
    return Images(items, channels, fit.size, (), fingerprint)


def _images_alone(path: Path) -> np.ndarray | None:
    """Return the images of an .npz file that has an array `x` and no labels; else None."""
    arrays = read_npz(path, (), optional=("x", "y"))
    return checked_images("x", arrays["x"]) if arrays.keys() == {"x"} else None
