"""Random numbers that depend on an item, on a view of it and on a seed, and on nothing else.

An image is augmented alike in whatever batch, order, process or run it comes, so what a teacher
answers to a view of it can be stored, and a training that was stopped goes on exactly. Global
generators are not drawn from; where other code draws, `preserve_rng_state` puts them back.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BITS = 24
"""Of a uniform number: as many as a float32 holds exactly."""


def seed_of(*parts: int | str) -> int:
    """Return a whole number of 63 bits that depends on all the parts."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class StatelessRNG:
    """Independent random numbers for the items of a batch.

    `items` are their numbers in the split (int64, shape (N,)); `view` tells apart the several
    ways in which an item is augmented. Numbers for different purposes are independent, too.
    """

    items: Tensor
    view: int = 0
    seed: int = 0

    def uniform(self, purpose: str) -> Tensor:
        """Return a number in [0, 1) for each item: float32, shape (N,)."""
        bits = _shifted_right(self._mixed(purpose), 64 - BITS)
        return bits.to(torch.float32) / 2**BITS

    def below(self, purpose: str, limit: int) -> Tensor:
        """Return a whole number from 0 to `limit` - 1 for each item: int64, shape (N,)."""
        # 63 bits modulo the limit: the bias is below one in 2**40 for splits of any real size.
        return _shifted_right(self._mixed(purpose), 1) % limit

    def of(self, items: Tensor) -> StatelessRNG:
        """Return the draws of other items in the same view."""
        return StatelessRNG(items, self.view, self.seed)

    def _mixed(self, purpose: str) -> Tensor:
        """Return 64 random bits for each item, by the finaliser of SplitMix64 (Steele 2014)."""
        key = seed_of(self.seed, self.view, purpose)
        state = self.items * _signed(0x9E3779B97F4A7C15) + key
        state = (state ^ _shifted_right(state, 30)) * _signed(0xBF58476D1CE4E5B9)
        state = (state ^ _shifted_right(state, 27)) * _signed(0x94D049BB133111EB)
        return state ^ _shifted_right(state, 31)


def _signed(value: int) -> int:
    """Return the int64 with the bits of an unsigned 64-bit number."""
    return value - 2**64 if value >= 2**63 else value


def _shifted_right(values: Tensor, places: int) -> Tensor:
    """Shift right and fill with zeros: torch's own shift of int64 repeats the sign."""
    return (values >> places) & (2 ** (64 - places) - 1)


@contextmanager
def preserve_rng_state(device: torch.device | None = None) -> Iterator[None]:
    """Put the generators of Python, numpy and torch (also of a CUDA device) back afterwards."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device and device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
