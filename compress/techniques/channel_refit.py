"""Refitting the layers of a pruned net, so that they reproduce the outputs that are left of them.

The channels that went had a part in what later layers computed, and those that stay can take over
much of it: each layer gets the weights with which its outputs come nearest to the original's in the
same channels, by least squares over calibration items (He et al. 2017, arXiv 1707.06168, section
3.1). What is wanted are the original's outputs on its own inputs; the inputs are those that the
layers before it, refitted already, give in the pruned net, so each layer takes back what earlier
ones lose (the same, section 3.2). No labels, no gradients; shapes and kinds of layers stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.lowrank.fit import Inputs
from compress.lowrank.forms import Layer, inputs_of
from compress.lowrank.in_turn import Wanted, first_items, items_with_room
from compress.lowrank.layer_inputs import LayerInputs, regularised
from compress.lowrank.layers import TargetLayer, target_layers
from compress.lowrank.moments import WIDEST, Batches, NotFinite
from compress.model import Model, copied, forward, on_device_of
from compress.tasks.base import Tensors
from compress.techniques.channel_cut import Cut, Plan
from compress.techniques.channel_trace import Vector

EQUAL = 1e-5
"""Of the largest input, by which the inputs of a layer before all cuts may differ."""
OTHERS = "only Linear and Conv2d layers are refitted"
FROZEN = "its weights are frozen"
SPARSE = "its zeros would be lost"
WIDE = f"it has over {WIDEST} unfolded inputs"
RESCALED = "the cut changed its weights"
UNCHANGED = "its inputs are those that they were"
AMONG_ROWS = "channels that were cut are among its rows"
ELSEWHERE = "it is called for other rows than in the original"


@dataclass(frozen=True)
class Refitted:
    """A pruned module whose layers were refitted, and what became of each."""

    module: nn.Module
    errors: Mapping[str, tuple[float, float]]
    """By layer, the mean square error of its outputs before and after, as a share of their mean
    square."""
    left_alone: Mapping[str, str]
    """Layers that keep their weights -> why."""
    before: float
    """The mean square error of the net's outputs as it was cut, and as it is now."""
    after: float

    @property
    def better(self) -> bool:
        return self.after < self.before


def refitted(
    original: Model, done: Cut, plan: Plan, given: LayerInputs, others: Batches
) -> Refitted:
    """Return a pruned net refitted on what the original's layers are given, judged on `others`."""
    kept, left_alone = _targets(original, done, plan)
    if not kept:
        return Refitted(done.module, {}, left_alone, 0.0, 0.0)
    module, source = copied(done.module).eval(), copied(original.module).eval()
    once = {path: one.outputs for path, one in kept.items() if one.once}
    wanted = _wanted(original, once, given)
    turn = [] if wanted is None else wanted.paths
    # The others first: what comes in turn takes back what they lose.
    errors = _at_once(module, [path for path in kept if path not in turn], kept, given)
    if wanted is not None:
        try:
            errors |= _in_turn(module, wanted)
        except NotFinite as error:  # of the net as it was cut: the original gives finite values
            left_alone |= dict.fromkeys(kept, f"layer {error.path} is not given finite values")
            return Refitted(done.module, {}, left_alone, 0.0, 0.0)
    left_alone |= {path: ELSEWHERE if path in turn else WIDE for path in kept if path not in errors}
    before, after = output_errors(source, (done.module, module), others)
    return Refitted(module, errors, left_alone, before, after)


@dataclass(frozen=True)
class _Kept:
    """What a layer still has of the original's outputs and unfolded inputs, by their numbers."""

    outputs: Tensor
    inputs: Tensor
    once: bool
    """Whether it runs once in a pass."""


def _targets(original: Model, done: Cut, plan: Plan) -> tuple[dict[str, _Kept], dict[str, str]]:
    """Return what can be refitted, with what it keeps, and the reasons for what cannot."""
    kept: dict[str, _Kept] = {}
    found, reasons = target_layers(done.module, original.items())
    for path in reasons:
        layer = done.module.get_submodule(path)
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            reasons[path] = OTHERS
    paths = [one.path for one in found]
    were, are = (_entered(net, paths, original.items()) for net in (original.module, done.module))
    for one in found:
        before = _layer(original.module, one.path)
        outputs, channels = (_stay(plan, one.path, axis, before, done.classes) for axis in (0, 1))
        reason = _rows_differ(one.layer, were[one.path], are[one.path])
        reason = reason or _unfit(one, before, outputs, channels, original.sparse)
        if reason:
            reasons[one.path] = reason
            continue
        places = before.weight[0, 0].numel()
        inputs = (channels[:, None] * places + torch.arange(places)).flatten()
        kept[one.path] = _Kept(outputs, inputs, len(one.calls) == 1)
    return kept, reasons


def _layer(module: nn.Module, path: str) -> Layer:
    layer = module.get_submodule(path)
    assert isinstance(layer, nn.Linear | nn.Conv2d), "no others are refitted"
    return layer


def _entered(module: nn.Module, paths: Sequence[str], inputs: Tensors) -> dict[str, list[Tensor]]:
    """Return what enters layers in each of their calls, on some items."""
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}

    def note(path: str) -> Any:
        def hook(layer: Any, given: Any, options: Any) -> None:
            seen[path].append((given[0] if given else options["input"]).detach().clone())

        return hook

    with ExitStack() as stack:
        for path in paths:
            layer = module.get_submodule(path)
            handle = layer.register_forward_pre_hook(note(path), with_kwargs=True)
            stack.callback(handle.remove)
        forward(module, on_device_of(module, inputs))
    return seen


def _rows_differ(layer: Layer, before: Sequence[Tensor], after: Sequence[Tensor]) -> str:
    """Say why the rows of a layer are not those of the original, or are the same ('' else)."""
    axis = -1 if isinstance(layer, nn.Linear) else 1
    if [_without(one, axis) for one in before] != [_without(one, axis) for one in after]:
        return AMONG_ROWS
    same = (
        one.shape == other.shape and (one - other).abs().max() <= EQUAL * one.abs().max()
        for one, other in zip(before, after, strict=True)
    )
    return UNCHANGED if all(same) else ""


def _without(tensor: Tensor, axis: int) -> list[int]:
    """Return the shape of a tensor but for its channels."""
    shape = list(tensor.shape)
    del shape[axis]
    return shape


def _stay(plan: Plan, path: str, axis: int, layer: Layer, gone: Vector) -> Tensor:
    """Return the indices of an axis of a layer's weight that were not cut."""
    name = f"{path}.weight"
    if (name, axis) not in plan.trace.axes:
        return torch.arange(layer.weight.shape[axis])
    return torch.from_numpy(np.flatnonzero(~np.isin(plan.of((name, axis)), gone)))


def _unfit(
    one: TargetLayer, before: Layer, outputs: Tensor, channels: Tensor, sparse: frozenset[str]
) -> str:
    """Say why a layer keeps its weights ('' if it is refitted)."""
    if f"{one.path}.weight" in sparse:
        return SPARSE
    if not all(parameter.requires_grad for parameter in before.parameters()):
        return FROZEN
    if inputs_of(one.layer) > WIDEST:
        return WIDE
    weight = before.weight.detach()[outputs][:, channels]
    return "" if torch.equal(weight, one.layer.weight.detach()) else RESCALED


def _wanted(original: Model, stay: Mapping[str, Tensor], given: LayerInputs) -> Wanted | None:
    """Return what is wanted of layers that run once; None where there is no room for it."""
    items = first_items(given.batches, given.items)
    if items is None or not stay:
        return None
    count = items_with_room(original.module, items, given.items)
    return Wanted(original.module, stay, tuple(one[:count] for one in items)) if count else None


def _in_turn(module: nn.Module, wanted: Wanted) -> dict[str, tuple[float, float]]:
    """Refit one layer after another, to what those before it give by then; return the errors."""
    errors: dict[str, tuple[float, float]] = {}

    def fit(path: str, layer: Layer, known: Inputs) -> nn.Module:
        errors[path] = refit(layer, known)
        return layer

    wanted.fit(module, dict.fromkeys(wanted.paths), fit)
    return errors


def _at_once(
    module: nn.Module, paths: Sequence[str], kept: Mapping[str, _Kept], given: LayerInputs
) -> dict[str, tuple[float, float]]:
    """Refit layers as if those before them gave the original's values in what they keep."""
    errors = {}
    for path in paths:
        if path in given.layers:
            known = _part(given.layers[path], given.of([path])[path], kept[path])
            errors[path] = refit(_layer(module, path), known)
    return errors


def _part(layer: Layer, known: Inputs, kept: _Kept) -> Inputs:
    """Return what is known of the inputs and outputs of a layer that are kept."""
    moments = known.moments
    assert moments is not None, "wider layers are not refitted"
    weight = layer.weight.detach().cpu().double().flatten(1)[kept.outputs]
    wanted = weight @ moments[:, kept.inputs]
    mean = weight @ known.mean
    if layer.bias is not None:
        mean = mean + layer.bias.detach().cpu().double()[kept.outputs]
    energy = float(((weight @ moments) * weight).sum())
    inputs = moments[kept.inputs][:, kept.inputs]
    return Inputs(known.mean[kept.inputs], inputs, None, wanted, mean, energy, known.rows)


def refit(layer: Layer, known: Inputs) -> tuple[float, float]:
    """Give a layer the weights of least error; return the errors with the old ones and the new."""
    moments, wanted, wanted_mean = known.moments, known.wanted, known.wanted_mean
    assert moments is not None, "wider layers are not refitted"
    assert wanted is not None, "it is given"
    assert wanted_mean is not None, "it is given"
    weight, mean = layer.weight, known.mean
    old = weight.detach().cpu().double().flatten(1)
    bias = torch.zeros(len(old), dtype=old.dtype)
    if layer.bias is not None:
        bias = layer.bias.detach().cpu().double()

    def error(tried: Tensor, bias: Tensor) -> float:
        """Return the mean square error, as a share of what is wanted."""
        off = wanted_mean - tried @ mean - bias
        spread = known.energy - float((2 * tried * wanted - tried @ moments * tried).sum())
        whole = known.energy + float(wanted_mean.square().sum())
        return max(0.0, spread + float(off.square().sum())) / whole if whole else 0.0

    solved, ridge = regularised(known, bias=layer.bias is not None)
    goal = wanted if layer.bias is not None else wanted + torch.outer(wanted_mean, mean)
    new = old
    if ridge > 0:
        residual = goal - old @ solved
        added = solved.clone()
        added.diagonal().add_(ridge)
        new = old + _solved(added, residual.T).T
    before = error(old, bias)
    if layer.bias is not None:
        bias = wanted_mean - new @ mean
    with torch.no_grad():
        weight.copy_(new.reshape(weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(bias)
    return before, error(new, bias)


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve a symmetric system that is positive definite but for rounding."""
    factor, failed = torch.linalg.cholesky_ex(matrix)  # takes half the time of LU
    return torch.linalg.solve(matrix, right) if failed else torch.cholesky_solve(right, factor)


def output_errors(
    original: nn.Module, modules: Sequence[nn.Module], batches: Batches
) -> list[float]:
    """Return the mean square errors of the outputs of nets."""
    total, count = [0.0] * len(modules), 0
    for batch in batches:
        inputs = on_device_of(original, batch)
        expected = forward(original, inputs)
        count += expected.numel()
        for number, module in enumerate(modules):
            total[number] += float((forward(module, inputs) - expected).double().square().sum())
    return [one / max(count, 1) for one in total]
