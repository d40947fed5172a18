"""The error of each product, and biases that take its mean back."""

from __future__ import annotations

import deploy_models
import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from compress.deploy.export import export
from compress.deploy.graphs import parsed
from compress.int8.correct import corrected, errors
from compress.int8.ranges import Range, of_interval
from compress.int8.units import Unit, units
from compress.int8.weights import Weight, rounded
from compress.model import Model

CALIBRATION = [(deploy_models.images(20, seed).abs(),) for seed in (1, 2, 3)]


def setting() -> tuple[nn.Sequential, ir.Model, dict[str, Range], dict[str, Weight], Unit]:
    """A convolution without a bias whose weights are cut to three bits, below their values."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(784, 10))
    content = export(Model(deploy_models.randomized(module), (torch.zeros(1, 3, 16, 16),)))
    model = parsed(content)
    unit = next(unit for unit in units(model.graph) if unit.kind == "Conv")
    top = np.abs(unit.weight).reshape(4, -1).max(1).astype(np.float32)
    integers = np.floor(unit.weight / top[:, None, None, None] * 3).astype(np.int8)
    made = Weight(integers, top / 3, 0)
    high = max(float(batch[0].max()) for batch in CALIBRATION)
    return module, model, {"input": of_interval(0, high)}, {unit.name: made}, unit


def test_an_error_is_that_of_the_product_on_float_inputs():
    module, model, ranges, weights, unit = setting()
    [found] = errors(model, [unit.name], ranges, weights, CALIBRATION).values()
    inputs = torch.cat([batch[0] for batch in CALIBRATION]).double()
    step = ranges["input"].scale
    levels = step * (inputs / step).round().clip(0, 255)
    values = torch.from_numpy(weights[unit.name].values).double()
    with torch.no_grad():
        exact = nn.functional.conv2d(inputs, module[0].weight.double())
        difference = nn.functional.conv2d(levels, values) - exact
    assert found.mean == pytest.approx(difference.mean((0, 2, 3)).numpy(), rel=1e-3, abs=1e-4)
    assert found.noise == pytest.approx(float((difference**2).sum()), rel=1e-3)
    assert found.signal == pytest.approx(float((exact**2).sum()), rel=1e-3)
    assert found.sqnr == pytest.approx(10 * np.log10(found.signal / found.noise))


def test_a_corrected_bias_leaves_no_mean_error():
    _, model, ranges, weights, unit = setting()
    found = errors(model, [unit.name], ranges, weights, CALIBRATION)
    assert np.abs(found[unit.name].mean).min() > 0.1, "the weights were cut downwards"
    fixed = corrected(model, found)
    again = next(one for one in units(fixed.graph) if one.name == unit.name)
    assert again.bias == pytest.approx(-found[unit.name].mean, rel=1e-5)
    assert unit.bias is None, "the graph that was corrected is another one"


def test_without_weights_the_error_is_that_of_the_inputs():
    _, model, ranges, _, unit = setting()
    [found] = errors(model, [unit.name], ranges, {}, CALIBRATION).values()
    whole = rounded(unit.weight, 0, np.full(4, 1e-4, np.float32))
    assert found.sqnr > 35
    assert whole.scale.shape == (4,)
