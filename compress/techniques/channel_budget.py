"""Channel counts of groups that lose least within a time: a knapsack.

After HALP (Shen et al. 2021, arXiv 2110.10811): a group takes one of its widths, each with what is
lost and the seconds of the layers that it has a part in. Those depend on the other groups' widths
too, so the knapsack is solved several times, towards the limit, each time with the seconds at the
widths that the time before gave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from compress.lowrank.ranks import allocate
from compress.techniques.channel_groups import Group
from compress.techniques.channel_scores import Scores, grains_kept
from compress.techniques.channel_times import Kept, Times
from compress.techniques.channel_trace import Axis

ROUNDS = 6
"""In how many rounds the limit is approached."""
MORE = 4
"""How many may follow at the limit itself, before groups are narrowed one by one."""
WIDTHS = 32
"""How many widths of a group are considered, at most."""
EMPTY = 1e-9
"""The least share of its worth that counts as kept."""

Options = Mapping[Axis, Mapping[int, float]]
"""By group, what is lost with as many grains as it may keep."""


def options_of(
    groups: Sequence[Group], worth: Scores, steps: Mapping[Axis, int], least: Kept, scope: str
) -> Options:
    """Return what each group may keep, down to `least`, and what is lost by it.

    With `scope='local'` that is -log of the share of its worth that a group keeps, so the product
    of these shares is what becomes greatest: a group that loses all loses infinitely much. With
    'global' it is the worth itself, as a share of that of all groups, which says something where
    worths of different layers can be compared.
    """
    whole = sum(float(np.sum(pool)) for pools in worth.values() for pool in pools)
    found = {}
    for group in groups:
        some = _grains(group, steps[group.axis], least[group.axis])
        found[group.axis] = {
            grains: _lost(group, worth, grains, whole if scope == "global" else 0.0)
            for grains in some
        }
    return found


def _grains(group: Group, step: int, least: int) -> list[int]:
    """Return the counts that a group may keep, all of them included."""
    counts = {grains_kept(group, width, step) for width in range(step, group.width + 1, step)}
    some = sorted({least, group.grains, *(count for count in counts if count >= least)})
    index = np.linspace(0, len(some) - 1, min(WIDTHS, len(some))).round().astype(int)
    return [some[number] for number in index]


def _lost(group: Group, worth: Scores, grains: int, whole: float) -> float:
    shares, lost = [], 0.0
    counts = group.taken(group.grains - grains)
    for gone, values in zip(counts, worth[group.axis], strict=True):
        ordered = np.sort(values)
        shares.append(float(ordered[:gone].sum()) / max(float(ordered.sum()), 1e-300))
        lost += float(ordered[:gone].sum())
    if whole:
        return lost / whole
    return float(-np.log(max(EMPTY, 1 - float(np.mean(shares)))))


def within(options: Options, times: Times, limit: float) -> dict[Axis, int] | None:
    """Return what groups keep so that they lose little and take `limit` seconds at most.

    None where that cannot be.
    """
    kept = {axis: max(some) for axis, some in options.items()}
    start = times.total(kept)
    if start <= limit:
        return kept
    if times.total({axis: min(some) for axis, some in options.items()}) > limit:
        return None
    for number in range(1, ROUNDS + MORE + 1):
        share = min(1.0, number / ROUNDS)
        kept = _solved(options, times, kept, start * (limit / start) ** share)
        if share == 1.0 and times.total(kept) <= limit:
            break
    return _filled(options, times, _narrowed(options, times, kept, limit), limit)


def _solved(options: Options, times: Times, kept: Kept, limit: float) -> dict[Axis, int]:
    """Return what the knapsack takes, with each group's seconds at what the others keep now."""
    names = {str(number): axis for number, axis in enumerate(options)}
    now = {axis: times.beside(axis, kept) for axis in options}
    costs = {
        axis: {grains: times.beside(axis, {**kept, axis: grains}) for grains in some}
        for axis, some in options.items()
    }
    whole = {name: costs[axis][max(options[axis])] for name, axis in names.items()}
    others = {
        name: [grains for grains in options[axis] if grains != max(options[axis])]
        for name, axis in names.items()
    }
    pairs = {
        name: [(costs[names[name]][one], options[names[name]][one]) for one in some]
        for name, some in others.items()
    }
    chosen = allocate(whole, pairs, limit - times.total(kept) + sum(now.values()))
    if chosen is None:
        return {axis: min(some, key=costs[axis].__getitem__) for axis, some in options.items()}
    return {
        axis: max(options[axis]) if (one := chosen[name]) is None else others[name][one]
        for name, axis in names.items()
    }


def _narrowed(options: Options, times: Times, kept: Kept, limit: float) -> dict[Axis, int]:
    """Narrow single groups, those first that lose least for a second, until the limit is met."""
    result = dict(kept)
    now = times.total(result)
    while now > limit:
        best, choice = np.inf, None
        for axis, some in options.items():
            for grains in some:
                if grains >= result[axis]:
                    continue
                gain = now - times.total({**result, axis: grains})
                price = (some[grains] - some[result[axis]]) / gain if gain > 0 else np.inf
                if price < best:
                    best, choice = price, (axis, grains)
        if choice is None:  # the sum is above the limit by what interpolation gives and takes
            return {axis: min(some) for axis, some in options.items()}
        result[choice[0]] = choice[1]
        now = times.total(result)
    return result


def _filled(options: Options, times: Times, kept: Kept, limit: float) -> dict[Axis, int]:
    """Widen single groups, those first that get back most, as long as the limit is met."""
    result = dict(kept)
    while True:
        best, choice = 0.0, None
        for axis, some in options.items():
            for grains in some:
                back = some[result[axis]] - some[grains]
                if back > best and times.total({**result, axis: grains}) <= limit:
                    best, choice = back, (axis, grains)
        if choice is None:
            return result
        result[choice[0]] = choice[1]
