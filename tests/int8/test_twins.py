"""Nets whose channels were rescaled so that the function stays: int8 is as close as before."""

from __future__ import annotations

import deploy_models
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.deploy.export import export
from compress.deploy.graphs import parsed
from compress.deploy.observe import observe
from compress.deploy.session import predict, session
from compress.int8.equalize import equalized, links
from compress.int8.lower import lower
from compress.int8.rewrite import rewritten
from compress.model import Model

WIDTH, SIGMA = 24, 2.0


class Twin(nn.Module):
    """Two convolutions and what stands between them, whose channels one can rescale."""

    def __init__(self, between: list[nn.Module], scaled: int | None) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.between = nn.Sequential(*between)
        self.second = nn.Conv2d(WIDTH, WIDTH, 3)
        self.head = nn.Linear(WIDTH, 10)
        self.scaled = scaled
        """Which layer between has the scale and the bias; None for the first convolution."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.between(self.first(x))).relu()
        return self.head(x.mean((2, 3)))

    def rescale(self) -> None:
        maker = self.first if self.scaled is None else self.between[self.scaled]
        by = torch.exp(SIGMA * torch.randn(WIDTH, generator=torch.Generator().manual_seed(3)))
        with torch.no_grad():
            maker.weight.mul_(by.reshape(-1, *[1] * (maker.weight.ndim - 1)))
            maker.bias.mul_(by)
            self.second.weight.div_(by.reshape(1, -1, 1, 1))


BETWEEN = {
    "ReLU": (lambda: [nn.ReLU()], None),
    "LeakyReLU": (lambda: [nn.LeakyReLU(0.1)], None),
    "PReLU": (lambda: [nn.PReLU(WIDTH)], None),
    "one PReLU": (lambda: [nn.PReLU()], None),
    "max pool": (lambda: [nn.ReLU(), nn.MaxPool2d(2)], None),
    "batch norm, ReLU": (lambda: [nn.ReLU(), nn.BatchNorm2d(WIDTH), nn.ReLU()], 1),
    "batch norm": (lambda: [nn.ReLU(), nn.BatchNorm2d(WIDTH)], 1),
    "instance norm": (lambda: [nn.InstanceNorm2d(WIDTH, affine=True), nn.ReLU()], 0),
    "group norm": (lambda: [nn.GroupNorm(4, WIDTH), nn.ReLU()], 0),
    "group norm, LeakyReLU": (lambda: [nn.GroupNorm(4, WIDTH), nn.LeakyReLU(0.1)], 0),
}


def decibels(noise: np.ndarray, signal: np.ndarray) -> float:
    return 10 * float(np.log10((signal**2).sum() / (noise**2).sum()))


@pytest.mark.parametrize("between", BETWEEN)
def test_a_twin_is_as_close_in_int8_as_the_net(between: str):
    made, scaled = BETWEEN[between]
    inputs = [(deploy_models.images(32, seed),) for seed in range(4)]
    found = {}
    for rescaled in (False, True):
        net = deploy_models.randomized(Twin(made(), scaled))
        if rescaled:
            net.rescale()
        content = export(Model(net, (inputs[0][0][:1],)))
        before = predict(session(content), inputs)
        after = predict(session(lower(content, inputs[1:]).content), inputs)
        found[rescaled] = decibels(after - before, before)
        graph = rewritten(parsed(content))
        axes = {link.name: link.axis for link in links(graph.graph)}
        _, count = equalized(graph, observe(graph, inputs[1:], axes))
        assert count == len(axes) > 0
    assert found[False] > 20, "far from useless"
    assert found[True] > found[False] - 1.5


def test_what_is_no_scale_of_channels_is_left():
    """A factor of positions, one for all channels, and a norm over another axis."""

    class Others(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv1d(16, 16, 1), nn.Conv1d(16, 8, 1)
            self.third, self.head = nn.Linear(48, 24), nn.Linear(8 * 24, 10)
            self.places = nn.Parameter(torch.rand(48) + 0.5)
            self.one = nn.Parameter(torch.tensor(1.5))
            self.norm = nn.BatchNorm1d(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.second((self.first(x) * self.places).relu())
            x = (x * self.one).sigmoid()
            return self.head(self.third(self.norm(x)).relu().flatten(1))

    net = deploy_models.randomized(Others())
    graph = rewritten(parsed(export(Model(net, (torch.zeros(1, 16, 48),)))))
    assert [link.name for link in links(graph.graph)] == []
