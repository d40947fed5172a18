"""Estimated statistics are the averages that they are said to be."""

from __future__ import annotations

import torch
from bench_fixtures import small_digits
from torch import nn

from compress.supernet.statistics import BATCH, batch_norms, reestimate
from compress.tasks.base import prepared_batches


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten()
    )


def test_statistics_are_the_means_over_batches() -> None:
    data = small_digits()
    module = net().train()
    reestimate(module, data.task, data.train)
    first, last = batch_norms(module)
    batches = [inputs[0] for inputs, _ in prepared_batches(data.task, data.train, BATCH)]
    assert len(batches) == 3
    means = torch.stack([x.mean((0, 2, 3)) for x in batches]).mean(0)
    variances = torch.stack([x.var((0, 2, 3)) for x in batches]).mean(0)
    torch.testing.assert_close(first.running_mean, means)
    torch.testing.assert_close(first.running_var, variances)
    with torch.no_grad():  # dropout is off
        convolved = [
            module[2]((x - x.mean()) / (x.var(unbiased=False) + first.eps).sqrt()) for x in batches
        ]
    means = torch.stack([x.mean((0, 2, 3)) for x in convolved]).mean(0)
    torch.testing.assert_close(last.running_mean, means, rtol=1e-4, atol=1e-5)
    assert not any(part.training for part in module.modules())
    assert first.momentum == last.momentum == 0.1


def test_without_batch_norms_nothing_runs() -> None:
    data = small_digits()

    class Refuses(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError

    reestimate(Refuses(), data.task, data.train)
