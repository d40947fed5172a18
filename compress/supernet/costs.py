"""What an architecture costs, from the lengths of its tensors' axes: quick enough for searches.

A layer's MACs are proportional to the size of its weight, (O, I / groups, kh, kw), whatever its
widths. So parameters are exact, and MACs are but for products of two activations, as in attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from compress import counts
from compress.model import forward
from compress.supernet.space import Genes
from compress.tasks.base import Tensors

Values = npt.NDArray[np.float64]
Axis = tuple[str, int]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Lengths:
    """How long the axes of tensors are in an architecture; those of one tensor lie together."""

    axes: Sequence[Axis]
    whole: Values
    """The length of each axis in the whole net, (axes,)."""
    lost: Mapping[int, Values]
    """Width's gene -> what each of its choices takes off, (choices, axes)."""
    without: Mapping[int, npt.NDArray[np.bool_]]
    """Block's gene -> which axes go with the block, (axes,)."""

    def of(self, genes: Genes) -> Values:
        """Return the length of every axis, (axes,); 0 where the tensor's block is not there."""
        left = self.whole.copy()
        for gene, table in self.lost.items():
            left -= table[genes[gene]]
        for gene, gone in self.without.items():
            if not genes[gene]:
                left[gone] = 0
        return left

    def firsts(self) -> Lengths:
        """Return the first axis of each tensor alone: that of a layer's outputs."""
        names = [name for name, _ in self.axes]
        first = np.asarray([i for i, name in enumerate(names) if i == 0 or names[i - 1] != name])
        return Lengths(
            [self.axes[i] for i in first],
            self.whole[first],
            {gene: table[:, first] for gene, table in self.lost.items()},
            {gene: gone[first] for gene, gone in self.without.items()},
        )

    def presence(self) -> Lengths:
        """Return one axis for each tensor, of length 1 where the tensor is there."""
        firsts = self.firsts()
        return Lengths(firsts.axes, np.ones(len(firsts.axes)), {}, firsts.without)


class Shares:
    """A cost that is a sum over tensors, each in proportion to its size."""

    def __init__(self, lengths: Lengths, units: Mapping[str, float], fixed: float = 0.0) -> None:
        """Take what each tensor adds in the whole net, by name, and what never changes."""
        names = [name for name, _ in lengths.axes]
        starts = [i for i, name in enumerate(names) if i == 0 or names[i - 1] != name]
        self._lengths, self._fixed = lengths, fixed
        self._starts = np.asarray(starts, dtype=np.int64)
        self._units = np.asarray([units.get(names[start], 0.0) for start in starts])

    def __call__(self, genes: Genes) -> float:
        shares = self._lengths.of(genes) / self._lengths.whole
        return self._fixed + float(self._units @ np.multiply.reduceat(shares, self._starts))


def params_by_tensor(module: nn.Module, example: Tensors) -> dict[str, float]:
    """Return the size of every parameter that the logits depend on; what is tied counts once."""
    used = {id(parameter) for parameter in counts.deployed(module, example)}
    named = module.named_parameters()
    return {name: float(one.numel()) for name, one in named if id(one) in used}


def macs_by_tensor(module: nn.Module, example: Tensors) -> tuple[dict[str, float], float]:
    """Return the MACs of the weights of convolutions and linear layers, and of all else.

    `example` is one item.
    """
    found: dict[str, float] = {}
    names = {id(parameter): name for name, parameter in module.named_parameters()}

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        weight = layer.weight
        if isinstance(weight, nn.Parameter) and id(weight) in names and output.numel():
            name = names[id(weight)]
            found[name] = found.get(name, 0.0) + weight.numel() * output.numel() / len(weight)

    layers = [one for one in module.modules() if isinstance(one, (*CONVOLUTIONS, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad():
            forward(module, example)
    finally:
        for hook in hooks:
            hook.remove()
    return found, counts.macs(module, example) - sum(found.values())
