"""What the answers of an ONNX file on the test split are worth: accuracy, interval, calibration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from compress.bench.plan.metric import Metric
from compress.deploy.session import predict, session
from compress.stats.calibration import calibration_error, confidences
from compress.stats.proportions import TOP, target_ranks, top_accuracy, wilson
from compress.tasks.base import Split, Task, Tensors, prepared_batches

NOT_FINITE = "the file gives outputs that are not finite numbers"


@dataclass(frozen=True)
class Accuracy:
    """How often a file is right, and what it said of every one of N test items.

    `value`, `low` and `high` are fractions (Wilson's 95 % interval).
    """

    value: float
    low: float
    high: float
    predictions: np.ndarray
    """int64, shape (N,)."""
    correct: np.ndarray
    """bool, shape (N,)."""
    confidence: np.ndarray
    """float64, shape (N,): the largest softmax probability."""
    targets: np.ndarray
    """int64, shape (N,)."""
    logits: np.ndarray
    """float32, shape (N, K)."""
    figures: Mapping[str, float]
    """Column -> value: ece, top5 and metric, as far as they could be had."""
    missing: Mapping[str, str]
    """Column -> why it could not."""


def measure_accuracy(
    path: Path, task: Task, test: Split, threads: int, metric: Metric | None = None
) -> Accuracy:
    """Run the file over the whole test split in onnxruntime, and judge what it says."""
    runner = session(path, threads)
    labels: list[torch.Tensor] = []

    def batches() -> Iterator[Tensors]:
        for inputs, some in prepared_batches(task, test, 64):
            labels.append(some)
            yield inputs

    logits = predict(runner, batches())
    return judge(task, logits, torch.cat(labels).numpy(), metric)


def judge(
    task: Task, logits: np.ndarray, targets: np.ndarray, metric: Metric | None = None
) -> Accuracy:
    """Return what logits (N, K) are worth against targets (N,).

    Top-5 accuracy is only told where there are more than ten classes.
    """
    logits = logits.astype(np.float32, copy=False)  # exponentials of float16 would be too coarse
    correct = task.correct(torch.from_numpy(logits), torch.from_numpy(targets)).numpy()
    confidence = confidences(logits)
    figures: dict[str, float] = {}
    missing: dict[str, str] = {}
    many = logits.shape[1] > 2 * TOP
    if np.isfinite(logits).all():
        figures["ece"] = calibration_error(confidence, correct)
        if many:
            figures["top5"] = top_accuracy(target_ranks(logits, targets))
    else:
        missing |= dict.fromkeys(("ece", "top5") if many else ("ece",), NOT_FINITE)
    if metric is not None:
        value, reason = metric.measure(logits, targets)
        if value is None:
            missing["metric"] = reason
        else:
            figures["metric"] = value
    low, high = wilson(int(correct.sum()), len(correct))
    return Accuracy(
        value=float(correct.mean()),
        low=low,
        high=high,
        predictions=logits.argmax(1),
        correct=correct,
        confidence=confidence,
        targets=targets,
        logits=logits,
        figures=figures,
        missing=missing,
    )


def logits_of(path: Path, inputs: Tensors, threads: int) -> np.ndarray:
    """Return the file's logits for some prepared inputs, (N, classes)."""
    return predict(session(path, threads), [inputs])
