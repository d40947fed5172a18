"""Unstructured and N:M pruning: the smallest weights become zero and stay zero."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from compress.compressor import Compressor, require, require_one_of
from compress.context import StepContext
from compress.counts import deployed
from compress.errors import StepFailed
from compress.model import Model
from compress.parts import is_number, one_of, rule
from compress.surgery import matrix_weights

GLOBAL, MAGNITUDE, LAMP = "global", "magnitude", "lamp"


def _is_pattern(value: object) -> bool:
    found = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", value) if isinstance(value, str) else None
    return found is not None and int(found[1]) <= int(found[2])


@dataclass(frozen=True, repr=False)
class PruneWeights(Compressor):
    """Set weights of convolutions and linear layers to zero: those that matter least.

    Give `sparsity`, the fraction that becomes zero, or `pattern='N:M'`, which keeps the N largest
    of every M consecutive inputs of an output (Mishra et al. 2021, arXiv 2104.08378, section 3).
    For a sparsity, weights are ranked over the whole model (`scope='global'`) or within each layer
    (`scope='layer'`), by magnitude (Han et al. 2015, arXiv 1506.02626) or, over the whole model,
    by `score='lamp'`: w² over the sum of the squares of those in its layer that are no smaller
    (LAMP: Lee et al. 2021, arXiv 2010.07611), by which no layer is emptied. Biases and norms
    are spared. Weights that are zero already count towards the target.

    This saves bytes once compressed, not time. In `repeat` a pattern keeps fewer of every M in each
    round.
    """

    sparsity: float | None = field(
        default=None,
        metadata=rule(
            "is the fraction of weights that becomes zero, at least 0 and below 1",
            lambda value: is_number(value) and 0 <= value < 1,
        ),
    )
    scope: str = field(default=GLOBAL, metadata=one_of(GLOBAL, "layer"))
    score: str = field(default=MAGNITUDE, metadata=one_of(MAGNITUDE, LAMP))
    pattern: str | None = field(
        default=None,
        metadata=rule("is how many of how many weights are kept, such as '2:4'", _is_pattern),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, "sparsity", "pattern")
        require(
            self.score == MAGNITUDE or self.scope == GLOBAL,
            self,
            "within a layer, score='lamp' ranks as magnitude does: leave one of them out",
        )
        require(
            self.pattern is None or (self.scope, self.score) == (GLOBAL, MAGNITUDE),
            self,
            "a pattern is kept by every few weights, by magnitude: leave scope and score out",
        )

    def at(self, progress: float) -> Self:
        if self.sparsity is not None:
            return replace(self, sparsity=self.sparsity * progress)
        kept, among = self._pattern()
        return replace(self, pattern=f"{among - round(progress * (among - kept))}:{among}")

    def _pattern(self) -> tuple[int, int]:
        assert self.pattern is not None
        kept, among = map(int, self.pattern.split(":"))
        return kept, among

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
        if self.pattern is not None:
            self._keep_pattern(weights, context)
        else:
            assert self.sparsity is not None
            before = {name for name, weight in weights.items() if weight.any()}
            self._to_sparsity(list(weights.values()), self.sparsity)
            self._note_emptied([name for name in weights if name in before], weights, context)
        for name, weight in weights.items():
            zeros = 1 - int(weight.count_nonzero()) / weight.numel()
            context.log.row("layer", layer=name, sparsity=zeros)
        masked = {name for name, weight in weights.items() if bool((weight == 0).any())}
        return replace(model, sparse=model.sparse | masked)

    def _to_sparsity(self, weights: list[torch.nn.Parameter], sparsity: float) -> None:
        tensors = [weight.data for weight in weights]
        if self.score == LAMP:
            zero_smallest(tensors, sparsity, [lamp(tensor) for tensor in tensors])
        elif self.scope == GLOBAL:
            zero_smallest(tensors, sparsity)
        else:
            for tensor in tensors:
                zero_smallest([tensor], sparsity)

    def _note_emptied(
        self,
        names: Sequence[str],
        weights: Mapping[str, torch.nn.Parameter],
        context: StepContext,
    ) -> None:
        """Say which weights have no value left: nothing passes their layers.

        Raises StepFailed where those are all.
        """
        empty = [name for name in names if not weights[name].any()]
        if not empty:
            return
        if len(empty) == len(names):
            raise StepFailed(
                f"prune_weights: sparsity={self.sparsity} would leave no value of any of the "
                f"{len(names)} weights, and so no answer that depends on the input: ask for less"
            )
        why = "the values of other layers are larger. With score='lamp' no layer is emptied"
        if self.scope != GLOBAL:
            why = "it has so few values that the sparsity, rounded, is all of them"
        elif self.score == LAMP:
            why = "fewer values stay than there are weights"
        context.log.note(
            f"prune_weights: nothing is left of {len(empty)} of {len(weights)} weights, such "
            f"as {empty[0]!r}: {why}"
        )

    def _keep_pattern(
        self, weights: Mapping[str, torch.nn.Parameter], context: StepContext
    ) -> None:
        kept, among = self._pattern()
        left = []
        for name, weight in weights.items():
            if weight.shape[1] % among:
                left.append(name)
                reason = f"its {weight.shape[1]} inputs are no multiple of {among}"
                context.log.row("layer", layer=name, left_alone=reason)
            else:
                keep_largest(weight.data, kept, among)
        if left:
            context.log.note(
                f"prune_weights: {len(left)} of {len(weights)} weights stay whole, such as "
                f"{left[0]!r}: its inputs are no multiple of {among}"
            )
        if kept < among:
            context.log.note(
                f"prune_weights: zeros in the pattern {self.pattern} make a file smaller once it "
                f"is compressed, and nothing faster here: onnxruntime has no kernels that skip "
                f"them; NVIDIA GPUs since Ampere have some, for 2:4"
            )


def zero_smallest(
    tensors: list[Tensor], sparsity: float, scores: list[Tensor] | None = None
) -> None:
    """Set exactly round(sparsity · n) of the n values to zero, in place, those of least score.

    `scores` have the tensors' shapes; without them they are the magnitudes.
    """
    ranked = [tensor.abs() for tensor in tensors] if scores is None else scores
    every = torch.cat([one.flatten() for one in ranked])
    count = round(sparsity * every.numel())
    keep = torch.ones(every.numel(), dtype=torch.bool)
    keep[every.argsort(stable=True)[:count]] = False
    for tensor, mask in zip(tensors, keep.split([t.numel() for t in tensors]), strict=True):
        tensor.mul_(mask.view(tensor.shape))


def lamp(weight: Tensor) -> Tensor:
    """Return the score of each weight of a layer, in its shape: in [0, 1], the largest has 1.

    Lee et al. 2021 (arXiv 2010.07611): w² over the sum of the squares of all that are
    no smaller; of equal ones, those that come first have less.
    """
    squares = weight.double().square().flatten()
    order = squares.argsort(stable=True)
    ordered = squares[order]
    no_smaller = ordered.flip(0).cumsum(0).flip(0)
    scores = torch.zeros_like(squares)
    scores[order] = torch.where(ordered > 0, ordered / no_smaller, 0.0)
    return scores.view(weight.shape)


def keep_largest(weight: Tensor, kept: int, among: int) -> None:
    """Set all but the `kept` largest of every `among` consecutive inputs to zero, in place.

    `weight` is (outputs, inputs, ...), its inputs a multiple of `among`; every place of a kernel
    has groups of its own.
    """
    inputs_last = weight.movedim(1, -1)
    groups = inputs_last.abs().reshape(-1, among)
    mask = torch.zeros_like(groups)
    mask.scatter_(1, groups.argsort(dim=1, descending=True, stable=True)[:, :kept], 1.0)
    weight.mul_(mask.view(inputs_last.shape).movedim(-1, 1))


def pattern_of(weight: Tensor) -> tuple[int, int] | None:
    """Return N and M where at most N of every M consecutive inputs are not zero, and most often N.

    The least M up to 32, of which every output has two or more: of the few groups of a small layer,
    zeros without a pattern may seem to have one. None where there is no pattern.
    """
    inputs_last = weight.movedim(1, -1)
    for among in range(2, 33):
        if inputs_last.shape[-1] % among or inputs_last.shape[-1] < 2 * among:
            continue
        counts = (inputs_last.reshape(-1, among) != 0).sum(1)
        most = int(counts.max())
        if 0 < most < among and bool((counts == most).float().mean() > 0.5):
            return most, among
    return None


def follows(weight: Tensor, kept: int, among: int) -> bool:
    """Whether at most `kept` of every `among` consecutive inputs of a weight are not zero."""
    if weight.shape[1] % among:
        return False
    groups = weight.movedim(1, -1).reshape(-1, among)
    return int((groups != 0).sum(1).max()) <= kept
