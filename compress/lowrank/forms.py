"""The low-rank forms of a layer: what each costs, and the thinner layers that it is made of.

With O outputs, I inputs, a kernel of kh x kw and ranks r:

- `channel` (Zhang et al. 2015, section 3.1): kh x kw to r, then 1 x 1 to O. A `Linear` becomes two.
- `reduce`: 1 x 1 to r, then kh x kw to O.
- `spatial` (Jaderberg et al. 2014, scheme 2): kh x 1 to r, then 1 x kw to O.
- `tucker` (Kim et al. 2016, Tucker-2): 1 x 1 to r1, kh x kw to r2, then 1 x 1 to O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

FORMS = ("channel", "reduce", "spatial", "tucker")

Layer = nn.Conv2d | nn.Linear
Ranks = tuple[int, ...]
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """The shapes of one call of a layer for one item of the model's input."""

    entered: Sizes
    left: Sizes


def forms_of(layer: Layer) -> tuple[str, ...]:
    """Return the forms that a layer can take; those that are the same as another one once."""
    if isinstance(layer, nn.Linear) or layer.kernel_size == (1, 1):
        return ("channel",)
    if 1 in layer.kernel_size:
        return ("channel", "reduce", "tucker")
    return FORMS


def outputs_of(layer: Layer) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def inputs_of(layer: Layer) -> int:
    """Return the number D of unfolded inputs: of values that one output depends on."""
    return prod(layer.weight.shape[1:])


def inner(layer: Layer, form: str) -> int:
    """Return into how many values m of the D each row of the first factor leaves its results.

    The D inputs lie as M x m, and the first factor mixes the M: those of `reduce` and `tucker` are
    the input channels, those of `spatial` the input channels and rows of the kernel.
    """
    if form == "channel" or isinstance(layer, nn.Linear):
        return inputs_of(layer)
    return layer.kernel_size[1] if form == "spatial" else prod(layer.kernel_size)


def most_ranks(layer: Layer, form: str) -> Ranks:
    """Return the ranks at which a form can be equal to any layer of these shapes."""
    outputs, inputs = outputs_of(layer), inputs_of(layer)
    if form == "channel":
        return (min(outputs, inputs),)
    mixed = inputs // inner(layer, form)
    if form == "tucker":
        return (mixed, outputs)
    return (min(mixed, outputs * inner(layer, form)),)


def macs_of(layer: Layer, calls: Sequence[Call]) -> int:
    """Return the multiply-accumulates of a layer as it is."""
    return sum(prod(call.left) for call in calls) * inputs_of(layer)


def params_of(layer: Layer) -> int:
    return layer.weight.numel() + (0 if layer.bias is None else layer.bias.numel())


def macs(layer: Layer, form: str, ranks: Ranks, calls: Sequence[Call]) -> int:
    """Return the multiply-accumulates of a layer in a form."""
    outputs = outputs_of(layer)
    if isinstance(layer, nn.Linear):
        rows = sum(prod(call.left[:-1]) for call in calls)
        return rows * ranks[0] * (layer.in_features + outputs)
    total, (height, width) = 0, layer.kernel_size
    channels, area = layer.in_channels, height * width
    for call in calls:
        before = call.entered[0] * prod(call.entered[2:])
        after = call.left[0] * prod(call.left[2:])
        between = call.left[0] * call.left[2] * call.entered[3]
        if form == "channel":
            total += after * ranks[0] * (channels * area + outputs)
        elif form == "reduce":
            total += ranks[0] * (before * channels + after * area * outputs)
        elif form == "spatial":
            total += ranks[0] * (between * channels * height + after * width * outputs)
        else:
            total += before * channels * ranks[0]
            total += after * ranks[1] * (ranks[0] * area + outputs)
    return total


def params(layer: Layer, form: str, ranks: Ranks, bias: bool) -> int:
    """Return the parameters of a layer in a form; `bias` says whether the last factor has one."""
    return sum(prod(shape) for shape in shapes(layer, form, ranks)) + bias * outputs_of(layer)


def shapes(layer: Layer, form: str, ranks: Ranks) -> list[Sizes]:
    """Return the shapes of the factors' weights."""
    outputs = outputs_of(layer)
    if isinstance(layer, nn.Linear):
        return [(ranks[0], layer.in_features), (outputs, ranks[0])]
    channels, (height, width) = layer.in_channels, layer.kernel_size
    if form == "channel":
        return [(ranks[0], channels, height, width), (outputs, ranks[0], 1, 1)]
    if form == "reduce":
        return [(ranks[0], channels, 1, 1), (outputs, ranks[0], height, width)]
    if form == "spatial":
        return [(ranks[0], channels, height, 1), (outputs, ranks[0], 1, width)]
    return [
        (ranks[0], channels, 1, 1),
        (ranks[1], ranks[0], height, width),
        (outputs, ranks[1], 1, 1),
    ]


def made_up(layer: Layer, form: str, ranks: Ranks) -> nn.Sequential:
    """Return a layer in a form with random weights, the same ones every time: to be timed."""
    generator = torch.Generator().manual_seed(0)
    factors = [
        torch.randn(shape, generator=generator) * prod(shape[1:]) ** -0.5
        for shape in shapes(layer, form, ranks)
    ]
    return build(layer, form, factors, torch.zeros(outputs_of(layer)))


def _options(layer: nn.Conv2d, form: str) -> list[dict[str, Any]]:
    """Return the options of each convolution besides its channels."""
    names = ("kernel_size", "stride", "padding", "dilation")
    full = {name: getattr(layer, name) for name in names}
    point: dict[str, Any] = {"kernel_size": 1}
    if form == "channel":
        return [full, point]
    if form == "reduce":
        return [point, full]
    if form == "tucker":
        return [point, full, point]

    def along(axis: int) -> dict[str, Any]:
        neutral = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
        return {
            # Padding in words ('same', 'valid') means for each axis what it means for both.
            name: full[name]
            if isinstance(full[name], str)
            else tuple(full[name][one] if one == axis else neutral[name] for one in (0, 1))
            for name in names
        }

    return [along(0), along(1)]


def build(layer: Layer, form: str, factors: Sequence[Tensor], bias: Tensor | None) -> nn.Sequential:
    """Return the layers of a form, from the weights of its factors and the bias of the last.

    What is frozen stays frozen: all factors of a frozen weight, a bias if it was; one that was not
    there before is what the weight is.
    """
    layers: list[nn.Module] = []
    last = len(factors) - 1
    options = [{}] * len(factors) if isinstance(layer, nn.Linear) else _options(layer, form)
    kind: Any = nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d
    for number, (weight, more) in enumerate(zip(factors, options, strict=True)):
        wanted = number == last and bias is not None
        made = kind(weight.shape[1], weight.shape[0], **more, bias=wanted)
        made.weight.data = weight.to(layer.weight).view(made.weight.shape).contiguous()
        made.weight.requires_grad_(layer.weight.requires_grad)
        if wanted:
            assert bias is not None
            old = layer.weight if layer.bias is None else layer.bias
            made.bias.data = bias.to(layer.weight).clone()
            made.bias.requires_grad_(old.requires_grad)
        layers.append(made)
    return nn.Sequential(*layers)


def whole(layer: Layer, form: str) -> nn.Sequential:
    """Return a layer in a form that computes the same, without any decomposition.

    One factor is the weight, the others select. It shows whether a layer can take a form.
    """
    weight = layer.weight.detach()
    outputs = torch.eye(outputs_of(layer), dtype=weight.dtype, device=weight.device)
    if isinstance(layer, nn.Linear):
        factors = [weight, outputs]
    elif form == "channel":
        factors = [weight, outputs[:, :, None, None]]
    else:
        columns = 1 if form != "spatial" else layer.kernel_size[0]
        rows = layer.in_channels * columns
        selecting = torch.eye(rows, dtype=weight.dtype, device=weight.device)
        first = selecting.view(rows, layer.in_channels, columns, 1)
        middle = weight.view(len(weight), rows, -1, layer.kernel_size[1])
        factors = [first, middle]
        if form == "tucker":
            factors.append(outputs[:, :, None, None])
    return build(layer, form, factors, None if layer.bias is None else layer.bias.detach())
