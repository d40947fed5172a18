"""Confidence and calibration: against their definitions, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.stats.proportions import calibration_error, confidences


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(2, 12))
def test_confidences_are_the_largest_softmax(seed: int, items: int, classes: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 5, (items, classes))
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert confidences(logits) == pytest.approx(softmax.max(1))


def test_confidences_of_huge_logits() -> None:
    assert confidences(np.float32([[1e30, -1e30], [3e38, 3e38]])) == pytest.approx([1.0, 0.5])


def test_calibration_error_by_hand() -> None:
    # Bin (0.8, 0.867]: two items of 0.85, one right: |0.5 - 0.85|. Bin (0.933, 1]: one of 0.95,
    # right: |1 - 0.95|. (2 · 0.35 + 1 · 0.05) / 3.
    confidence, correct = np.array([0.85, 0.85, 0.95]), np.array([True, False, True])
    assert calibration_error(confidence, correct) == pytest.approx(0.25)


def test_a_bin_holds_its_upper_edge() -> None:
    # 0.5 is the end of (0, 0.5]: one bin for the first two, so that their errors cancel.
    confidence, correct = np.array([0.5, 0.25, 1.0]), np.array([True, False, True])
    assert calibration_error(confidence, correct, bins=2) == pytest.approx(0.25 / 3)


@given(
    st.lists(st.tuples(st.floats(0.01, 1), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 20),
)
def test_calibration_error_equals_its_definition(items: list[tuple[float, bool]], m: int) -> None:
    """Guo et al. 2017, eq. 2 and 3, bin by bin."""
    expected = 0.0
    for i in range(1, m + 1):
        inside = [(p, right) for p, right in items if (i - 1) / m < p <= i / m]
        if inside:
            accuracy = sum(right for _, right in inside) / len(inside)
            confidence = sum(p for p, _ in inside) / len(inside)
            expected += len(inside) / len(items) * abs(accuracy - confidence)
    confidence, correct = (np.array(column) for column in zip(*items, strict=True))
    found = calibration_error(confidence, correct, bins=m)
    assert found == pytest.approx(expected, abs=1e-9)
    assert 0 <= found <= 1
