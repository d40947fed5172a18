"""What steps will take, learnt from the seconds that finished ones took."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from compress.compressor import Compressor, leaves
from compress.techniques.search import Search
from compress.training import Training

BESIDE = 0.15
"""What an epoch takes whatever the model's MACs, as a share of the baseline's: data, optimizer."""
QUICK = 5.0
"""Seconds of a step that does not train, as long as none was seen; at most, if others were."""
MUCH_LESS = 0.7
"""Of the time for an epoch: from here on what was refused as too long is worth another thought."""
MEASURE = "measure"


@dataclass
class CostModel:
    """Predicts the seconds of steps.

    A training takes epochs · (MACs / the baseline's + `BESIDE`) units (`search` trains several nets
    at once); seconds per unit are the median of those seen of its technique, else of any training,
    else those of a probe. Of other steps, the mean over equal texts counts, else that over the
    technique, else the least over techniques: what takes too long is stopped, and what is not tried
    is never known.
    """

    unit_seconds: float
    """Of an epoch of the baseline's own size, as a probe found it."""
    measure_seconds: float = QUICK
    """Of a row, as long as none was measured."""
    units: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    taken: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    learnt: set[str] = field(default_factory=set)
    """Beginnings of chains whose last step was taken in, and rows whose measuring was."""

    def learn(self, step: Compressor, seconds: float, macs: float) -> None:
        """Take in what a step took; `macs` are those of what it made, over the baseline's."""
        work = _work(step, macs)
        if work:
            self.units[step.name()].append(seconds / work)
        else:
            self.taken[repr(step)].append(seconds)
            self.taken[step.name()].append(seconds)

    def learn_log(
        self,
        chain: str,
        steps: Iterable[tuple[Compressor, float]],
        log: Iterable[Mapping[str, Any]],
    ) -> None:
        """Take in a row's log: a line of seconds for each step, and one for the measuring.

        `steps` come with the MACs of what they made. What rows share, their first steps, was done
        once, and counts once.
        """
        known = {repr(step): (step, macs) for step, macs in steps}
        before = ""
        for line in log:
            if line["kind"] == "step" and line["step"] in known:
                before = f"{before} -> {line['step']}"
                if self._is_new(before):
                    step, macs = known[line["step"]]
                    self.learn(step, line["seconds"], macs)
            elif line["kind"] == "measuring" and self._is_new(chain):
                self.taken[MEASURE].append(line["seconds"])

    def _is_new(self, text: str) -> bool:
        seen = text in self.learnt
        self.learnt.add(text)
        return not seen

    def seconds(self, step: Compressor, macs: float) -> float:
        """Return how long a step will take on a model of so many MACs, over the baseline's."""
        if work := _work(step, macs):
            seen = self.units.get(step.name()) or [u for us in self.units.values() for u in us]
            return work * (median(seen) if seen else self.unit_seconds)
        for name in (repr(step), step.name()):
            if self.taken.get(name):
                return fmean(self.taken[name])
        others = [s for name, s in self.taken.items() if "(" not in name and name != MEASURE]
        return min([QUICK, *map(fmean, others)])

    def look_again(self, epoch: Callable[[], float]) -> bool:
        """Whether an `epoch` takes much less than was thought, from now on it counts as that.

        Until a training has run all goes by a moment's try, for which the machine may have been
        busy: threads that wait for one another take many times as long then.
        """
        if self.units:
            return False
        before, self.unit_seconds = self.unit_seconds, min(self.unit_seconds, epoch())
        return self.unit_seconds < MUCH_LESS * before

    def measuring(self) -> float:
        """Return how long the measuring of a row will take."""
        seen = self.taken.get(MEASURE)
        return median(seen) if seen else self.measure_seconds

    def epoch(self) -> float:
        """Return how long an epoch takes of a model as large as the baseline, by any technique."""
        seen = [unit for units in self.units.values() for unit in units]
        return (1 + BESIDE) * (median(seen) if seen else self.unit_seconds)


def _work(step: Compressor, macs: float) -> float:
    """Return how many units a step trains; 0 if it does not."""
    return sum(times * _epochs(one) * (_nets(one, macs) + BESIDE) for one, times in leaves(step))


def _epochs(step: Compressor) -> int:
    return step.epochs if isinstance(step, Training | Search) else 0


def _nets(step: Compressor, macs: float) -> float:
    """Return the MACs, over the baseline's, of all nets that a training runs on each batch."""
    if isinstance(step, Search) and step.family is None:
        return (
            1 + (1 + step.subnets) * macs
        )  # the whole one, and subnets about as large as the best
    if isinstance(step, Search):
        return macs * (1 + math.log2(step.count)) / 2  # a halving's rounds take equally long
    return macs
