"""Criteria of structured pruning: how much a channel matters, as parts of `prune_channels`."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from compress.parts import Part, by_name, whole_number
from compress.techniques.channel_elimination import Reader, losses_in_turn

MAKES, READS, SCALE = "makes", "reads", "scale"
"""Weights that make channels, weights of what reads them, and the scales of their norms."""
GATE = "gate"
"""No tensor of the model: a factor of one on each channel, for criteria that want gradients."""
ITEMS = 128
"""Training items that gradients are taken over, unless a criterion says otherwise."""


@dataclass(frozen=True)
class Slices:
    """What one tensor holds for each of its channels."""

    kind: str
    values: Tensor
    """(channels, values of each); of a gate, no values."""
    gradients: Tensor | None = None
    """The same, of the task's loss, averaged over items; None where no criterion asked."""
    effects: Tensor | None = None
    """Of a gate, (items, channels): ∂loss/∂gate of each item, or one row of their mean."""


@dataclass(frozen=True, repr=False, kw_only=True)
class Criterion(Part, ABC):
    """How much each channel matters, by one of the tensors that it has a part in.

    Coupled channels are ranked together, by the mean over their tensors, and where a tensor has
    several slices of one channel, by their sum (Fang et al. 2023, arXiv 2301.12900, section 3.3).
    """

    wants_gradients: ClassVar[bool] = False
    """Whether it needs gradients of the task's loss, and so labelled training items."""
    of_each_item: ClassVar[bool] = False
    """Whether it needs the effects of gates of each item by itself."""
    wants_inputs: ClassVar[bool] = False
    """Whether it asks what layers are given on calibration items: `of_readers`, not `of`."""

    def of_readers(self, readers: Sequence[Reader], count: int) -> Tensor | None:
        """Return what each of `count` channels is worth, (count,) >= 0, or None.

        By all layers that read them, each of them with what it is given; with `wants_inputs` only.
        """
        return None

    @abstractmethod
    def of(self, slices: Slices, generator: torch.Generator) -> Tensor | None:
        """Return what each channel is worth, (channels,) >= 0, or None if this tells nothing.

        Channels that are worth least are removed first.
        """

    @property
    def items(self) -> int:
        """How many training items its gradients are taken over, if it wants any."""
        return ITEMS


@dataclass(frozen=True, repr=False, kw_only=True)
class L1(Criterion):
    """Σ |w|. Li et al. 2017 (arXiv 1608.08710), section 3.1."""

    def of(self, slices: Slices, generator: torch.Generator) -> Tensor | None:
        return slices.values.abs().sum(1)


@dataclass(frozen=True, repr=False, kw_only=True)
class L2(Criterion):
    """Σ w². Fang et al. 2023 (arXiv 2301.12900), equation 4 without sparse training."""

    def of(self, slices: Slices, generator: torch.Generator) -> Tensor | None:
        return slices.values.square().sum(1)


@dataclass(frozen=True, repr=False, kw_only=True)
class BnScale(Criterion):
    """|γ|, of the norms that follow. Liu et al. 2017 (arXiv 1708.06519), section 3."""

    def of(self, slices: Slices, generator: torch.Generator) -> Tensor | None:
        return slices.values.abs().sum(1) if slices.kind == SCALE else None


@dataclass(frozen=True, repr=False, kw_only=True)
class Fpgm(Criterion):
    """Σ_j ‖w - w_j‖, over the filters of a layer: those near the geometric median can be replaced.
    He et al. 2019 (arXiv 1811.00250), equation 6.
    """

    def of(self, slices: Slices, generator: torch.Generator) -> Tensor | None:
        if slices.kind != MAKES:
            return None
        values = slices.values.double()
        return torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


@dataclass(frozen=True, repr=False, kw_only=True)
class Taylor(Criterion):
    """(∂loss/∂gate)², of a factor of one on the channel: what the loss loses by it, to first order.
    Molchanov et al. 2019 (arXiv 1906.10771), equation 8, with gates (section 3.2).

    The gate stands where the channel is read, behind norm and activation. The loss is the task's,
    in eval mode, over the first `count` items of an even choice.
    """

    count: int = field(default=ITEMS, metadata=whole_number())

    wants_gradients = True

    def of(self, slices: Slices, generator: torch.Generator) -> Tensor | None:
        return None if slices.effects is None else slices.effects.mean(0).square()

    @property
    def items(self) -> int:
        return self.count


@dataclass(frozen=True, repr=False, kw_only=True)
class Fisher(Criterion):
    """The mean over items of (∂loss/∂gate)²: what the loss loses to second order by a channel.

    Half of that is the optimal brain damage (LeCun et al. 1989) of a factor on the channel, with
    the empirical Fisher information for the Hessian: Theis et al. 2018 (arXiv 1801.05787); Liu et
    al. 2021 (arXiv 2108.00708). Where training has brought the mean gradient to zero, `taylor` is
    left with noise, and this is not.
    """

    count: int = field(default=ITEMS, metadata=whole_number())

    wants_gradients = True
    of_each_item = True

    def of(self, slices: Slices, generator: torch.Generator) -> Tensor | None:
        return None if slices.effects is None else slices.effects.square().mean(0)

    @property
    def items(self) -> int:
        return self.count


@dataclass(frozen=True, repr=False, kw_only=True)
class Reconstruction(Criterion):
    """What the layers that read a channel lose by it, of their outputs' variance on calibration
    items, where the channels that stay make up for it; one goes after another.
    Luo et al. 2017 (arXiv 1707.06342), section 3.2, with the closed form of the optimal brain
    surgeon: `channel_elimination`.
    """

    wants_inputs = True

    def of(self, slices: Slices, generator: torch.Generator) -> Tensor | None:
        return None

    def of_readers(self, readers: Sequence[Reader], count: int) -> Tensor | None:
        return losses_in_turn(readers, count)


@dataclass(frozen=True, repr=False, kw_only=True)
class Random(Criterion):
    """Drawn with the step's seed: the control, which every other criterion has to beat.
    PruningBench (arXiv 2406.12315) has it 0.4 to 0.9 points below the best.
    """

    def of(self, slices: Slices, generator: torch.Generator) -> Tensor | None:
        return torch.rand(len(slices.values), generator=generator)


BUILT_IN: tuple[type[Criterion], ...] = (
    *(L2, L1, BnScale, Fpgm, Taylor, Fisher, Reconstruction, Random),
)


@functools.cache
def criteria() -> Mapping[str, type[Criterion]]:
    """Return every criterion by its name in chain text, entry points `compress.criteria` too."""
    return by_name(Criterion, "compress.criteria", BUILT_IN)
