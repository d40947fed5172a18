"""Statistics are those of what enters the norms now, by hand."""

from __future__ import annotations

import pytest
import torch
from bench_fixtures import small_digits
from torch import nn

from compress.errors import UserError
from compress.tasks.base import Data, Tensors, prepared_batches
from compress.training.batch_norms import BATCH, batch_norms, reestimate


def test_statistics_are_the_means_over_batches() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.9))
    net[1].momentum = 0.3
    batches = [(torch.randn(5, 3, 6, 6) * n,) for n in (1, 2, 3)]
    with torch.no_grad():
        entered = [net[0](x).transpose(0, 1).flatten(1) for (x,) in batches]
    assert reestimate(net, [*batches, (torch.full((1, 3, 6, 6), 1e9),)]) == 1
    means = torch.stack([one.mean(1) for one in entered]).mean(0)
    variances = torch.stack([one.var(1) for one in entered]).mean(0)
    torch.testing.assert_close(net[1].running_mean, means)
    torch.testing.assert_close(net[1].running_var, variances)
    assert net[1].momentum == 0.3
    assert not any(part.training for part in net.modules())


def test_without_running_statistics_there_is_nothing_to_do() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3))
    assert reestimate(net, []) == 0


def inputs_of(data: Data) -> list[Tensors]:
    return [inputs for inputs, _ in prepared_batches(data.task, data.train, BATCH)]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten()
    )


def test_statistics_of_a_task_are_the_means_over_its_batches() -> None:
    data = small_digits()
    module = net().train()
    assert reestimate(module, inputs_of(data)) == 2
    first, last = batch_norms(module)
    batches = [inputs[0] for inputs in inputs_of(data)]
    assert len(batches) == 3
    sizes = torch.tensor([len(x) for x in batches])
    assert sizes[-1] < sizes[0], "the last one weighs less"
    weights = (sizes / sizes.sum())[:, None]
    means = (weights * torch.stack([x.mean((0, 2, 3)) for x in batches])).sum(0)
    variances = (weights * torch.stack([x.var((0, 2, 3)) for x in batches])).sum(0)
    torch.testing.assert_close(first.running_mean, means)
    torch.testing.assert_close(first.running_var, variances)
    with torch.no_grad():  # dropout is off
        convolved = [
            module[2]((x - x.mean()) / (x.var(unbiased=False) + first.eps).sqrt()) for x in batches
        ]
    means = (weights * torch.stack([x.mean((0, 2, 3)) for x in convolved])).sum(0)
    torch.testing.assert_close(last.running_mean, means, rtol=1e-4, atol=1e-5)
    assert not any(part.training for part in module.modules())
    assert first.momentum == last.momentum == 0.1


def test_without_batch_norms_nothing_runs() -> None:
    data = small_digits()

    class Refuses(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError

    assert reestimate(Refuses(), inputs_of(data)) == 0


def test_a_single_item_is_refused_and_the_statistics_stay() -> None:
    module = net()
    before = {name: one.clone() for name, one in module.state_dict().items()}
    with pytest.raises(UserError, match="less than two items"):
        reestimate(module, [(torch.randn(1, 1, 8, 8),)] * 3)
    assert all(torch.equal(before[name], one) for name, one in module.state_dict().items())


def test_a_norm_that_is_called_twice_takes_the_mean_of_both() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3)
    twice = nn.Sequential(norm, nn.Identity(), norm)
    x = torch.randn(6, 3) * 2 + 1
    reestimate(twice, [(x,)])
    first = x.mean(0)
    torch.testing.assert_close(norm.running_mean, first / 2, rtol=1e-4, atol=1e-5)
