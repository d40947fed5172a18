"""Which form and rank each layer gets, so that the whole loses least within a budget.

A multiple-choice knapsack: every layer takes one of its candidates, or stays whole and loses
nothing; what is minimised is the sum of what the layers lose. It is solved exactly, up to the
rounding of costs, by dynamic programming.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compress.lowrank.fit import Problem
from compress.lowrank.forms import (
    Call,
    Layer,
    Ranks,
    forms_of,
    macs,
    macs_of,
    most_ranks,
    params,
    params_of,
)

BINS = 20_000
"""Parts of a budget that costs are rounded up to."""
FIRST_RANKS = 8
"""First ranks of `tucker` that are tried, evenly spaced."""


@dataclass(frozen=True)
class Candidate:
    """A layer in a form at some ranks; `lost` is the share of its outputs' energy that it loses."""

    form: str
    ranks: Ranks
    macs: int
    params: int
    lost: float = 0.0
    seconds: float = 0.0


def cheaper(
    layer: Layer, calls: Sequence[Call], forms: Sequence[str], step: int, bias: bool
) -> list[Candidate]:
    """Return what has fewer MACs and no more parameters than a layer, ranks in multiples of `step`.

    `bias` says whether the last factor may get a bias that the layer does not have.
    """
    before, stored = macs_of(layer, calls), params_of(layer)
    found = []
    for form in forms:
        for ranks in _grid(layer, form, step):
            if form == "tucker" and _simpler(layer, forms, ranks):
                continue
            one = Candidate(
                form,
                ranks,
                macs(layer, form, ranks, calls),
                params(layer, form, ranks, bias or layer.bias is not None),
            )
            if one.macs < before and one.params <= stored:
                found.append(one)
    return found


def _simpler(layer: Layer, forms: Sequence[str], ranks: Ranks) -> bool:
    """Whether another form loses no more than `tucker` of full rank at one end, and costs less."""
    first, last = most_ranks(layer, "tucker")
    return ("channel" in forms and ranks[0] == first) or ("reduce" in forms and ranks[1] == last)


def _grid(layer: Layer, form: str, step: int) -> list[Ranks]:
    axes = [range(step, most + 1, step) for most in most_ranks(layer, form)]
    if len(axes) == 1:
        return [(rank,) for rank in axes[0]]
    first, second = axes
    stride = max(1, -(-len(first) // FIRST_RANKS))
    return [(one, other) for one in first[stride - 1 :: stride] for other in second]


def with_errors(problem: Problem, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return candidates with what they lose."""
    found = []
    mixing = [one for one in candidates if one.form in ("tucker", "reduce")]
    if mixing:
        # They mix alike: what the one that needs more of it needs serves the other.
        problem.basis(mixing[0].form, max(one.ranks[0] for one in mixing))
    for form in reversed(dict.fromkeys(one.form for one in candidates)):
        some = [one for one in candidates if one.form == form]
        lost = problem.lost(form, [one.ranks for one in some])
        found += [
            Candidate(one.form, one.ranks, one.macs, one.params, share, one.seconds)
            for one, share in zip(some, lost, strict=True)
        ]
    return found


def possible(layer: Layer, asked: Sequence[str]) -> list[str]:
    """Return the forms among those asked for that a layer can take."""
    return [form for form in forms_of(layer) if form in asked]


def allocate(
    whole: Mapping[str, float],
    candidates: Mapping[str, Sequence[tuple[float, float]]],
    budget: float,
) -> dict[str, int | None] | None:
    """Return by layer the number of the candidate that it takes, None for staying whole.

    `whole` are the layers' costs as they are, `candidates` the (cost, loss) of each other way.
    None where no choice costs `budget` or less.
    """
    if sum(whole.values()) <= budget:
        return dict.fromkeys(whole)
    if budget <= 0:
        return None
    # state[b]: the least loss at which the layers so far cost at most b bins
    state = np.zeros(BINS + 1)
    taken: dict[str, np.ndarray] = {}
    for path, cost in whole.items():
        options = [(cost, 0.0), *candidates.get(path, [])]
        best = np.full(BINS + 1, np.inf)
        which = np.zeros(BINS + 1, dtype=np.int32)
        for number, (price, loss) in enumerate(options):
            bins = _bins(price, budget)
            if bins > BINS:
                continue
            reached = state[: BINS + 1 - bins] + loss
            better = reached < best[bins:]
            best[bins:][better] = reached[better]
            which[bins:][better] = number
        state, taken[path] = best, which
    if not np.isfinite(state[BINS]):
        return None
    left = BINS
    chosen: dict[str, int | None] = {}
    for path in reversed(list(whole)):
        number = int(taken[path][left])
        chosen[path] = number - 1 if number else None
        price = candidates[path][number - 1][0] if number else whole[path]
        left -= _bins(price, budget)
    return {path: chosen[path] for path in whole}


def _bins(price: float, budget: float) -> int:
    # A share that a sum of rounded costs may pass: else a budget that is met exactly is missed.
    return max(0, int(np.ceil(price / budget * BINS - 1e-6)))
