"""Low-rank factorization: a layer becomes two thinner ones, by truncated SVD."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import torch
from torch import nn

from compress import counts
from compress.compressor import Compressor, require_one_of
from compress.context import StepContext
from compress.model import Model
from compress.parts import kept_fraction
from compress.surgery import replace_layer, weighted_layers


@dataclass(frozen=True, repr=False)
class Factorize(Compressor):
    """Replace `Linear` and `Conv2d` layers by two thinner layers through a truncated SVD.

    A weight is read as a matrix of (out) × (in · k · k); its r leading singular vectors give a
    first layer of r outputs with the kernel, stride and padding of the original, and a second,
    1 × 1, that carries the bias (Zhang et al. 2015, section 3.1, on weights). Give one of `rank`
    (the fraction of each layer's full rank that is kept), `energy` (of each layer's sum of
    squared singular values) or `macs` (of the whole model's; one energy for all layers is
    searched). A layer that would not get cheaper, and any grouped one, is left alone.
    """

    rank: float | None = field(default=None, metadata=kept_fraction())
    energy: float | None = field(default=None, metadata=kept_fraction())
    macs: float | None = field(default=None, metadata=kept_fraction())

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, "rank", "energy", "macs")

    def compress(self, model: Model, context: StepContext) -> Model:
        spectra = []
        for path, layer in weighted_layers(model.module):
            if _supported(layer):
                spectra.append(Spectrum(path, layer))
            else:
                context.log.row("layer", layer=path, left_alone="a grouped or 1-d/3-d convolution")
        if self.macs is not None:
            ranks = _ranks_for_macs(self.macs, model, context, spectra)
        elif self.energy is not None:
            ranks = {item.path: item.rank_of_energy(self.energy) for item in spectra}
        else:
            assert self.rank is not None
            ranks = {item.path: max(1, round(self.rank * item.full)) for item in spectra}
        replaced = apply_ranks(model.module, spectra, ranks)
        for item in spectra:
            context.log.row("layer", **item.row(ranks[item.path]))
        if not replaced:
            context.log.note("factorize: no layer would get cheaper, all left alone")
            return model
        return replace(
            model, sparse=model.sparse - {f"{path}.weight" for path in replaced}, hints={}
        )


def _supported(layer: nn.Module) -> TypeGuard[nn.Conv2d | nn.Linear]:
    return isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
    )


class Spectrum:
    """A layer with the singular value decomposition of its weight, computed once."""

    def __init__(self, path: str, layer: nn.Conv2d | nn.Linear) -> None:
        self.path, self.layer = path, layer
        # float64: the discarded energy is a small difference of large sums.
        matrix = layer.weight.detach().double().flatten(1)
        self.u, self.s, self.vh = torch.linalg.svd(matrix, full_matrices=False)

    @property
    def full(self) -> int:
        return len(self.s)

    def rank_of_energy(self, energy: float) -> int:
        """Return the least rank that keeps this fraction of the squared singular values."""
        squares = self.s.square()
        kept = squares.cumsum(0) / squares.sum().clamp_min(torch.finfo(squares.dtype).tiny)
        return min(self.full, int((kept < energy - 1e-12).sum()) + 1)

    def cheaper(self, rank: int) -> bool:
        """Whether two layers of this rank have fewer weights (and so MACs) than the one."""
        rows, columns = self.u.shape[0], self.vh.shape[1]
        return rank * (rows + columns) < rows * columns

    def error(self, rank: int) -> float:
        """Return the relative Frobenius error of the weight at this rank (Eckart-Young)."""
        return float(self.s[rank:].norm() / self.s.norm().clamp_min(1e-30))

    def row(self, rank: int) -> dict[str, object]:
        row: dict[str, object] = {"layer": self.path, "full_rank": self.full}
        if not self.cheaper(rank):
            return {**row, "left_alone": f"rank {rank} would not be cheaper"}
        return {**row, "rank": rank, "relative_error": self.error(rank)}

    def factors(self, rank: int) -> nn.Sequential:
        """Return the two layers; each takes the square root of every singular value."""
        root = self.s[:rank].sqrt()
        first_weight = (root[:, None] * self.vh[:rank]).float()
        second_weight = (self.u[:, :rank] * root).float()
        layer, bias = self.layer, self.layer.bias is not None
        first: Any
        second: Any
        if isinstance(layer, nn.Conv2d):
            shared = ("kernel_size", "stride", "padding", "dilation")
            options = {name: getattr(layer, name) for name in shared}
            first = nn.Conv2d(layer.in_channels, rank, **options, bias=False)
            second = nn.Conv2d(rank, layer.out_channels, 1, bias=bias)
        else:
            first = nn.Linear(layer.in_features, rank, bias=False)
            second = nn.Linear(rank, layer.out_features, bias=bias)
        first.weight.data = first_weight.view(first.weight.shape).contiguous()
        second.weight.data = second_weight.view(second.weight.shape).contiguous()
        # What is frozen stays frozen: both factors of a frozen weight.
        for factor in (first, second):
            factor.weight.requires_grad_(layer.weight.requires_grad)
        if layer.bias is not None:
            second.bias.data = layer.bias.detach().clone()
            second.bias.requires_grad_(layer.bias.requires_grad)
        return nn.Sequential(first, second)


def apply_ranks(module: nn.Module, spectra: list[Spectrum], ranks: dict[str, int]) -> list[str]:
    """Replace, in place, every layer that gets cheaper at its rank; return their paths."""
    replaced = []
    for item in spectra:
        if item.cheaper(ranks[item.path]):
            replace_layer(module, item.path, item.factors(ranks[item.path]))
            replaced.append(item.path)
    return replaced


def _ranks_for_macs(
    target: float, model: Model, context: StepContext, spectra: list[Spectrum]
) -> dict[str, int]:
    """Find by bisection the largest common energy whose ranks meet the target."""
    origin = context.origin or model
    limit = target * counts.macs(origin.module, origin.example)

    def ranks_at(energy: float) -> dict[str, int]:
        return {item.path: item.rank_of_energy(energy) for item in spectra}

    def cost(ranks: dict[str, int]) -> int:
        trial = copy.deepcopy(model.module)
        apply_ranks(trial, spectra, ranks)
        return counts.macs(trial, model.example)

    if counts.macs(model.module, model.example) <= limit:
        return {item.path: item.full for item in spectra}
    low, high = 0.0, 1.0
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(ranks_at(middle)) <= limit else (low, middle)
    ranks = ranks_at(low)
    reached = cost(ranks) / (limit / target)
    if reached > target:
        context.log.note(
            f"factorize: the target was {target:.2f} of the MACs, the least possible is "
            f"{reached:.2f}"
        )
    return ranks
