"""The A/A control: what a speed-up must exceed, and why it may not be trusted."""

from __future__ import annotations

import numpy as np
import pytest

from compress.stats.control import TRUSTED, Control, control_margin
from compress.stats.ratios import Ratio


@pytest.mark.parametrize(
    ("ratio", "margin", "reasons"),
    [
        (Ratio(1.0, 0.99, 1.01, 0.005, 5), 0.04, []),
        (Ratio(1.0, 0.99, 1.01, 0.005, 5), 0.083,
         ["two copies of one file differ by 8.3 % on average"]),
        (Ratio(1.0, 0.9, 1.1, 0.05, 5), 0.015,
         ["the A/A control is uncertain by ±10.0 %"]),
        (Ratio(1.07, 1.05, 1.09, 0.01, 5), 0.02,
         ["two copies of one file differ consistently, by 7.0 %"]),
        (Ratio(1.0, 0.0, float("inf"), float("inf"), 1), 0.02,
         ["the A/A control was timed in one process only, so no difference can be judged"]),
        (None, 0.0,
         ["the second copy of the baseline (the A/A control) was not timed"]),
    ],
)  # fmt: skip
def test_why_a_control_is_not_to_be_trusted(ratio, margin, reasons):
    control = Control(ratio, margin)
    assert control.untrusted_because == reasons
    assert control.trusted == (not reasons)


def test_the_margin_by_hand():
    # Logarithms 0.02 and -0.04: root mean square sqrt(0.001), of two processes together / sqrt(2).
    assert control_margin(np.exp([0.02, -0.04])) == pytest.approx(np.expm1(np.sqrt(0.0005)))
    assert control_margin([]) == 0.0


def test_the_bias_counts_in_both_directions_and_only_beyond_doubt():
    assert Control(Ratio(1.02, 0.99, 1.05, 0.01, 5), 0.0).bias == 0.0
    for value in (1.02, 1 / 1.02):
        ratio = Ratio(value, value - 0.01, value + 0.01, 0.005, 5)
        assert Control(ratio, 0.0).bias == pytest.approx(0.02)


def test_the_bar_is_the_largest_of_what_is_doubted():
    within, biased = Ratio(1.0, 0.98, 1.02, 0.01, 5), Ratio(1.03, 1.01, 1.05, 0.01, 5)
    assert Control(within, 0.015).bar == 0.015
    assert Control(biased, 0.015).bar == pytest.approx(0.03)
    wide = Control(Ratio(1.0, 0.9, 1.1, 0.05, 5), 0.015)
    assert wide.bar == wide.half_width == pytest.approx(0.1)
    assert Control(Ratio(1.0, 0.98, 1.02, 0.01, 5), 0.06).bar == 0.06
    assert Control(Ratio(1.0, 0.97, 1.03, 0.01, 1), 0.0).bar == np.inf
    assert Control(None, 0.0).bar == np.inf > TRUSTED
