"""What answers are worth: against closed forms, scikit-learn and tables made by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score

from compress.bench.measure.accuracy import (
    NOT_FINITE,
    calibration_error,
    confidences,
    judge,
    top_accuracy,
    wilson,
)
from compress.bench.plan.metric import Metric
from compress.tasks.image_classification import ImageClassification, Preprocessing

Z = 1.959963984540054


def task(classes: int) -> ImageClassification:
    names = tuple(map(str, range(classes)))
    return ImageClassification("made-up", names, Preprocessing(1, (8, 8), (0.5,), (0.5,)))


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_solves_its_equation(pair: tuple[int, int]) -> None:
    """Its ends are the shares p whose distance from the observed one is 1.96 standard errors."""
    right, count = pair
    low, high = wilson(right, count)
    assert low <= right / count <= high
    assert (low == 0.0) == (right == 0)
    assert (high == 1.0) == (right == count)
    for p in {low, high} - {0.0, 1.0}:
        assert abs(right / count - p) == pytest.approx(Z * math.sqrt(p * (1 - p) / count))


def test_no_items_say_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


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


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(11, 30))
def test_top_accuracy_equals_scikit_learns(seed: int, items: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    logits, targets = (
        generator.normal(size=(items, classes)),
        generator.integers(0, classes, items),
    )
    expected = top_k_accuracy_score(targets, logits, k=5, labels=range(classes))
    assert top_accuracy(logits, targets) == pytest.approx(expected)
    assert top_accuracy(logits, targets, top=1) == (logits.argmax(1) == targets).mean()


def test_a_constant_file_gets_five_classes_of_twenty_right() -> None:
    assert top_accuracy(np.zeros((20, 20)), np.arange(20)) == 5 / 20


def test_judged_against_the_task() -> None:
    logits = np.float32([[2, 0, 0], [0, 2, 0], [0, 2, 0], [0, 0, 2]])
    found = judge(task(3), logits, np.array([0, 1, 2, 2]))
    assert found.value == 0.75
    assert (found.low, found.high) == wilson(3, 4)
    assert found.predictions.tolist() == [0, 1, 1, 2]
    assert found.correct.tolist() == [True, True, False, True]
    p = math.exp(2) / (math.exp(2) + 2)
    assert found.confidence == pytest.approx([p] * 4)
    assert found.figures == {"ece": pytest.approx(abs(0.75 - p))}
    assert found.missing == {}


@pytest.mark.parametrize(("classes", "told"), [(10, False), (11, True)])
def test_top5_only_with_more_than_ten_classes(classes: int, told: bool) -> None:
    logits = np.eye(classes, dtype=np.float16)
    figures = judge(task(classes), logits, np.arange(classes)).figures
    assert ("top5" in figures) == told
    assert figures.get("top5", 1.0) == 1.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_have_a_reason_instead_of_figures(value: float) -> None:
    logits = np.eye(11, dtype=np.float32)
    logits[3, 3] = value
    found = judge(task(11), logits, np.arange(11))
    assert found.figures == {}
    assert found.missing == {"ece": NOT_FINITE, "top5": NOT_FINITE}


def test_ones_own_metric_is_a_figure_and_its_failure_a_reason() -> None:
    logits, targets = np.float32([[1, 0], [1, 0]]), np.array([0, 1])

    def spoil(outputs: np.ndarray, labels: np.ndarray) -> float:
        outputs[:], labels[:] = -outputs, 1 - labels
        return outputs.sum()

    found = judge(task(2), logits, targets, Metric("spoil", spoil, Path("x.py")))
    assert found.figures["metric"] == -2.0
    assert found.value == 0.5
    assert found.targets.tolist() == [0, 1]
    broken = judge(task(2), logits, targets, Metric("broken", lambda *_: 1 / 0))
    assert "metric" not in broken.figures
    assert broken.missing["metric"] == (
        "the metric broken raised ZeroDivisionError: division by zero"
    )
