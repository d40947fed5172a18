"""What one file's answers say: shares of right ones with their interval, and of which classes."""

from __future__ import annotations

import math

import numpy as np

from compress.stats.levels import Z

TOP = 5


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


def top_accuracy(ranks: np.ndarray, top: int = TOP) -> float:
    """Return the share of items whose target is among the `top` largest, from `target_ranks`."""
    return float((ranks < top).mean())


def class_counts(targets: np.ndarray, classes: int) -> np.ndarray:
    """Return how many of the targets (N,) each class has, int64 (classes,)."""
    return np.bincount(targets, minlength=classes)


def majority_share(targets: np.ndarray) -> float:
    """Return the share of the most frequent target: the accuracy of always answering that."""
    return float(np.unique_counts(targets).counts.max() / len(targets))


def balanced_accuracy(targets: np.ndarray, predictions: np.ndarray) -> float:
    """Return the mean, over the classes that occur among the targets, of the share found of each.

    Always answering one class gives 1 / classes, however many items that class has.
    """
    _, place, counts = np.unique(targets, return_inverse=True, return_counts=True)
    found = np.bincount(place, weights=predictions == targets)
    return float((found / counts).mean())
