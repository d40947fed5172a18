"""A second kind of task, for tests alone: sequences of token ids and their mask, one label each.

It shows what a task has to bring: nothing of the package knows of it.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.stateless_rng import StatelessRNG
from compress.system.files import digest
from compress.tasks.base import Data, InputSpec, Split, Task, Tensors

PAD = 0


@dataclass(frozen=True)
class TokenClassification(Task):
    """One label for a sequence of token ids; outputs are logits of shape (N, classes)."""

    name: str
    classes: tuple[str, ...]
    vocabulary: int
    kind: str = "token-classification"
    unit = "sequences"
    figure = "log loss"

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return tuple(InputSpec(name, {0: "batch", 1: "length"}) for name in ("ids", "mask"))

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "data": self.name, "classes": list(self.classes)}

    def metadata(self) -> dict[str, str]:
        return {"labels": json.dumps(list(self.classes))}

    def arguments(self) -> dict[str, Any]:
        return {"num_classes": len(self.classes), "vocabulary": self.vocabulary}

    def output_shape(self) -> tuple[int, ...]:
        return (len(self.classes),)

    def probe(self, batch: int = 4) -> Tensors:
        lengths = [5 + i % 3 for i in range(batch)]
        rows = [torch.arange(1, n + 1) * (i + 2) % self.vocabulary for i, n in enumerate(lengths)]
        return padded([row.clamp_min(1) for row in rows])

    def prepare(
        self, raw: Tensors, device: torch.device, rng: StatelessRNG | None = None
    ) -> Tensors:
        return tuple(tensor.to(device) for tensor in raw)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.argmax(1) == targets

    def measure(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        return float(self.loss(torch.from_numpy(outputs), torch.from_numpy(targets)))


def padded(rows: list[Tensor]) -> Tensors:
    """Return ids and mask, int64 (N, longest)."""
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    return ids, (ids != PAD).long()


class Sequences(Split):
    """Sequences of different lengths, each batch padded to its longest."""

    def __init__(self, rows: list[Tensor], targets: Tensor) -> None:
        self.rows, self.targets = rows, targets

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, index: Tensor) -> tuple[Tensors, Tensor]:
        return padded([self.rows[i] for i in index.tolist()]), self.targets[index]


def counted(name: str = "counted", vocabulary: int = 12, items: int = 900) -> Data:
    """Return sequences of three to nine tokens; the label is the token that most of them are."""
    generator = torch.Generator().manual_seed(7)
    rows, targets = [], []
    for _ in range(items):
        length = int(torch.randint(3, 10, (1,), generator=generator))
        label = int(torch.randint(0, 3, (1,), generator=generator))
        row = torch.randint(1, vocabulary, (length,), generator=generator)
        row[torch.rand(length, generator=generator) < 0.7] = label + 1
        rows.append(row)
        targets.append(label)
    cuts = [0, items * 6 // 10, items * 7 // 10, items]
    parts = [Sequences(rows[a:b], torch.tensor(targets[a:b])) for a, b in itertools.pairwise(cuts)]
    task = TokenClassification(name, ("one", "two", "three"), vocabulary)
    fingerprint = digest([row.tolist() for row in rows])
    return Data(task, parts[0], parts[1], parts[1], parts[2], fingerprint)


class Residual(nn.Module):
    """A block of two layers, past which its input goes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.down(F.relu(self.up(self.norm(hidden))))


class Tokens(nn.Module):
    """Embedding, residual blocks over every token, the mean over those that are no padding."""

    def __init__(self, vocabulary: int, num_classes: int, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(depth)))
        self.head = nn.Linear(width, num_classes)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.blocks(self.embedding(ids))
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return self.head((hidden * weights).sum(1) / weights.sum(1))


def make(num_classes: int, vocabulary: int, width: int = 16, depth: int = 4) -> nn.Module:
    """Build the model; a suite names it `token_task.py:make`."""
    return Tokens(vocabulary, num_classes, width, depth)
