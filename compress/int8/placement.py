"""Which units are worth being int8 on this machine: found by measuring.

A unit whose neighbours are float pays for quantizing and dequantizing, and some integer kernels are
slower than their float ones. No table of names knows which: it differs from processor to
processor and from version to version. So groups of alike units are tried as float, several at a
time against all that is int8, and those that make the whole faster stay float.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compress.int8.units import Unit

Files = Mapping[str, bytes]
Clock = Callable[[Files, float], Mapping[str, np.ndarray]]
"""Times files in turns for some seconds; returns the seconds of each, round by round."""
Write = Callable[[frozenset[str]], bytes]
"""Writes the int8 file in which some units stay float."""

TOGETHER = 9
"""Files that are timed in one process."""
LEAST_GAIN = 0.005
"""What a group must gain, as a share of the time of all, surely."""
HOPELESS = 0.97
"""A group that is this much slower as float, surely, is not tried again beside others."""
Z = 2.0
NOW, FLOAT = "now", "float"


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

    Besides: the first product and what follows it, all depthwise convolutions, and all that
    squeeze-excite computes.
    """
    groups: dict[str, set[str]] = {}
    sizes: dict[str, float] = {}
    for unit in units.values():
        words = signature(unit)
        groups.setdefault(words, set()).add(unit.name)
        sizes[words] = sizes.get(words, 0.0) + _outputs(unit)
    found = {
        words: frozenset(groups[words]) for words in sorted(groups, key=lambda one: -sizes[one])
    }
    first = next((unit for unit in units.values() if unit.weighted), None)
    wider: dict[str, frozenset[str]] = {}
    if first is not None:
        after = [unit.name for unit in units.values() if first.output in unit.activations]
        wider["the first product"] = frozenset({first.name})
        wider["the first product and what follows"] = frozenset({first.name, *after})
    wider["depthwise convolutions"] = frozenset(
        unit.name for unit in units.values() if _depthwise(unit)
    )
    wider["squeeze-excite"] = frozenset(unit.name for unit in units.values() if _tiny(unit))
    every = {**wider, **found}
    kept: dict[frozenset[str], str] = {}
    for words, names in every.items():
        if names and len(names) < len(units):
            kept.setdefault(names, words)
    return {words: names for names, words in kept.items()}


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

    First every group alone, then the groups that surely gain, one after the other, best first; what
    did not gain alone is tried once more beside them as long as there is time.
    """
    until = now() + seconds
    floats: frozenset[str] = frozenset()
    trials, gain, speedup, complete = 0, 1.0, 0.0, True
    groups = alike(units)
    for _ in range(2):
        alone: dict[str, float] = {}
        hopeless: set[str] = set()
        names = [words for words in groups if not groups[words] <= floats]
        for chunk in _chunks(names, TOGETHER - 2):
            if now() > until:
                complete = False
                break
            files = {NOW: write(floats), **{one: write(floats | groups[one]) for one in chunk}}
            if not trials:
                files[FLOAT] = floating
            found = clock(files, _share(seconds, len(names)) * len(files))
            trials += len(chunk)
            if FLOAT in found:
                speedup = 1 / ratio(found, FLOAT)[0]
            alone |= {one: value for one in chunk if (value := sure_gain(found, one)) > LEAST_GAIN}
            hopeless |= {one for one in chunk if ratio(found, one)[0] < HOPELESS}
        best = sorted(alone, key=lambda one: -alone[one])[: TOGETHER - 1]
        if not best:
            break
        tried = {}
        sofar = floats
        for words in best:
            sofar = sofar | groups[words]
            tried[words] = sofar
        files = {NOW: write(floats), **{words: write(one) for words, one in tried.items()}}
        found = clock(files, _share(seconds, len(names)) * len(files))
        trials += len(tried)
        gains = {words: sure_gain(found, words) for words in tried}
        winner = max(gains, key=lambda words: gains[words])
        if gains[winner] <= LEAST_GAIN:
            break
        floats = tried[winner]
        groups = {words: names for words, names in groups.items() if words not in hopeless}
        gain *= ratio(found, winner)[0]
        if now() > until:
            complete = False
            break
    return Placement(floats, trials, gain, speedup * gain, complete)


def _share(seconds: float, files: int) -> float:
    """Return the seconds for a file: half of all for the first pass."""
    return max(0.1, min(1.5, seconds / 2 / max(files, 1)))


def _chunks(names: Sequence[str], size: int) -> list[Sequence[str]]:
    return [names[start : start + size] for start in range(0, len(names), size)]


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
