"""Training under rounding: what is simulated is what the file computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn

from compress.deploy.export import export
from compress.deploy.session import predict, session
from compress.int8 import weights
from compress.int8.lower import layers_matching, lower
from compress.int8.ranges import Range
from compress.int8.rewrite import named
from compress.int8.settings import Settings
from compress.int8.simulated import Simulation, scales
from compress.int8.weights import kept_grids, most
from compress.model import Model, forward

PLAIN = Settings(compensate=False, correct=False)


def images(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6()),
        *(nn.MaxPool2d(2), nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )
    for layer in module:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
            layer.weight.data.uniform_(-2, 2)
            layer.bias.data.normal_(0, 0.3)
    return module.eval()


@given(
    st.sampled_from([(4, 2, 3, 3), (3, 1, 3, 3), (5, 7), (2, 3, 1, 1), (4, 1)]),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.sampled_from([8, 4]),
)
@settings(deadline=None)
def test_weights_have_the_scales_of_the_file(shape, seed, portable, bits):
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    weight[0] = 0
    found = scales(torch.from_numpy(weight), portable, bits)
    expected = weights.scales(weight, 0, portable, np.zeros(len(weight)), bits)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_file_computes_what_was_simulated(bits):
    """Also with the norms folded, whose factors are negative in part."""
    module, wanted = net(), Settings(compensate=False, correct=False, bits=bits)
    calibration = [(images(64, 1),)]
    simulation = Simulation(module, wanted, calibration)
    simulation.observe()
    module.eval()
    inputs = (images(256, 2),)
    simulated = forward(module, inputs).numpy()
    hints = simulation.settle()
    simulation.remove()
    ranges = wanted.trained_by(hints)
    assert list(ranges) == ["0", "3", "7", "12"]
    model = Model(module, (images(4, 3),))
    content = export(model)
    made = lower(content, calibration, replace(wanted, trained=ranges))
    found = predict(session(made.content), [inputs])
    # The mean before the last layer is rounded in the file alone; a rounding of 1 in 255 there.
    assert np.abs(found - simulated).max() < 0.02 * np.abs(simulated).max()
    anew = lower(content, calibration, Settings(bits=bits, trained=ranges))
    assert anew.content == made.content, "on its grids there is nothing to compensate"
    # What the products read: the input, two activations, of which one is pooled first; the mean
    # before the last layer is read there alone.
    graph = onnx.load_from_string(made.content).graph
    scales_held = {float(numpy_helper.to_array(t)) for t in graph.initializer if not t.dims}
    assert {np.float32(one.scale) for one in ranges.values()} <= scales_held


def test_gradients_pass_the_rounding_and_the_weights_stay_floats():
    module = nn.Sequential(nn.Linear(4, 2, bias=False))
    weight = module[0].weight
    before = weight.detach().clone()
    inputs = torch.rand(8, 4)
    simulation = Simulation(module, Settings(), [(inputs,)])
    assert torch.equal(module(inputs), inputs @ before.T), (
        "nothing is rounded before it is observed"
    )
    simulation.observe()
    module(inputs).sum().backward()
    assert module[0].weight is weight
    assert torch.equal(weight, before)
    step = simulation.products["0"].range.scale
    rounded = (inputs / step).round() * step
    torch.testing.assert_close(weight.grad, rounded.sum(0).expand(2, 4), rtol=1e-5, atol=1e-5)
    simulation.remove()
    assert torch.equal(module(inputs), inputs @ before.T)


def test_a_failing_layer_leaves_its_weight_in_place():
    module = nn.Sequential(nn.Linear(4, 2))
    inputs = torch.rand(8, 4)
    simulation = Simulation(module, Settings(), [(inputs,)])
    simulation.observe()
    weight = module[0].weight
    with pytest.raises(RuntimeError, match="shapes"):
        module(torch.rand(8, 5))
    assert module[0].weight is weight


def test_what_is_excluded_or_never_called_is_left_alone():
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.idle = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x).relu())

    module = Partly()
    simulation = Simulation(module, Settings(), [(torch.rand(8, 4),)], left={"one"})
    simulation.observe()
    before = module.idle.weight.detach().clone()
    assert list(Settings().trained_by(simulation.settle())) == ["two"]
    assert simulation.untouched == ["idle"]
    assert torch.equal(module.idle.weight, before)


@given(st.integers(0, 2**32 - 1), st.sampled_from([8, 4, 2]), st.booleans())
@settings(deadline=None)
def test_a_grid_is_found_behind_any_factor(seed, bits, portable):
    generator = np.random.default_rng(seed)
    shape, end = (5, 3, 3, 3), most(bits)
    limit = min(end, 64) if portable else end
    steps = generator.integers(-limit, limit + 1, shape)
    steps[:, 0, 0, 0] = limit
    factors = generator.uniform(-3, 3, 5).astype(np.float32)
    weight = (steps * factors[:, None, None, None]).astype(np.float32)
    other = weights.scales(weight, 0, portable, np.zeros(5), bits)
    scale = kept_grids(weight, 0, portable, np.zeros(5), bits, other)
    # The coarsest grid that all weights of a channel lie on may be coarser than the one drawn.
    ratio = np.abs(factors) / scale
    values = weight / scale[:, None, None, None]
    assert np.abs(values - np.round(values)).max() < 2e-3
    assert (np.abs(np.round(values)) <= end).all()
    assert (ratio > 0.99).all() or (ratio < 1.01).all()


def test_what_lies_on_no_grid_keeps_the_other_scale():
    weight = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    other = weights.scales(weight, 0, True, np.zeros(4))
    assert np.array_equal(kept_grids(weight, 0, True, np.zeros(4), 8, other), other)


class Branches(nn.Module):
    """A part of a value goes to a product, the other past it; two layers share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.part = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 1)
        self.one, self.two = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.two.weight = self.one.weight
        self.last = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p, q = self.first(x).relu().chunk(2, 1)
        whole = torch.cat([self.part(p).relu(), 30 * q], 1).mean((2, 3))
        return self.last(self.two(20 * self.one(whole).relu()).relu())


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(12), nn.MultiheadAttention(12, 2, batch_first=True)
        self.up, self.down, self.last = nn.Linear(12, 24), nn.Linear(24, 12), nn.Linear(12, 5)
        with torch.no_grad():
            self.norm.weight[:3] = 40

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2).transpose(1, 2).repeat(1, 1, 4)
        x = self.norm(x)
        x = x + self.attention(x, x, x)[0]
        return self.last((x + self.down(self.up(input=x).relu())).mean(1))


@pytest.mark.parametrize("kind", [Branches, Tokens])
def test_what_was_trained_is_kept_and_nothing_else_is_worse_for_it(kind):
    """Ranges are held against those that are chosen anew, for the same settled weights."""
    torch.manual_seed(0)
    module = kind().eval()
    calibration, inputs = [(images(64, 1),)], (images(256, 2),)
    simulation = Simulation(module, Settings(), calibration)
    simulation.observe()
    module.eval()
    hints = simulation.settle()
    simulation.remove()
    ranges = Settings().trained_by(hints)
    expected = (
        {"first", "part", "one", "two", "last"} if kind is Branches else {"up", "down", "last"}
    )
    assert set(ranges) == expected
    model = Model(module, (images(4, 3),))
    values = {name: value.detach().numpy() for name, value in module.named_parameters()}
    graph = named(content := export(model), values)
    if kind is Tokens:
        assert layers_matching(graph, ("up", "down", "last")) == {"up", "down", "last"}
    logits = predict(session(content), [inputs])
    sqnr = {}
    for name, kept in (("anew", {}), ("trained", ranges)):
        made = lower(content, calibration, Settings(trained=kept))
        error = predict(session(made.content), [inputs]) - logits
        spread = logits - logits.mean(0)
        sqnr[name] = 10 * np.log10((spread**2).sum() / (error**2).sum())
    assert sqnr["trained"] > sqnr["anew"] - 2


def test_layers_that_compute_their_weight_first_are_left_alone():
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    simulation = Simulation(module, Settings(), [(torch.rand(8, 4),)])
    simulation.settle()
    assert list(simulation.products) == ["1"]
    assert simulation.untouched == ["0"]


def test_frozen_weights_stay_as_they_are():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    module[0].weight.requires_grad_(False)
    before = module[0].weight.detach().clone()
    simulation = Simulation(module, Settings(), [(torch.rand(8, 4),)])
    assert list(Settings().trained_by(simulation.settle())) == ["1"]
    assert torch.equal(module[0].weight, before)


def test_ranges_of_other_settings_are_none():
    hints = Settings(bits=4).hint({"0": Range(0.5, 3)})
    assert Settings(bits=4).trained_by(hints) == {"0": Range(0.5, 3, "trained")}
    assert not Settings().trained_by(hints)
    assert not Settings(bits=4, portable=False).trained_by(hints)
