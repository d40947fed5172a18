"""Fitting the factors of a form: the least error of a layer's outputs, in closed form.

With a weight W (O x D), the second moments S (D x D) of its centred unfolded inputs, and the
cross moments T (O x D) of the outputs that are wanted and these inputs, a form W' has the error

    E = tr(Y) - 2 tr(W' T') + tr(W' S W'),    Y the moments of the wanted outputs,

which for T = W S is ||(W - W') S^(1/2)||^2 (arXiv 2511.04494; the whitening of SVD-LLM, arXiv
2403.07378). The mean error is not in it: the bias takes it. A small multiple of the identity in S
draws W' to W where the calibration items say nothing: dead inputs keep their plain weights.

Every form is a first factor F that mixes inputs, then what is best behind it. Rows of F are ordered
by what they carry, so one Cholesky factorization of F S F' gives the error at every rank: with
F S F' = L L' and Q = T F' L^(-T), the first n rows of F explain the first n columns of Q.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.lowrank.forms import Layer, Ranks, build, inner, inputs_of, outputs_of

RIDGE = 0.03
"""Of the mean second moment of an input, what is added to each."""
TINY = 1e-30


@dataclass
class Inputs:
    """What is known of a layer's unfolded inputs, all in float64.

    `moments` (D x D) are centred; None where D is too wide for them, and then `outputs` (O x O)
    are the moments of the layer's own outputs. `wanted` (O x D) are the cross moments with the
    outputs that are wanted, whose sum of variances is `energy`; None where those are the layer's
    own outputs on the same inputs.
    """

    mean: Tensor
    moments: Tensor | None = None
    outputs: Tensor | None = None
    wanted: Tensor | None = None
    wanted_mean: Tensor | None = None
    energy: float = 0.0
    rows: int = 0
    """How many rows of inputs all of these are means over."""


def white(layer: Layer) -> Inputs:
    """Return inputs that are uncorrelated, of variance 1 and mean 0: weights alone matter then."""
    size = inputs_of(layer)
    return Inputs(torch.zeros(size, dtype=torch.float64), torch.eye(size, dtype=torch.float64))


@dataclass
class Basis:
    """The leading rows of a form's first factor, and what they explain of the outputs."""

    first: Tensor
    """(rows x M), those that carry most first; for `channel` empty."""
    lower: Tensor
    """L, (rows m x rows m); for `channel` (D x D)."""
    explained: Tensor
    """Q, (O x rows m)."""


@dataclass
class Problem:
    """The fitting of one layer; what is expensive is computed once."""

    layer: Layer
    inputs: Inputs
    bases: dict[int, Basis] = field(default_factory=dict)
    """By m, into how many values the first factor leaves its results."""
    mixtures: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.weight = self.layer.weight.detach().cpu().double().flatten(1)
        if self.inputs.moments is None:
            assert self.inputs.outputs is not None
            self.total = float(self.inputs.outputs.trace())
            return
        moments = self.inputs.moments
        ridge = 0.0 if _is_identity(moments) else RIDGE * float(moments.diagonal().mean())
        # Dead inputs only: all of them are taken for alike.
        ridge = ridge or (0.0 if moments.any() else 1.0)
        self.moments = moments.clone()
        self.moments.diagonal().add_(ridge)
        self.inputs = replace(self.inputs, moments=self.moments)  # one of both is enough
        if self.inputs.wanted is None:
            self.wanted = self.weight @ self.moments
            self.total = float((self.wanted * self.weight).sum())
        else:
            self.wanted = self.inputs.wanted + ridge * self.weight
            self.total = self.inputs.energy + ridge * float(self.weight.square().sum())

    def forget(self) -> Problem:
        """Drop what is large and can be computed again; return self."""
        self.bases.clear()
        return self

    def fits(self, form: str) -> bool:
        """Whether what is known of the inputs is enough for a form."""
        return form == "channel" or self.inputs.moments is not None

    def basis(self, form: str, rows: int = 0) -> Basis:
        """Return at least so many rows of a form's first factor; for `channel` there are none."""
        size = inner(self.layer, form)
        if size not in self.bases or len(self.bases[size].first) < rows:
            self.bases[size] = self._basis(form, size, rows)
        return self.bases[size]

    def _basis(self, form: str, size: int, rows: int) -> Basis:
        first = torch.empty(0, dtype=torch.float64)
        moments, wanted = self.moments, self.wanted
        if form != "channel":
            if size not in self.mixtures:
                self.mixtures[size] = self._leading(size)
            first = self.mixtures[size][:rows]
            moments = _mixed(first, (first @ moments.view(len(moments) // size, -1)), size)
            wanted = _mixed(first, wanted, size)
        lower = torch.linalg.cholesky(moments)
        explained = torch.linalg.solve_triangular(lower, wanted.T, upper=False).T
        return Basis(first, lower, explained)

    def _leading(self, size: int) -> Tensor:
        """Return (M x M): mixtures of the M that carry most of the outputs, best first.

        Moments are taken for a Kronecker product of those of the M and those of the `size`
        others: then it is the eigenvectors of the whitened weight's M x M moments.
        """
        count = len(self.moments) // size
        split = self.moments.view(count, size, count, size)
        mixed = split.diagonal(dim1=1, dim2=3).mean(-1)
        rest = split.diagonal(dim1=0, dim2=2).mean(-1)
        lower = torch.linalg.cholesky(mixed)
        parts = self.weight.view(-1, count, size).permute(1, 0, 2)
        carried = torch.einsum("aoi,ij,boj->ab", parts, rest, parts)
        _, vectors = torch.linalg.eigh(lower.T @ carried @ lower)
        return torch.linalg.solve_triangular(lower.T, vectors.flip(1), upper=True).T

    def lost(self, form: str, steps: list[Ranks]) -> list[float]:
        """Return which share of the outputs' energy a form loses at each of some ranks."""
        if self.total <= TINY:
            return [0.0] * len(steps)
        if form in ("channel", "tucker"):
            most = max(steps)[:-1]  # first, since what its rows explain serves all others
            curves = {one: self._curve(form, one) for one in [most, *{r[:-1] for r in steps}]}
            kept = [float(curves[ranks[:-1]][ranks[-1] - 1]) for ranks in steps]
        else:
            rows = max(ranks[0] for ranks in steps)
            columns = self.basis(form, rows).explained.square().sum(0).cumsum(0)
            size = inner(self.layer, form)
            kept = [float(columns[ranks[0] * size - 1]) for ranks in steps]
        return [min(1.0, max(0.0, 1 - one / self.total)) for one in kept]

    def _curve(self, form: str, before: Ranks) -> Tensor:
        """Return what the best 1, 2, ... outputs explain, behind a first factor of `before`."""
        values = torch.linalg.eigvalsh(self._smaller_moments(form, before)).flip(0).cumsum(0)
        return F.pad(values[None], (0, len(self.weight) - len(values)), mode="replicate")[0]

    def _smaller_moments(self, form: str, before: Ranks) -> Tensor:
        """Return a matrix of the eigenvalues of `_output_moments` that are not 0, as small as any.

        Q has the same singular values as its transpose, and a 1 x 1 convolution may have four times
        as many outputs as inputs.
        """
        if self._own(form) or self.inputs.moments is None:
            return self._output_moments(form, before)
        explained = self._explained(form, before)
        rows, columns = explained.shape
        return explained @ explained.T if rows <= columns else explained.T @ explained

    def _own(self, form: str) -> bool:
        """Whether the layer's own outputs are wanted of all inputs: then their moments are known
        without explaining them."""
        known = self.inputs.moments is not None and self.inputs.wanted is None
        return form == "channel" and known and len(self.weight) <= self.weight.shape[1]

    def _explained(self, form: str, before: Ranks) -> Tensor:
        if not before:
            return self.basis(form).explained
        return self.basis(form, *before).explained[:, : before[0] * inner(self.layer, form)]

    def _output_moments(self, form: str, before: Ranks) -> Tensor:
        if self.inputs.moments is None:
            assert self.inputs.outputs is not None
            return self.inputs.outputs
        if self._own(form):
            return self.wanted @ self.weight.T
        explained = self._explained(form, before)
        return explained @ explained.T

    def factors(self, form: str, ranks: Ranks) -> list[Tensor]:
        """Return the best weights of a form at some ranks, in float64."""
        if form in ("channel", "tucker"):
            outputs = self._leading_outputs(form, ranks)
            if self.inputs.moments is None or self._own(form):
                return self._shaped(form, [outputs.T @ self.weight, outputs])
        if form == "channel":
            return self._shaped(form, [outputs.T @ self._behind(form, len(self.moments)), outputs])
        count = ranks[0] * inner(self.layer, form)
        first = self.basis(form, ranks[0]).first[: ranks[0]]
        behind = self._behind(form, count)
        if form == "tucker":
            return self._shaped(form, [first, outputs.T @ behind, outputs])
        return self._shaped(form, [first, behind])

    def _leading_outputs(self, form: str, ranks: Ranks) -> Tensor:
        """Return (O x r): the orthonormal mixtures of outputs that carry most, best first."""
        if self.inputs.moments is not None and not self._own(form):
            explained = self._explained(form, ranks[:-1])
            if ranks[-1] <= explained.shape[1] < len(explained):
                space, inside = torch.linalg.qr(explained)
                _, vectors = torch.linalg.eigh(inside @ inside.T)
                return space @ vectors.flip(1)[:, : ranks[-1]]
        _, vectors = torch.linalg.eigh(self._output_moments(form, ranks[:-1]))
        return vectors.flip(1)[:, : ranks[-1]]

    def _behind(self, form: str, count: int) -> Tensor:
        """Return the best weights (O x count) on what the first `count` rows of F give."""
        basis = self.basis(form)
        lower, explained = basis.lower[:count, :count], basis.explained[:, :count]
        return torch.linalg.solve_triangular(lower.T, explained.T, upper=True).T

    def _shaped(self, form: str, matrices: list[Tensor]) -> list[Tensor]:
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return matrices
        height, width = layer.kernel_size
        kernels = {
            "channel": [(height, width), (1, 1)],
            "reduce": [(1, 1), (height, width)],
            "spatial": [(height, 1), (1, width)],
            "tucker": [(1, 1), (height, width), (1, 1)],
        }[form]
        return [
            matrix.reshape(len(matrix), -1, *kernel)
            for matrix, kernel in zip(matrices, kernels, strict=True)
        ]

    def bias(self, factors: list[Tensor]) -> Tensor:
        """Return the bias with which the mean error is zero."""
        mean = self.inputs.mean
        bias = torch.zeros(outputs_of(self.layer), dtype=torch.float64)
        if self.layer.bias is not None:
            bias = self.layer.bias.detach().cpu().double()
        wanted = self.weight @ mean + bias
        if self.inputs.wanted_mean is not None:
            wanted = self.inputs.wanted_mean
        return wanted - product(factors) @ mean

    def error(self, factors: list[Tensor]) -> float:
        """Return the root of the share of the outputs' energy that factors lose."""
        if self.total <= TINY:
            return 0.0
        made = product(factors)
        if self.inputs.moments is None:
            # The projection on leading eigenvectors of the outputs' own moments.
            values = torch.linalg.eigvalsh(self._output_moments("channel", ()))
            lost = float(values[: len(values) - len(factors[0])].sum())
        else:
            lost = self.total - 2 * float((made * self.wanted).sum())
            lost += float(((made @ self.moments) * made).sum())
        return max(0.0, lost / self.total) ** 0.5

    def fitted(self, form: str, ranks: Ranks) -> tuple[nn.Sequential, float]:
        """Return the layer in a form with the best weights, and its relative error."""
        factors = self.factors(form, ranks)
        bias: Tensor | None = self.bias(factors)
        if self.layer.bias is None and not self.inputs.mean.any():
            bias = None
        return build(self.layer, form, balanced(factors), bias), self.error(factors)


def balanced(factors: list[Tensor]) -> list[Tensor]:
    """Return factors whose rows and columns of the same rank have the same norm.

    Where one of both is zero they stay as they are: two zeros could never be trained.
    """
    result = list(factors)
    for number in range(len(factors) - 1):
        first, second = result[number], result[number + 1]
        before = first.flatten(1).norm(dim=1)
        after = second.transpose(0, 1).flatten(1).norm(dim=1)
        usable = (before > TINY) & (after > TINY)
        scale = torch.where(usable, (after / before.clamp_min(TINY)).sqrt(), 1.0)
        shape = (-1,) + (1,) * (first.ndim - 1)
        result[number] = first * scale.view(shape)
        result[number + 1] = second / scale.view((1, -1) + (1,) * (second.ndim - 2))
    return result


def product(factors: list[Tensor]) -> Tensor:
    """Return the matrix (O x D) that factors are together."""
    made = factors[0]
    if made.ndim == 2:
        return factors[1] @ made
    for factor in factors[1:]:
        # One of two neighbours has a kernel of 1 along every axis along which the other has not.
        made = torch.einsum("orhw,rixy->oihxwy", factor, made)
        outputs, inputs, *sizes = made.shape
        made = made.reshape(outputs, inputs, sizes[0] * sizes[1], sizes[2] * sizes[3])
    return made.flatten(1)


def _mixed(first: Tensor, matrix: Tensor, size: int) -> Tensor:
    """Return matrix @ (first kron identity)', for a matrix of M * size values a row."""
    rows = matrix.reshape(-1, first.shape[1], size)
    # Row by row: a transposed copy of the whole would miss the caches.
    mixed = rows.transpose(1, 2).contiguous() @ first.T
    return mixed.transpose(1, 2).reshape(len(rows), -1)


def _is_identity(matrix: Tensor) -> bool:
    if not (matrix.diagonal() == 1).all():
        return False
    return bool(torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype)))
