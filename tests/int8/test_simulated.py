"""Training under rounding: what is simulated is what the file computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.deploy.export import export
from compress.deploy.session import predict, session
from compress.int8 import weights
from compress.int8.lower import Settings, lower
from compress.int8.simulated import HINT, Simulation, scales, trained
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
    assert list(hints[HINT]) == ["0", "3", "7", "12"]
    model = Model(module, (images(4, 3),))
    content = export(model)
    made = lower(content, calibration, replace(wanted, trained=trained(hints)))
    found = predict(session(made.content), [inputs])
    # The mean before the last layer is rounded in the file alone; a rounding of 1 in 255 there.
    assert np.abs(found - simulated).max() < 0.02 * np.abs(simulated).max()
    anew = lower(content, calibration, Settings(bits=bits, trained=trained(hints)))
    assert anew.content == made.content, "on its grids there is nothing to compensate"
    ranges = {row["layer"]: row.get("range") for row in made.nodes if row["int8"]}
    assert "trained" in ranges.values()


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
    simulation = Simulation(module, Settings(exclude=("on?",)), [(torch.rand(8, 4),)])
    simulation.observe()
    before = module.idle.weight.detach().clone()
    assert list(simulation.settle()[HINT]) == ["two"]
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
