"""What a file says of every item, and why something is missing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from compress.benchmark.measure.accuracy import NOT_FINITE, answered
from compress.benchmark.plan.metric import Metric
from compress.tasks.image_classification import ImageClassification, Preprocessing


def task(classes: int) -> ImageClassification:
    names = tuple(map(str, range(classes)))
    return ImageClassification("made-up", names, Preprocessing(1, (8, 8), (0.5,), (0.5,)))


def test_judged_against_the_task() -> None:
    logits = np.float32([[2, 0, 0], [0, 2, 0], [0, 2, 0], [0, 0, 2]])
    found = answered(task(3), logits, np.array([0, 1, 2, 2]))
    assert found.arrays["predictions"].tolist() == [0, 1, 1, 2]
    assert found.arrays["correct"].tolist() == [True, True, False, True]
    assert found.arrays["targets"].tolist() == [0, 1, 2, 2]
    p = math.exp(2) / (math.exp(2) + 2)
    assert found.arrays["confidence"] == pytest.approx([p] * 4)
    assert (found.figures, found.missing) == ({}, {})


@pytest.mark.parametrize(("classes", "told"), [(10, False), (11, True)])
def test_ranks_only_with_more_than_ten_classes(classes: int, told: bool) -> None:
    logits = np.eye(classes, dtype=np.float16)
    arrays = answered(task(classes), logits, np.arange(classes)).arrays
    assert ("ranks" in arrays) == told
    assert not arrays.get("ranks", np.zeros(1)).any(), "the target's is the largest"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_have_a_reason_instead_of_figures(value: float) -> None:
    logits = np.eye(11, dtype=np.float32)
    logits[3, 3] = value
    found = answered(task(11), logits, np.arange(11))
    assert "ranks" not in found.arrays
    assert found.missing == {"ece": NOT_FINITE, "top5": NOT_FINITE}


def test_ones_own_metric_is_a_figure_and_its_failure_a_reason() -> None:
    logits, targets = np.float32([[1, 0], [1, 0]]), np.array([0, 1])

    def spoil(outputs: np.ndarray, labels: np.ndarray) -> float:
        outputs[:], labels[:] = -outputs, 1 - labels
        return outputs.sum()

    found = answered(task(2), logits, targets, Metric("spoil", spoil, Path("x.py")))
    assert found.figures["metric"] == -2.0
    assert found.arrays["correct"].mean() == 0.5
    assert found.arrays["targets"].tolist() == [0, 1]
    broken = answered(task(2), logits, targets, Metric("broken", lambda *_: 1 / 0))
    assert "metric" not in broken.figures
    assert broken.missing["metric"] == (
        "the metric broken raised ZeroDivisionError: division by zero"
    )
