"""Accuracy of an ONNX file on the test split, with its interval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from compress.deploy.session import predict, session
from compress.task import Split, Task, Tensors, prepared_batches

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Accuracy:
    """Fractions, and the answer for every test item (int64, shape (N,))."""

    value: float
    low: float
    high: float
    predictions: np.ndarray


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927; Brown, Cai and DasGupta 2001, eq. 4)."""
    if count == 0:
        return 0.0, 1.0
    share, z2 = right / count, Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * np.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    # At 0 and 1 the formula's ends are exact; rounding must not push them past.
    low = 0.0 if right == 0 else float(centre - half)
    high = 1.0 if right == count else float(centre + half)
    return low, high


def measure_accuracy(path: Path, task: Task, test: Split, threads: int) -> Accuracy:
    """Run the file over the whole test split in onnxruntime."""
    runner = session(path, threads)
    targets: list[torch.Tensor] = []

    def batches() -> object:
        for inputs, labels in prepared_batches(task, test, 64):
            targets.append(labels)
            yield inputs

    logits = predict(runner, batches())  # type: ignore[arg-type]
    right = int(task.correct(torch.from_numpy(logits), torch.cat(targets)).sum())
    low, high = wilson(right, len(logits))
    return Accuracy(right / len(logits), low, high, logits.argmax(1))


def logits_of(path: Path, inputs: Tensors, threads: int) -> np.ndarray:
    """Return the file's logits for some prepared inputs, (N, classes)."""
    return predict(session(path, threads), [inputs])
