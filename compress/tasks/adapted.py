"""Inputs prepared for one model, as another one was trained to see them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import nn

from compress.tasks.base import InputChange, Tensors
from compress.tasks.preprocessing import Preprocessing


@dataclass(frozen=True)
class Adapted(InputChange):
    """Turns the inputs of one preprocessing into those of another.

    Channel `order[i]` times `factors[i]`, plus `offsets[i]`, is the new channel i; `size` (height,
    width) is what images are resized to, None if they have it.
    """

    factors: tuple[float, ...]
    offsets: tuple[float, ...]
    order: tuple[int, ...]
    size: tuple[int, int] | None = None
    words: str = field(default="", repr=False)

    @classmethod
    def between(cls, given: Preprocessing, own: Preprocessing) -> Adapted:
        """Return the change from inputs as `given` to inputs as a model's own preprocessing."""
        order = tuple(range(given.channels))
        if given.colors != own.colors:
            order = order[::-1]
        # From an input to levels, times a scale, and from there to the other input.
        ratio = own.scale / given.scale
        factors = [given.std[old] * ratio / own.std[new] for new, old in enumerate(order)]
        offsets = [
            (given.mean[old] * ratio - own.mean[new]) / own.std[new]
            for new, old in enumerate(order)
        ]
        size = None if own.size == given.size else own.size
        words = replace(own, fit=None).words()
        return cls(tuple(factors), tuple(offsets), order, size, words)

    @property
    def changes(self) -> bool:
        """Whether it does anything."""
        plain = (1.0,) * len(self.order), (0.0,) * len(self.order), tuple(range(len(self.order)))
        return (self.factors, self.offsets, self.order) != plain or self.size is not None

    def __call__(self, module: nn.Module, inputs: Tensors) -> Tensors:
        [images] = inputs
        # By numbers, not tensors: recorded as CUDA graphs, these would have to be on the GPU.
        channels = [
            images[:, old] * factor + offset
            for old, factor, offset in zip(self.order, self.factors, self.offsets, strict=True)
        ]
        images = torch.stack(channels, 1)
        if self.size is None:
            return (images,)
        return (F.interpolate(images, self.size, mode="bilinear", antialias=True),)
