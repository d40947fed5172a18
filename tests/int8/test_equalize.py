"""Channels that are scaled where that changes nothing, and nowhere else."""

from __future__ import annotations

from itertools import cycle

import deploy_models
import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from compress.deploy import observe as observed
from compress.deploy.export import export
from compress.deploy.graphs import parsed, serialized
from compress.deploy.observe import item_bytes, observe
from compress.deploy.session import predict, session
from compress.int8 import lower as room
from compress.int8.equalize import equalized, links, same_function
from compress.int8.lower import draft, lower
from compress.int8.rewrite import rewritten
from compress.model import Model


class Turned(nn.Module):
    """A convolution whose channels a linear layer reads, moved to the end or not."""

    def __init__(self, moved: bool) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 8)
        self.head, self.moved = nn.Linear(8 * 256, 10), moved

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        x = self.linear(x.permute(0, 2, 3, 1) if self.moved else x)
        return self.head(x.relu().flatten(1))


def along_pixels() -> nn.Module:
    return Turned(moved=False)


def along_channels() -> nn.Module:
    return Turned(moved=True)


def tokens_as_channels() -> nn.Module:
    """A linear layer makes features; the convolution reads tokens as its channels."""
    layers = (nn.Linear(48, 16), nn.ReLU(), nn.Conv1d(16, 8, 3, padding=1), nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 16, 10))


def positions_as_features() -> nn.Module:
    layers = (nn.Conv1d(16, 48, 3, padding=1), nn.ReLU(), nn.Linear(48, 8), nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48 * 8, 10))


def grouped(inputs: int, outputs: int, groups: int) -> nn.Module:
    layers = (nn.Conv2d(3, inputs, 3, padding=1), nn.ReLU())
    wide = nn.Conv2d(inputs, outputs, 3, groups=groups)
    ends = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(outputs, 10))
    return nn.Sequential(*layers, wide, *ends)


class OneBias(nn.Module):
    """A bias of one element, which all outputs share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bias = nn.Linear(48, 32, bias=False), nn.Parameter(torch.ones(1))
        self.second, self.head = nn.Linear(32, 8), nn.Linear(16 * 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.first(x) + self.bias).relu()
        return self.head(self.second(x).relu().flatten(1))


def one_channel() -> nn.Module:
    layers = (nn.Conv2d(3, 1, 3, padding=1), nn.ReLU(), nn.Conv2d(1, 8, 3), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


IMAGES, SEQUENCES = (3, 16, 16), (16, 48)
NETS = {
    "a linear layer over pixels": (along_pixels, IMAGES, 0),
    "a linear layer over channels": (along_channels, IMAGES, 1),
    "a convolution over tokens": (tokens_as_channels, SEQUENCES, 1),
    "a linear layer over positions": (positions_as_features, SEQUENCES, 0),
    "two outputs for each channel": (lambda: grouped(8, 16, 8), IMAGES, 2),
    "groups of channels": (lambda: grouped(16, 32, 4), IMAGES, 2),
    "fewer outputs than inputs": (lambda: grouped(16, 8, 4), IMAGES, 2),
    "depthwise": (lambda: grouped(16, 16, 16), IMAGES, 2),
    "one channel": (one_channel, IMAGES, 2),
    "one bias for all": (OneBias, SEQUENCES, 1),
}


def calibration(shape: tuple[int, ...]) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(16, *shape, generator=generator),) for _ in range(3)]


def made(name: str) -> tuple[bytes, list[tuple[Tensor]], int]:
    """Return a float file whose channels differ in size, its inputs, and its number of links."""
    build, shape, count = NETS[name]
    model = Model(deploy_models.randomized(build()), (torch.zeros(1, *shape),))
    first = next(one for one in model.module.modules() if hasattr(one, "weight"))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        factor = torch.exp(torch.randn(len(first.weight), generator=generator))
        first.weight.mul_(factor.reshape(-1, *[1] * (first.weight.ndim - 1)))
        if first.bias is not None:
            first.bias.mul_(factor)
    return export(model), calibration(shape), count


@pytest.mark.parametrize("name", NETS)
def test_scaling_channels_leaves_the_function(name: str):
    content, inputs, count = made(name)
    graph = rewritten(parsed(content))
    axes = {link.name: link.axis for link in links(graph.graph)}
    assert len(axes) == count
    scaled = graph
    if axes:
        scaled, number = equalized(graph, observe(graph, inputs, axes))
        assert number == count
    before = predict(session(serialized(graph)), inputs)
    after = predict(session(serialized(scaled)), inputs)
    assert np.abs(before - after).max() < 1e-5 * np.abs(before).max()
    int8 = predict(session(lower(content, inputs).content), inputs)
    assert np.abs(before - int8).max() < 0.05 * np.abs(before).max()


def test_a_scaling_that_moves_the_answers_is_left_out_and_said(monkeypatch):
    content, inputs, _ = made("depthwise")
    exact = draft(parsed(content), inputs)
    assert not exact.notes
    real = room.equalized

    def wrong(model: ir.Model, observed: dict) -> tuple[ir.Model, int]:
        scaled, count = real(model, observed)
        weight = next(v for v in scaled.graph.initializers.values() if len(v.shape) == 4)
        weight.const_value = ir.tensor(1.01 * weight.const_value.numpy(), name=weight.name)
        return scaled, count

    monkeypatch.setattr(room, "equalized", wrong)
    found = draft(parsed(content), inputs)
    assert found.notes == found.lowered().notes
    assert found.notes[0].startswith("channels were not equalized: with 2 of its values scaled")
    before = predict(session(content), inputs)
    kept = predict(session(serialized(found.model)), inputs)
    assert np.abs(before - kept).max() < 1e-5 * np.abs(before).max()


def test_answers_are_compared_whatever_memory_is_left(monkeypatch):
    """It differs from moment to moment, and with it how many items are run at once."""
    content, inputs, _ = made("depthwise")
    graph = rewritten(parsed(content))
    free = cycle([1000, 5, 3])
    monkeypatch.setattr(observed, "free_memory", lambda: 4 * next(free) * item_bytes(graph))
    assert same_function(graph, graph, inputs)
