"""How long layers of any widths take, and which steps of widths the kernels like."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timed_nets import Samples, by_macs, everything, in_blocks, model_of
from torch import nn

from compress.deploy.session import session
from compress.lowrank.latency import Files, layer_file
from compress.model import Model
from compress.techniques import channel_times
from compress.techniques.channel_steps import liked_step, steps_of
from compress.techniques.channel_times import (
    Sizes,
    Span,
    Timed,
    Times,
    file_of,
    from_a_number,
    interpolated,
    measured,
)


def macs_of_layer(layer: Timed) -> float:
    """Count the multiplications of a layer of `Net`, by its module."""
    per_pixel = layer.layer.weight.numel()
    return per_pixel * {"down": 16, "hidden": 1, "out": 1}.get(layer.path, 64)


def test_sizes_follow_from_what_groups_keep() -> None:
    model = model_of()
    channels, layers, grains = everything(model)
    by_path = {layer.path: layer for layer in layers}
    assert list(by_path) == ["stem", "wide", "each", "back", "down", "hidden", "out"]
    for path, layer in by_path.items():
        own = model.module.get_submodule(path)
        assert layer.sizes(grains, grains) == layer.whole
        assert layer.alike(layer.whole).weight.shape == own.weight.shape
    halves = {axis: count // 2 for axis, count in grains.items()}
    assert by_path["stem"].sizes(halves, grains) == (3, 16)
    assert by_path["each"].sizes(halves, grains) == (32, 32)
    assert by_path["hidden"].sizes(halves, grains) == (24 * 16, 20)
    assert by_path["out"].sizes(halves, grains) == (20, 10)
    assert {group.path for group in channels.groups} == {"stem", "wide", "down", "hidden"}


def test_sizes_are_pairs_of_inputs_and_outputs() -> None:
    sizes: Sizes = (3, 8)
    _, layers, _ = everything(model_of())
    made = layers[0].alike(sizes)
    assert layers[0].shape(made) == (1, 3, 8, 8)


def test_files_of_grouped_convolutions_compute_what_the_layers_do() -> None:
    for layer in (nn.Conv2d(12, 12, 3, groups=12), nn.Conv2d(8, 12, 3, padding=1, groups=4)):
        x = torch.randn(1, layer.in_channels, 6, 5)
        found = session(layer_file([layer], tuple(x.shape)), threads=1).run({"input": x.numpy()})
        np.testing.assert_allclose(found, layer(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 6, 3, padding=2, stride=2),
        nn.Conv1d(4, 6, 4, padding="same", dilation=2),
        nn.Conv3d(4, 6, (1, 2, 3), padding=(0, 1, 2), groups=2, bias=False),
        nn.ConvTranspose2d(4, 6, (3, 2), stride=2, padding=(1, 0), output_padding=(1, 0), groups=2),
        nn.ConvTranspose1d(4, 4, 3, stride=2, groups=4),
        nn.ConvTranspose3d(2, 3, 2),
    ],
    ids=str,
)
def test_files_of_other_convolutions_compute_what_the_layers_do(layer: Any) -> None:
    rows = (6, 7, 5)[: layer.weight.ndim - 2]
    x = torch.randn(1, layer.in_channels, *rows)
    found = session(file_of(layer, tuple(x.shape)), threads=1).run({"input": x.numpy()})
    np.testing.assert_allclose(found, layer(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    timed = Timed("", layer, rows, 1, Span(1), Span(1), layer.groups == layer.in_channels)
    assert timed.alike(timed.whole).weight.shape == layer.weight.shape


def test_a_file_fed_by_a_number_computes_what_the_layer_does() -> None:
    layer = nn.Conv2d(3, 5, 3)
    content = from_a_number(layer_file([layer], (1, 3, 6, 7)), (1, 3, 6, 7))
    number = np.full((1, 1), 0.7, dtype=np.float32)
    found = session(content, threads=1).run({"number": number})
    expected = layer(torch.full((1, 3, 6, 7), 0.7)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    a=st.floats(0, 9), b=st.floats(0, 9), c=st.floats(0, 9), reads=st.integers(1, 90),
    makes=st.integers(1, 90),
)  # fmt: skip
def test_interpolation_is_exact_for_a_product(
    a: float, b: float, c: float, reads: int, makes: int
) -> None:
    def cost(r: int, m: int) -> float:
        return a + b * r + c * r * m

    known = {(r, m): cost(r, m) for r, m in product((8, 24, 64), (16, 48))}
    assert interpolated(known, (reads, makes)) == pytest.approx(cost(reads, makes), abs=1e-6)
    line = {(m, m): a + b * m for m in (8, 16, 64)}
    assert interpolated(line, (makes, makes)) == pytest.approx(a + b * makes)
    assert interpolated({}, (8, 8)) == 0.0


def test_measured_layers_predict_the_whole_where_time_is_macs() -> None:
    model = model_of()
    channels, layers, grains = everything(model)
    steps = dict.fromkeys(grains, 8)
    known = measured(layers, channels.groups, steps, by_macs(), 1.0)
    times = Times(layers, grains, known)
    assert times.total(grains) == pytest.approx(1e-9 * sum(map(macs_of_layer, layers)))
    halves = {axis: count // 2 for axis, count in grains.items()}
    macs = 64 * (3 * 16 * 9 + 16 * 32 + 32 * 9 + 32 * 16) + 16 * 16 * 24 * 9 + 24 * 16 * 20 + 200
    assert times.total(halves) == pytest.approx(macs * 1e-9)


def test_what_cannot_be_timed_has_no_part() -> None:
    model = model_of()
    channels, layers, grains = everything(model)
    known = measured(layers, channels.groups, dict.fromkeys(grains, 8), lambda *_: {}, 1.0)
    times = Times(layers, grains, known)
    assert times.total(dict.fromkeys(grains, 1)) == 0.0


def test_a_load_that_comes_and_goes_falls_out() -> None:
    """Each process is slower than the one before, and each round than the other."""
    model = model_of()
    channels, layers, grains = everything(model)
    steady, calls = by_macs(), [0]

    def loaded(files: Files, samples: Samples, seconds: float) -> dict[str, list[float]]:
        calls[0] += 1
        rounds = np.array([1.0, 5.0, 2.0]) * 3 ** calls[0]
        found = steady(files, samples, seconds)
        return {name: list(values[0] * rounds) for name, values in found.items()}

    steps = dict.fromkeys(grains, 8)
    results = []
    for clock in (steady, loaded):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(channel_times, "TOGETHER", 40_000)
            known = measured(layers, channels.groups, steps, clock, 1.0)
        times = Times(layers, grains, known)
        halves = {axis: count // 2 for axis, count in grains.items()}
        results.append(times.total(halves) / times.total(grains))
    assert calls[0] > 3
    assert results[0] == pytest.approx(results[1])


# --- steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("block", "step"), [(16, 16), (8, 8), (4, 4), (1, 4)])
def test_the_step_is_the_block_of_the_kernels(block: int, step: int) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 128, 3), nn.ReLU(), nn.Conv2d(128, 96, 3), nn.ReLU(), nn.Conv2d(96, 10, 3),
        nn.Flatten(),
    )  # fmt: skip
    _, layers, _ = everything(model_of(net))
    assert liked_step(layers, in_blocks(block), 1.0) == step


def test_narrow_layers_are_tried_wider_and_narrow_groups_get_half_a_step() -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 3))
    model = Model(net.eval(), (torch.randn(2, 8),))
    channels, layers, _ = everything(model)
    assert [liked_step(layers, in_blocks(block), 1.0) for block in (1, 8, 16)] == [4, 8, 16]
    assert list(steps_of(channels.groups, 16).values()) == [8, 16]
    assert list(steps_of(channels.groups, 4).values()) == [4, 4]
    assert liked_step(layers, lambda *_: {}, 1.0) is None
