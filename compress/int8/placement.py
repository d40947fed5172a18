"""Which units are worth being int8 on this machine: found by measuring.

A unit whose neighbours are float pays for quantizing and dequantizing, and some integer kernels are
slower than their float ones. No table of names knows which: it differs from processor to
processor and from version to version. So groups of alike units are tried as float, several at a
time against all that is int8, and those that make the whole faster stay float. Where float is
faster all the same, groups are tried as int8 in the float file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from compress.int8.units import Unit

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Compared:
    """Files that were timed in turns."""

    times: Mapping[str, np.ndarray]
    """The seconds of a call of each, round by round. A file that fails is missing."""
    took: Mapping[str, float]
    """The seconds that went by: READY before the first, WRITING the files, and TIMING them."""


Clock = Callable[[Files, float, Mapping[str, float]], Compared]
"""Times files in turns for some seconds, given what went by before; see `Compared.took`.

An answer that is kept keeps what it took, so that a search with kept answers has as much time left
as the one that measured them had, and ends where that one did.
"""
Write = Callable[[frozenset[str]], bytes]
"""Writes the int8 file in which some units stay float."""

READY, WRITING, TIMING = "ready", "writing", "timing"
TOGETHER, FEWEST = 9, 3
"""Files that are timed in one process, at most; and if they are large, at least."""
HELD = 2e9
"""Bytes that they may have together, each as large as the float file."""
LEAST_GAIN = 0.005
"""What a group must gain, as a share of the time of all, surely."""
HOPELESS = 0.97
"""A group that is this much slower as float is not tried again beside others; and a file that is
this much slower than the float one is no place to go on from."""
CLOSE = 1.05
"""A file that is not faster than the float one by this is compared with it once more at the end."""
ANEW = 3.0
"""How many times as long such a comparison takes."""
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
    seconds: float
    """What that took, also what an interrupted search before it has measured."""
    all_float: bool
    """Whether nothing is int8: every file that was tried is surely slower than the float one."""
    best: float
    """How many times as fast as the float file the fastest that is int8 is, as `speedup`."""


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
    ready: float = 0.0,
    now: Callable[[], float] = time.monotonic,
) -> Placement:
    """Return the fastest placement that is found within some seconds; `floating` is the float file.

    First all that is int8 beside the float file, then the wider groups as float; where that leaves
    a beginning float, its end is moved. Then, from the better of that and the float file, every
    other group alone, and those that surely gain together, best first; and what did not gain alone
    once more beside them.

    Of the seconds, `ready` have gone by. No comparison begins that would not end in time by what
    those before have taken; the first is made in any case.
    """
    one = _Search(units, write, floating, clock, seconds, ready, now)
    one.begin()
    taken = [one.take(dict(some)) for some in one.chunks(list(one.wider.items()))]
    if any(taken):
        one.move_end()
    if one.slower_than(HOPELESS):
        one.begin_from_float()
    one.steps()
    if one.slower_than(CLOSE):
        one.begin_from_float()
        one.steps()
    return Placement(
        *(one.floats, one.trials, one.gain, one.speedup, one.complete, one.spent),
        all_float=one.is_float(one.floats),
        best=one.best,
    )


class _Search:
    """A search and what it has found so far."""

    def __init__(
        self,
        units: Mapping[str, Unit],
        write: Write,
        floating: bytes,
        clock: Clock,
        seconds: float,
        ready: float,
        now: Callable[[], float],
    ) -> None:
        self.write, self.clock, self.seconds, self.now = write, clock, seconds, now
        self.floating, self.ready = floating, ready
        self.order, self.every = list(units), frozenset(units)
        self.products = {unit.name for unit in units.values() if unit.weighted}
        self.ends = [len(names) for _, names in _beginnings(list(units.values()))]
        self.known = alike(units)
        self.groups = dict(self.known)
        """Those that may still gain."""
        self.wider = {words: self.groups[words] for words in wider(units) if words in self.groups}
        self.together = max(FEWEST, min(TOGETHER, int(HELD / max(len(floating), 1))))
        self.share = _share(seconds, len(self.groups))
        self.floats: frozenset[str] = frozenset()
        self.been = {self.floats, self.every}
        """All that was float in a file that was the best."""
        self.slower: dict[frozenset[str], bool] = {}
        """Whether a file is surely slower than the float one, by what is float in it."""
        self.seen_anew: frozenset[str] | None = None
        """What was float in the file that was seen beside the float one anew."""
        self.from_float = False
        """Whether it goes on from the float file."""
        self.trials, self.gain, self.speedup, self.best, self.complete = 0, 1.0, 0.0, 0.0, True
        self.spent, self.files, self.beyond = 0.0, 1, 0.0
        """What all comparisons took; the last one's files, and its seconds beyond those asked."""

    def is_float(self, floats: frozenset[str]) -> bool:
        """Whether nothing is int8 with these as float: without products nothing reads integers."""
        return floats.issuperset(self.products)

    def fits(self, files: int, seconds: float, kept: float = 0.0) -> bool:
        """Whether a comparison of so many files ends in time, and leaves what is to be kept."""
        cost = seconds + self.beyond * max(1.0, files / self.files)
        return self.spent + cost + kept <= self.seconds

    @property
    def last(self) -> float:
        """The seconds to keep for the last comparison with the float file."""
        return ANEW * 2 * self.share + self.beyond if self.is_below(CLOSE) else 0.0

    def room(self) -> int:
        """Return how many files can be tried beside the best so far in the time that is left."""
        for files in range(self.together, 1, -1):
            if self.fits(files, self.share * files, self.last):
                return files - 1
        self.complete = False
        return 0

    def chunks(self, every: Sequence[T]) -> Iterator[Sequence[T]]:
        """Yield as many at a time as can be tried together, until time is over."""
        start = 0
        while start < len(every) and (size := self.room()):
            yield every[start : start + size]
            start += size

    def compared(self, files: Files, seconds: float, took: Mapping[str, float]) -> Compared:
        found = self.clock(files, seconds, took)
        self.spent += sum(found.took.values())
        self.files = len(files)
        self.beyond = found.took.get(WRITING, 0.0) + found.took[TIMING] - seconds
        return found

    def measured(
        self, tried: Mapping[str, frozenset[str]], times: float = 1.0
    ) -> Mapping[str, np.ndarray]:
        """Time files in which these units are float, beside the best so far.

        `times` says how many times as long as usual.
        """
        started = self.now()
        files = {
            name: self.floating if self.is_float(floats) else self.write(floats)
            for name, floats in {NOW: self.floats, **tried}.items()
        }
        took = {READY: self.ready, WRITING: self.now() - started}
        self.ready = 0.0
        seconds = min(times * self.share * len(files), self.seconds / 2)
        found = self.compared(files, seconds, took).times
        noise = np.median([ratio(found, words)[1] for words in tried])
        if noise > NOISY and self.fits(len(files), 2 * seconds, self.last):
            found = self.compared(files, 2 * seconds, {}).times
        return found

    def begin(self) -> None:
        """Time all that is int8 beside the float file."""
        self.beside_float()

    def beside_float(self, times: float = 1.0) -> None:
        """Time the best so far beside the float file."""
        found = self.measured({FLOAT: self.every}, times)
        if value := ratio(found, FLOAT)[0]:
            self.speedup = self.best = 1 / value
        self.slower[self.floats] = sure_gain(found, FLOAT) > 0

    def begin_from_float(self) -> None:
        """Go on from the float file."""
        self.gain, self.speedup = self.gain / self.speedup, 1.0
        self.floats, self.from_float, self.groups = self.every, True, dict(self.known)

    def is_below(self, speedup: float) -> bool:
        """Whether what began as int8 is less than so many times as fast as the float file."""
        if self.from_float or self.is_float(self.floats):
            return False
        return 0 < self.speedup < speedup

    def slower_than(self, speedup: float) -> bool:
        """Whether what is below this is surely slower than the float file, seen beside it anew.

        For longer than at first: a question that was asked before has the answer that it had.
        Where there is no time for it, what was seen of the same file before holds.
        """
        if not self.is_below(speedup):
            return False
        if self.floats != self.seen_anew:
            if self.fits(2, ANEW * 2 * self.share):
                self.seen_anew = self.floats
                self.beside_float(ANEW)
            else:
                self.complete = False
        return self.slower.get(self.floats, False)

    def moved(self, floats: frozenset[str], words: str) -> frozenset[str]:
        """Return the units that are float once a group has become float, or int8 if it was."""
        group = self.groups[words]
        return floats - group if group <= floats else floats | group

    def steps(self) -> None:
        """Try all groups, and again those that did not gain alone."""
        for again in (self.wider if self.from_float else {}, self.wider):
            if not self.step(again):
                return

    def step(self, again: Collection[str]) -> bool:
        """Try every group alone, then the best together; return whether any gained.

        Of the wider groups, which were tried before, those to try `again`, and those that are
        float with others.
        """
        names = [
            words
            for words, group in self.groups.items()
            if self.moved(self.floats, words) not in self.been
            and (words in again or words not in self.wider or group <= self.floats)
        ]
        alone: dict[str, float] = {}
        for chunk in self.chunks(names):
            found = self.measured({one: self.moved(self.floats, one) for one in chunk})
            self.trials += len(chunk)
            alone |= {one: gain for one in chunk if (gain := sure_gain(found, one)) > LEAST_GAIN}
            for one in chunk:
                if ratio(found, one)[0] < HOPELESS:
                    del self.groups[one]
        best = sorted(alone, key=lambda one: -alone[one])
        return self.take(dict(list(self._together(best).items())[: self.room() if best else 0]))

    def _together(self, best: Sequence[str]) -> dict[str, frozenset[str]]:
        """Return groups one after the other, each beside those before it; and each by itself."""
        tried: dict[str, frozenset[str]] = {}
        sofar = self.floats
        for words in best:
            sofar = tried[f"until {words}"] = self.moved(sofar, words)
        for words in best:
            names = self.moved(self.floats, words)
            if names not in tried.values():
                tried[words] = names
        return tried

    def move_end(self) -> None:
        """Move the end of the beginning that is float."""
        begun = [end for end in self.ends if self.floats.issuperset(self.order[:end])]
        if begun and (size := self.room()):
            [before, *_] = [end for end in (*self.ends[::-1], 0) if end < begun[-1]]
            after = next((end for end in self.ends if end > begun[-1]), len(self.order) - 1)
            others = self.floats - set(self.order[: begun[-1]])
            cuts = np.unique(np.linspace(before, after, size + 2).astype(int)[1:-1])
            self.take({f"{cut} units": others | set(self.order[:cut]) for cut in cuts})

    def take(self, tried: Mapping[str, frozenset[str]]) -> bool:
        """Have the units float that gain most, and of alike gains the fewest; whether any do."""
        if not tried:
            return False
        found = self.measured(tried)
        self.trials += len(tried)
        gains = {words: sure_gain(found, words) for words in tried}
        most = max(gains.values())
        near = [words for words, gain in gains.items() if gain >= most - LEAST_GAIN]
        winner = min(near, key=lambda words: len(tried[words]))
        if gains[winner] <= LEAST_GAIN:
            return False
        self.floats = tried[winner]
        self.been.add(self.floats)
        value = ratio(found, winner)[0]
        self.gain *= value
        self.speedup *= value
        if not self.is_float(self.floats):
            self.best = max(self.best, self.speedup)
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
