"""Attention in float32 within a training in bfloat16: exact within the context, gone after it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from bench_fixtures import fresh_model, make_context, small_digits
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attention

from compress.training import execution_mode as pace_module
from compress.training.attention import attention_in_float32, has_attention
from compress.training.execution_mode import ExecutionMode, execution_context

SHAPE = (2, 4, 5, 8)


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_bfloat16(**options: Any) -> Tensor:
    """Return attention as autocast computes it, of the same inputs at every call."""
    inputs = (values(*SHAPE, seed=seed) for seed in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        query, key, value = inputs
        return attention(query, key, value, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.5},
        {"attn_mask": values(5, 5)},
        {"attn_mask": torch.ones(5, 5, dtype=torch.bool).tril()},
    ],
    ids=["plain", "causal", "scaled", "added mask", "boolean mask"],
)
def test_within_the_context_attention_is_that_of_float32(options: dict[str, Any]) -> None:
    query, key, value = (values(*SHAPE, seed=seed) for seed in range(3))
    expected = attention(query, key, value, **options)
    with attention_in_float32():
        found = in_bfloat16(**options)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_a_mask_in_bfloat16_is_cast_too() -> None:
    mask = values(5, 5).bfloat16()
    query, key, value = (values(*SHAPE, seed=seed) for seed in range(3))
    with attention_in_float32():
        found = in_bfloat16(attn_mask=mask)
    assert torch.equal(found, attention(query, key, value, mask.float()))


def test_after_the_context_autocast_does_as_before() -> None:
    before = in_bfloat16()
    with pytest.raises(ZeroDivisionError), attention_in_float32():
        raise ZeroDivisionError
    after = in_bfloat16()
    assert before.dtype == after.dtype == torch.bfloat16
    assert torch.equal(before, after)


def test_only_attention_is_computed_in_float32() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    seen = {}
    layer.linear1.register_forward_hook(lambda *args: seen.update(linear=args[-1].dtype))
    context = make_context(small_digits())
    with execution_context(context, ExecutionMode("bfloat16", float32_attention=True)):
        layer(values(2, 5, 8)).float().sum().backward()
    assert seen["linear"] == torch.bfloat16
    assert all(part.grad is not None and part.grad.isfinite().all() for part in layer.parameters())


def test_layers_of_attention_are_found() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert has_attention(nn.Sequential(layer))
    assert not has_attention(fresh_model(small_digits()).module)


def test_it_is_tried_where_it_may_pay() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    context = replace(make_context(small_digits()), precision="bfloat16")
    plain = [ExecutionMode("bfloat16"), ExecutionMode("float32")]
    tried = [*plain, ExecutionMode("bfloat16", float32_attention=True)]
    candidates = pace_module._candidates
    assert candidates(layer, context, plain[0]) == tried
    assert candidates(nn.Linear(2, 2), context, plain[0]) == plain
    assert candidates(layer, replace(context, precision="float32"), plain[1]) == plain[1:]
    on_gpu = replace(context, device=torch.device("cuda"))
    assert candidates(layer, on_gpu, plain[0]) == plain
