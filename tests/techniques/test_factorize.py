"""The error of a truncated SVD equals the discarded singular values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress import counts
from compress.compressor import run
from compress.context import StepContext, StepLog
from compress.model import Model
from compress.tasks.image_classification import ImageClassification, Preprocessing
from compress.techniques import chain
from compress.techniques.factorize import Spectrum

TASK = ImageClassification("test", ("a", "b"), Preprocessing(3, (8, 8), (0.5,) * 3, (0.25,) * 3))


def product(layers: nn.Sequential) -> torch.Tensor:
    """Multiply the two factors back to one matrix of (out) x (in * k * k)."""
    first, second = layers[0].weight.flatten(1), layers[1].weight.flatten(1)
    return second.double() @ first.double()


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(2, 12),
    columns=st.integers(2, 12),
    rank=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_error_of_a_linear_layer_is_the_discarded_singular_values(
    rows: int, columns: int, rank: int, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = nn.Linear(columns, rows)
    item = Spectrum("layer", layer)
    rank = min(rank, item.full)
    difference = (layer.weight.double() - product(item.factors(rank))).norm()
    values = torch.linalg.svdvals(layer.weight.double())
    torch.testing.assert_close(difference, values[rank:].norm(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (1, 5), "padding": (0, 2)},
        {"kernel_size": 3, "padding": "same", "dilation": 2, "bias": False},
        {"kernel_size": 1},
    ],
)
def test_full_rank_convolution_gives_equal_outputs(options: dict) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 10, **options)
    item = Spectrum("layer", layer)
    x = torch.randn(2, 6, 9, 9)
    torch.testing.assert_close(item.factors(item.full)(x), layer(x), rtol=1e-4, atol=1e-5)


def test_energy_keeps_the_least_sufficient_rank() -> None:
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.5])))
    item = Spectrum("layer", layer)
    squares = [16, 4, 1, 0.25]
    for rank in range(1, 5):
        energy = sum(squares[:rank]) / sum(squares)
        assert item.rank_of_energy(energy) == rank
        assert item.rank_of_energy(min(1.0, energy + 1e-6)) == min(4, rank + 1)


def test_a_layer_that_would_not_get_cheaper_is_left_alone_and_the_journal_says_so() -> None:
    module = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2))
    model = Model(module, (torch.zeros(1, 64),))
    step_log = StepLog()
    result = run(chain("factorize(rank=0.9)"), model, StepContext(TASK, log=step_log))
    assert isinstance(result.module[0], nn.Linear)
    reasons = [row["left_alone"] for row in step_log.rows if row["kind"] == "layer"]
    assert reasons == ["rank 58 would not be cheaper", "rank 2 would not be cheaper"]
    assert step_log.notes == ["factorize: no layer would get cheaper, all left alone"]


def test_grouped_convolutions_are_left_alone() -> None:
    module = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 64, 3), nn.Flatten(1))
    model = Model(module, (torch.zeros(1, 8, 5, 5),))
    step_log = StepLog()
    result = run(chain("factorize(rank=0.2)"), model, StepContext(TASK, log=step_log))
    assert isinstance(result.module[0], nn.Conv2d)
    assert isinstance(result.module[1], nn.Sequential)
    assert any("grouped" in row.get("left_alone", "") for row in step_log.rows)


@pytest.mark.parametrize("target", [0.8, 0.5, 0.3])
def test_macs_target_is_met_from_below(target: float) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(100, 80), nn.ReLU(), nn.Linear(80, 60), nn.Linear(60, 10))
    model = Model(module, (torch.zeros(1, 100),))
    result = run(chain(f"factorize(macs={target})"), model, StepContext(TASK, log=StepLog()))
    reached = counts.macs(result.module, model.example) / counts.macs(module, model.example)
    assert target - 0.03 < reached <= target


def test_rebuilt_layers_drop_their_mask() -> None:
    module = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 1))
    model = Model(module, (torch.zeros(1, 64),), sparse=frozenset({"0.weight", "1.weight"}))
    result = run(chain("factorize(rank=0.2)"), model, StepContext(TASK, log=StepLog()))
    assert result.sparse == {"1.weight"}
