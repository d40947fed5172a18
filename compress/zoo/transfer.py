"""Transfer sets: images to learn from a teacher with, labelled or not, from any data source."""

from __future__ import annotations

import os
import unicodedata
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
from compress.zoo.folder import image_folder, splits_in
from compress.zoo.image_files import (
    ImageFiles,
    check_images,
    folders_in,
    images_below,
    sampled,
)
from compress.zoo.source import CALIBRATION_ITEMS, Changed, Source
from compress.zoo.source import fitted as fitted_to

_TRANSFER, _CALIBRATION = "transfer set", "calibration source"
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
    return _loaded(name, data, root, _TRANSFER)


def calibrated(data: Data, name: str, root: Path | None = None) -> Data:
    """Return data whose calibration split is images of another source, labelled or not.

    A folder is used as a whole, however its images are sorted, except that what is for testing is
    left alone where there is anything else, and what the data is tested on in any case. Of other
    sources the training split is used. Raises UserError as `load_transfer` does.
    """
    found = _loaded(name, data, root, _CALIBRATION)
    numbers, fingerprint = np.arange(len(found.items)), found.fingerprint
    note = f"calibrated on images of {name}"
    if left_out := _tested(found.items, data):
        numbers = np.delete(numbers, left_out)
        if not len(numbers):
            raise UserError(f"the calibration source {name} holds only images that are for testing")
        fingerprint = digest([fingerprint, left_out])
        note += f", less {len(left_out):,} that are for testing"
    order = numbers[np.random.RandomState(0).permutation(len(numbers))[:CALIBRATION_ITEMS]]
    return replace(
        data,
        calibration=Subset(found.items, torch.from_numpy(order.astype(np.int64))),
        calibration_fingerprint=fingerprint,
        note="; ".join(filter(None, [data.note, note])),
    )


def _tested(items: Split, data: Data) -> list[int]:
    """Return the numbers of those image files that the data is tested on."""
    files = items.whole if isinstance(items, Changed) else items
    if not isinstance(files, ImageFiles) or not isinstance(data.test, ImageFiles):
        return []
    tested = set(map(os.path.realpath, data.test.files))
    return [at for at, path in enumerate(files.files) if os.path.realpath(path) in tested]


def _loaded(name: str, data: Data, root: Path | None, use: str) -> Transfer:
    task = data.task
    if not isinstance(task, ImageClassification):
        raise UserError(f"{use}s are images, and {task.name} is a task of {task.kind}")
    items, channels, size, classes, fingerprint = _images(name, data, task, root, use)
    if fingerprint == (data.training_fingerprint or data.fingerprint):
        return Transfer(data.train, True, digest([fingerprint, "train"]))
    check_images(items)
    target = task.preprocessing
    if channels != target.channels and {channels, target.channels} != {1, 3}:
        raise UserError(
            f"the {use} {name} has images of {channels} channels, and the task "
            f"{task.name} has {target.channels}: only 1 and 3 can be converted"
        )
    if len(items) == 0:
        raise UserError(f"the {use} {name} holds no images")
    labelled = classes == task.classes
    same = (channels, size) == (target.channels, target.size)
    if not (labelled and same):
        change = None if same else partial(fitted, channels=target.channels, size=target.size)
        items = Changed(items, change, labelled)
    return Transfer(items, labelled, digest([fingerprint, labelled]))


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


def _images(
    name: str, data: Data, task: ImageClassification, root: Path | None, use: str
) -> Images:
    kind, _, place = name.partition(":")
    path = Path(place).expanduser()
    fit = task.preprocessing.fit or Settings(size=task.preprocessing.size).fit((0, 0))
    source = None
    if kind == "imagefolder" and place:
        path = unpacked(path, data_root(root))
        if path.is_dir():
            if use == _CALIBRATION:
                source = _own(path, data, task, fit)
                if source is None:
                    return _loose(_for_calibration(path), path, fit, task)
            elif not _has_classes(path, task.classes):
                return _loose(_for_training(path), path, fit, task)
    if kind == "arrays" and path.is_file() and (images := _images_alone(path)) is not None:
        tensor = channels_first(images)
        items = TensorSplit((tensor,), torch.zeros(len(tensor), dtype=torch.int64))
        channels, height, width = tensor.shape[1:]
        return Images(items, channels, (height, width), (), sha256(tensor.numpy().tobytes()))
    if source is None:
        channels = 1 if task.preprocessing.channels == 1 else 3
        source = source_named(name, root, fit, channels, class_order=tuple(task.classes))
    classes = source.classes if source.named else ()
    fingerprint = source.training_fingerprint or source.fingerprint
    return Images(source.train, source.channels, source.size, classes, fingerprint)


def _own(folder: Path, data: Data, task: ImageClassification, fit: Fit) -> Source | None:
    """Return a folder as a source if it is that of the data; else None."""
    inside = folders_in(folder)
    if not any(_has_classes(place, task.classes) for place in (folder, *inside)):
        return None
    try:
        channels = 1 if task.preprocessing.channels == 1 else 3
        source = image_folder(folder, fit, channels, tuple(task.classes))
    except UserError:  # for calibration, it need not be a source of the task
        return None
    return source if source.training_fingerprint == data.training_fingerprint else None


def _training_part(folder: Path) -> Path:
    """Return the folder's `train`, if it has one, else the folder itself."""
    found = splits_in(folder, [place.name for place in folders_in(folder)])
    return folder / found["train"] if "train" in found else folder


def _has_classes(folder: Path, classes: Sequence[str]) -> bool:
    places = folders_in(_training_part(folder))
    return set(classes) <= {unicodedata.normalize("NFC", place.name) for place in places}


def _by_split(folder: Path) -> dict[str, list[Path]]:
    """Return the images for training ('train', or outside of any split's folder), and the others'.

    The keys are 'train', 'val' and 'test'.
    """
    place = _training_part(folder)
    images = images_below(place)
    names = [one.name for one in folders_in(folder)]
    parts = {name: part for part, name in splits_in(folder, names).items()}
    found: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
    for path in images:
        top = path.relative_to(place).parts[0]
        part = parts.get(top) if place == folder and path.parent != place else None
        found[part or "train"].append(path)
    return found


def _for_training(folder: Path) -> list[Path]:
    # What is for testing is left alone: who learns from it cannot be judged by it.
    found = _by_split(folder)
    if not found["train"] and (found["val"] or found["test"]):
        raise UserError(
            f"the transfer set imagefolder:{folder} holds no images to learn from, only some for "
            f"testing: name the folder of the images themselves"
        )
    return found["train"]


def _for_calibration(folder: Path) -> list[Path]:
    found = _by_split(folder)
    return found["train"] or found["val"] or found["test"]


def _loose(paths: Sequence[Path], folder: Path, fit: Fit, task: ImageClassification) -> Images:
    """Return image files without labels."""
    place = _training_part(folder)
    fingerprint = digest([[path.relative_to(place).as_posix(), sampled(path)] for path in paths])
    channels = task.preprocessing.channels
    items = ImageFiles(paths, [0] * len(paths), fit, channels)
    return Images(items, channels, fit.size, (), fingerprint)


def _images_alone(path: Path) -> np.ndarray | None:
    """Return the images of an .npz file that has an array `x` and no labels; else None."""
    arrays = read_npz(path, (), optional=("x", "y"))
    return checked_images("x", arrays["x"]) if arrays.keys() == {"x"} else None
