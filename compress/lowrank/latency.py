"""Which layers are worth factorizing on this machine: found by measuring.

Each layer and each of its forms is timed as a file of its own, at the layer's true input shape: a
form with half the MACs may well take longer. Layers of the same shapes are timed once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compress.lowrank.forms import Call, Layer, Sizes, made_up
from compress.lowrank.layers import TargetLayer
from compress.lowrank.moments import padding
from compress.lowrank.plan import Choices, Ways, within_budget
from compress.lowrank.ranks import Candidate

Files = Mapping[str, bytes]
Clock = Callable[[Files, Sequence[np.ndarray], float], Mapping[str, Sequence[float]]]
"""Times files on samples in turns for some seconds; returns the seconds of each, by round."""
Times = Callable[[Mapping[str, Candidate]], float]
"""The share of the present latency that a model with layers in some forms takes."""

LEAST_GAIN = 0.1
"""What a layer's measured time must fall by, as a share of it."""
TRIED = 5
"""Ranks of each form of a layer that are timed, evenly spaced."""
SHORTEST, LONGEST = 0.02, 0.5
"""Seconds that the timing of a file may take."""
NEAR = 0.02
"""How far from the target, as a share of the original's time, is near enough."""
ADJUSTMENTS = 3
"""How often the whole is timed and the budget of the layers corrected."""
OPSET = 18


def thinned(options: Ways) -> Ways:
    """Return of each form of each layer as many ways as are timed, from cheap to dear."""
    result: dict[str, list[Candidate]] = {}
    for path, some in options.items():
        result[path] = []
        for form in dict.fromkeys(one.form for one in some):
            ordered = sorted((one for one in some if one.form == form), key=lambda one: one.macs)
            index = np.linspace(0, len(ordered) - 1, min(TRIED, len(ordered))).round().astype(int)
            result[path] += [ordered[number] for number in index]
    return result


def timed(
    found: Sequence[TargetLayer],
    options: Ways,
    clock: Clock,
    seconds: float,
    gain: float = LEAST_GAIN,
) -> tuple[dict[str, float], Ways]:
    """Return the seconds of each layer, and the ways that take surely less, with their seconds.

    They take less by a share of at least `gain`. `seconds` is for all files together. A layer that
    cannot be timed has no ways.
    """
    files: dict[Sizes, dict[str, bytes]] = {}
    asked: dict[tuple[str, Candidate | None], list[tuple[Sizes, str, int]]] = {}
    for target in found:
        for one in (None, *options[target.path]):
            parts: list[nn.Module] = [_alike(target.layer)]
            if one is not None:
                parts = list(made_up(target.layer, one.form, one.ranks))
            for call in target.calls:
                shape, times = _fed(target.layer, call)
                content = layer_file(parts, shape)
                name = hashlib.sha256(content).hexdigest()
                files.setdefault(shape, {})[name] = content
                asked.setdefault((target.path, one), []).append((shape, name, times))
    count = sum(map(len, files.values()))
    share = min(LONGEST, max(SHORTEST, seconds / max(count, 1)))
    known: dict[tuple[Sizes, str], float] = {}
    for shape, some in files.items():
        sample = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        for name, values in clock(some, [sample], share * len(some)).items():
            known[shape, name] = float(np.median(values))

    def total(path: str, one: Candidate | None) -> float:
        parts = asked[path, one]
        return sum(times * known.get((shape, name), float("nan")) for shape, name, times in parts)

    whole = {target.path: total(target.path, None) for target in found}
    faster = {
        path: [
            replace(one, seconds=total(path, one))
            for one in some
            if total(path, one) <= (1 - gain) * whole[path]
        ]
        for path, some in options.items()
    }
    return {path: 0.0 if np.isnan(one) else one for path, one in whole.items()}, faster


def by_latency(
    whole: Mapping[str, float], options: Ways, now: float, limit: float, times: Times
) -> Choices:
    """Take what loses least within a limit of seconds, of a model that takes `now`.

    The whole is timed with what the layers' own seconds suggest (`times`), and the layers' budget
    corrected by what it is off, a few times.
    """
    total = sum(whole.values())
    budget = total - (now - limit)
    best, best_seconds = Choices(complete=False), float("inf")
    for _ in range(ADJUSTMENTS):
        choices = within_budget(whole, options, lambda one: one.seconds, budget)
        if not choices.taken:
            return choices
        seconds = now * times(choices.taken)
        reached = seconds <= (1 + NEAR) * limit
        # Nearest to the limit among those that keep it, else the fastest.
        if (not reached, abs(seconds - limit)) < (
            best_seconds > (1 + NEAR) * limit,
            abs(best_seconds - limit),
        ):
            best, best_seconds = choices, seconds
        if not choices.complete or abs(seconds - limit) <= NEAR * limit:
            break
        budget -= seconds - limit
    return best


def _alike(layer: Layer) -> nn.Module:
    """Return a layer of the same shapes with random weights."""
    generator = torch.Generator().manual_seed(0)
    made: Any
    if isinstance(layer, nn.Linear):
        made = nn.Linear(layer.in_features, layer.out_features)
    else:
        names = ("kernel_size", "stride", "padding", "dilation")
        options = {name: getattr(layer, name) for name in names}
        made = nn.Conv2d(layer.in_channels, layer.out_channels, **options)
    with torch.no_grad():
        noise = torch.randn(made.weight.shape, generator=generator)
        made.weight.copy_(noise * prod(made.weight.shape[1:]) ** -0.5)
        made.bias.zero_()
    return made  # type: ignore[no-any-return]


def _fed(layer: Layer, call: Call) -> tuple[Sizes, int]:
    """Return the shape that a layer is timed on, a batch of 1, and how often that is its call."""
    shape = call.entered
    if isinstance(layer, nn.Conv2d):
        return (1, *shape[1:]), shape[0]
    rows = prod(shape[:-1])
    return ((1, shape[-1]) if rows == 1 else (1, rows, shape[-1])), 1


def layer_file(layers: Sequence[nn.Module], shape: Sizes) -> bytes:
    """Return the ONNX file of convolutions or linear layers, one after another."""
    nodes, stored, value = [], [], "input"
    for number, layer in enumerate(layers):
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        weight, output = layer.weight.detach().numpy(), f"value_{number}"
        names = [value, f"weight_{number}"]
        if isinstance(layer, nn.Conv2d):
            left, right, above, below = padding(layer)
            options: dict[str, Any] = {
                "strides": list(layer.stride),
                "dilations": list(layer.dilation),
                "pads": [above, left, below, right],
                **({"group": layer.groups} if layer.groups > 1 else {}),
            }
            names += [f"bias_{number}"] * (layer.bias is not None)
            nodes.append(helper.make_node("Conv", names, [output], **options))
        else:
            weight = np.ascontiguousarray(weight.T)
            before = f"product_{number}" if layer.bias is not None else output
            nodes.append(helper.make_node("MatMul", names, [before]))
            if layer.bias is not None:
                nodes.append(helper.make_node("Add", [before, f"bias_{number}"], [output]))
        stored.append(numpy_helper.from_array(weight, f"weight_{number}"))
        if layer.bias is not None:
            stored.append(numpy_helper.from_array(layer.bias.detach().numpy(), f"bias_{number}"))
        value = output
    given = [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)]
    wanted = [helper.make_tensor_value_info(value, TensorProto.FLOAT, [None] * len(shape))]
    graph = helper.make_graph(nodes, "layer", given, wanted, stored)
    opsets = [helper.make_opsetid("", OPSET)]
    lowest = helper.find_min_ir_version_for(opsets)
    proto: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=lowest)
    return bytes(proto.SerializeToString())
