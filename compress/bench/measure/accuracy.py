"""What the answers of an ONNX file on the test split are worth: accuracy, interval, calibration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch

from compress.bench.plan.metric import Metric
from compress.deploy.session import predict, session
from compress.system.progress import stage
from compress.tasks.base import Split, Task, Tensors, prepared_batches

BINS = 15
TOP = 5
Z_975 = NormalDist().inv_cdf(0.975)
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


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927; Brown, Cai and DasGupta 2001, eq. 4)."""
    if count == 0:
        return 0.0, 1.0
    # Not by scipy.stats, whose import takes a second in every run before its first step.
    share, square = right / count, Z_975**2 / count
    centre = (share + square / 2) / (1 + square)
    half = math.sqrt(square * share * (1 - share) + square**2 / 4) / (1 + square)
    low = 0.0 if right == 0 else centre - half
    return low, 1.0 if right == count else centre + half


def confidences(logits: np.ndarray) -> np.ndarray:
    """Return the largest softmax probability of every item, float64 (N,), of logits (N, K).

    It is not a number where the logits are not finite.
    """
    with np.errstate(invalid="ignore"):
        # The largest exponential is exp(0) = 1.
        shifted = np.exp(logits - logits.max(1, keepdims=True))
    return 1 / shifted.sum(1, dtype=np.float64)


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error (Guo et al. 2017, eq. 3), in [0, 1].

    The mean over items of |accuracy - mean confidence| of their bin; bin m of M holds the
    confidences in ((m - 1) / M, m / M]. Both arguments have shape (N,).
    """
    edges = np.arange(1, bins) / bins
    chosen = np.digitize(confidence, edges, right=True)
    gaps = np.bincount(chosen, weights=correct.astype(float) - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def top_accuracy(logits: np.ndarray, targets: np.ndarray, top: int = TOP) -> float:
    """Return the share of items whose target is among the `top` largest of their logits (N, K).

    Of equal logits the first counts as larger, as for `argmax`.
    """
    largest = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    return float((largest == targets[:, None]).any(1).mean())


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
            shown.advance(len(some))

    with stage(f"measuring the accuracy on {len(test):,} items", len(test), "items") as shown:
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
            figures["top5"] = top_accuracy(logits, targets)
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
