"""Moments over batches are those of all unfolded inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from made import convolutions
from torch import nn

from compress.errors import UserError
from compress.lowrank import moments as room
from compress.lowrank.moments import in_groups, moments


def unfolded(layer: nn.Conv2d, x: torch.Tensor) -> np.ndarray:
    """Return (n, D) by torch's own unfold, of inputs that are padded beforehand."""
    x = F.pad(x, room.padding(layer))
    found = F.unfold(x, layer.kernel_size, layer.dilation, 0, layer.stride)
    return found.transpose(1, 2).reshape(-1, found.shape[1]).double().numpy()


@settings(max_examples=25, deadline=None)
@given(layer=convolutions())
def test_moments_of_a_convolution_are_those_of_its_patches(layer: nn.Conv2d) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, layer.in_channels, 9, 8) + 1
    net = nn.Sequential(layer)
    rows = unfolded(layer, x)
    expected = np.cov(rows.T, bias=True).reshape(rows.shape[1], -1)
    for size in (1, 4, 6):
        [found] = moments(net, {"0": 1}, [(part,) for part in x.split(size)], len(x)).values()
        np.testing.assert_allclose(found.mean.numpy(), rows.mean(0), atol=1e-6)
        assert found.moments is not None
        # Products of a batch are sums of float32.
        np.testing.assert_allclose(found.moments.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_all_calls_of_a_layer_count() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x))

    torch.manual_seed(0)
    net, x = Twice(), torch.randn(50, 3)
    [found] = moments(net, {"layer": 2}, [(x,)], 50).values()
    rows = torch.cat([x, net.layer(x).detach()]).double()
    torch.testing.assert_close(found.mean, rows.mean(0))


def test_wide_layers_have_the_moments_of_their_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "WIDEST", 10)
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(11, 4)), torch.randn(40, 11)
    [found] = moments(net, {"0": 1}, [(x[:30],), (x[30:],)], 40).values()
    assert found.moments is None
    assert found.outputs is not None
    outputs = (net(x) - net[0].bias).detach().double().numpy()
    np.testing.assert_allclose(found.outputs, np.cov(outputs.T, bias=True), atol=1e-5)
    assert room.size_of(net[0]) == 8 * 16


def test_wide_layers_are_judged_by_twice_as_many_rows_as_they_have_inputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "ROWS", 160)
    monkeypatch.setattr(room, "NARROW", 20)
    torch.manual_seed(0)
    seen: dict[int, int] = {}
    put = room.Sums.put

    def counted(self: room.Sums, rows: torch.Tensor) -> None:
        seen[rows.shape[1]] = seen.get(rows.shape[1], 0) + len(rows)
        put(self, rows)

    monkeypatch.setattr(room.Sums, "put", counted)
    for size, rows in ((20, 160), (21, 80), (60, 120), (100, 160)):
        net, x = nn.Sequential(nn.Linear(size, 4)), torch.randn(160, size)
        moments(net, {"0": 1}, list(zip(x.split(80), strict=True)), 160)
        assert seen[size] == rows


def test_products_of_wide_layers_are_computed_once_and_are_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Above the diagonal, in blocks; the last of them is narrower."""
    monkeypatch.setattr(room, "BLOCK", 4)
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(11, 3)), torch.randn(40, 11)
    [found] = moments(net, {"0": 1}, [(x[:30],), (x[30:],)], 40).values()
    np.testing.assert_allclose(found.moments, np.cov(x.T, bias=True), atol=1e-5)


def test_values_that_are_not_finite_are_refused() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(UserError, match="layer 0 is given values that are not finite"):
        moments(net, {"0": 1}, [(torch.tensor([[1.0, float("nan")]]),)], 1)


def test_layers_are_taken_in_groups_that_fit() -> None:
    assert in_groups("abcde", [3, 3, 9, 1, 1], 6) == [["a", "b"], ["c"], ["d", "e"]]
    assert in_groups([], [], 6) == []
