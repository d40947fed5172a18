"""Nets with more than one output, for tests of which of them are the logits."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

Named = namedtuple("Named", ["aux", "logits"])


@dataclass
class Fields:
    """An object with fields, not all of them tensors."""

    hidden: Tensor
    logits: Tensor
    loss: Tensor | None = None


class ModelOutput(OrderedDict[str, Any]):
    """As Hugging Face's outputs are: a dictionary that leaves out what is None."""

    def __init__(self, **values: Any) -> None:
        super().__init__({key: value for key, value in values.items() if value is not None})

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Heads(nn.Module):
    """A body and two heads of the same width: `give(main, aux, hidden, training)` is returned."""

    def __init__(
        self, give: Callable[..., Any], classes: int = 10, channels: int = 3, norm: bool = False
    ) -> None:
        super().__init__()
        self.give = give
        self.a = nn.Conv2d(channels, 16, 3, 2, 1)
        self.norm = nn.BatchNorm2d(16) if norm else nn.Identity()
        self.b = nn.Conv2d(16, 32, 3, 2, 1)
        self.aux = nn.Linear(16, classes)
        self.out = nn.Linear(32, classes)

    def forward(self, images: Tensor) -> Any:
        early = F.relu(self.norm(self.a(images)))
        hidden = F.dropout(F.relu(self.b(early)).mean((2, 3)), 0.1, self.training)
        return self.give(
            self.out(hidden), self.aux(early.mean((2, 3))), hidden, training=self.training
        )


def dictionary(main: Tensor, aux: Tensor, hidden: Tensor, training: bool) -> Any:
    return {"aux": aux, "logits": main}


def list_in_training(main: Tensor, aux: Tensor, hidden: Tensor, training: bool) -> Any:
    return [aux, main] if training else main


def pair(main: Tensor, aux: Tensor, hidden: Tensor, training: bool) -> Any:
    return aux, main


def net(num_classes: int, in_channels: int) -> nn.Module:
    """A factory, for models by name: the first value is the auxiliary head's."""
    return Heads(dictionary, num_classes, in_channels)


def trained_apart(num_classes: int, in_channels: int) -> nn.Module:
    """A factory: the auxiliary head comes first, and only in training."""
    return Heads(list_in_training, num_classes, in_channels, norm=True)


def nameless(num_classes: int, in_channels: int) -> nn.Module:
    """A factory: nothing tells which of two outputs are the logits."""
    return Heads(pair, num_classes, in_channels)
