"""Rounding with second moments: better products, and still no saturation."""

from __future__ import annotations

import deploy_models
import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compress.deploy.export import export
from compress.deploy.graphs import parsed
from compress.deploy.saturation import PAIR, largest_pair
from compress.int8 import rounding
from compress.int8.rounding import all_rounded, moments, neighbours, passes
from compress.int8.units import Unit, units
from compress.int8.weights import Weight, scales
from compress.int8.weights import rounded as nearest
from compress.model import Model


def unit_of(module: nn.Module, kind: str) -> tuple[ir.Model, Unit]:
    model = parsed(export(Model(module.eval(), (torch.zeros(1, 3, 16, 16),))))
    return model, next(unit for unit in units(model.graph) if unit.kind == kind)


CALIBRATION = [(deploy_models.images(20, seed).cumsum(3),) for seed in (1, 2, 3)]
CONVS = {
    "plain": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 3, "dilation": 2},
    "depthwise": {"kernel_size": 3, "groups": 3},
    "pointwise": {"kernel_size": 1},
}


@pytest.mark.parametrize("name", sorted(CONVS))
def test_moments_are_those_of_the_patches_that_torch_unfolds(name, monkeypatch):
    monkeypatch.setattr(rounding, "PATCHES", 10**9)  # all of them
    conv = nn.Conv2d(3, 6, **CONVS[name])
    module = nn.Sequential(conv, nn.Flatten(), nn.LazyLinear(10))
    module(torch.zeros(1, 3, 16, 16))
    model, unit = unit_of(module, "Conv")
    [[found]] = moments(model, [unit], CALIBRATION).values()
    images = torch.cat([batch[0] for batch in CALIBRATION]).double()
    rows = nn.functional.unfold(
        images, conv.kernel_size, conv.dilation, conv.padding, conv.stride
    )  # (N, C * kernel, places)
    rows = rows.transpose(1, 2).reshape(-1, conv.groups, rows.shape[1] // conv.groups)
    expected = torch.einsum("ngi,ngj->gij", rows, rows) / len(rows)
    assert found.double() == pytest.approx(expected, rel=1e-3, abs=1e-3 * float(expected.max()))


def error(weight: np.ndarray, made: Weight, moment: torch.Tensor) -> float:
    """Return the mean squared error of products: tr(D M Dᵀ) for the difference D."""
    groups = len(moment)
    difference = torch.from_numpy(made.values - weight).double()
    difference = difference.reshape(groups, len(weight) // groups, -1)
    return float((difference @ moment.double() * difference).sum())


@pytest.mark.parametrize("name", sorted(CONVS))
@pytest.mark.parametrize("portable", [True, False])
def test_products_change_less_than_by_rounding_to_the_nearest(name, portable):
    module = nn.Sequential(nn.Conv2d(3, 6, **CONVS[name]), nn.Flatten(), nn.LazyLinear(10))
    module(torch.zeros(1, 3, 16, 16))
    model, unit = unit_of(module, "Conv")
    [moment] = moments(model, [unit], CALIBRATION)[unit.name]
    scale = scales(unit.weight, 0, portable, np.zeros(6)) * 8  # coarse, so that it matters
    plain = nearest(unit.weight, 0, scale)
    made = rounding.rounded(unit, unit.weight, scale, [moment], portable)
    share = error(unit.weight, made, moment) / error(unit.weight, plain, moment)
    # The channels of these images are unrelated, so a pointwise product gains nothing.
    assert share < {"pointwise": 1.05, "depthwise": 0.9}.get(name, 0.7), share


@given(st.integers(0, 2**32 - 1), st.sampled_from([(4, 2, 3, 3), (3, 1, 3, 3), (5, 7)]))
def test_no_neighbours_saturate(seed, shape):
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal(shape).astype(np.float32)
    groups = shape[0] if len(shape) == 4 and shape[1] == 1 else 1
    rows = generator.standard_normal((40, groups, int(np.prod(shape[1:])))).astype(np.float32)
    moment = torch.from_numpy(np.einsum("ngi,ngj->gij", rows, rows) / len(rows))
    kind = "Conv" if len(shape) == 4 else "Gemm"
    node = ir.node(
        kind,
        [ir.Value(name="x"), constant(weight)],
        {"group": groups} if kind == "Conv" else {"transB": 1},
    )
    made = rounding.rounded(
        Unit(node), weight, scales(weight, 0, True, np.zeros(shape[0])), [moment], True
    )
    assert largest_pair(made.integers.astype(int), 0).max() <= PAIR


def wide_unit() -> tuple[Unit, np.ndarray, torch.Tensor]:
    """A convolution of 6 channels by 3 x 3, and E[x xᵀ] of inputs that go together."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((8, 6, 3, 3)).astype(np.float32)
    rows = generator.standard_normal((400, 20)) @ generator.standard_normal((20, 54))
    moment = torch.from_numpy(rows.T @ rows / len(rows))[None]
    node = ir.node("Conv", [ir.Value(name="x"), constant(weight)], {"group": 1})
    return Unit(node), weight, moment


def test_many_inputs_are_rounded_in_parts_of_whole_channels(monkeypatch):
    unit, weight, moment = wide_unit()
    assert rounding.parts_of(unit) == [slice(0, 54)]
    monkeypatch.setattr(rounding, "TOGETHER", 20)
    parts = rounding.parts_of(unit)
    assert parts == [slice(0, 18), slice(18, 36), slice(36, 54)]
    scale = scales(weight, 0, True, np.zeros(8)) * 4
    blocks = [moment[:, part, part] for part in parts]
    made = rounding.rounded(unit, weight, scale, blocks, portable=True)
    assert largest_pair(made.integers.astype(int), 0).max() <= PAIR, "across parts, too"
    # Each part is as if the others were not there.
    apart = sum(error_of(weight, made, moment, part) for part in parts)
    plain = sum(error_of(weight, nearest(weight, 0, scale), moment, part) for part in parts)
    assert apart < 0.7 * plain


def error_of(weight: np.ndarray, made: Weight, moment: torch.Tensor, part: slice) -> float:
    difference = torch.from_numpy(made.values - weight).double().reshape(1, len(weight), -1)
    mine = difference[:, :, part]
    return float((mine @ moment[:, part, part] * mine).sum())


def test_the_moments_of_parts_are_blocks_of_those_of_the_whole(monkeypatch):
    monkeypatch.setattr(rounding, "PATCHES", 10**9)
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.LazyLinear(10))
    module(torch.zeros(1, 3, 16, 16))
    model, unit = unit_of(module, "Conv")
    [whole] = moments(model, [unit], CALIBRATION)[unit.name]
    monkeypatch.setattr(rounding, "TOGETHER", 9)
    found = moments(model, [unit], CALIBRATION)[unit.name]
    assert len(found) == 3
    for part, block in zip(rounding.parts_of(unit), found, strict=True):
        torch.testing.assert_close(block, whole[:, part, part])


def constant(values: np.ndarray) -> ir.Value:
    return ir.Value(name="w", const_value=ir.tensor(values, name="w"))


def test_neighbours_are_those_of_both_orders():
    found = neighbours((2, 1, 2))  # (c, kh, kw): 0 1 / 2 3, and channels last: 0 2 1 3
    assert found == [[1, 2], [0, 2, 3], [0, 1, 3], [1, 2]]


def test_what_does_not_fit_into_memory_at_once_is_done_in_passes(monkeypatch):
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.LazyLinear(10)
    )
    module(torch.zeros(1, 3, 16, 16))
    model, _ = unit_of(module, "Conv")
    found = {unit.name: unit for unit in units(model.graph) if unit.weighted}
    start = {}
    for unit in found.values():
        axis = unit.channel_axis
        scale = scales(unit.weight, axis, True, np.zeros(1))
        start[unit.name] = nearest(unit.weight, axis, scale)
    whole = all_rounded(model, found, start, CALIBRATION, True)
    monkeypatch.setattr(rounding, "HELD", 1)
    assert [len(one) for one in passes(found.values())] == [1, 1, 1]
    parts = all_rounded(model, found, start, CALIBRATION, True)
    for name in found:
        # Other patches are drawn, so few weights are rounded otherwise.
        assert (whole[name].integers != parts[name].integers).mean() < 0.2
