"""Every form, at full rank, computes what the layer computes, and costs what its formula says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made import calls_of, convolutions
from torch import nn

from compress import counts
from compress.lowrank import forms
from compress.lowrank.fit import Problem, white

HEIGHT, WIDTH = 9, 8


@settings(max_examples=40, deadline=None)
@given(layer=convolutions())
def test_a_form_in_which_nothing_is_lost_gives_equal_outputs(layer: nn.Conv2d) -> None:
    x = torch.randn(2, layer.in_channels, HEIGHT, WIDTH)
    for form in forms.forms_of(layer):
        torch.testing.assert_close(forms.whole(layer, form)(x), layer(x), rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(layer=convolutions())
def test_at_full_rank_the_fit_gives_equal_outputs(layer: nn.Conv2d) -> None:
    x = torch.randn(2, layer.in_channels, HEIGHT, WIDTH)
    problem = Problem(layer, white(layer))
    for form in forms.forms_of(layer):
        made, error = problem.fitted(form, forms.most_ranks(layer, form))
        torch.testing.assert_close(made(x), layer(x), rtol=1e-3, atol=1e-4)
        assert error < 1e-6


@settings(max_examples=40, deadline=None)
@given(layer=convolutions(), data=st.data())
def test_formulas_of_cost_are_the_counter(layer: nn.Conv2d, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(forms.forms_of(layer)))
    ranks = tuple(data.draw(st.integers(1, most)) for most in forms.most_ranks(layer, form))
    x = torch.randn(1, layer.in_channels, HEIGHT, WIDTH)
    calls = calls_of(layer, x)
    assert forms.macs_of(layer, calls) == counts.macs(layer, (x,))
    made = forms.made_up(layer, form, ranks)
    assert forms.macs(layer, form, ranks, calls) == counts.macs(made, (x,))
    stored = sum(one.numel() for one in made.parameters())
    assert forms.params(layer, form, ranks, bias=True) == stored
    assert forms.params(layer, form, ranks, bias=False) == stored - layer.out_channels


@given(
    shape=st.sampled_from([(1, 7), (3, 7), (1, 5, 7), (2, 3, 5, 7)]),
    outputs=st.integers(1, 9),
    rank=st.integers(1, 7),
)
@settings(max_examples=20, deadline=None)
def test_linear_layers_cost_what_the_counter_says(
    shape: tuple[int, ...], outputs: int, rank: int
) -> None:
    layer, x = nn.Linear(7, outputs), torch.randn(shape)
    assume(rank <= min(7, outputs))
    calls = [forms.Call(shape, (*shape[:-1], outputs))]
    made = forms.made_up(layer, "channel", (rank,))
    assert forms.macs_of(layer, calls) == counts.macs(layer, (x,))
    assert forms.macs(layer, "channel", (rank,), calls) == counts.macs(made, (x,))


def test_what_is_frozen_stays_frozen() -> None:
    layer = nn.Conv2d(4, 4, 3)
    layer.weight.requires_grad_(False)
    made = forms.whole(layer, "tucker")
    assert [one.requires_grad for one in made.parameters()] == [False, False, False, True]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(3, 4), ("channel",)),
        (nn.Conv2d(3, 4, 1, stride=2), ("channel",)),
        (nn.Conv2d(3, 4, (1, 5)), ("channel", "reduce", "tucker")),
        (nn.Conv2d(3, 4, 3), forms.FORMS),
    ],
)
def test_forms_that_are_others_are_not_tried(layer: forms.Layer, expected: tuple[str, ...]) -> None:
    assert forms.forms_of(layer) == expected
