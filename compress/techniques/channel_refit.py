"""Fitting the layers of a pruned net anew, so that they give what is left of their outputs again.

The channels that went had a part in what later layers computed. Those that stay can take over much
of it: of each layer, in the order of calls, the weights are replaced by the ones with which its
outputs come nearest to the original's, by least squares over calibration items (He et al. 2017,
arXiv 1707.06168, section 3.1). The outputs that are wanted are those of the original on its own
inputs; its inputs are those that the layers before it give now, so each layer takes back what
earlier ones lose (the same, section 3.2). No labels, no gradients; shapes and kinds of layers stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from compress import counts
from compress.lowrank.fit import Inputs
from compress.lowrank.forms import Layer, inputs_of
from compress.lowrank.layers import TargetLayer, target_layers
from compress.lowrank.moments import TOGETHER, WIDEST, Batches, Kept, in_groups, moments, size_of
from compress.model import Model, copied, forward, on_device_of
from compress.techniques.channel_cut import Cut, Plan
from compress.techniques.channel_trace import Vector

RIDGE = 0.01
"""Of the mean second moment of an input, what draws the weights to those that were cut."""
COMPARED = 32
"""Items on which outputs are compared."""
WORK = 4e12
"""Multiply-accumulates of passes up to which each layer has its own: a minute or so."""
SPARSE = "its zeros would be lost"
WIDE = f"it has over {WIDEST} unfolded inputs"
RESCALED = "the cut changed its weights"
UNCHANGED = "nothing before it was cut"


@dataclass(frozen=True)
class Refitted:
    """A pruned module whose layers were fitted, and what became of each."""

    module: nn.Module
    errors: Mapping[str, tuple[float, float]]
    """By layer, the error of its outputs before and after, as a share of their energy."""
    left: Mapping[str, str]
    """Layers that keep their weights -> why."""
    before: float
    """The mean square error of the net's outputs as it was cut, and as it is now."""
    after: float

    @property
    def better(self) -> bool:
        return self.after < self.before


def refitted(original: Model, done: Cut, plan: Plan, batches: Batches, items: int) -> Refitted:
    """Return a pruned net whose layers are fitted on batches of so many items."""
    kept, found, left = _layers(original, done, plan)
    module, source = copied(done.module).eval(), copied(original.module).eval()
    passes = counts.macs(source, original.example) + counts.macs(module, original.example)
    if len(found) * items * passes / 2 <= WORK:
        errors = _one_by_one(module, source, found, kept, batches, items)
    else:
        errors = _at_once(module, source, found, kept, batches, items)
    off = _errors(source, (done.module, module), batches)
    return Refitted(module, errors, left, *off)


def _layers(
    original: Model, done: Cut, plan: Plan
) -> tuple[dict[str, Kept], list[TargetLayer], dict[str, str]]:
    """Return what can be fitted, with what it keeps, and the reasons for what cannot."""
    kept: dict[str, Kept] = {}
    found, left = target_layers(done.module, original.items())
    reached = False
    for one in found:
        before = _layer(original.module, one.path)
        outputs, channels = (_stay(plan, one.path, axis, before, done.classes) for axis in (0, 1))
        reached = reached or len(channels) < before.weight.shape[1]
        if not reached:
            left[one.path] = UNCHANGED
        elif reason := _unfit(one, before, outputs, channels, original.sparse):
            left[one.path] = reason
        else:
            places = before.weight[0, 0].numel()
            inputs = (channels[:, None] * places + torch.arange(places)).flatten()
            kept[one.path] = Kept(outputs, inputs)
    return kept, [one for one in found if one.path in kept], left


def _layer(module: nn.Module, path: str) -> Layer:
    layer = module.get_submodule(path)
    assert isinstance(layer, nn.Linear | nn.Conv2d), "no others are fitted"
    return layer


def _stay(plan: Plan, path: str, axis: int, layer: Layer, gone: Vector) -> Tensor:
    """Return the indices of an axis of a layer's weight that were not cut."""
    name = f"{path}.weight"
    if (name, axis) not in plan.trace.axes:
        return torch.arange(layer.weight.shape[axis])
    return torch.from_numpy(np.flatnonzero(~np.isin(plan.of((name, axis)), gone)))


def _unfit(
    one: TargetLayer, before: Layer, outputs: Tensor, channels: Tensor, sparse: frozenset[str]
) -> str:
    """Say why a layer keeps its weights ('' if it is fitted)."""
    if f"{one.path}.weight" in sparse:
        return SPARSE
    if inputs_of(one.layer) > WIDEST:
        return WIDE
    weight = before.weight.detach()[outputs][:, channels]
    return "" if torch.equal(weight, one.layer.weight.detach()) else RESCALED


def _one_by_one(
    module: nn.Module,
    source: nn.Module,
    found: Sequence[TargetLayer],
    kept: Mapping[str, Kept],
    batches: Batches,
    items: int,
) -> dict[str, tuple[float, float]]:
    """Fit each layer to what those before it, fitted already, give; return the errors.

    Several at once, from inputs that are still to change, come out worse than with `_at_once`.
    """
    errors = {}
    for one in found:
        known = moments(module, {one.path: len(one.calls)}, batches, items, source, kept)
        errors[one.path] = _fit(_layer(module, one.path), known[one.path])
    return errors


def _at_once(
    module: nn.Module,
    source: nn.Module,
    found: Sequence[TargetLayer],
    kept: Mapping[str, Kept],
    batches: Batches,
    items: int,
) -> dict[str, tuple[float, float]]:
    """Fit all layers as if those before them gave the original's values in what they keep.

    One pass of the original, or a few where the moments of all layers have no room together.
    """
    errors = {}
    layers = {one.path: _layer(module, one.path) for one in found}
    calls = {one.path: len(one.calls) for one in found}
    for group in in_groups(list(layers), list(map(size_of, layers.values())), TOGETHER):
        of_group = {path: calls[path] for path in group}
        known = moments(module, of_group, batches, items, source, kept, as_before=True)
        for path in group:
            errors[path] = _fit(layers[path], known.pop(path))
    return errors


def _fit(layer: Layer, known: Inputs) -> tuple[float, float]:
    """Give a layer the weights of least error; return the errors with the old ones and the new.

    With a bias, that takes the mean error; without one, the mean is an input like others.
    """
    assert known.moments is not None
    assert known.wanted is not None
    assert known.wanted_mean is not None
    weight = layer.weight
    old = weight.detach().cpu().double().flatten(1)
    moments, wanted, energy = known.moments, known.wanted, known.energy
    if layer.bias is None:
        moments = moments + torch.outer(known.mean, known.mean)
        wanted = wanted + torch.outer(known.wanted_mean, known.mean)
        energy += float(known.wanted_mean.square().sum())
    ridge = RIDGE * float(moments.diagonal().mean())
    if not ridge > 0:  # dead inputs: nothing is known
        return 0.0, 0.0
    solved = moments.clone()
    solved.diagonal().add_(ridge)
    new = old + torch.linalg.solve(solved, (wanted - old @ moments).T).T

    def error(tried: Tensor) -> float:
        left = energy - float((2 * tried * wanted - tried @ moments * tried).sum())
        return max(0.0, left) / max(energy, 1e-300)

    with torch.no_grad():
        weight.copy_(new.reshape(weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(known.wanted_mean - new @ known.mean)
    return error(old), error(new)


def _errors(original: nn.Module, modules: Sequence[nn.Module], batches: Batches) -> list[float]:
    """Return the mean square errors of the outputs of nets, over some items."""
    total, count = [0.0] * len(modules), 0
    for batch in batches:
        if count >= COMPARED:
            break
        inputs = on_device_of(original, batch)
        expected, count = forward(original, inputs), count + len(inputs[0])
        for number, module in enumerate(modules):
            total[number] += float(
                (forward(module, inputs) - expected).double().square().mean(1).sum()
            )
    return [one / max(count, 1) for one in total]
