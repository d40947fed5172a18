"""Transfer sets: images to learn from a teacher with, labelled or not, from any data source."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compress.context import Transfer
from compress.errors import UserError
from compress.system.files import digest
from compress.tasks.base import Data, Split, Tensors, TensorSplit
from compress.tasks.image_classification import ImageClassification
from compress.zoo.archive import is_archive, unpacked
from compress.zoo.arrays import checked_images, read_npz
from compress.zoo.data import data_root, source_named
from compress.zoo.image_files import ImageFiles, check_images, images_below, sampled
from compress.zoo.source import Resized, Source

FOR_TESTING = {"test", "val", "validation"}
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray (ITU-R BT.601)."""


class Recoloured(Split):
    """Another split with gray images made three-coloured, or the reverse."""

    def __init__(self, whole: Split, channels: int) -> None:
        self.whole = whole
        self.channels = channels

    def __len__(self) -> int:
        return len(self.whole)

    def fetch(self, index: Tensor) -> tuple[Tensors, Tensor]:
        (images,), targets = self.whole.fetch(index)
        return (recolour(images, self.channels),), targets


class Unlabelled(Split):
    """Another split without its targets: all of them are zero."""

    def __init__(self, whole: Split) -> None:
        self.whole = whole

    def __len__(self) -> int:
        return len(self.whole)

    def fetch(self, index: Tensor) -> tuple[Tensors, Tensor]:
        inputs, targets = self.whole.fetch(index)
        return inputs, torch.zeros_like(targets)


def recolour(images: Tensor, channels: int) -> Tensor:
    """Return uint8 images (N, C, H, W) with another number of channels, 1 or 3."""
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    weights = torch.tensor(LUMA).view(1, 3, 1, 1)
    return (images.float() * weights).sum(1, keepdim=True).round_().to(torch.uint8)


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
    items, shape, classes, fingerprint = _read(name, task, root)
    if fingerprint == (data.training_fingerprint or data.fingerprint):
        return Transfer(data.train, True, digest([fingerprint, "train"]))
    check_images(items)
    labelled = classes == task.classes
    wanted = task.preprocessing
    if shape[1:] != wanted.size:
        items = Resized(items, wanted.size)
    if shape[0] != wanted.channels:
        if {shape[0], wanted.channels} != {1, 3}:
            raise UserError(
                f"the transfer set {name} has images of {shape[0]} channels, and the task "
                f"{task.name} has {wanted.channels}: only 1 and 3 can be converted"
            )
        items = Recoloured(items, wanted.channels)
    if not labelled:
        items = Unlabelled(items)
    if len(items) == 0:
        raise UserError(f"the transfer set {name} holds no images")
    return Transfer(items, labelled, digest([fingerprint, labelled]))


def _read(
    name: str, task: ImageClassification, root: Path | None
) -> tuple[Split, tuple[int, int, int], Sequence[str], str]:
    """Return a source's training images, their (channels, height, width), classes, fingerprint.

    The fingerprint is that of what is not for testing.
    """
    kind, _, place = name.partition(":")
    path = Path(place).expanduser()
    if kind == "imagefolder" and place:
        if path.is_file() and is_archive(path):
            path = unpacked(path, data_root(root))
        if path.is_dir() and not _has_classes(path, task.classes):
            return _plain_folder(name, path, task.preprocessing.size)
    if kind == "arrays" and path.is_file() and (images := _images_alone(path)) is not None:
        tensor = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        items = TensorSplit((tensor,), torch.zeros(len(tensor), dtype=torch.int64))
        content = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        channels, height, width = tensor.shape[1:]
        return items, (channels, height, width), (), content
    source: Source = source_named(name, root, task.preprocessing.size)
    classes = source.classes if source.named else ()
    fingerprint = source.training_fingerprint or source.fingerprint
    return source.train, (source.channels, *source.size), classes, fingerprint


def _has_classes(folder: Path, classes: Sequence[str]) -> bool:
    place = folder / "train" if (folder / "train").is_dir() else folder
    return set(classes) <= {path.name for path in place.iterdir() if path.is_dir()}


def _plain_folder(
    name: str, folder: Path, size: tuple[int, int]
) -> tuple[Split, tuple[int, int, int], Sequence[str], str]:
    # What is for testing is left alone: who learns from it cannot be judged by it.
    place = folder / "train" if (folder / "train").is_dir() else folder
    found = images_below(place)
    files = [path for path in found if path.relative_to(place).parts[0] not in FOR_TESTING]
    content = [[path.relative_to(place).as_posix(), sampled(path)] for path in files]
    return ImageFiles(files, [0] * len(files), size), (3, *size), (), digest(content)


def _images_alone(path: Path) -> np.ndarray | None:
    """Return the images of an .npz file that has an array `x` and no labels; else None."""
    found = read_npz(path, (), optional=("x", "y"))
    if "x" not in found or "y" in found:
        return None
    return checked_images("x", found["x"])
