"""Figures as they were when statistics were made in several places: moving changed none of them.

Where there is nothing but sums, products and square roots they are equal to the last bit; where a
library's logarithms or distributions come in, its version and the processor have a say in that.
"""

from __future__ import annotations

import numpy as np
import pytest

from compress.stats.control import Control
from compress.stats.pairs import Difference
from compress.stats.proportions import calibration_error, confidences, wilson
from compress.stats.ratios import Ratio, minimum_effect_p, speedup
from compress.stats.replication import deviation, mean_difference, mean_ratio
from compress.stats.spread import spread
from compress.stats.verdicts import holm


@pytest.mark.parametrize(
    ("counts", "p", "interval"),
    [
        ((120, 87, 10_000), 0.025899541336068893, (-0.006131522611830338, -0.0004671576521168728)),
        ((3, 11, 360), 0.057373046875, (0.0005623715496597334, 0.043636523477964574)),
        ((0, 9, 1000), 0.00390625, (0.0025184278100102405, 0.015445644046277185)),
    ],
)
def test_paired_differences(counts, p, interval):
    found = Difference(*counts)
    assert found.interval == interval
    assert found.p == pytest.approx(p, rel=1e-13)


def test_wilsons_intervals():
    """By a quantile that was two units in the last place smaller: their last place may differ."""
    found = [wilson(9339, 10_000), wilson(351, 360), wilson(1, 7)]
    assert found == [
        pytest.approx((0.9288618039000095, 0.9386049623139171), rel=0, abs=3e-16),
        pytest.approx((0.953177078553323, 0.9867927674024181), rel=0, abs=3e-16),
        pytest.approx((0.02567962434474355, 0.5131278292743188), rel=0, abs=3e-16),
    ]


def test_speed():
    base = [(1.0, 1.1, 1.05, 1.2), (1.3, 1.25, 1.4), (1.15, 1.0, 1.1)]
    fast = [(0.5, 0.52, 0.51, 0.58), (0.6, 0.66, 0.7), (0.59, 0.52, 0.5)]
    found = speedup([*map(np.array, base)], [*map(np.array, fast)], seed=3, resamples=50)
    assert found == Ratio(
        pytest.approx(2.0291986247835694, rel=1e-13),
        pytest.approx(1.8336767621015861, rel=1e-12),
        pytest.approx(2.2455686541526947, rel=1e-12),
        pytest.approx(0.023547761009419986, rel=1e-12),
        3,
    )
    assert minimum_effect_p(found, 0.03) == pytest.approx(0.001111265534935397, rel=1e-11)
    assert Control(Ratio(1.03, 1.01, 1.05, 0.01, 5), 0.015).bar == pytest.approx(0.03, rel=1e-13)
    times = spread(np.array([0.001, 0.0013, 0.0011, 0.002, 0.0012]))
    assert (times.p50_ms, times.p90_ms) == (1.2, 1.7200000000000002)
    assert times.iqr_ms == 0.19999999999999996


def test_rows_and_seeds():
    assert holm([0.011, 0.2, 0.0007, 0.04]) == [0.033, 0.2, 0.0028, 0.08]
    assert deviation([0.91, 0.92, 0.905]) == 0.00763762615825974
    own = [(0.005, 0.019), (0.012, 0.028), (0.01, 0.024)]
    found = mean_difference([0.012, 0.02, 0.017], own, [0.1, 0.2, 0.3])
    assert found.value == 0.016333333333333335
    assert (found.low, found.high, found.p) == pytest.approx(
        (0.006293810297251259, 0.02637285636941541, 0.019803941180393126), rel=1e-12
    )
    ratio = mean_ratio([1.5, 1.6, 1.45], [(1.4, 1.61), (1.5, 1.7), (1.4, 1.5)])
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx(
        (1.5153969703350199, 1.3383665971732108, 1.7158437625019076), rel=1e-12
    )


def test_calibration():
    correct = np.array([True, False, True, True])
    assert calibration_error(np.array([0.9, 0.8, 0.99, 0.61]), correct) == 0.325
    assert confidences(np.array([[1.0, 2.0, 0.5]])) == pytest.approx([0.62853172], abs=1e-8)
