"""Attention as plain layers, so that its projections can be factorized.

`nn.MultiheadAttention` is exchanged for `Attention` where a model calls it with one sequence and no
mask, and answers as before; where nothing of it gets cheaper, it is put back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from compress.attention import Attention
from compress.model import copied, forward, on_device_of
from compress.surgery import replace_everywhere
from compress.tasks.base import Tensors

TOLERANCE = 1e-4
"""Of the largest output."""


def unpacked(module: nn.Module, inputs: Tensors) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Return a copy of a module with plain attention, and what was there before, by path.

    The module itself is returned, and nothing beside it, where there is none to exchange.
    """
    if not any(_plain(part) for part in module.modules()):
        return module, {}
    result = copied(module).eval()
    inputs = on_device_of(result, inputs)
    expected = forward(result, inputs)
    before: dict[str, nn.Module] = {}
    for path in _called_with_one(result, inputs):
        packed = result.get_submodule(path)
        assert isinstance(packed, nn.MultiheadAttention)
        replace_everywhere(result, packed, Attention.of(packed))
        try:
            off = float((forward(result, inputs) - expected).abs().max())
        except Exception:  # a model may ask it for anything that it does not have
            off = float("inf")
        if off <= TOLERANCE * float(expected.abs().max()):
            before[path] = packed
        else:
            replace_everywhere(result, result.get_submodule(path), packed)
    return (result, before) if before else (module, {})


def _plain(part: nn.Module) -> bool:
    return (
        type(part) is nn.MultiheadAttention
        and part._qkv_same_embed_dim
        and part.bias_k is None
        and not part.add_zero_attn
        and not (part._forward_hooks or part._forward_pre_hooks)
        and "in_proj_weight" in part._parameters
    )


def _called_with_one(module: nn.Module, inputs: Tensors) -> list[str]:
    """Return the attention layers that are only called with one sequence and no mask.

    Seen with torch's fused kernel off, which does not call them.
    """
    calls: dict[str, bool] = {}

    def seen(path: str) -> Any:
        def note(part: nn.Module, given: Any, options: Any) -> None:
            named = dict(zip(("query", "key", "value"), given, strict=False)) | options
            one = named["key"] is named["query"] and named["value"] is named["query"]
            masks = (named.get(key) for key in ("key_padding_mask", "attn_mask"))
            fits = one and not any(mask is not None for mask in masks)
            calls[path] = calls.get(path, True) and fits and named["query"].ndim == 3

        return note

    handles = [
        part.register_forward_pre_hook(seen(path), with_kwargs=True)
        for path, part in module.named_modules()
        if _plain(part)
    ]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        forward(module, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()
    return [path for path, fits in calls.items() if fits]


def packed_again(
    module: nn.Module, before: Mapping[str, nn.Module], replaced: Collection[str]
) -> list[str]:
    """Put attention back, in place, around which no layer was replaced; return what stays.

    Its neighbours count: torch's encoder layers read their weights past their forward again.
    """
    stays = []
    for path, packed in before.items():
        around = path.rpartition(".")[0]
        if any(one.startswith(f"{around}." if around else "") for one in replaced):
            stays.append(path)
        else:
            replace_everywhere(module, module.get_submodule(path), copied(packed))
    return stays


def renamed(sparse: Collection[str], paths: Collection[str]) -> frozenset[str]:
    """Return the names of masked weights once the attention at some paths is plain layers."""
    names = {f"{path}.in_proj_weight": f"{path}.qkv.weight" for path in paths}
    return frozenset(names.get(name, name) for name in sparse)
