"""Refitting subnets, as pruning refits what it leaves: each in one pass over a few items.

What is wanted is what the whole net gives, which is recorded once for all of its subnets.
"""

from __future__ import annotations

from torch import nn

from compress.lowrank.fit import Inputs
from compress.lowrank.forms import Layer, inputs_of
from compress.lowrank.in_turn import Stay, Wanted, items_with_room, rows_of
from compress.lowrank.layers import target_layers
from compress.lowrank.moments import WIDEST
from compress.model import Model
from compress.supernet.sandwich import Factors, Picks
from compress.tasks.base import Tensors
from compress.techniques.channel_refit import refit

ROWS, TIMES = 512, 4
"""Rows by which a layer is fitted: so many, or so many times its inputs. What comes out of a search
is refitted by more."""


class SubnetRefit:
    """Gives the layers of subnets the weights by which they come nearest to the whole net's."""

    def __init__(self, model: Model, inputs: Tensors) -> None:
        found, _ = target_layers(model.module, model.items())
        paths = [
            one.path
            for one in found
            if inputs_of(one.layer) <= WIDEST
            and f"{one.path}.weight" not in model.sparse
            and all(parameter.requires_grad for parameter in one.layer.parameters())
        ]
        once = [one.path for one in found if one.path in paths and len(one.calls) == 1]
        self._wanted: Wanted | None = None
        if (
            paths
            and once == paths
            and (few := items_with_room(model.module, inputs, len(inputs[0])))
        ):
            some = tuple(tensor[:few] for tensor in inputs)
            self._wanted = Wanted(model.module, dict.fromkeys(paths), some, _rows)
        self.possible = self._wanted is not None and self._wanted.paths == paths
        """Whether there is room for it, and all layers can be fitted that matter."""

    def refit(self, module: nn.Module, picks: Picks, factors: Factors) -> None:
        """Refit a subnet in place; `picks` say what it has of the whole net's tensors.

        Layers whose weights are multiplied by `factors` keep them. Raises NotFinite for values that
        are not finite.
        """
        assert self._wanted is not None, "see `possible`"
        there = {path for path, layer in module.named_modules() if hasattr(layer, "weight")}
        stay: Stay = {
            path: dict(picks.get(f"{path}.weight", ())).get(0)
            for path in self._wanted.paths
            if path in there and f"{path}.weight" not in factors
        }
        self._wanted.fit(module, stay, _fitted)


def _rows(layer: Layer) -> int:
    return min(rows_of(layer), max(ROWS, TIMES * inputs_of(layer)))


def _fitted(path: str, layer: Layer, known: Inputs) -> nn.Module:
    refit(layer, known)
    return layer
