"""How a file is lowered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from compress.int8.ranges import Range
from compress.int8.weights import BITS
from compress.model import Model

Bits = int | tuple[tuple[str, int], ...]
HINT = "int8"
"""The name, among a model's hints, of what a training under rounding left."""


@runtime_checkable
class Planned(Protocol):
    """A step that lowers with settings which are known beforehand: `quantize`."""

    calibration: int

    @property
    def settings(self) -> Settings: ...

    def layers_left(self, model: Model) -> frozenset[str]:
        """Return the layers of a model that its settings leave in float."""
        ...

    def layer_bits(self, model: Model) -> Mapping[str, int]:
        """Return the bits of the weights of a model's layers."""
        ...


@dataclass(frozen=True)
class Settings:
    """How a file is lowered."""

    method: str = "best"
    portable: bool = True
    equalize: bool = True
    compensate: bool = True
    correct: bool = True
    bits: Bits = BITS
    """Bits of weights: of all, or by patterns, as in `bits_of`."""
    exclude: tuple[str, ...] = ()
    """Patterns of what stays float, as in `matching`."""
    trained: Mapping[str, Range] = field(default_factory=dict)
    """Ranges that a training settled on, by the layer that reads the value. The weights of these
    layers lie on their grids and are stored as they are; their errors were trained for."""
    floats: frozenset[str] = frozenset()
    """Units that stay float because that is faster, by the names of their nodes."""

    def hint(self, ranges: Mapping[str, Range]) -> dict[str, Any]:
        """Return what a training under these settings leaves for `quantize`."""
        found = {layer: [one.scale, one.zero] for layer, one in ranges.items()}
        return {HINT: {"bits": self._bits, "portable": self.portable, "ranges": found}}

    @property
    def _bits(self) -> int | list[list[str | int]]:
        """The bits as JSON gives them back."""
        return self.bits if isinstance(self.bits, int) else [[*pair] for pair in self.bits]

    def trained_by(self, hints: Mapping[str, Any]) -> dict[str, Range]:
        """Return the ranges among a model's hints, if its weights were trained for these bits."""
        hint = hints.get(HINT, {})
        if (hint.get("bits"), hint.get("portable")) != (self._bits, self.portable):
            return {}
        return {
            layer: Range(scale, zero, "trained") for layer, (scale, zero) in hint["ranges"].items()
        }
