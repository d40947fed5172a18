"""How far a file's confidence lies from its accuracy."""

from __future__ import annotations

import numpy as np

BINS = 15


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
