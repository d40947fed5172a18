"""A device that is made up: modules run on the CPU, and say themselves how long they took."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.model import forward
from compress.system.cuda import Call, Cuda

IMAGES = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Clock:
    """What the modules below move on."""

    now = 0.0


class Costly(nn.Module):
    """A module that takes `cost` seconds, and other times for other memory formats and types."""

    def __init__(self, inner: nn.Module, cost: float = 1e-3, last: float = 1.0) -> None:
        super().__init__()
        self.inner, self.cost, self.last = inner, cost, last

    def forward(self, *inputs: Tensor) -> Tensor:
        last = any(w.dim() == 4 and not w.is_contiguous() for w in self.parameters())
        half = 0.5 if inputs[0].dtype != torch.float32 else 1.0
        Clock.now += self.cost * half * (self.last if last else 1.0)
        return self.inner(*inputs)


class Fake(Cuda):
    """It breaks once `breaks_after` times memory was given back."""

    name = "cpu"

    def __init__(self, breaks_after: int = 1000) -> None:
        self.breaks_after = breaks_after
        self.frees = self.captures = 0

    def absent(self) -> str:
        return ""

    def lacks(self, dtype: str) -> str:
        return ""

    def failure(self) -> str:
        return "CUDA error: an illegal memory access" if self.frees >= self.breaks_after else ""

    def stopwatch(self, call: Call, index: int) -> tuple[float, Any]:
        before = Clock.now
        outputs = call(index)
        return Clock.now - before, outputs

    def _warm(self, run: Callable[[], Any]) -> None:
        pass

    def _record(self, run: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        """As a graph does, refer to what was captured without keeping it alive."""
        self.captures += 1
        outputs, address = run(), weakref.ref(run)

        def replay() -> None:
            there = address()
            assert there is not None, "what the graph reads was freed"
            outputs.copy_(there())

        return replay, outputs

    def held(self) -> int:
        return 1000

    def peak(self, run: Callable[[], Any]) -> int:
        run()
        return 5000

    def free(self) -> None:
        self.frees += 1

    def about(self) -> dict[str, Any]:
        return {"name": "made up"}


class Otherwise(Fake):
    """What takes long as it is, takes short as a graph: 1.5 ms together."""

    def _record(self, run: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        replay, outputs = super()._record(run)

        def timed() -> None:
            before = Clock.now
            replay()
            Clock.now = before + 1.5e-3 - (Clock.now - before)

        return timed, outputs


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    body = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(32, 10)).eval()


def logits(module: nn.Module) -> np.ndarray:
    return forward(module, (IMAGES,)).numpy()


class Caching(nn.Module):
    """Computes once, and answers the same from then on."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.kept = inner, None

    def forward(self, images: Tensor) -> Tensor:
        Clock.now += 1e-4
        if self.kept is None:
            self.kept = self.inner(images)
        return self.kept
