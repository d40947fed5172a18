"""Data sources by name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.errors import UserError, unknown
from compress.tasks.base import Data
from compress.zoo.archive import is_archive, unpacked
from compress.zoo.arrays import array_source, read_arrays
from compress.zoo.folder import image_folder
from compress.zoo.image_files import check_images
from compress.zoo.named import digits, published
from compress.zoo.source import PerChannel, Size, Source, assemble, height_width

DATA: Mapping[str, str] = {
    "digits": "1,797 handwritten digits, 8x8, gray; comes with scikit-learn, no download",
    "mnist": "70,000 handwritten digits, 28x28, gray",
    "fashion-mnist": "70,000 pictures of clothes, 28x28, gray",
    "cifar10": "60,000 photographs of 10 kinds, 32x32, colour",
    "cifar100": "60,000 photographs of 100 kinds, 32x32, colour",
    "imagefolder:DIR": "your image files: DIR/{train,test}/CLASS/* (also val), or DIR/CLASS/*; "
    "a .zip or .tar of such a folder, too. Hidden files and folders do not count at any level, nor "
    "do __MACOSX, @eaDir and the like",
    "arrays:PATH": "your arrays: an .npz with x_train, y_train, x_test, y_test (uint8 images "
    "N x H x W x C), or a folder with train-*.npz and test.npz (x, y)",
}


def load_data(
    name: str,
    root: Path | None = None,
    *,
    mean: PerChannel = None,
    std: PerChannel = None,
    size: Size = None,
    augment: str | None = None,
    download: bool = True,
) -> Data:
    """Return the splits of a data source, one of the names in `DATA`.

    What is None keeps the source's usual setting: `mean` and `std` per channel, for values in
    [0, 1]; `size` in pixels, (height, width) or one number; `augment` 'none', or some of
    `ImageClassification.AUGMENTS` joined by hyphens. Raises UserError if the source is
    unknown, missing or damaged (every image file is read once), or a setting does not fit it.
    """
    source = source_named(name, root, height_width(size), download)
    check_images(source.train, source.validation, source.test)
    return assemble(source, mean=mean, std=std, size=size, augment=augment)


def source_named(
    name: str, root: Path | None, size: tuple[int, int] | None = None, download: bool = True
) -> Source:
    """Return the raw splits of a data source; `size` is for sources that decode image files."""
    kind, colon, place = name.partition(":")
    if kind in ("imagefolder", "arrays"):
        if not place:
            raise UserError(f"{kind} needs a path: write {kind}:PATH")
        path = Path(place).expanduser()
        if kind == "arrays":
            return read_arrays(path)
        if path.is_file() and is_archive(path):
            path = unpacked(path, data_root(root))
        return image_folder(path, size)
    if colon or name not in DATA:
        raise unknown("data source", name, DATA)
    return digits() if name == "digits" else published(name, data_root(root), download)


def data_root(given: Path | None = None) -> Path:
    """Return the folder of data sets: as given, else COMPRESS_DATA_ROOT, else the user's cache."""
    if given is not None:
        return Path(given).expanduser()
    if place := os.environ.get("COMPRESS_DATA_ROOT"):
        return Path(place).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("compress-models"))


def from_arrays(
    x_train: Any,
    y_train: Any,
    x_test: Any,
    y_test: Any,
    x_val: Any = None,
    y_val: Any = None,
    *,
    name: str = "arrays",
    classes: Sequence[str] | None = None,
    mean: PerChannel = None,
    std: PerChannel = None,
    size: Size = None,
    augment: str | None = None,
) -> Data:
    """Return `Data` made of arrays: uint8 images (N, H, W, C) or (N, H, W), integer labels (N,).

    Without `mean` and `std` they are measured on the training split; without a validation pair
    a tenth of the training items is held out. Raises UserError as `load_data` does.
    """
    if (x_val is None) != (y_val is None):
        raise UserError("give x_val and y_val together, or neither")
    validation = None if x_val is None else (x_val, y_val)
    source = array_source(name, (x_train, y_train), (x_test, y_test), validation, classes)
    return assemble(source, mean=mean, std=std, size=size, augment=augment)
