"""Layers are replaced in turn, or at once by the moments that they were judged by."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compress.lowrank import plan, replace
from compress.lowrank.forms import FORMS
from compress.lowrank.layers import TargetLayer, target_layers
from compress.lowrank.plan import Calibrated, by_rank, judged, ways
from compress.lowrank.ranks import Candidate
from compress.lowrank.replace import replaced
from compress.model import Model, copied, forward


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(24 * 16, 16)).eval()


def items() -> tuple[Tensor]:
    return (torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)


def chosen(module: nn.Module, calibrated: Calibrated) -> list[tuple[TargetLayer, Candidate]]:
    found, _ = target_layers(module, items())
    options = judged(module, found, ways(found, FORMS, 4, True), calibrated)
    taken = by_rank(found, options, 0.3, 4).taken
    assert len(taken) == 3
    return [(target, taken[target.path]) for target in found]


def fitted(
    module: nn.Module, pairs: list[tuple[TargetLayer, Candidate]], calibrated: Calibrated
) -> Tensor:
    result = copied(module)
    model = Model(module, items())
    errors = [error for _, _, error in replaced(result, model, 1000, pairs, calibrated)]
    assert len(errors) == 3
    return forward(result, items())


def test_at_once_takes_no_pass_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replace, "WORK", 0)
    module, calibrated = net(), Calibrated([items()], 40)
    pairs = chosen(module, calibrated)
    assert calibrated.known.keys() == {target.path for target, _ in pairs}
    anew = fitted(module, pairs, Calibrated([items()], 40))
    monkeypatch.setattr(replace, "moments", lambda *_: pytest.fail("no pass is needed"))
    torch.testing.assert_close(fitted(module, pairs, calibrated), anew, rtol=1e-3, atol=1e-3)


def test_in_turn_comes_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers take back what earlier ones lose; the error of a layer alone says nothing of that."""
    module = net()
    pairs = chosen(module, Calibrated([items()], 40))
    expected = forward(module, items())
    turn = fitted(module, pairs, Calibrated([items()], 40))
    monkeypatch.setattr(replace, "WORK", 0)
    once = fitted(module, pairs, Calibrated([items()], 40))
    off = [float((one - expected).square().mean()) for one in (turn, once)]
    assert off[0] < off[1]


def test_moments_without_room_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "TOGETHER", 1)
    calibrated = Calibrated([items()], 40)
    chosen(net(), calibrated)
    assert not calibrated.known
