"""One file's answers: shares of right ones, with their interval, by class, and by confidence."""

from __future__ import annotations

import math

import numpy as np

from compress.stats.levels import Z

TOP = 5
BINS = 15
"""Of confidence, for the calibration error."""


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927; Brown, Cai and DasGupta 2001, eq. 4)."""
    if count == 0:
        return 0.0, 1.0
    share, square = right / count, Z**2 / count
    centre = (share + square / 2) / (1 + square)
    half = math.sqrt(square * share * (1 - share) + square**2 / 4) / (1 + square)
    low = 0.0 if right == 0 else centre - half
    return low, 1.0 if right == count else centre + half


def target_ranks(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return how many logits (N, K) come before the target's, int64 (N,): 0 for a right answer.

    Of equal logits the first counts as larger, as for `argmax`.
    """
    own = np.take_along_axis(logits, targets[:, None], 1)
    earlier = np.arange(logits.shape[1]) < targets[:, None]
    ranks: np.ndarray = ((logits > own) | ((logits == own) & earlier)).sum(1)
    return ranks


def top_accuracy(ranks: np.ndarray) -> float:
    """Return the share of items whose target is among the `TOP` largest, from `target_ranks`."""
    return float((ranks < TOP).mean())


def balanced_accuracy(targets: np.ndarray, predictions: np.ndarray) -> float:
    """Return the mean share of right answers over the classes that occur among the targets.

    Always answering one class gives 1 / classes, however many items that class has.
    """
    _, place, counts = np.unique(targets, return_inverse=True, return_counts=True)
    right = np.bincount(place, weights=predictions == targets)
    return float((right / counts).mean())


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
