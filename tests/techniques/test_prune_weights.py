"""Exactly the asked fraction becomes zero, smallest first, and stays zero in training."""

from __future__ import annotations

import pytest
import torch
from bench_fixtures import fresh_model, make_bench, small_digits
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compress.compressor import run
from compress.model import Model
from compress.surgery import matrix_weights
from compress.techniques import chain
from compress.techniques.prune_weights import zero_smallest


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    sparsity=st.floats(0, 0.999),
    seed=st.integers(0, 99),
)
def test_exact_count_and_smallest_first(sizes: list[int], sparsity: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(size, generator=generator) + 1e-3 for size in sizes]
    before = torch.cat(tensors).clone()
    zero_smallest(tensors, sparsity)
    after = torch.cat(tensors)
    count = round(sparsity * len(before))
    assert int((after == 0).sum()) == count
    kept, gone = before[after != 0].abs(), before[after == 0].abs()
    assert not len(kept) or not len(gone) or gone.max() <= kept.min()


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_scope(scope: str) -> None:
    data = small_digits()
    model = fresh_model(data)
    context = make_bench(data)
    result = run(chain(f"prune_weights(sparsity=0.7, scope='{scope}')"), model, context)
    weights = matrix_weights(result.module).values()
    fractions = [float((weight == 0).float().mean()) for weight in weights]
    whole = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert whole == pytest.approx(0.7, abs=1e-3)
    equal = all(fraction == pytest.approx(0.7, abs=5e-3) for fraction in fractions)
    assert equal == (scope == "layer")


def test_zeros_of_masked_weights_and_only_those_stay_zero_in_training() -> None:
    data = small_digits()
    model = fresh_model(data)
    context = make_bench(data)
    pruned = run(chain("prune_weights(sparsity=0.6)"), model, context)
    trained = run(chain("finetune(epochs=2)"), pruned, context)
    for name, weight in matrix_weights(pruned.module).items():
        after = trained.module.get_parameter(name)
        assert torch.equal(weight == 0, after == 0)
        assert not torch.equal(weight, after)


def test_a_net_with_nothing_to_prune_is_left_with_a_note() -> None:
    class Fold(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.scale = nn.GRU(8, 10, batch_first=True), nn.Parameter(torch.ones(10))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.gru(x.flatten(1, 2))[0].mean(1) * self.scale

    context = make_bench(small_digits())
    model = Model(Fold().eval(), (torch.randn(2, 1, 8, 8),))
    result = run(chain("prune_weights(sparsity=0.5)"), model, context)
    for name, value in result.module.state_dict().items():
        assert torch.equal(value, model.module.state_dict()[name])
    assert not result.sparse
    assert "left the model as it is" in context.log.notes[-1]
