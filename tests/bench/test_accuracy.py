"""What a file's answers are worth, and why a figure is missing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from compress.bench.measure.accuracy import NOT_FINITE, judge
from compress.bench.plan.metric import Metric
from compress.stats.proportions import wilson
from compress.tasks.base import ImageClassification, Preprocessing


def task(classes: int) -> ImageClassification:
    names = tuple(map(str, range(classes)))
    return ImageClassification("made-up", names, Preprocessing(1, (8, 8), (0.5,), (0.5,)))


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
