"""Weights that saturate nowhere, and biases that fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from compress.deploy.saturation import PAIR, largest_pair
from compress.int8.weights import BIAS, along, least_scale, most, rounded, scales

SHAPES = st.sampled_from([(4, 3, 3, 3), (5, 2, 1, 1), (3, 1, 3, 3), (6, 7), (1, 1), (2, 4, 3)])
WEIGHTS = SHAPES.flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-8, 8, width=32))
)


def pair_sums_in_16_bits(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """vpmaddubsw: products of unsigned and signed bytes, neighbours added with saturation."""
    products = activations.astype(np.int64) * weights.astype(np.int64)
    if len(products) % 2:
        products = np.append(products, 0)
    return products.reshape(-1, 2).sum(1).clip(-(2**15), 2**15 - 1)


def walks(row: np.ndarray) -> list[np.ndarray]:
    """Return one output channel's weights in the orders in which kernels multiply them."""
    found = [row.reshape(-1)]
    if row.ndim > 1:
        found.append(np.moveaxis(row, 0, -1).reshape(-1))
    return [walk[start:] for walk in found for start in (0, 1)]


@given(WEIGHTS, st.integers(0, 2**32 - 1))
def test_portable_weights_saturate_with_no_activations(weight, seed):
    made = rounded(weight, 0, scales(weight, 0, portable=True, least=np.zeros(len(weight))))
    generator = np.random.default_rng(seed)
    for row in made.integers:
        for walk in walks(row):
            largest = np.where(walk > 0, 255, 0)
            for activations in (largest, 255 - largest, generator.integers(0, 256, len(walk))):
                exact = int((activations * walk.astype(np.int64)).sum())
                assert pair_sums_in_16_bits(activations, walk).sum() == exact


@given(WEIGHTS)
def test_every_weight_is_within_half_a_step_and_no_scale_is_coarser_than_seven_bits(weight):
    found = scales(weight, 0, portable=True, least=np.zeros(len(weight)))
    made = rounded(weight, 0, found)
    assert (np.abs(made.values - weight) <= along(found, 0, weight.ndim) * 0.5 * (1 + 1e-4)).all()
    top = np.abs(weight).reshape(len(weight), -1).max(1)
    assert (found <= np.where(top > 1e-35, top / 63 * (1 + 1e-6), 1)).all()
    finest = scales(weight, 0, portable=False, least=np.zeros(len(weight)))
    assert (finest <= found).all()
    assert np.abs(rounded(weight, 0, finest).integers.astype(int)).max() <= most()


def test_eight_plain_bits_do_saturate():
    # What the first test excludes does happen: this is the case of the field's own defaults.
    weight = np.array([[1.0, 1.0, 0.1]], np.float32)
    plain = rounded(weight, 0, scales(weight, 0, portable=False, least=np.zeros(1)))
    walk = plain.integers[0]
    assert largest_pair(plain.integers.astype(int), 0).max() == 254 > PAIR
    assert pair_sums_in_16_bits(np.full(3, 255), walk).sum() < 255 * walk.astype(int).sum()


def test_neighbours_count_in_both_orders():
    weight = np.zeros((1, 2, 1, 3), np.float32)
    weight[0, 0, 0, 0] = weight[0, 1, 0, 0] = 5  # neighbours with channels last
    assert largest_pair(weight, 0) == [10]
    weight = np.zeros((1, 2, 1, 3), np.float32)
    weight[0, 0, 0, 1:] = -5  # neighbours as they lie
    assert largest_pair(weight, 0) == [10]
    weight = np.array([[[[5, -5]]]], np.float32)  # of different signs: their products cancel
    assert largest_pair(weight, 0) == [5]


@pytest.mark.parametrize("weight", [0.0, 1e-9])
@pytest.mark.parametrize("bias", [3.0, -1e4])
def test_a_large_bias_on_tiny_weights_fits_32_bits(weight, bias):
    weights, step = np.full((2, 4), weight, np.float32), 0.01
    biases = np.array([bias, 0.0], np.float32)
    found = scales(weights, 0, True, least_scale(biases, step, 2))
    integers = np.round(biases.astype(np.float64) / (found * step))
    assert (np.abs(integers) <= BIAS * (1 + 1e-6)).all()
    assert integers * found * step == pytest.approx(biases, rel=1e-6)
