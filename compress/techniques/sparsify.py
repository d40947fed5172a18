"""Sparse training: channels that matter least shrink while the net learns to do without them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from compress.context import StepContext
from compress.model import Model
from compress.parts import positive, positive_or_zero
from compress.techniques.channel_groups import Channels
from compress.techniques.channel_proof import sound_groups
from compress.techniques.channel_scores import members_of, scores
from compress.techniques.channel_trace import Axis
from compress.techniques.criteria import L2
from compress.training import Batch, Training, TrainingHooks, fit, labels_loss

STEEPNESS = 4.0
"""The least channel of a group is pulled 2^4 times as hard as the greatest (Fang et al. 2023)."""


@dataclass(frozen=True, repr=False)
class Sparsify(Training):
    """Train on with a penalty on whole groups of coupled channels, for `prune_channels` to follow.

    To the task's loss comes strength · t · Σ γ ‖w‖² / 2 over the channels of all groups that it
    would cut (residual streams are spared), with t the fraction of the training that is done and γ
    from 1 for the channel of greatest norm in its group to 16 for the least, taken anew in every
    epoch: Fang et al. 2023 (arXiv 2301.12900), section 3.3, growing as in Wang et al. 2021
    (arXiv 2012.09243). The optimizer is SGD, since Adam's steps do not follow a penalty's size.
    """

    strength: float = field(default=0.02, metadata=positive_or_zero())
    optimizer: str = field(
        default="sgd", metadata=Training.__dataclass_fields__["optimizer"].metadata
    )
    learning_rate: float = field(default=0.01, metadata=positive())

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"labels"}

    def compress(self, model: Model, context: StepContext) -> Model:
        channels = sound_groups(model.module, model.items())
        if not any(not group.stream for group in channels.groups):
            context.log.note("sparsify: it trained without a penalty, as no channels could be cut")
        pull = _Pull(model, channels, context)
        plain = labels_loss(context)

        def loss(outputs: Tensor, batch: Batch) -> Tensor:
            return plain(outputs, batch) + self.strength * batch.progress * pull.penalty()

        return fit(model, context, self, loss, TrainingHooks(before=pull.renew))


class _Pull:
    """How hard each weight is pulled to zero."""

    def __init__(self, model: Model, channels: Channels, context: StepContext) -> None:
        self.model, self.channels, self.context = model, channels, context
        self.factors: dict[str, Tensor] = {}

    def renew(self, view: int) -> None:
        """Take the factors anew from the norms that channels have now."""
        self.factors = {}
        worth, _ = scores(self.model, self.channels, L2(), self.context)
        gamma = np.zeros(int(self.channels.plan.classes.max()) + 1)
        for group in self.channels.groups:
            for pool, values in zip(group.pools, worth[group.axis], strict=True):
                spread = max(float(values.max() - values.min()), 1e-12)
                least_first = (values.max() - values) / spread
                gamma[pool] = 0.0 if group.stream else 2 ** (STEEPNESS * least_first)
        for (name, axis), factor in self._by_axis(gamma):
            known = self.factors.get(name)
            weight = self.model.module.get_parameter(name)
            shape = [1] * weight.ndim
            shape[axis] = -1
            own = torch.from_numpy(factor).to(weight.device, weight.dtype).view(shape)
            self.factors[name] = own if known is None else known + own

    def _by_axis(self, gamma: np.ndarray) -> Iterator[tuple[Axis, np.ndarray]]:
        for axis, _, _ in members_of(self.model.module, self.channels.plan):
            factor = gamma[self.channels.plan.of(axis)]
            if factor.any():
                yield axis, factor

    def penalty(self) -> Tensor:
        total = torch.zeros(())
        for name, factor in self.factors.items():
            weight = self.model.module.get_parameter(name)
            if weight.requires_grad:
                total = total.to(weight.device) + (factor * weight.square()).sum() / 2
        return total
