"""The cases of benchmarks/int8/cases.py, on small data."""

from __future__ import annotations

import pytest
import torch
from bench_fixtures import images
from benchmark_modules import benchmark

from compress.tasks.base import Data, TensorSplit


@pytest.fixture(scope="module")
def cases():
    return benchmark("int8", "cases")


@pytest.fixture(scope="module")
def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(320, 3, 8, 8, generator=generator)
    items = (255 * torch.nn.functional.interpolate(coarse, 32, mode="bilinear")).byte()
    targets = torch.arange(320) % 10
    split = TensorSplit((items,), targets)
    return Data(images(), split, split, split, split, "made")


def test_a_grouped_transposed_convolution(cases, data):
    row = cases.transposed(data)
    assert row["ok"], row


def test_the_default_is_portable(cases, data):
    torch.manual_seed(0)
    row = cases.portable(cases.of(cases.Looping(), data), data)
    assert row["ok"], row


def test_a_weight_used_three_times(cases, data):
    row = cases.loop(data)
    assert row["ok"], row


def test_large_images_are_taken_a_few_at_a_time(cases):
    """All sixteen at once have 0.8 GB of values inside two layers; a chunk, at most a quarter."""
    row = cases.large_images(layers=2, side=224)
    assert row["ok"], row
    assert float(row["came out"].partition(" GB")[0]) < 0.7
