"""The fewest products in float for which a bound holds."""

from __future__ import annotations

from dataclasses import replace

import deploy_models
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from compress.deploy.export import export
from compress.deploy.graphs import opened, parsed
from compress.deploy.session import predict
from compress.int8.bound import by_harm, differing, within
from compress.int8.lower import Lowered, draft, layer_of
from compress.int8.settings import Settings
from compress.model import Model

NAMES = [f"conv{number}" for number in range(20)]


@given(st.lists(st.floats(0, 3), min_size=20, max_size=20), st.floats(0.1, 5))
def test_the_bound_holds_with_as_few_as_possible(shares, most):
    """Each product costs its share as int8: the drop falls with every one that is float."""
    trials = []

    def lowered(floats: frozenset[str]) -> Lowered:
        trials.append(len(floats))
        return Lowered(",".join(sorted(floats)).encode())

    def drop(made: Lowered) -> float:
        floats = set(made.content.decode().split(","))
        return sum(share for name, share in zip(NAMES, shares, strict=True) if name not in floats)

    found = within(lambda: NAMES, lowered, drop, most)
    sums = [sum(shares[count:]) for count in range(21)]
    fewest = next(count for count, value in enumerate(sums) if value <= most + 1e-9)
    assert abs(len(found.floats) - fewest) <= (abs(sums[fewest] - most) < 1e-6)
    assert found.floats == frozenset(NAMES[: len(found.floats)])
    assert found.first == drop(Lowered(b""))
    assert len(trials) == len(set(trials)) <= 12


def test_where_it_cannot_hold_the_least_drop_is_kept():
    drops = {0: 5.0, 1: 4.0, 2: 2.0, 3: 3.0}
    found = within(
        lambda: NAMES[:3],
        lambda floats: Lowered(str(len(floats)).encode()),
        lambda made: drops[int(made.content)],
        0.5,
    )
    assert (len(found.floats), found.drop, found.first) == (2, 2.0, 5.0)


def test_nothing_is_ranked_where_the_bound_holds_at_once():
    def never() -> list[str]:
        raise AssertionError("this takes a file for each product")

    found = within(never, lambda floats: Lowered(b""), lambda made: 0.2, 0.5)
    assert (found.floats, found.drop) == (frozenset(), 0.2)


def test_items_of_another_class_differ_most():
    before = np.array([[2.0, 0.0], [1.0, 0.9], [5.0, 0.0], [3.0, 0.0]])
    after = np.array([[2.1, 0.0], [0.9, 1.0], [9.0, 0.0], [3.0, 0.0]])
    assert differing(before, after).tolist() == [0, 1, 2, 3]
    many = np.tile(before, (64, 1)), np.tile(after, (64, 1))
    assert differing(*many).tolist() == list(range(1, 256, 4))


class Beside(nn.Module):
    """A branch of which next to nothing reaches the answers."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.branch = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.head, self.small = nn.Linear(8, 10), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        main, branch = (conv(x).relu().mean((2, 3)) for conv in (self.main, self.branch))
        return self.head(main) + 1e-3 * self.small(branch)


def test_products_that_move_the_answers_come_first_whatever_their_own_error():
    model = Model(deploy_models.randomized(Beside()), (torch.zeros(1, 3, 16, 16),))
    graph = parsed(export(model))
    inputs = [(deploy_models.images(32, seed=1),)]
    made = draft(graph, inputs, Settings(bits=3))
    layers = {unit.name: layer_of(unit) for unit in made.found if unit.weighted}
    worse = {
        name: replace(error, noise=error.signal)
        for name, error in made.wrong.items()
        if layers[name] in ("branch", "small")
    }
    made = replace(made, wrong={**made.wrong, **worse})
    assert {layers[name] for name in made.worst_first[:2]} == {"branch", "small"}
    order = by_harm(made, inputs, predict(opened(graph), inputs))
    assert sorted(order) == sorted(made.wrong)
    assert {layers[name] for name in order[:2]} == {"main", "head"}
