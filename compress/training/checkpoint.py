"""The state of a training at the end of an epoch, kept so that it can be resumed exactly."""

from __future__ import annotations

import contextlib
import json
import math
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
        """Return all tensors by name, and the states of the generators of random numbers."""
        found = {
            f"{name}/{key}": value
            for name, module in self.modules.items()
            for key, value in module.state_dict().items()
        }
        found |= {f"best/{key}": value for key, value in self.best.items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            found |= {
                f"optimizer/{number}/{key}": value
                for key, value in state.items()
                if isinstance(value, Tensor)
            }
        found["random/cpu"] = torch.get_rng_state()
        found |= {f"random/{name}": value for name, value in _generators().items()}
        if torch.cuda.is_initialized():
            found["random/cuda"] = torch.cuda.get_rng_state()
        # Clones: safetensors refuses views that share memory, and channels_last strides.
        return {key: value.detach().cpu().contiguous().clone() for key, value in found.items()}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned. Raises KeyError or RuntimeError if it does not fit."""
        grouped: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            group, _, key = name.partition("/")
            grouped.setdefault(group, {})[key] = value
        for name, module in self.modules.items():
            module.load_state_dict(grouped.get(name, {}))
        self.best = grouped.get("best", {})
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in grouped.get("optimizer", {}).items():
            number, _, key = name.partition("/")
            state.setdefault(int(number), {})[key] = value
        whole = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**whole, "state": state})
        # In the strides of the parameters, which fused optimizers insist on.
        for parameter, values in self.optimizer.state.items():
            for key, value in values.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    values[key] = torch.empty_like(parameter).copy_(value)
        torch.set_rng_state(grouped["random"]["cpu"])
        _set_generators(grouped["random"])
        if "cuda" in grouped["random"]:
            torch.cuda.set_rng_state(grouped["random"]["cuda"])


def _generators() -> dict[str, Tensor]:
    """Return the states of Python's and numpy's generators: a layer may draw from them."""
    version, words, gauss = random.getstate()
    name, keys, place, has_gauss, cached = np.random.get_state(legacy=True)  # type: ignore[misc]
    assert (version, name) == (3, "MT19937"), "the states that are known"
    waiting = float("nan") if gauss is None else float(gauss)
    return {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor(waiting, dtype=torch.float64),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy_rest": torch.tensor([place, has_gauss, cached], dtype=torch.float64),
    }


def _set_generators(states: Mapping[str, Tensor]) -> None:
    gauss = float(states["python_gauss"])
    words = tuple(map(int, states["python"]))
    random.setstate((3, words, None if math.isnan(gauss) else gauss))
    place, has_gauss, cached = map(float, states["numpy_rest"])
    keys = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(place), int(has_gauss), cached))


class Checkpoints:
    """The last epoch's state of one training on a cache. Without a cache nothing is kept."""

    def __init__(self, cache: StepCache | None, question: Mapping[str, Any], epochs: int) -> None:
        self.cache, self.question = cache, dict(question)
        self.last: int | None = None
        self.full = ""
        """Why nothing more is kept: what the disk said."""
        self.found = self._find(epochs)

    @property
    def reached(self) -> TrainingProgress:
        """How far the training had come when it was stopped; not at all, if nothing is kept."""
        return (
            TrainingProgress()
            if self.found is None
            else TrainingProgress(**self.found.about["state"])
        )

    def _find(self, epochs: int) -> CacheEntry | None:
        """Look for the latest epoch that was kept."""
        if self.cache is None:
            return None
        for epoch in range(epochs, 0, -1):
            kept = self.cache.get(self._key(epoch), temporary=True)
            if kept is not None:
                self.last = epoch
                # A kill may have come between keeping this one and dropping the one before it.
                for earlier in range(epoch - 1, 0, -1):
                    self.cache.drop(self._key(earlier))
                return kept
        return None

    def resume(self, training: TrainingState) -> None:
        """Bring a training to the latest epoch that was kept."""
        if self.found is not None:
            training.take(load_file(self.found.folder / TENSORS))

    def keep(self, training: TrainingState, state: TrainingProgress) -> None:
        """Keep the state after an epoch, then forget the one before it."""
        if self.cache is None or self.full:
            return
        about = {"state": json.loads(json.dumps(vars(state)))}

        def fill(folder: Path) -> Mapping[str, Any]:
            # As bytes: what `save_file` raises on a full disk is no OSError.
            (folder / TENSORS).write_bytes(save(training.tensors()))
            return about

        try:
            self.cache.put(self._key(state.epoch), fill, temporary=True)
        except OSError as error:  # a full disk: the training itself can go on
            self.full = str(error)
            return
        self._drop()
        self.last = state.epoch

    def _drop(self) -> None:
        if self.cache is not None and self.last is not None:
            with contextlib.suppress(OSError):
                self.cache.drop(self._key(self.last))
            self.last = None

    def _key(self, epoch: int) -> str:
        return digest({"checkpoint": self.question, "epoch": epoch})
