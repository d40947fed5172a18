"""The fit is the optimum where that is known, and what it says it loses is what it loses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import correlated
from torch import nn

from compress.lowrank import fit, forms
from compress.lowrank.fit import Inputs, Problem, balanced, product, white


def lost(problem: Problem, made: np.ndarray, weight: np.ndarray) -> float:
    """Return ||(W - W') S^(1/2)||^2 / ||W S^(1/2)||^2, in numpy."""
    moments = problem.moments.numpy()
    wrong = weight - made
    return float(np.trace(wrong @ moments @ wrong.T) / np.trace(weight @ moments @ weight.T))


def matrix(layer: forms.Layer) -> np.ndarray:
    return layer.weight.detach().double().flatten(1).numpy()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), data=st.data())
def test_every_form_loses_what_its_curve_says(seed: int, data: st.DataObject) -> None:
    torch.manual_seed(seed)
    layer = nn.Conv2d(4, 6, (3, 2))
    problem = Problem(layer, correlated(layer, seed=seed)[1])
    form = data.draw(st.sampled_from(forms.FORMS))
    ranks = tuple(data.draw(st.integers(1, most)) for most in forms.most_ranks(layer, form))
    factors = problem.factors(form, ranks)
    expected = lost(problem, product(factors).numpy(), matrix(layer))
    assert problem.lost(form, [ranks])[0] == pytest.approx(expected, abs=1e-9)
    assert problem.error(factors) == pytest.approx(expected**0.5, abs=1e-6)
    # Balancing changes the factors, not their product.
    torch.testing.assert_close(product(balanced(factors)), product(factors))


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(2, 8), columns=st.integers(2, 8), seed=st.integers(0, 1000))
def test_channel_form_is_the_optimum(rows: int, columns: int, seed: int) -> None:
    """Eckart-Young on the whitened weight: the discarded singular values of W S^(1/2)."""
    torch.manual_seed(seed)
    layer = nn.Linear(columns, rows)
    problem = Problem(layer, correlated(layer, seed=seed)[1])
    values, vectors = np.linalg.eigh(problem.moments.numpy())
    root = vectors * np.sqrt(values) @ vectors.T
    singular = np.linalg.svd(matrix(layer) @ root, compute_uv=False) ** 2
    for rank in range(1, min(rows, columns) + 1):
        expected = singular[rank:].sum() / singular.sum()
        assert problem.lost("channel", [(rank,)])[0] == pytest.approx(expected, abs=1e-9)


def test_without_moments_the_error_is_the_discarded_singular_values() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 7, 3)
    problem = Problem(layer, white(layer))
    values = np.linalg.svd(matrix(layer), compute_uv=False) ** 2
    made, error = problem.fitted("channel", (3,))
    assert error**2 == pytest.approx(values[3:].sum() / values.sum())
    torch.testing.assert_close(made[1].bias, layer.bias)
    # Of the spatial form: those of the weight as a matrix of (I kh) x (O kw).
    weight = layer.weight.detach().double().numpy().transpose(1, 2, 0, 3).reshape(15, 21)
    values = np.linalg.svd(weight, compute_uv=False) ** 2
    expected = values[4:].sum() / values.sum()
    assert problem.lost("spatial", [(4,)])[0] == pytest.approx(expected)


@pytest.mark.parametrize("form", forms.FORMS)
def test_moments_make_the_outputs_better_and_leave_no_mean_error(form: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 8, 3)
    rows, inputs = correlated(layer)
    ranks = {"channel": (2,), "reduce": (2,), "spatial": (3,), "tucker": (3, 3)}[form]
    wanted = rows @ matrix(layer).T + layer.bias.detach().double().numpy()
    wrong = {}
    for name, given_inputs in (("data", inputs), ("weights", white(layer))):
        problem = Problem(layer, given_inputs)
        factors = problem.factors(form, ranks)
        got = rows @ product(factors).numpy().T + problem.bias(factors).numpy()
        wrong[name] = float(((got - wanted) ** 2).sum())
        if name == "data":
            np.testing.assert_allclose(got.mean(0), wanted.mean(0), atol=1e-8)
    assert wrong["data"] < 0.9 * wrong["weights"]


def test_on_other_inputs_the_fit_is_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """At full rank: what np.linalg.lstsq finds for the original's outputs on the new inputs."""
    monkeypatch.setattr(fit, "RIDGE", 1e-12)
    torch.manual_seed(0)
    layer = nn.Linear(6, 5)
    rows, inputs = correlated(layer, 300)
    wanted = rows @ matrix(layer).T + 0.3 * rows[:, :1] ** 2 + 1
    centred, outputs = rows - rows.mean(0), wanted - wanted.mean(0)
    crossed = torch.from_numpy(outputs.T @ centred / len(rows))
    energy = float((outputs**2).sum() / len(rows))
    given_inputs = Inputs(
        inputs.mean, inputs.moments, None, crossed, torch.from_numpy(wanted.mean(0)), energy
    )
    problem = Problem(layer, given_inputs)
    factors = problem.factors("channel", (5,))
    solved, residual, *_ = np.linalg.lstsq(centred, outputs, rcond=None)
    np.testing.assert_allclose(product(factors).numpy(), solved.T, atol=1e-6)
    assert problem.error(factors) ** 2 == pytest.approx(residual.sum() / (outputs**2).sum())
    got = rows @ product(factors).numpy().T + problem.bias(factors).numpy()
    np.testing.assert_allclose(got.mean(0), wanted.mean(0))


def test_a_wide_layer_is_fitted_by_the_moments_of_its_outputs() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 5)
    rows, inputs = correlated(layer)
    outputs = torch.from_numpy(np.cov((rows @ matrix(layer).T).T, bias=True))
    wide = Problem(layer, Inputs(inputs.mean, outputs=outputs))
    values = np.linalg.eigvalsh(outputs.numpy())[::-1]
    made, error = wide.fitted("channel", (2,))
    assert error**2 == pytest.approx(values[2:].sum() / values.sum())
    assert wide.lost("channel", [(2,)])[0] == pytest.approx(error**2)
    assert not wide.fits("spatial")
    assert wide.fits("channel")
    got = made(torch.from_numpy(rows).float()).detach().double().numpy()
    wanted = layer(torch.from_numpy(rows).float()).detach().double().numpy()
    spread = ((wanted - wanted.mean(0)) ** 2).sum()
    assert ((got - wanted) ** 2).sum() / spread == pytest.approx(error**2, rel=1e-3)


@pytest.mark.parametrize("form", forms.FORMS)
def test_zero_weights_lose_nothing_and_can_still_be_trained(form: str) -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1)
    nn.init.zeros_(layer.weight)
    for inputs in (white(layer), correlated(layer)[1]):
        problem = Problem(layer, inputs)
        ranks = (2, 2) if form == "tucker" else (2,)
        assert problem.lost(form, [ranks]) == [0.0]
        made, error = problem.fitted(form, ranks)
        x = torch.randn(2, 8, 5, 5)
        torch.testing.assert_close(made(x), layer(x))
        assert error == 0
        made(x).square().mean().backward()
        assert sum(int(one.weight.any()) for one in made) == len(made) - 1


@pytest.mark.parametrize("form", forms.FORMS)
def test_dead_inputs_and_deficient_weights_are_no_trouble(form: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 8, 3)
    with torch.no_grad():
        layer.weight[4:] = layer.weight[:4]
        layer.weight[:, 3] = 0
    _, inputs = correlated(layer, rows=30)  # fewer rows than inputs: singular
    assert inputs.moments is not None
    inputs.moments.view(6, 9, 6, 9)[2] = 0
    inputs.moments.view(6, 9, 6, 9)[:, :, 2] = 0
    for one in (inputs, Inputs(inputs.mean * 0, inputs.moments * 0)):
        problem = Problem(layer, one)
        ranks = forms.most_ranks(layer, form)
        made, error = problem.fitted(form, ranks)
        assert all(value.isfinite().all() for value in made.state_dict().values())
        assert error < 1e-6
        if form == "channel":
            assert problem.lost(form, [(4,)])[0] < 1e-9
