"""Data sources by name: your own files, scikit-learn's digits, and torchvision's sets."""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_dir

from compress.errors import UserError, clause, unknown
from compress.tasks import IMAGE_OPTIONS, data_sources, task_options
from compress.tasks.base import Data
from compress.tasks.preprocessing import Fit, Settings
from compress.zoo.archive import unpacked
from compress.zoo.arrays import array_source, read_arrays
from compress.zoo.folder import DEFAULT_SIZE, image_folder, usual_levels
from compress.zoo.image_files import check_images, remarks
from compress.zoo.settings import PerChannel, Size, settings_of
from compress.zoo.source import Source, assemble

DATA: Mapping[str, str] = {
    "digits": "1,797 handwritten digits, 8x8, gray; comes with scikit-learn, no download",
    "mnist": "70,000 handwritten digits, 28x28, gray",
    "fashion-mnist": "70,000 pictures of clothes, 28x28, gray",
    "cifar10": "60,000 photographs of 10 kinds, 32x32, colour",
    "cifar100": "60,000 photographs of 100 kinds, 32x32, colour",
    "imagefolder:DIR": "your image files: DIR/{train,test}/CLASS/* (also val), or DIR/CLASS/*; "
    "a .zip or .tar of such a folder, too. Hidden files and folders are skipped at every level, "
    "and so are __MACOSX, @eaDir and the like",
    "arrays:PATH": "your arrays: an .npz with x_train, y_train, x_test, y_test (uint8 images "
    "N x H x W x C), or a folder with train-*.npz and test.npz (x, y)",
}
# Of each published set: torchvision's class, the usual mean and std, the usual augmentation.
PUBLISHED: Mapping[str, tuple[str, tuple[float, ...], tuple[float, ...], str]] = {
    "mnist": ("MNIST", (0.1307,), (0.3081,), "none"),
    "fashion-mnist": ("FashionMNIST", (0.2860,), (0.3530,), "flip-crop"),
    "cifar10": ("CIFAR10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "flip-crop"),
    "cifar100": ("CIFAR100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), "flip-crop"),
}
NOTHING = Settings()
DIGITS_TEST = 360  # about a fifth of the 1797


def load_data(
    name: str,
    root: Path | None = None,
    *,
    augment: str | None = None,
    class_order: str | None = None,
    download: bool = True,
    usual: Settings = NOTHING,
    usual_from: str = "",
    usual_data: str = "",
    **preprocessing: Any,
) -> Data:
    """Return the splits of a data source, one of the names in `DATA`.

    What is not given keeps the source's usual setting: `mean` and `std` per channel, for values in
    [0, 1]; `size` in pixels, (height, width) or one number, and the other keys of
    `compress.zoo.settings.settings_of`; `augment` 'none', or some of
    `ImageClassification.AUGMENTS` joined by hyphens; `class_order` as in `image_folder`. A source
    of another package has its own options, and these alone. `usual` is
    the preprocessing that pretrained weights come with, in words `usual_from`, which counts before
    the source's: of images that have their size already, its levels alone. Where it is known which
    data they were trained on, `usual_data`, its size holds too, and of these data all. Raises
    UserError if the source is unknown, missing or damaged (every image file is read once), or a
    setting does not fit it.
    """
    scheme, colon, place = name.partition(":")
    if colon and scheme in data_sources():
        given = {"augment": augment, "class_order": class_order, **preprocessing}
        return _foreign(scheme, place, root, {k: v for k, v in given.items() if v is not None})
    for key in preprocessing.keys() & task_options().keys() - IMAGE_OPTIONS.keys():
        raise UserError(f"{key} is no option of images, which {name} has")
    own = settings_of(**preprocessing)
    settings = own.over(usual if is_files(name) else usual.levels())
    channels = 1 if settings.colors == "L" else 3
    try:
        fit = settings.over(usual_levels(channels)).fit(DEFAULT_SIZE)
    except ValueError as error:
        raise UserError(str(error)) from None
    source = source_named(name, root, fit, channels, download, class_order)
    if usual_data and not is_files(name):
        settings = own.over(usual if source.name == usual_data else usual.sized())
    if settings.colors == "L" != source.channels != 1:
        raise UserError(f"colors is L, and {name} has images of {source.channels} channels")
    if own.mean is None and usual.mean is not None and len(usual.mean) != source.channels:
        raise UserError(
            f"the weights' own preprocessing (as {usual_from}) is of images of {len(usual.mean)} "
            f"channel(s), and {name} has images of {source.channels}: give mean and std"
        )
    splits = (source.train, source.validation, source.test)
    check_images(*splits)
    note = "; ".join(filter(None, [source.note, *remarks(*splits)]))
    origin = _origin(source, own, usual_from, bool(usual_data))
    return assemble(replace(source, note=note), settings, augment, origin)


def _foreign(scheme: str, place: str, root: Path | None, options: Mapping[str, Any]) -> Data:
    """Return the data of another package's source."""
    source = data_sources()[scheme]
    for key in options.keys() - source.options.keys():
        has = ", ".join(source.options) or "none"
        raise UserError(f"{key} is no option of {scheme}:{place} (it has: {has})")
    try:
        data = source.load(place, data_root(root), **options)
    except UserError:
        raise
    except Exception as error:  # of another package
        raise UserError(
            f"{scheme}:{place} could not be read ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(data, Data):
        raise UserError(f"{scheme}:{place} gave a {type(data).__name__} in place of Data")
    return data


def described_data() -> Mapping[str, str]:
    """Return every data source that can be named, those of installed packages included."""
    return {**DATA, **{f"{name}:PLACE": one.words for name, one in data_sources().items()}}


def _origin(source: Source, own: Settings, usual_from: str, sized: bool) -> str:
    """Return in words where the preprocessing of a source's images comes from."""
    if usual_from:
        sized = sized or source.fit is not None
        first = f"as {usual_from}" + ("" if sized else ", in the images' own size")
    elif source.fit is not None:
        first = "the usual one of photographs"
    else:
        first = "the source's usual one" if source.mean else "measured on the training images"
    given = [field.name for field in fields(own) if getattr(own, field.name) is not None]
    return "; ".join(filter(None, [first, f"{', '.join(given)} as given" if given else ""]))


def is_files(name: str) -> bool:
    """Whether a data source decodes image files, and so can fit them to any size."""
    return name.startswith("imagefolder:")


def refuse_unknown(name: str) -> None:
    """Raise UserError for the name of no data source; nothing is read."""
    kind, colon, _ = name.partition(":")
    if not (colon and kind in data_sources()):
        _refuse_unknown(name)


def _refuse_unknown(name: str) -> None:
    """The same for the sources of this package."""
    kind, colon, place = name.partition(":")
    if kind in ("imagefolder", "arrays"):
        if not place:
            raise UserError(f"{kind} needs a path: write {kind}:PATH")
        return
    if not colon and name in DATA:
        return
    error = unknown("data source", name, described_data())
    if Path(name).expanduser().is_dir():
        raise UserError(f"{error}. For a folder of images write imagefolder:{name}")
    raise error


def source_named(
    name: str,
    root: Path | None,
    fit: Fit,
    channels: int = 3,
    download: bool = True,
    class_order: str | tuple[str, ...] | None = None,
) -> Source:
    """Return the raw splits of a data source; `fit` and `channels` are for image files."""
    kind, _, place = name.partition(":")
    if isinstance(class_order, str) and kind != "imagefolder":
        raise UserError(f"class_order is for image folders, and {name} is none")
    _refuse_unknown(name)
    path = Path(place).expanduser()
    if kind == "arrays":
        return read_arrays(path)
    if kind == "imagefolder":
        return image_folder(unpacked(path, data_root(root)), fit, channels, class_order)
    return digits() if name == "digits" else published(name, data_root(root), download)


def data_root(root: Path | None = None) -> Path:
    """Return the folder of data sets: `root`, else COMPRESS_DATA_ROOT, else the user's cache."""
    if root is not None:
        return Path(root).expanduser()
    if place := os.environ.get("COMPRESS_DATA_ROOT"):
        return Path(place).expanduser()
    return Path(user_cache_dir("compress-models"))


def digits() -> Source:
    """Return the 1797 8x8 digits of scikit-learn, their 17 levels stretched to 0..255."""
    # From its file: to import scikit-learn takes longer than to train a small net on them.
    place = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    raw = np.loadtxt(str(place), delimiter=",")
    images = np.round(raw[:, :-1].reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    labels = raw[:, -1].astype(np.int64)
    # NumPy freezes the stream of RandomState, so everyone has the same test split.
    order = np.random.RandomState(0).permutation(len(labels))
    indexes = (order[DIGITS_TEST:], order[:DIGITS_TEST])
    train, test = ((images[index], labels[index]) for index in indexes)
    return array_source("digits", train, test, published=True)


def published(name: str, root: Path, download: bool) -> Source:
    """Return a data set of torchvision from `root`, downloading it if it is absent.

    CIFAR-10 is read from `root/cifar10/*.npz` where that exists. Torchvision checks the MD5 of
    CIFAR's batch files before it unpickles them. Raises UserError if they are absent or damaged.
    """
    dataset, mean, std, augment = PUBLISHED[name]
    usual: dict[str, Any] = {"mean": mean, "std": std, "augment": augment, "published": True}
    if name == "cifar10" and (root / name / "test.npz").is_file():
        return read_arrays(root / name, name=name, **usual)
    parts = [_open(dataset, root, train, download) for train in (True, False)]
    train, test = ((np.asarray(part.data), np.asarray(part.targets)) for part in parts)
    return array_source(name, train, test, classes=list(parts[0].classes), **usual)


def _open(dataset: str, root: Path, train: bool, download: bool) -> Any:
    import torchvision

    cls = getattr(torchvision.datasets, dataset)
    try:
        return cls(root, train=train, download=False)
    except RuntimeError as error:  # torchvision: not found
        if not download:
            raise UserError(
                f"{dataset} is not in {root}, and downloading is switched off: allow it, or "
                f"set COMPRESS_DATA_ROOT to the folder that holds it"
            ) from error
    except (OSError, ValueError, AssertionError) as error:
        raise UserError(f"the {dataset} files in {root} are damaged: {error}") from error
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _archives_stay_in_their_folder():
            return cls(root, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{dataset} is not in {root}, and downloading it failed: {clause(error)}. Connect to "
            f"the network and try again, or set COMPRESS_DATA_ROOT to a folder that holds it"
        ) from error


@contextlib.contextmanager
def _archives_stay_in_their_folder() -> Iterator[None]:
    """Have tarfile refuse members that lead out of the folder, whoever calls it (PEP 706)."""
    before = tarfile.TarFile.extraction_filter
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


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
    """Return the `Data` of arrays: uint8 images (N, H, W, C) or (N, H, W), integer labels (N,).

    Without `mean` and `std` they are measured on the training split; without a validation pair
    a tenth of the training items is held out. Raises UserError as `load_data` does.
    """
    pairs = ((x_train, y_train), (x_test, y_test), (x_val, y_val))
    source = array_source(name, *pairs, classes)
    return assemble(source, settings_of(mean=mean, std=std, size=size), augment)
