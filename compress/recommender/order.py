"""Which of the chains that were screened is trained next: much to save, soon, and likely."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from statistics import fmean, median

from compress.recommender.goal import Judge
from compress.recommender.lab import macs_over
from compress.recommender.measured import FULL, Measured, Trial

LEFT = 0.1
"""Share of what is lost without training that stays lost with it, until some were seen."""
MOST_LOST = 0.15
"""How far a model falls without training tells up to here what it will have lost with it; a model
that falls farther is broken, and how far says little."""
SPREAD = (0.3, 1.0, 3.0)
"""What that share may turn out to be, as multiples."""
UNKNOWN = 0.3
"""The chance of a student as large as the baseline, of which nothing is known before it is trained,
until some were. It falls with the root of the MACs: small ones seldom learn all."""
BEHIND = 0.1
"""Of a chain that costs more than the best so far: its worth, as a share of its saving."""


@dataclass
class Order:
    """Predicts what training will bring, from what it brought to others."""

    judge: Judge
    left: list[float] = field(default_factory=list)
    """Of trained cuts: the change of accuracy with all their training, over that without."""
    students: list[float] = field(default_factory=list)
    """The chances of trained students, as if they were as large as the baseline."""

    def learn(self, trial: Trial) -> None:
        """Take in a trial that went through all stages."""
        if trial.reached != FULL or len(trial.measured) < 2:
            return
        first, last = trial.measured[0], trial.measured[-1]
        if not first.candidate:
            likely = self.judge.promise(last) / self._shrink(first)
            self.students.append(min(1.0, likely))
        elif first.change < 0:
            self.left.append(min(1.0, max(0.0, last.change / max(first.change, -MOST_LOST))))

    def chance(self, screened: Measured) -> float:
        """Return the chance of a chain once it is trained, by what it is without."""
        if not screened.candidate:
            return fmean([UNKNOWN, *self.students]) * self._shrink(screened)
        share = median(self.left) if self.left else LEFT
        return fmean(
            self.judge.promise(_recovered(screened, min(1.0, times * share))) for times in SPREAD
        )

    def _shrink(self, student: Measured) -> float:
        """Return by how much a student's size makes its chance smaller, as a factor."""
        return math.sqrt(min(1.0, macs_over(student, self.judge.baseline)))

    def worth(self, screened: Measured, best: Measured | None, seconds: float) -> float:
        """Return the expected saving over the best so far for each second of training."""
        value = self.judge.value(screened)
        if self.judge.goal.target_ms is not None:
            # All of them are fast enough: the slower one mostly learns more.
            return 1 / max(seconds, 1.0)
        saving = max(0.0, -value)
        if best is not None:
            saving = max(BEHIND * saving, self.judge.value(best) - value)
        return self.chance(screened) * saving / max(seconds, 1.0)


def _recovered(one: Measured, share: float) -> Measured:
    """Return a chain that has lost only a share of what it has."""
    lost = one.gained + round(share * one.items * min(max(0.0, -one.change), MOST_LOST))
    return replace(one, lost=lost)


def most_promising(
    screened: Iterable[tuple[Measured, float]], order: Order, best: Measured | None
) -> list[int]:
    """Return the places of chains, with the seconds that each takes, from the most worth on."""
    worths = [order.worth(one, best, seconds) for one, seconds in screened]
    return sorted(range(len(worths)), key=lambda place: -worths[place])
