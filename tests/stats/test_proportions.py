"""Shares and classes: against their equations, scikit-learn, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from compress.stats.levels import Z
from compress.stats.proportions import (
    balanced_accuracy,
    target_ranks,
    top_accuracy,
    wilson,
)


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


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(11, 30))
def test_top_accuracy_equals_scikit_learns(seed: int, items: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    logits, targets = (
        generator.normal(size=(items, classes)),
        generator.integers(0, classes, items),
    )
    expected = top_k_accuracy_score(targets, logits, k=5, labels=range(classes))
    ranks = target_ranks(logits, targets)
    assert top_accuracy(ranks) == pytest.approx(expected)
    assert np.array_equal(ranks == 0, logits.argmax(1) == targets)


def test_a_constant_file_gets_five_classes_of_twenty_right() -> None:
    assert top_accuracy(target_ranks(np.zeros((20, 20)), np.arange(20))) == 5 / 20


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(2, 8))
def test_balanced_accuracy_equals_scikit_learns(seed: int, items: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    # Two classes occur, and wrong answers only of those that do: of others scikit-learn warns.
    targets = np.r_[0, 1, generator.integers(0, classes, items - 2)]
    predictions = np.where(generator.random(items) < 0.5, targets, generator.permutation(targets))
    expected = balanced_accuracy_score(targets, predictions)
    assert balanced_accuracy(targets, predictions) == pytest.approx(expected)


def test_a_test_split_of_nearly_one_class() -> None:
    """97 of 100 items are of class 2, which is what the file always answers."""
    targets = np.array([2] * 97 + [0, 0, 4])
    predictions = np.full(100, 2)
    assert balanced_accuracy(targets, predictions) == pytest.approx(1 / 3)
    predictions[-1] = 4
    assert balanced_accuracy(targets, predictions) == pytest.approx(2 / 3)
    predictions[0] = 3  # a class that no item is of
    assert balanced_accuracy(targets, predictions) == pytest.approx((96 / 97 + 1) / 3)


def test_labels_need_not_be_small() -> None:
    targets = np.array([10**9, 10**9, 7])
    assert balanced_accuracy(targets, np.array([10**9, 7, 7])) == pytest.approx(0.75)
