"""The choice of candidates is the best there is within the budget."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.lowrank.forms import FORMS, Call, macs_of, params_of
from compress.lowrank.plan import MOST_LOST, PAYS, Choices, within_budget
from compress.lowrank.ranks import Candidate, allocate, cheaper

OPTIONS = st.lists(
    st.tuples(st.integers(1, 50).map(float), st.floats(0, 1)), min_size=0, max_size=4
)


@settings(max_examples=100, deadline=None)
@given(
    layers=st.lists(st.tuples(st.integers(10, 60), OPTIONS), min_size=1, max_size=4),
    share=st.floats(0.05, 1.1),
)
def test_allocation_is_the_best_of_all_choices(
    layers: list[tuple[int, list[tuple[float, float]]]], share: float
) -> None:
    whole = {str(number): float(cost) for number, (cost, _) in enumerate(layers)}
    options = {str(number): some for number, (_, some) in enumerate(layers)}
    budget = round(share * sum(whole.values()))

    def cost(choice: dict[str, int | None]) -> tuple[float, float]:
        pairs = [
            (whole[path], 0.0) if number is None else options[path][number]
            for path, number in choice.items()
        ]
        return sum(one for one, _ in pairs), sum(one for _, one in pairs)

    every = itertools.product(*([None, *range(len(options[path]))] for path in whole))
    within = [cost(dict(zip(whole, choice, strict=True))) for choice in every]
    within = [one for one in within if one[0] <= budget]
    chosen = allocate(whole, options, budget)
    if not within or budget <= 0:
        assert chosen is None or cost(chosen)[0] <= budget
        return
    # Costs are rounded up to bins: a choice that meets the budget to the last may be missed.
    safe = [loss for price, loss in within if price <= budget * (1 - len(whole) / 20_000)]
    if chosen is None:
        assert not safe
        return
    price, loss = cost(chosen)
    assert price <= budget * (1 + 1e-9)
    assert not safe or loss <= min(safe) + 1e-12


@pytest.mark.parametrize("bias", [False, True])
def test_what_is_cheaper_is_cheaper_in_both(bias: bool) -> None:
    layer = nn.Conv2d(32, 48, 3, stride=2, padding=1, bias=False)
    calls = [Call((1, 32, 16, 16), (1, 48, 8, 8))]
    found = cheaper(layer, calls, FORMS, 8, bias)
    assert {one.form for one in found} == set(FORMS)
    assert all(rank % 8 == 0 for one in found for rank in one.ranks)
    assert all(one.macs < macs_of(layer, calls) for one in found)
    assert all(one.params <= params_of(layer) for one in found)


def one(lost: float, macs: int) -> Candidate:
    return Candidate("channel", (8,), macs, 1, lost)


def test_no_layer_collapses() -> None:
    options = {"a": [one(MOST_LOST + 0.01, 1), one(0.4, 50)], "b": [one(PAYS / 2, 80)]}
    whole = {"a": 100.0, "b": 100.0}

    def choose(budget: float) -> Choices:
        return within_budget(whole, options, lambda candidate: candidate.macs, budget)

    reached = choose(131)
    assert reached.complete
    assert {path: taken.macs for path, taken in reached.taken.items()} == {"a": 50, "b": 80}
    # Out of reach: only what costs little is done.
    missed = choose(101)
    assert not missed.complete
    assert {path: taken.macs for path, taken in missed.taken.items()} == {"b": 80}
    assert missed.left == {"a": "each cheaper form loses over 10% of its outputs' energy"}
    assert choose(200).taken == {}
    assert choose(190).left == {"a": "other layers lose less for the same gain"}


def test_reasons_are_true() -> None:
    options = {"none": [], "bad": [one(0.9, 10)]}
    found = within_budget(
        {"none": 100.0, "bad": 100.0}, options, lambda candidate: candidate.macs, 120
    )
    assert found.left == {
        "none": "none of its forms is cheaper",
        "bad": "each cheaper form loses over 50% of its outputs' energy",
    }


def test_equal_costs_and_torch_numbers_are_fine() -> None:
    assert allocate({"a": 10.0}, {"a": [(5.0, float(torch.tensor(0.25)))]}, 5.0) == {"a": 0}
    assert allocate({"a": 10.0}, {"a": [(5.0, 0.25)]}, 4.0) is None
