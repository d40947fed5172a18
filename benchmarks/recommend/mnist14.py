"""A part of MNIST at 14 x 14 pixels: many test items, and trained in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from compress.zoo.data import data_root, published

TRAIN, VAL, TEST = 4000, 2000, 5000


def halved(images: np.ndarray) -> np.ndarray:
    """Return uint8 images (N, 1, 28, 28) as (N, 14, 14, 1), each pixel the mean of four."""
    count, _, height, width = images.shape
    blocks = images.reshape(count, height // 2, 2, width // 2, 2).astype(np.float64)
    return np.round(blocks.mean((2, 4))).astype(np.uint8)[..., None]


def arrays(
    seed: int = 0, train: int = TRAIN, val: int = VAL, test: int = TEST
) -> dict[str, np.ndarray]:
    """Return different items: `x_train`, `x_val`, `x_test`, and `x_truth`, which are all others."""
    import torch

    source = published("mnist", data_root(), download=False)
    parts = [split.fetch(torch.arange(len(split))) for split in (source.train, source.test)]
    images = np.concatenate([part[0][0].numpy() for part in parts])
    labels = np.concatenate([part[1].numpy() for part in parts])
    order = np.random.RandomState(seed).permutation(len(labels))
    chosen = np.split(order, np.cumsum([train, val, test]))
    found: dict[str, np.ndarray] = {}
    for name, index in zip(("train", "val", "test", "truth"), chosen, strict=True):
        found |= {f"x_{name}": halved(images[index]), f"y_{name}": labels[index]}
    return found


def write_arrays(
    path: Path, seed: int = 0, train: int = TRAIN, val: int = VAL, test: int = TEST
) -> Path:
    """Write all but the last as `arrays:PATH` reads them, unless they are there."""
    if not path.exists():
        save(path, arrays(seed, train, val, test))
    return path


def save(path: Path, found: Mapping[str, np.ndarray]) -> None:
    """Write all but the items of the truth."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in found.items() if "truth" not in name}
    np.savez(path, **kept)  # type: ignore[arg-type]
