"""Low-rank factorization: a layer becomes two thinner ones, by truncated SVD."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from compress import counts
from compress.compressor import Compressor, kept_at, require_fraction, require_one_of
from compress.context import StepContext
from compress.model import Model
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

    rank: float | None = None
    energy: float | None = None
    macs: float | None = None

    def __post_init__(self) -> None:
        for name in ("rank", "energy", "macs"):
            require_fraction(self, name)
        require_one_of(self, "rank", "energy", "macs")

    def at(self, progress: float) -> Self:
        return replace(
            self,
            rank=kept_at(self.rank, progress),
            energy=kept_at(self.energy, progress),
            macs=kept_at(self.macs, progress),
        )

    def compress(self, model: Model, context: StepContext) -> Model:
        spectra = [Spectrum(path, layer) for path, layer in factorizable(model.module)]
        for path, layer in weighted_layers(model.module):
            if not _supported(layer):
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


def _supported(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
    )


def factorizable(module: nn.Module) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
    """Return (path, layer) of the layers that can be factorized."""
    return [(p, layer) for p, layer in weighted_layers(module) if _supported(layer)]  # type: ignore[misc]


@dataclass
class Spectrum:
    """A layer with the singular value decomposition of its weight, computed once."""

    path: str
    layer: nn.Conv2d | nn.Linear
    u: Tensor = field(init=False)
    s: Tensor = field(init=False)
    vh: Tensor = field(init=False)

    def __post_init__(self) -> None:
        # float64: the discarded energy is a small difference of large sums.
        matrix = self.layer.weight.detach().double().flatten(1)
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
        """Return the two layers; the square root of each singular value goes to either side."""
        root = self.s[:rank].sqrt()
        first_weight = (root[:, None] * self.vh[:rank]).float()
        second_weight = (self.u[:, :rank] * root).float()
        layer, bias = self.layer, self.layer.bias is not None
        first: nn.Module
        second: nn.Module
        if isinstance(layer, nn.Conv2d):
            first = nn.Conv2d(
                layer.in_channels,
                rank,
                layer.kernel_size,  # type: ignore[arg-type]
                layer.stride,  # type: ignore[arg-type]
                layer.padding,  # type: ignore[arg-type]
                layer.dilation,  # type: ignore[arg-type]
                bias=False,
            )
            second = nn.Conv2d(rank, layer.out_channels, 1, bias=bias)
        else:
            first = nn.Linear(layer.in_features, rank, bias=False)
            second = nn.Linear(rank, layer.out_features, bias=bias)
        first.weight.data = first_weight.view(first.weight.shape).contiguous()  # type: ignore[operator, union-attr]
        second.weight.data = second_weight.view(second.weight.shape).contiguous()  # type: ignore[operator, union-attr]
        # What is frozen stays frozen: both factors of a frozen weight.
        for factor in (first, second):
            factor.weight.requires_grad_(layer.weight.requires_grad)  # type: ignore[operator, union-attr]
        if layer.bias is not None:
            second.bias.data = layer.bias.detach().clone()  # type: ignore[union-attr]
            second.bias.requires_grad_(layer.bias.requires_grad)  # type: ignore[operator, union-attr]
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
            f"factorize: {target:.2f} of the MACs was asked for, {reached:.2f} is the least"
        )
    return ranks
