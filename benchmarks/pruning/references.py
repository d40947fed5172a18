"""What a compressed net must equal, by means of this benchmark's own: no code of the technique."""

from __future__ import annotations

import collections
import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOTES = 16


def composed(module: nn.Module, factorized: nn.Module) -> nn.Module:
    """Return a float64 copy whose layers have the products of their factors as weights."""
    result = copy.deepcopy(module).double()
    theirs = dict(factorized.named_modules())
    for path, layer in result.named_modules():
        other: Any = theirs[path]
        if isinstance(layer, nn.MultiheadAttention) and hasattr(other, "qkv"):
            weight, bias = _together(layer.out_proj, other.qkv)
            layer.in_proj_weight, layer.in_proj_bias = weight, bias  # type: ignore[assignment]
        elif isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)) and isinstance(
            other, nn.Sequential
        ):
            layer.weight, layer.bias = _together(layer, other)
    return result


def _together(
    layer: nn.Linear | nn.Conv1d | nn.Conv2d, factors: nn.Module
) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Return the weight and bias of one layer that computes what several do."""
    parts: list[Any] = list(factors) if isinstance(factors, nn.Sequential) else [factors]
    weights = [one.weight.detach().double() for one in parts]
    made = _linear(weights) if isinstance(layer, nn.Linear) else _kernel(layer, weights)
    bias = parts[-1].bias
    return nn.Parameter(made), None if bias is None else nn.Parameter(bias.detach().double())


def _linear(factors: list[Tensor]) -> Tensor:
    made = factors[0]
    for factor in factors[1:]:
        made = factor @ made
    return made


def _kernel(layer: nn.Conv1d | nn.Conv2d, factors: list[Tensor]) -> Tensor:
    """Return the answer of convolutions, one after another, to one pixel of each channel."""
    if isinstance(layer, nn.Conv1d):
        return _kernel_2d((1, *layer.kernel_size), [one.unsqueeze(2) for one in factors]).squeeze(2)
    return _kernel_2d(layer.kernel_size, factors)


def _kernel_2d(size: Sequence[int], factors: list[Tensor]) -> Tensor:
    height, width = size
    channels = factors[0].shape[1]
    image = torch.zeros(channels, channels, 2 * height - 1, 2 * width - 1, dtype=torch.float64)
    image[torch.arange(channels), torch.arange(channels), height - 1, width - 1] = 1
    for factor in factors:
        image = F.conv2d(image, factor)
    return image.flip(2, 3).transpose(0, 1).contiguous()


# --- without some channels --------------------------------------------------------------------


def kept_along(before: Tensor, after: Tensor, axis: int) -> Tensor | None:
    """Return which indices of an axis are still there, found by the values: most are different."""
    if before.ndim != after.ndim or before.shape[axis] == after.shape[axis]:
        return None
    rows, ours = (
        tensor.detach().movedim(axis, 0).flatten(1) if tensor.ndim > 1 else tensor.detach()[:, None]
        for tensor in (before, after)
    )
    values, order = rows.flatten().sort()
    some = ours[:, :VOTES].contiguous()
    first = torch.searchsorted(values, some).tolist()
    behind = torch.searchsorted(values, some, right=True).tolist()
    kept = torch.zeros(before.shape[axis], dtype=torch.bool)
    for firsts, behinds in zip(first, behind, strict=True):
        # Among millions of float32 many are equal: the row of most of the values is meant.
        votes: collections.Counter[int] = collections.Counter()
        for one, other in zip(firsts, behinds, strict=True):
            votes.update(set((order[one:other] // rows.shape[1]).tolist()))
        # A row that was multiplied is not there: what few of its values meet, they meet by chance.
        row, met = votes.most_common(1)[0] if votes else (0, 0)
        if 2 * met > len(firsts):
            kept[row] = True
    return kept


def _wide(parameters: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a weight; that of a norm beside its bias: of a thousand float32 near 1 two may well be
    equal."""
    weight, bias = parameters[name], parameters.get("bias")
    if weight.ndim > 1 or bias is None:
        return weight
    return torch.stack([weight, bias], 1)


def masked(module: nn.Module, pruned: nn.Module) -> nn.Module:
    """Return a float64 copy whose layers give zero for the channels that a pruned net lacks."""
    result, theirs = copy.deepcopy(module).double(), dict(pruned.named_modules())
    for path, layer in result.named_modules():
        before = dict(module.get_submodule(path).named_parameters(recurse=False))
        after = _own(layer, theirs[path])
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        if "StdConv" in type(layer).__name__:
            inside = kept_along(before["weight"], after["weight"], 1)
            if inside is not None:
                layer.register_forward_hook(_Standardized(inside))
        for name in ("weight", "gain", "in_proj_weight", "v_bias"):
            if name not in before or (name == "gain" and "weight" in before):
                continue
            kept = kept_along(_wide(before, name), _wide(after, name), 1 if transposed else 0)
            if kept is None:
                continue
            if name == "in_proj_weight":
                _silence(layer, before, kept)
            elif name == "v_bias":  # beside a projection without one
                with torch.no_grad():
                    layer.get_parameter(name)[~kept] = 0
            elif isinstance(layer, nn.Linear):  # also where its weight is read past its forward
                _spare_rescaled(kept)
                with torch.no_grad():
                    layer.weight[~kept] = 0
                    if layer.bias is not None:
                        layer.bias[~kept] = 0
            else:
                layer.register_forward_hook(_Mask(kept))
    return result


def _own(layer: nn.Module, other: Any) -> dict[str, Tensor]:
    """Return a layer's own parameters in the pruned net, where attention may be plain layers."""
    after: dict[str, Tensor] = dict(other.named_parameters(recurse=False))
    if isinstance(layer, nn.MultiheadAttention) and not isinstance(other, nn.MultiheadAttention):
        after["in_proj_weight"] = other.qkv.weight
    return after


def _spare_rescaled(kept: Tensor) -> None:
    """Of queries, keys and values in one weight, queries may be rescaled, so that none is found;
    of queries in a weight of their own as well.

    They can stay: what meets a key that is zero counts for nothing.
    """
    third = len(kept) // 3
    if not kept.any():
        kept[:] = True
    if len(kept) % 3 == 0 and not kept[:third].any() and kept[third:].any():
        kept[:third] = True


def _silence(layer: nn.Module, before: Mapping[str, Tensor], kept: Tensor) -> None:
    """Attention's packed projection: no such keys and values. Queries may be rescaled."""
    width = len(kept) // 3
    lost = ~kept
    lost[:width] = False
    with torch.no_grad():
        for name in ("in_proj_weight", "in_proj_bias"):
            if name in before:
                getattr(layer, name)[lost] = 0


class _Standardized:
    """Computes a convolution of standardised weights whose statistics are of some inputs alone."""

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept

    def __call__(self, layer: Any, given: Any, out: Tensor) -> Tensor:
        rows = layer.weight[:, self.kept]
        mean = rows.mean((1, 2, 3), keepdim=True)
        spread = rows.var((1, 2, 3), keepdim=True, correction=0)
        rows = (rows - mean) / (spread + layer.eps).sqrt()
        if hasattr(layer, "gain"):
            rows = rows * layer.gain * layer.scale
        weight = torch.zeros_like(layer.weight)
        weight[:, self.kept] = rows
        x, steps = given[0], (layer.stride, layer.dilation, layer.groups)
        padding = layer.padding
        if type(layer).__name__.endswith("Same"):
            from timm.layers import pad_same

            x, padding = pad_same(x, layer.kernel_size, layer.stride, layer.dilation), 0
        return F.conv2d(x, weight, layer.bias, steps[0], padding, steps[1], steps[2])


class _Mask:
    """Sets channels of a layer's result to zero; a norm over channels is taken without them."""

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept.double()

    def __call__(self, layer: nn.Module, given: Any, out: Tensor) -> Tensor:
        if type(layer).__name__ == "GlobalResponseNorm":
            return self._response_norm(layer, given[0])
        count = len(self.kept)
        last = isinstance(layer, nn.Linear) or (
            "LayerNorm" in type(layer).__name__ and not type(layer).__name__.endswith("2d")
        )
        axis = out.ndim - 1 if last or (out.ndim < 3 and out.shape[-1] == count) else 1
        shape = [count if a == axis else 1 for a in range(out.ndim)]
        mask = self.kept.reshape(shape)
        over_channels = hasattr(layer, "normalized_shape") or getattr(layer, "num_groups", 0) == 1
        if not over_channels:
            return out * mask
        axes = (axis,) if hasattr(layer, "normalized_shape") else tuple(range(1, out.ndim))
        x, number = given[0] * mask, mask.expand_as(given[0]).sum(axes, keepdim=True)
        mean = x.sum(axes, keepdim=True) / number
        spread = ((x - mean).square() * mask).sum(axes, keepdim=True) / number
        scaled = (x - mean) / (spread + layer.eps).sqrt() * layer.weight.reshape(shape)  # type: ignore
        return (scaled + layer.bias.reshape(shape)) * mask  # type: ignore[operator]

    def _response_norm(self, layer: Any, x: Tensor) -> Tensor:
        """x + bias + weight x |x| / (mean of |x| over the channels that are kept)."""
        shape = [1] * x.ndim
        shape[layer.channel_dim] = -1
        mask = self.kept.view(shape)
        size = (x * mask).square().sum(layer.spatial_dim, keepdim=True).sqrt()
        mean = (size * mask).sum(layer.channel_dim, keepdim=True) / self.kept.sum()
        scaled = x * size / (mean + layer.eps) * layer.weight.view(shape)
        return (x + scaled + layer.bias.view(shape)) * mask
