"""Which units are worth being int8 on this machine: found by measuring.

A unit whose neighbours are float pays for quantizing and dequantizing, and some integer kernels are
slower than their float ones. No table of names knows which: it differs from processor to
processor and from version to version. So groups of alike units are tried as float, several at a
time against all that is int8, and those that make the whole faster stay float.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from compress.int8.units import Unit

Files = Mapping[str, bytes]
Clock = Callable[[Files, float], Mapping[str, np.ndarray]]
"""Times files in turns for some seconds; returns the seconds of each, round by round."""
Write = Callable[[frozenset[str]], bytes]
"""Writes the int8 file in which some units stay float."""

TOGETHER, FEWEST = 9, 3
"""Files that are timed in one process, at most; and if they are large, at least."""
HELD = 2e9
"""Bytes that they may have together, each as large as the float file."""
LEAST_GAIN = 0.005
"""What a group must gain, as a share of the time of all, surely."""
HOPELESS = 0.97
"""A group that is this much slower as float, surely, is not tried again beside others."""
NOISY = 0.01
"""With a standard error above this a trial is made again, for twice as long."""
Z = 2.0
NOW, FLOAT = "now", "float"
T = TypeVar("T")


@dataclass(frozen=True)
class Placement:
    """The units that stay float, and what was found on the way."""

    floats: frozenset[str]
    trials: int
    gain: float
    """How many times as fast as with everything int8."""
    speedup: float
    """How many times as fast as the float file, one item at a time; 0 if that was not timed."""
    complete: bool
    """Whether all groups were tried within the seconds."""


def alike(units: Mapping[str, Unit]) -> dict[str, frozenset[str]]:
    """Return groups of units of alike structure, those with most outputs first.

    Before them, the wider ones. What squeeze-excite computes is one group.
    """
    groups: dict[str, set[str]] = {}
    sizes: dict[str, float] = {}
    for unit in units.values():
        if _tiny(unit):
            continue
        words = signature(unit)
        groups.setdefault(words, set()).add(unit.name)
        sizes[words] = sizes.get(words, 0.0) + _outputs(unit)
    found = {
        words: frozenset(groups[words]) for words in sorted(groups, key=lambda one: -sizes[one])
    }
    kept: dict[frozenset[str], str] = {}
    for words, names in {**wider(units), **found}.items():
        if names and len(names) < len(units):
            kept.setdefault(names, words)
    return {words: names for names, words in kept.items()}


def wider(units: Mapping[str, Unit]) -> dict[str, frozenset[str]]:
    """Return groups of units that are known to matter together.

    The first product and what follows it; all down to a size of images, since the first layers have
    few channels, and one conversion behind them serves all; all depthwise convolutions; and all
    that squeeze-excite computes.
    """
    found: dict[str, frozenset[str]] = {}
    first = next((unit for unit in units.values() if unit.weighted), None)
    if first is not None:
        after = [unit.name for unit in units.values() if first.output in unit.activations]
        found["the first product"] = frozenset({first.name})
        found["the first product and what follows"] = frozenset({first.name, *after})
    found |= dict(_beginnings(list(units.values())))
    found["depthwise convolutions"] = frozenset(
        unit.name for unit in units.values() if _depthwise(unit)
    )
    found["squeeze-excite"] = frozenset(unit.name for unit in units.values() if _tiny(unit))
    return found


def _beginnings(units: Sequence[Unit]) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield, for each size of images but the last, all units down to the last of that size."""
    sides = [_side(unit) for unit in units]
    for side in sorted(set(sides) - {0}, reverse=True)[:-1]:
        last = max(number for number, one in enumerate(sides) if one >= side)
        yield f"all down to {side}x{side}", frozenset(one.name for one in units[: last + 1])


def _side(unit: Unit) -> int:
    """Return the height of a unit's output; 0 where it is no image, or of one pixel."""
    shape = unit.output.shape
    if shape is None or len(shape) != 4 or not isinstance(shape[2], int):
        return 0
    return int(shape[2]) if shape[2] > 1 else 0


def signature(unit: Unit) -> str:
    """Return in words what decides which kernel computes a unit, and how it is called."""
    words = [unit.kind]
    if unit.weighted:
        words += ["x".join(map(str, unit.weight.shape[2:])) or "matrix"]
        words += ["depthwise"] * _depthwise(unit)
    shape = unit.output.shape
    if shape is not None:
        words += ["to", "x".join(map(str, shape[2:])) or "vector"]
    return " ".join(words)


def _depthwise(unit: Unit) -> bool:
    return unit.weighted and unit.groups > 1 and unit.weight.shape[1] == 1


def _tiny(unit: Unit) -> bool:
    shape = unit.output.shape
    return shape is not None and len(shape) == 4 and list(shape[2:]) == [1, 1]


def _outputs(unit: Unit) -> float:
    shape = unit.output.shape
    sizes = [size for size in (shape or [])[1:] if isinstance(size, int)]
    return float(np.prod(sizes)) if sizes else 0.0


def search(
    units: Mapping[str, Unit],
    write: Write,
    floating: bytes,
    clock: Clock,
    seconds: float,
    now: Callable[[], float] = time.monotonic,
) -> Placement:
    """Return the fastest placement that is found within some seconds; `floating` is the float file.

    First the wider groups; where that leaves a beginning float, its end is moved. Then every other
    group alone, and those that surely gain together, best first; and what did not gain alone once
    more beside them.
    """
    one = _Search(units, write, clock, seconds, now, {FLOAT: floating})
    taken = [one.take(dict(some)) for some in one.chunks(list(one.wider.items()), 1)]
    if any(taken) and not one.over():
        one.move_end()
    for beside in ({}, one.wider):
        if one.over() or not one.step(beside):
            break
    return Placement(one.floats, one.trials, one.gain, one.speedup * one.gain, one.complete)


class _Search:
    """A search and what it has found so far."""

    def __init__(
        self,
        units: Mapping[str, Unit],
        write: Write,
        clock: Clock,
        seconds: float,
        now: Callable[[], float],
        beside: Files,
    ) -> None:
        self.write, self.clock, self.seconds, self.now = write, clock, seconds, now
        self.until = now() + seconds
        self.order = list(units)
        self.ends = [len(names) for _, names in _beginnings(list(units.values()))]
        self.groups = alike(units)
        self.wider = {words: self.groups[words] for words in wider(units) if words in self.groups}
        self.beside = dict(beside)
        """Files that are timed in the first trial, too."""
        largest = max(map(len, beside.values()), default=0)
        self.together = max(FEWEST, min(TOGETHER, int(HELD / max(largest, 1))))
        self.floats: frozenset[str] = frozenset()
        self.trials, self.gain, self.speedup, self.complete = 0, 1.0, 0.0, True

    def over(self) -> bool:
        """Whether the time is over; then the search is not complete."""
        over = self.now() > self.until
        self.complete = self.complete and not over
        return over

    def chunks(self, every: Sequence[T], beside: int) -> Iterator[Sequence[T]]:
        """Yield as many as are timed together, so many others `beside` them, until time is over."""
        size = self.together - beside
        for start in range(0, len(every), size):
            if start and self.over():
                return
            yield every[start : start + size]

    def measured(self, tried: Mapping[str, frozenset[str]]) -> Mapping[str, np.ndarray]:
        """Time files in which these units are float, beside the best so far."""
        files = {NOW: self.write(self.floats)}
        files |= {words: self.write(names) for words, names in tried.items()} | self.beside
        self.beside = {}
        seconds = _share(self.seconds, len(self.groups)) * len(files)
        found = self.clock(files, seconds)
        if np.median([ratio(found, words)[1] for words in tried]) > NOISY and not self.over():
            found = self.clock(files, 2 * seconds)
        self.trials += len(tried)
        if FLOAT in found:
            self.speedup = 1 / ratio(found, FLOAT)[0]
        return found

    def step(self, again: Collection[str]) -> bool:
        """Try every group alone, then the best together; return whether any gained.

        Of the wider groups, which were tried before, those to try `again`.
        """
        names = [
            words
            for words, units in self.groups.items()
            if not units <= self.floats and (words in again or words not in self.wider)
        ]
        alone: dict[str, float] = {}
        for chunk in self.chunks(names, 2):
            found = self.measured({one: self.floats | self.groups[one] for one in chunk})
            alone |= {one: gain for one in chunk if (gain := sure_gain(found, one)) > LEAST_GAIN}
            for one in chunk:
                if ratio(found, one)[0] < HOPELESS:
                    del self.groups[one]
        best = sorted(alone, key=lambda one: -alone[one])
        return self.take(self._together(best))

    def _together(self, best: Sequence[str]) -> dict[str, frozenset[str]]:
        """Return groups one after the other, each beside those before it; and each by itself."""
        tried: dict[str, frozenset[str]] = {}
        sofar = self.floats
        for words in best:
            if not self.groups[words] <= sofar:
                sofar |= self.groups[words]
                tried[f"until {words}"] = sofar
        for words in best:
            names = self.floats | self.groups[words]
            if names not in tried.values():
                tried[words] = names
        return dict(list(tried.items())[: self.together - 1])

    def move_end(self) -> None:
        """Move the end of the beginning that is float."""
        begun = [end for end in self.ends if self.floats.issuperset(self.order[:end])]
        if begun:
            [before, *_] = [end for end in (*self.ends[::-1], 0) if end < begun[-1]]
            after = next((end for end in self.ends if end > begun[-1]), len(self.order) - 1)
            others = self.floats - set(self.order[: begun[-1]])
            cuts = np.unique(np.linspace(before, after, self.together + 1).astype(int)[1:-1])
            self.take({f"{cut} units": others | set(self.order[:cut]) for cut in cuts})

    def take(self, tried: Mapping[str, frozenset[str]]) -> bool:
        """Have the units float that gain most, and of alike gains the fewest; whether any do."""
        if not tried:
            return False
        found = self.measured(tried)
        gains = {words: sure_gain(found, words) for words in tried}
        most = max(gains.values())
        near = [words for words, gain in gains.items() if gain >= most - LEAST_GAIN]
        winner = min(near, key=lambda words: len(tried[words]))
        if gains[winner] <= LEAST_GAIN:
            return False
        self.floats = tried[winner]
        self.gain *= ratio(found, winner)[0]
        return True


def _share(seconds: float, files: int) -> float:
    """Return the seconds for a file: half of all for the first pass."""
    return max(0.1, min(1.5, seconds / 2 / max(files, 1)))


def ratio(found: Mapping[str, np.ndarray], name: str) -> tuple[float, float]:
    """Return how many times as fast as now a file is, and the standard error of its logarithm."""
    if name not in found or NOW not in found:
        return 0.0, 0.0
    rounds = min(len(found[name]), len(found[NOW]))
    logs = np.log(found[NOW][:rounds] / found[name][:rounds])
    # Of the median, from the middle half: a tenant's spike counts for nothing.
    low, middle, high = np.percentile(logs, [25, 50, 75])
    return float(np.exp(middle)), 1.2533 * float(high - low) / 1.349 / np.sqrt(max(rounds, 1))


def sure_gain(found: Mapping[str, np.ndarray], name: str) -> float:
    """Return how much faster a file surely is, as a share; negative where it may be slower."""
    value, error = ratio(found, name)
    return value * float(np.exp(-Z * error)) - 1 if value else -1.0
