"""Unstructured magnitude pruning: the smallest weights become zero and stay zero."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from compress.compressor import Compressor
from compress.context import StepContext
from compress.counts import deployed
from compress.model import Model
from compress.parts import is_number, one_of, rule
from compress.surgery import matrix_weights


@dataclass(frozen=True, repr=False)
class PruneWeights(Compressor):
    """Set a fraction `sparsity` of the weights of convolutions and linear layers to zero.

    Those smallest in magnitude go, ranked over the whole model (`scope='global'`) or within
    each layer (`scope='layer'`): Han et al. 2015. Biases and norms are spared. Weights that are
    zero already count towards the target. This saves bytes once compressed, not time.
    """

    sparsity: float = field(
        metadata=rule(
            "is the fraction of weights that becomes zero, at least 0 and below 1",
            lambda value: is_number(value) and 0 <= value < 1,
        )
    )
    scope: str = field(default="global", metadata=one_of("global", "layer"))

    def at(self, progress: float) -> Self:
        return replace(self, sparsity=self.sparsity * progress)

    def compress(self, model: Model, context: StepContext) -> Model:
        # What is not deployed (auxiliary heads) is neither pruned nor counted.
        used = set(map(id, deployed(model.module, model.example)))
        weights = {n: w for n, w in matrix_weights(model.module).items() if id(w) in used}
        if not weights:
            context.log.note(
                "prune_weights: left the model as it is: it has no convolution, linear layer or "
                "attention whose weights its answers depend on"
            )
            return model
        groups = [[w] for w in weights.values()] if self.scope == "layer" else [[*weights.values()]]
        for group in groups:
            zero_smallest([weight.data for weight in group], self.sparsity)
        for name, weight in weights.items():
            zeros = 1 - int(weight.count_nonzero()) / weight.numel()
            context.log.row("layer", layer=name, sparsity=zeros)
        masked = {name for name, weight in weights.items() if bool((weight == 0).any())}
        return replace(model, sparse=model.sparse | masked, hints={})


def zero_smallest(tensors: list[Tensor], sparsity: float) -> None:
    """Set exactly round(sparsity · n) of the n values to zero, in place, smallest first."""
    magnitudes = torch.cat([tensor.abs().flatten() for tensor in tensors])
    count = round(sparsity * magnitudes.numel())
    keep = torch.ones(magnitudes.numel(), dtype=torch.bool)
    keep[magnitudes.argsort(stable=True)[:count]] = False
    for tensor, mask in zip(tensors, keep.split([t.numel() for t in tensors]), strict=True):
        tensor.mul_(mask.view(tensor.shape))
