"""What the layers of a model are given on calibration items, as it is asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property

import torch
from torch import Tensor

from compress.lowrank.fit import Inputs
from compress.lowrank.forms import Layer, inputs_of
from compress.lowrank.layers import target_layers
from compress.lowrank.moments import TOGETHER, WIDEST, Batches, in_groups, moments, size_of
from compress.model import Model

RIDGE, SCARCE = 0.01, 1.0
"""Of the mean variance of an input, what is added to each: it draws a layer's weights to those that
it has. The second times the number of inputs over that of rows, where that is more: with few rows
to an input, least squares would fit their noise."""
CONSTANT = 1e-6
"""The same, of the mean square of an input, which outweighs the rounding of constant inputs."""


def regularised(known: Inputs, bias: bool) -> tuple[Tensor, float]:
    """Return second moments (D, D) by which weights are fitted, and what to add to their diagonal.

    With a bias, that takes the mean error; without one, the mean is an input like others. Nothing
    is added where all inputs are zero.
    """
    moments, mean = known.moments, known.mean
    assert moments is not None, "those of wider layers are not known"
    square = float((moments.diagonal() + mean.square()).mean())
    if not bias:
        moments = moments + torch.outer(mean, mean)
    share = max(RIDGE, SCARCE * len(moments) / max(known.rows, 1))
    return moments, share * float(moments.diagonal().mean()) + CONSTANT * square


class LayerInputs:
    """Second moments of the inputs of a model's layers.

    One pass over the items where those of all layers have room together, else one for each part of
    them: layers are best asked for in the order of the net.
    """

    def __init__(self, model: Model, batches: Batches, items: int) -> None:
        self.model, self.batches, self.items = model, batches, items
        self._known: dict[str, Inputs] = {}

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """The layers of which it can be known, by path: their forward is, and they aren't too wide.

        All of them run once or more in a pass, in this order.
        """
        return {path: layer for path, (layer, _) in self._targets.items()}

    @cached_property
    def _targets(self) -> Mapping[str, tuple[Layer, int]]:
        found, _ = target_layers(self.model.module, self.model.items())
        some = [one for one in found if inputs_of(one.layer) <= WIDEST]
        return {one.path: (one.layer, len(one.calls)) for one in some}

    def of(self, paths: Collection[str]) -> dict[str, Inputs]:
        """Return what some layers are given. Raises UserError for values that are not finite."""
        missing = [path for path in paths if path not in self._known]
        if missing:
            others = list(self.layers)
            later = others[others.index(missing[0]) :] + others
            self._known = {path: one for path, one in self._known.items() if path in paths}
            wanted = [path for path in dict.fromkeys([*missing, *later]) if path not in self._known]
            room = TOGETHER - sum(size_of(self.layers[path]) for path in self._known)
            sizes = [size_of(self.layers[path]) for path in wanted]
            first = in_groups(wanted, sizes, room)[0]
            calls = {path: self._targets[path][1] for path in dict.fromkeys([*missing, *first])}
            self._known |= moments(self.model.module, calls, self.batches, self.items)
        return {path: self._known[path] for path in paths}
