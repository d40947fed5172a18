"""The state of a training at the end of an epoch, kept so that it can be resumed exactly."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from compress.context import CacheEntry, StepCache
from compress.system.files import digest

TENSORS = "state.safetensors"


@dataclass
class TrainingProgress:
    """How far a training has come, besides its weights and its optimizer's state."""

    epoch: int = 0
    samples: int = 0
    micro_batches: int = 1
    seconds: float = 0.0
    """Of training, over all processes that worked on it."""
    mode: dict[str, Any] = field(default_factory=dict)
    """How the module runs: on another machine another way might be the fastest."""
    best: float | None = None
    """The best validation accuracy so far."""
    best_epoch: int = 0
    best_loss: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Of the log."""


@dataclass
class TrainingState:
    """Everything of a training that changes and holds tensors."""

    modules: Mapping[str, nn.Module]
    optimizer: torch.optim.Optimizer
    best: dict[str, Tensor] = field(default_factory=dict)
    """The weights of the best epoch."""

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors as 'group/name', and the states of the random number generators."""
        groups: dict[str, dict[str, Any]] = {
            name: module.state_dict() for name, module in self.modules.items()
        }
        for number, state in self.optimizer.state_dict()["state"].items():
            groups[f"optimizer/{number}"] = state
        groups["best"] = self.best
        groups["random"] = {"cpu": torch.get_rng_state(), "host": _host_generators()}
        if torch.cuda.is_initialized():
            groups["random"]["cuda"] = torch.cuda.get_rng_state()
        # Clones: safetensors refuses views that share memory, and channels_last strides.
        return {
            f"{group}/{name}": value.detach().cpu().contiguous().clone()
            for group, values in groups.items()
            for name, value in values.items()
            if isinstance(value, Tensor)
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned. Raises KeyError or RuntimeError if it does not fit."""
        groups: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = value
        for group, module in self.modules.items():
            module.load_state_dict(groups.get(group, {}))
        self.best = groups.get("best", {})
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in groups.get("optimizer", {}).items():
            number, _, name = key.partition("/")
            state.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        # In the strides of the parameters, which fused optimizers insist on.
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    values[name] = torch.empty_like(parameter).copy_(value)
        torch.set_rng_state(groups["random"]["cpu"])
        _set_host_generators(groups["random"]["host"])
        if "cuda" in groups["random"]:
            torch.cuda.set_rng_state(groups["random"]["cuda"])


def _host_generators() -> Tensor:
    """Return the states of Python's and numpy's generators, as JSON: a layer may draw from them."""
    name, keys, *rest = np.random.get_state(legacy=True)
    text = json.dumps([random.getstate(), [name, keys.tolist(), *rest]])  # type: ignore[union-attr]
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _set_host_generators(state: Tensor) -> None:
    (version, words, gauss), numpy_state = json.loads(bytes(state.tolist()))
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(tuple(numpy_state))


class Checkpoints:
    """The last epoch's state of one training on a cache. Without a cache nothing is kept."""

    def __init__(self, cache: StepCache | None, question: Mapping[str, Any], epochs: int) -> None:
        self.cache, self.question = cache, dict(question)
        self.entry: CacheEntry | None = None
        """The checkpoint of the latest epoch that was kept when the training was stopped."""
        self.last: int | None = None
        self.full = ""
        """Why nothing more is kept: the disk's error."""
        if cache is None:
            return
        for epoch in range(epochs, 0, -1):
            if self.entry is not None:
                # A kill may have come between keeping that one and dropping the one before it.
                cache.drop(self._key(epoch))
            else:
                self.entry = cache.get(self._key(epoch), temporary=True)
                self.last = epoch if self.entry is not None else None

    @property
    def reached(self) -> TrainingProgress:
        """How far the training had come when it was stopped; not at all, if nothing is kept."""
        return TrainingProgress(**({} if self.entry is None else self.entry.about["state"]))

    def resume(self, training: TrainingState) -> None:
        """Bring a training to the latest epoch that was kept."""
        if self.entry is not None:
            training.restore(load_file(self.entry.folder / TENSORS))

    def keep(self, training: TrainingState, state: TrainingProgress) -> None:
        """Keep the state after an epoch, then drop the one before it."""
        if self.cache is None or self.full:
            return
        about = {"state": json.loads(json.dumps(vars(state)))}

        def fill(folder: Path) -> Mapping[str, Any]:
            # As bytes: on a full disk `save_file` raises an error that is no OSError.
            (folder / TENSORS).write_bytes(save(training.tensors()))
            return about

        try:
            self.cache.put(self._key(state.epoch), fill, temporary=True)
        except OSError as error:  # a full disk: the training itself can go on
            self.full = str(error)
            return
        if self.last is not None:
            with contextlib.suppress(OSError):
                self.cache.drop(self._key(self.last))
        self.last = state.epoch

    def _key(self, epoch: int) -> str:
        return digest({"checkpoint": self.question, "epoch": epoch})
