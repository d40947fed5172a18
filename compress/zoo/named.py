"""The data sources that are known by name: scikit-learn's digits, and torchvision's sets."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import UserError
from compress.zoo.arrays import Pair, array_source, read_arrays
from compress.zoo.source import Source

DIGITS_TEST = 360  # about a fifth of the 1797


@dataclass(frozen=True)
class Published:
    """A data set of torchvision: its class there, and the usual preprocessing."""

    dataset: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str

    def usual(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std, "augment": self.augment, "published": True}


PUBLISHED: Mapping[str, Published] = {
    "mnist": Published("MNIST", (0.1307,), (0.3081,), "none"),
    "fashion-mnist": Published("FashionMNIST", (0.2860,), (0.3530,), "flip-crop"),
    "cifar10": Published(
        "CIFAR10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "flip-crop"
    ),
    "cifar100": Published(
        "CIFAR100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), "flip-crop"
    ),
}


def digits() -> Source:
    """Return the 1797 8x8 digits of scikit-learn, their 17 levels stretched to 0..255."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = np.round(raw.images * 255 / 16).astype(np.uint8)
    labels = raw.target.astype(np.int64)
    # NumPy freezes the stream of RandomState, so everyone has the same test split.
    order = np.random.RandomState(0).permutation(len(labels))
    test, train = order[:DIGITS_TEST], order[DIGITS_TEST:]
    known, tested = ((images[part], labels[part]) for part in (train, test))
    return array_source("digits", known, tested, published=True)


def published(name: str, root: Path, download: bool) -> Source:
    """Return a data set of torchvision from `root`, downloading it if it is absent.

    CIFAR-10 is read from `root/cifar10/*.npz` where that exists. Torchvision checks the MD5 of
    CIFAR's batch files before it unpickles them. Raises UserError if the data cannot be had.
    """
    known = PUBLISHED[name]
    if name == "cifar10" and (root / name / "test.npz").is_file():
        return read_arrays(root / name, name=name, **known.usual())
    train, classes = _read(known.dataset, root, True, download)
    test, _ = _read(known.dataset, root, False, download)
    return array_source(name, train, test, classes=classes, **known.usual())


def _read(dataset: str, root: Path, train: bool, download: bool) -> tuple[Pair, list[str]]:
    part = _open(dataset, root, train, download)
    return (np.asarray(part.data), np.asarray(part.targets)), list(part.classes)


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
            f"{dataset} is not in {root}, and downloading it failed: {error}. Connect to the "
            f"network and try again, or set COMPRESS_DATA_ROOT to a folder that holds it"
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
