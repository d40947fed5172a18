"""Ranges: zero is a level, and the best is no worse than any."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.deploy.observe import BINS, Observed
from compress.int8.ranges import (
    COARSER,
    METHODS,
    Range,
    begins_at_minus_three,
    best,
    for_hard_swish,
    of_interval,
)

NUMBERS = st.floats(-1e6, 1e6, width=32)


@given(NUMBERS, NUMBERS)
def test_zero_is_a_level_and_the_interval_is_covered(one, other):
    low, high = min(one, other), max(one, other)
    found = of_interval(low, high)
    assert 0 <= found.zero <= 255
    assert found.scale > 0
    assert found.low <= min(low, 0) + found.scale * 0.51
    assert found.high >= max(high, 0) - found.scale * 0.51
    if low >= 0:
        assert found.zero == 0, "so that it clips at zero, as a ReLU does"


def error(values: np.ndarray, one: Range) -> float:
    levels = np.clip(np.round(values / one.scale) + one.zero, 0, 255)
    return float(((one.scale * (levels - one.zero) - values) ** 2).mean())


@pytest.mark.parametrize("positive", [False, True])
def test_the_best_range_has_the_least_error_of_all_methods(positive):
    values = np.random.default_rng(0).standard_t(4, size=30_000).astype(np.float32)
    values = np.abs(values) if positive else values
    observed = Observed()
    observed.add(values)
    found = {method: error(values, best(observed, method)) for method in METHODS}
    assert found["best"] <= 1.02 * min(found.values())
    assert found["best"] < 0.97 * found["minmax"], "tails as long as these are worth clipping"
    assert best(observed, "minmax").high == pytest.approx(values.max(), rel=0.01)


def test_a_value_that_is_always_zero_has_a_range():
    observed = Observed()
    observed.add(np.zeros((2, 3), np.float32))
    assert (best(observed).scale, best(observed).zero) == (1.0, 0)


@given(st.lists(st.floats(0.125, 1e5, width=32), min_size=1, max_size=8), st.integers(0, 99))
def test_a_histogram_that_widens_is_that_of_all_values(sizes, seed):
    generator = np.random.default_rng(seed)
    parts = [size * generator.uniform(-1, 1, 1000).astype(np.float32) for size in sizes]
    observed = Observed()
    for part in parts:
        observed.add(part)
    values = np.concatenate(parts)
    assert (observed.low, observed.high) == (values.min(), values.max())
    edges = (np.arange(BINS + 1) - BINS // 2) * observed.width
    expected, _ = np.histogram(values.astype(np.float64), edges)
    assert observed.counts.sum() == len(values)
    # Where a value lies on an edge, as small ones beside zero do, the two roundings may differ.
    places = values.astype(np.float64) / observed.width
    on_edges = int((np.abs(places - np.rint(places)) < 1e-3).sum())
    assert np.abs(observed.counts - expected).sum() <= 2 * on_edges


@given(st.floats(-50, 0), st.floats(0, 50))
def test_the_integers_of_a_hard_swish_are_those_of_its_gate(low, high):
    observed = Observed()
    observed.add(np.linspace(low, high, 200, dtype=np.float32))
    before = of_interval(low, high)
    found = for_hard_swish(before, observed)
    if not begins_at_minus_three(found):
        assert found == before
        return
    integers = np.arange(256)
    x = found.scale * (integers - found.zero)
    gate = np.minimum(integers, 2 * found.zero) * found.scale / 6
    assert gate == pytest.approx(np.clip(x + 3, 0, 6) / 6, abs=1e-6)
    assert found.high >= before.high * (1 - 1e-6)
    assert found.scale <= COARSER * before.scale


def test_values_of_next_to_nothing_are_counted():
    observed = Observed()
    observed.add(np.array([-1e-45, 0, 1e-45], np.float32))
    assert observed.counts.sum() == 3
    observed.add(np.array([0.5], np.float32))
    assert observed.counts.sum() == 4
    assert observed.largest < observed.width * (BINS // 2)
