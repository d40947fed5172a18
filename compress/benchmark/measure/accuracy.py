"""The outputs of an ONNX file for the test split, item by item."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from compress.benchmark.plan.metric import Metric
from compress.deploy.session import predict, predict_in_streams, session, split
from compress.stats.proportions import TOP, confidences, target_ranks
from compress.system.progress import stage
from compress.tasks.base import Split, Task, Tensors, prepared_batches

PREPARED = 32
"""Items that are read and prepared at once: torch's threads and onnxruntime's, which wait for work
in a loop, disturb each other at every change from the ones to the others."""
NOT_FINITE = "the file gives outputs that are not finite numbers"


@dataclass(frozen=True)
class Answered:
    """A file's answers to N test items."""

    arrays: Mapping[str, np.ndarray]
    """As `compress.results.accuracy.Answers` reads them."""
    logits: np.ndarray
    """float32, shape (N, K)."""
    figures: Mapping[str, float]
    """The user's metric, if it returned a number."""
    missing: Mapping[str, str]
    """Column -> why it is empty."""


def measure_answers(
    path: Path, task: Task, test: Split, threads: int, batch: int, metric: Metric | None = None
) -> Answered:
    """Run the file over the whole test split in onnxruntime, `batch` items at a time."""
    labels: list[torch.Tensor] = []

    def batches() -> Iterator[Tensors]:
        for inputs, some in prepared_batches(task, test, PREPARED):
            labels.append(some)
            yield from split(inputs, batch)
            shown.advance(len(some))

    words = f"measuring the accuracy on {len(test):,} {task.unit}"
    # The same pass serves the verification, of which it would seem to be a part.
    with stage(words, len(test), task.unit, alone=True) as shown:
        logits = predict_in_streams(session(path, threads=1), batches(), threads)
    return answered(task, logits, torch.cat(labels).numpy(), metric)


def answered(
    task: Task, logits: np.ndarray, targets: np.ndarray, metric: Metric | None = None
) -> Answered:
    """Return the answers that logits (N, K) are to items with these targets (N,).

    They have ranks only where there are more than ten classes.
    """
    logits = logits.astype(np.float32, copy=False)  # exponentials of float16 would be too coarse
    arrays = {
        "predictions": logits.argmax(1),
        "correct": task.correct(torch.from_numpy(logits), torch.from_numpy(targets)).numpy(),
        "confidence": confidences(logits),
        "targets": targets,
    }
    figures: dict[str, float] = {}
    missing: dict[str, str] = {}
    many = logits.shape[1] > 2 * TOP
    if not np.isfinite(logits).all():
        missing |= dict.fromkeys(("ece", "top5") if many else ("ece",), NOT_FINITE)
    elif many:
        arrays["ranks"] = target_ranks(logits, targets)
    if metric is not None:
        value, reason = metric.measure(logits, targets)
        if value is None:
            missing["metric"] = reason
        else:
            figures["metric"] = value
    return Answered(arrays, logits, figures, missing)


def logits_of(path: Path, inputs: Tensors, threads: int) -> np.ndarray:
    """Return the file's logits for some prepared inputs, (N, classes)."""
    return predict(session(path, threads), [inputs])
