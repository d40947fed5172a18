"""Pools and activations in integers: the file means the same with and without optimizations."""

from __future__ import annotations

import itertools

import deploy_models
import numpy as np
import pytest
from torch import Tensor, nn

from compress.deploy.export import export
from compress.deploy.session import predict, session
from compress.int8.lower import lower
from compress.model import Model

POOLS = {
    f"{kind.__name__}, padding {padding}, ceil {ceil}, {extra}": (kind, padding, ceil, extra)
    for kind, padding, ceil, extra in [
        *((nn.AvgPool2d, *one) for one in itertools.product((0, 1), (False, True), (True, False))),
        *((nn.MaxPool2d, *one, None) for one in itertools.product((0, 1), (False, True))),
    ]
}


class Pooled(nn.Module):
    """Products of integers around a layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer = nn.Conv2d(3, 8, 3, padding=1), layer
        self.second, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.layer(self.first(x).relu())).relu().amax((2, 3)))


def rows_of(layer: nn.Module) -> dict[str, dict]:
    """Return a file's rows by type, after comparing its answers."""
    inputs = [(deploy_models.images(64, seed),) for seed in range(2)]
    net = deploy_models.randomized(Pooled(layer))
    content = export(Model(net, (inputs[0][0][:1],)))
    lowered = lower(content, inputs)
    fused = predict(session(lowered.content), inputs)
    plain = predict(session(lowered.content, optimize=False), inputs)
    wanted = predict(session(content), inputs)
    noise = {"fused": fused - wanted, "plain": plain - wanted}
    sizes = {name: float((one**2).sum() / (wanted**2).sum()) for name, one in noise.items()}
    assert sizes["fused"] < 1.2 * sizes["plain"] + 1e-6
    assert np.abs(fused - plain).max() < 0.02 * np.abs(wanted).max()
    return {row["type"]: row for row in lowered.nodes}


@pytest.mark.parametrize("name", POOLS)
def test_pools_of_any_edges(name: str):
    kind, padding, ceil, extra = POOLS[name]
    options = {"padding": padding, "ceil_mode": ceil}
    rows = rows_of(kind(3, 2, **options | ({} if extra is None else {"count_include_pad": extra})))
    row = rows["AveragePool" if kind is nn.AvgPool2d else "MaxPool"]
    wrong = kind is nn.AvgPool2d and ceil and extra
    assert row["int8"] is not bool(wrong)
    if wrong:
        assert row["why"] == "its integer kernel counts places beyond the padding"


def test_a_leaky_relu_is_computed_in_integers():
    assert rows_of(nn.LeakyReLU(0.2))["LeakyRelu"]["int8"]
