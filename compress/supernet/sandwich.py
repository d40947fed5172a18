"""Training a net and its subnets together: the sandwich rule with in-place distillation.

Yu and Huang 2019 (Universally slimmable networks, arXiv 1903.05134) and Yu et al. 2020 (BigNAS,
arXiv 2003.11142): in every step the whole net learns from the labels, and the smallest subnet and a
few random ones learn from the whole net's answers. All share its weights: a subnet is a *skeleton*,
the pruned net without values, called with slices of the whole net's weights, through which
gradients flow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from compress.heads import main_output
from compress.stateless_rng import seed_of
from compress.supernet.space import Genes, Space
from compress.tasks.base import Task
from compress.training import Batch

Picks = Mapping[str, Sequence[tuple[int, Tensor]]]
"""Tensor -> the axes along which a subnet has a part of it, and the indices (int64) of the part."""
Factors = Mapping[str, tuple[int, float]]
"""Tensor -> how many of its first rows are multiplied by what, once it is sliced."""


class Elastic(Protocol):
    """A net that knows its subnets."""

    @property
    def space(self) -> Space: ...

    def skeleton(self, genes: Genes) -> nn.Module:
        """Return the subnet without values (its tensors are on the device 'meta')."""

    def picks(self, genes: Genes) -> Picks: ...

    def factors(self, genes: Genes) -> Factors: ...


def sliced(
    tensors: Mapping[str, Tensor], names: Sequence[str], picks: Picks, factors: Factors
) -> dict[str, Tensor]:
    """Return the named tensors as a subnet has them, made from the whole net's (`tensors`).

    Gradients flow through them. What keeps statistics is a copy in any case: norms write into it.
    """
    result: dict[str, Tensor] = {}
    for name in names:
        tensor = tensors[name]
        for axis, index in picks.get(name, ()):
            tensor = tensor.index_select(axis, index.to(tensor.device))
        if name in factors:
            rows, factor = factors[name]
            tensor = torch.cat([tensor[:rows] * factor, tensor[rows:]])
        if not tensor.requires_grad and tensor is tensors[name]:
            tensor = tensor.clone()
        result[name] = tensor
    return result


class Subnet:
    """One architecture: its skeleton, and how to slice the whole net's tensors for it."""

    def __init__(self, elastic: Elastic, genes: Genes) -> None:
        self.skeleton = elastic.skeleton(genes)
        self.picks, self.factors = elastic.picks(genes), elastic.factors(genes)
        named = (self.skeleton.named_parameters(), self.skeleton.named_buffers())
        self.names = [name for tensors in named for name, _ in tensors]

    def __call__(self, whole: nn.Module, inputs: Sequence[Any]) -> Tensor:
        """Return the subnet's logits with the weights, and in the mode, of the whole net.

        `inputs` are those of the whole net's `forward`, as its hooks have left them.
        """
        tensors = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
        own = sliced(tensors, self.names, self.picks, self.factors)
        self.skeleton.train(whole.training)
        return main_output(self.skeleton, functional_call(self.skeleton, own, tuple(inputs)))


class Sandwich:
    """Runs subnets beside the whole net in every pass of a training, and gives their loss.

    Which ones depends on the seed, the epoch and the number of the pass alone, so that a training
    that was stopped goes on as it would have. `remove` it in the end.
    """

    def __init__(
        self, module: nn.Module, elastic: Elastic, task: Task, random: int, seed: int
    ) -> None:
        self.elastic, self.task, self.random, self.seed = elastic, task, random, seed
        self.smallest = Subnet(elastic, elastic.space.smallest)
        self.epoch: int | None = None
        """None while it is not training: modules are also tried out."""
        self.passes = 0
        self.answers: list[Tensor] = []
        # A function, not a method: copies of the module are not to copy all of this.
        self._hook = module.register_forward_hook(lambda *call: self._run(*call))

    def remove(self) -> None:
        self._hook.remove()

    def begin(self, epoch: int) -> None:
        self.epoch, self.passes = epoch, 0

    def end(self, epoch: int) -> None:
        self.epoch = None
        self.answers = []

    def drawn(self) -> list[Genes]:
        """Return the random architectures of the pass that comes."""
        assert self.epoch is not None
        rng = np.random.default_rng(seed_of("sandwich", self.seed, self.epoch, self.passes))
        return [self.elastic.space.drawn(rng) for _ in range(self.random)]

    def _run(self, module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        if self.epoch is None or not module.training:
            return
        subnets = [self.smallest, *(Subnet(self.elastic, genes) for genes in self.drawn())]
        self.answers = [subnet(module, inputs) for subnet in subnets]
        self.passes += 1

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean over all nets: the task's loss of the whole, the others' cross-entropy.

        `outputs` are the whole net's logits, (N, classes), whose probabilities are the others'
        targets; no gradient flows through them.
        """
        total = self.task.loss(outputs, batch.targets)
        targets = outputs.detach().softmax(dim=1)
        for answers in self.answers:
            logs = F.log_softmax(answers.float(), dim=1)
            total = total - (targets * logs).sum(dim=1).mean()
        return total / (1 + len(self.answers))
