"""Layers of other kinds as `Linear` and `Conv2d`, so that they can be factorized.

`nn.MultiheadAttention` is exchanged for `Attention` where a model calls it with one sequence and no
mask, and `nn.Conv1d` for a convolution of height 1, where the model answers as before. Where
nothing of them gets cheaper they are put back, and factors of a `Conv1d` are `Conv1d` again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.attention import Attention
from compress.model import copied, forward, on_device_of
from compress.surgery import replace_everywhere
from compress.tasks.base import Tensors

TOLERANCE = 1e-4
"""Of the largest output."""
INNER = "conv"


class Flat(nn.Module):
    """A `Conv1d` as a convolution of height 1."""

    def __init__(self, layer: nn.Conv1d) -> None:
        super().__init__()
        padding = layer.padding if isinstance(layer.padding, str) else (0, layer.padding[0])
        self.conv = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            (1, layer.kernel_size[0]),
            (1, layer.stride[0]),
            padding,
            (1, layer.dilation[0]),
            bias=layer.bias is not None,
        )
        self.conv.weight = _parameter(layer.weight.unsqueeze(2))
        self.conv.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.unsqueeze(2)).squeeze(2)  # type: ignore[no-any-return]


def _parameter(like: Tensor) -> nn.Parameter:
    return nn.Parameter(like.detach().clone(), requires_grad=like.requires_grad)


def _one_dimensional(layer: nn.Conv2d) -> nn.Conv1d:
    """Return a convolution of height 1 as a `Conv1d`."""
    made = nn.Conv1d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size[1],
        layer.stride[1],
        layer.padding if isinstance(layer.padding, str) else layer.padding[1],
        layer.dilation[1],
        bias=layer.bias is not None,
    )
    made.weight = _parameter(layer.weight.squeeze(2))
    made.bias = layer.bias
    return made.train(layer.training)


def unpacked(
    module: nn.Module, inputs: Tensors, flat: bool = False
) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Return a copy of a module with plain layers, and what was there before, by path.

    `flat` exchanges `Conv1d` too, not attention alone. The module itself is returned, and nothing
    beside it, where there is none to exchange.
    """
    lines = _one_dimensionals(module) if flat else []
    if not lines and not any(_plain(part) for part in module.modules()):
        return module, {}
    result = copied(module).eval()
    inputs = on_device_of(result, inputs)
    expected = forward(result, inputs)
    before: dict[str, nn.Module] = {}
    for path in [*_called_with_one(result, inputs), *lines]:
        packed = result.get_submodule(path)
        plain = Flat(packed) if isinstance(packed, nn.Conv1d) else Attention.of(packed)  # type: ignore[arg-type]
        replace_everywhere(result, packed, plain.eval())
        try:
            off = float((forward(result, inputs) - expected).abs().max())
        except Exception:  # a model may ask it for anything that it does not have
            off = float("inf")
        if off <= TOLERANCE * float(expected.abs().max()):
            before[path] = packed
        else:
            replace_everywhere(result, result.get_submodule(path), packed)
    return (result, before) if before else (module, {})


def _one_dimensionals(module: nn.Module) -> list[str]:
    """Return the `Conv1d` layers that nothing speaks against, as `layers.py` has it for others."""
    owners = Counter(
        id(parameter) for part in module.modules() for parameter in part.parameters(recurse=False)
    )
    return [
        path
        for path, part in module.named_modules()
        if path
        and type(part) is nn.Conv1d
        and "weight" in part._parameters
        and part.groups == 1
        and part.padding_mode == "zeros"
        and not (part._forward_hooks or part._forward_pre_hooks)
        and all(owners[id(one)] == 1 for one in part.parameters(recurse=False))
    ]


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
    """Put back, in place, what no layer was replaced of; return what stays exchanged.

    Of attention its neighbours count: torch's encoder layers read their weights past their forward
    again.
    """
    stays = []
    for path, packed in before.items():
        if isinstance(packed, nn.Conv1d):
            inner = module.get_submodule(f"{path}.{INNER}")
            taken = f"{path}.{INNER}" in replaced
            factors = map(_one_dimensional, inner.children())  # type: ignore[arg-type]
            made = nn.Sequential(*factors) if taken else copied(packed)
            replace_everywhere(module, module.get_submodule(path), made)
            stays += [path] * taken
            continue
        around = path.rpartition(".")[0]
        if any(one.startswith(f"{around}." if around else "") for one in replaced):
            stays.append(path)
        else:
            replace_everywhere(module, module.get_submodule(path), copied(packed))
    return stays


def renamed(sparse: Collection[str], paths: Collection[str]) -> frozenset[str]:
    """Return the names of masked weights once what is at some paths is plain layers."""
    names = {f"{path}.in_proj_weight": f"{path}.qkv.weight" for path in paths}
    names |= {f"{path}.weight": f"{path}.{INNER}.weight" for path in paths}
    return frozenset(names.get(name, name) for name in sparse)
