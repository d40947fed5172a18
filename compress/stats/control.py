"""The A/A control of a timing: the baseline against a second copy of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compress.stats.ratios import Ratio

TRUSTED = 0.05
"""Where the margin or the control's interval is wider, latencies are not to be trusted."""


def control_margin(ratios: Sequence[float]) -> float:
    """Return how far an A/A ratio strays from 1, a fraction, from those of k processes.

    The root mean square of its logarithm, divided by sqrt(k), since a speed-up comes from k
    processes too. 0 without processes.
    """
    logs = [np.log(ratio) for ratio in ratios]
    return float(np.expm1(np.sqrt(np.mean(np.square(logs)) / len(logs)))) if logs else 0.0


@dataclass(frozen=True)
class Control:
    """How the baseline compares with a second copy of itself (`ratio` None: it was not timed).

    `margin` is `control_margin`; a speed-up must exceed it to be called one.
    """

    ratio: Ratio | None
    margin: float

    @property
    def bias(self) -> float:
        """How far the control is from 1, a fraction, if that is beyond doubt; else 0."""
        if self.ratio is None or self.ratio.low <= 1 <= self.ratio.high:
            return 0.0
        return float(np.expm1(abs(np.log(self.ratio.value))))

    @property
    def half_width(self) -> float:
        """Half of the control's interval, a fraction; infinite if there is none."""
        if self.ratio is None or self.ratio.processes < 2:
            return float("inf")
        return float(self.ratio.high / self.ratio.value - 1)

    @property
    def bar(self) -> float:
        """How far from 1 (a fraction) a speed-up must be beyond doubt: the margin.

        Where the control's interval leaves out 1, it is at least the control's bias: what sets two
        copies of one file apart in every process does not average out. Where the control is not to
        be trusted it is the control's own half interval, if that is wider, and at least `TRUSTED`.
        """
        least = max(self.margin, self.bias)
        return least if self.trusted else max(least, self.half_width, TRUSTED)

    @property
    def trusted(self) -> bool:
        """Whether the control is narrow enough for small differences to mean anything."""
        return not self.untrusted_because

    @property
    def untrusted_because(self) -> list[str]:
        """Why the control is not to be trusted, in words."""
        if self.ratio is None:
            return ["the second copy of the baseline (the A/A control) was not timed"]
        if self.ratio.processes < 2:
            return ["the A/A control was timed in one process only, so no difference can be judged"]
        sizes = {
            "two copies of one file differ by {} on average": self.margin,
            "the A/A control is uncertain by ±{}": self.half_width,
            "two copies of one file differ consistently, by {}": self.bias,
        }
        return [w.format(f"{100 * x:.1f} %") for w, x in sizes.items() if x > TRUSTED]
