"""From layers to choices: what each layer could become, and which of that a target takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from compress.lowrank.fit import Problem, white
from compress.lowrank.forms import macs, macs_of, most_ranks
from compress.lowrank.layers import TargetLayer
from compress.lowrank.moments import TOGETHER, Batches, in_groups, moments, size_of
from compress.lowrank.ranks import Candidate, allocate, cheaper, possible, with_errors
from compress.system.amounts import decimal

MOST_LOST = 0.5
"""The share of its outputs' energy that no layer loses for a target of the whole."""
PAYS = 0.1
"""The share that a layer may lose where the target cannot be reached all the same."""


@dataclass(frozen=True)
class Calibrated:
    """Prepared calibration batches, which can be gone through any number of times."""

    batches: Batches
    items: int
    known: dict[str, Problem] = field(default_factory=dict)
    """The problems of layers of the whole model, where all of them have room."""


@dataclass
class Choices:
    """What layers become, and for those that stay whole, why."""

    taken: dict[str, Candidate] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    complete: bool = True
    """Whether the target can be reached."""


Ways = Mapping[str, Sequence[Candidate]]


def ways(found: Sequence[TargetLayer], asked: Sequence[str], step: int, bias: bool) -> Ways:
    """Return by path what is cheaper than each layer, before it is known what it loses."""
    return {
        target.path: cheaper(target.layer, target.calls, possible(target.layer, asked), step, bias)
        for target in found
    }


def judged(
    module: nn.Module, found: Sequence[TargetLayer], options: Ways, calibrated: Calibrated | None
) -> Ways:
    """Return the ways with the share of its outputs' energy that each layer would lose.

    Without calibration items that is the share of the weight's sum of squares. As many layers at
    once as their moments leave room for.
    """
    some = [target for target in found if options[target.path]]
    if calibrated is None:
        return {
            target.path: with_errors(
                Problem(target.layer, white(target.layer)), options[target.path]
            )
            for target in some
        }
    result: dict[str, Sequence[Candidate]] = {}
    by_path = {target.path: target for target in some}
    groups = in_groups(list(by_path), [size_of(target.layer) for target in some], TOGETHER)
    for group in groups:
        calls = {path: len(by_path[path].calls) for path in group}
        known = moments(module, calls, calibrated.batches, calibrated.items)
        for path in group:
            problem = Problem(by_path[path].layer, known.pop(path))
            usable = [one for one in options[path] if problem.fits(one.form)]
            result[path] = with_errors(problem, usable)
            if len(groups) == 1:
                calibrated.known[path] = problem.forget()
    return result


def by_rank(found: Sequence[TargetLayer], options: Ways, rank: float, step: int) -> Choices:
    """Take for each layer what loses least at no more MACs than `channel` at this rank has."""
    choices = Choices()
    for target in found:
        full = most_ranks(target.layer, "channel")[0]
        # All of a rank that is no multiple of the step is all of it.
        wanted = full if rank == 1 else min(full, max(step, round(rank * full / step) * step))
        limit = macs(target.layer, "channel", (wanted,), target.calls)
        within = [one for one in options.get(target.path, ()) if one.macs <= limit]
        if limit < macs_of(target.layer, target.calls) and within:
            choices.taken[target.path] = min(within, key=lambda one: (one.lost, one.macs))
        else:
            choices.left[target.path] = f"rank {wanted} would not be cheaper"
    return choices


def by_energy(found: Sequence[TargetLayer], options: Ways, energy: float) -> Choices:
    """Take for each layer what is cheapest among all that keeps a share of its outputs' energy."""
    choices = Choices()
    for target in found:
        kept = [one for one in options.get(target.path, ()) if one.lost <= 1 - energy + 1e-12]
        if kept:
            choices.taken[target.path] = min(kept, key=lambda one: (one.macs, one.lost))
        else:
            choices.left[target.path] = (
                f"nothing cheaper keeps {decimal(energy)} of its outputs' energy"
            )
    return choices


def within_budget(
    whole: Mapping[str, float],
    options: Ways,
    cost: Callable[[Candidate], float],
    budget: float,
) -> Choices:
    """Take what loses least in sum at a cost within a budget; `whole` are the layers' own costs.

    A layer never loses more than `MOST_LOST`. Where no choice meets the budget, each layer takes
    what is cheapest among all that loses at most `PAYS`: for a target that is out of reach no layer
    is brought to collapse.
    """
    usable = {
        path: [one for one in some if one.lost <= MOST_LOST and cost(one) < whole[path]]
        for path, some in options.items()
    }
    pairs = {path: [(cost(one), one.lost) for one in some] for path, some in usable.items()}
    chosen = allocate(whole, pairs, budget)
    choices = Choices(complete=chosen is not None)
    for path in whole:
        some, one = usable.get(path, []), None
        if chosen is not None:
            number = chosen[path]
            one = None if number is None else some[number]
        elif mild := [one for one in some if one.lost <= PAYS]:
            one = min(mild, key=lambda one: (cost(one), one.lost))
        if one is None:
            choices.left[path] = _why_whole(options.get(path, ()), some, choices.complete)
        else:
            choices.taken[path] = one
    return choices


def _why_whole(options: Sequence[Candidate], usable: Sequence[Candidate], complete: bool) -> str:
    if not options:
        return "none of its forms is cheaper"
    if not usable:
        return f"each cheaper form loses over {MOST_LOST:.0%} of its outputs' energy"
    if not complete:
        return f"each cheaper form loses over {PAYS:.0%} of its outputs' energy"
    return "other layers lose less for the same gain"
