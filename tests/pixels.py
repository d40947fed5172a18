"""Arrays of random images, and everything that a split holds."""

from __future__ import annotations

import numpy as np
import torch

from compress.tasks.base import Split


def arrays(count: int = 40, shape: tuple[int, ...] = (6, 8, 3), seed: int = 0):
    random = np.random.RandomState(seed)
    x = random.randint(0, 256, (count, *shape)).astype(np.uint8)
    return x, np.arange(count) % 4


def everything(split: Split) -> tuple[np.ndarray, np.ndarray]:
    (images,), labels = split.fetch(torch.arange(len(split)))
    return images.numpy(), labels.numpy()
