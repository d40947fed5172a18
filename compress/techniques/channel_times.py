"""How long a model takes with its groups of channels at some widths, from measured layer times.

A layer is timed as a file of its own, at its true input shape and at a few widths of what it reads
and makes; between these its time is interpolated, which is right as long as widths are in steps
that kernels like (`channel_steps`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn.modules.conv import _ConvNd

from compress.lowrank.latency import OPSET, Clock, Files, layer_file
from compress.model import Model, forward
from compress.techniques.channel_groups import Channels, Group
from compress.techniques.channel_scores import grains_kept
from compress.techniques.channel_trace import Axis

Kept = Mapping[Axis, int]
"""By group's axis, how many of its grains stay."""
Sizes = tuple[int, int]
"""How many inputs and outputs a layer has."""

POINTS = (0.25, 0.625, 1.0)
"""The shares of each group's grains at which layers are timed."""
SHORTEST, LONGEST = 0.02, 0.5
"""Seconds that the timing of a file may take."""
TOGETHER = 2**28
"""Bytes of files that are open at once."""
CONVOLUTIONS: tuple[type[_ConvNd], ...] = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


@dataclass(frozen=True)
class Span:
    """The number of indices of an axis, as a function of what groups keep."""

    fixed: int
    of: Mapping[Axis, int] = field(default_factory=dict)
    """By group, how many of the indices are its."""

    def at(self, kept: Kept, grains: Mapping[Axis, int]) -> int:
        share = sum(count * kept[axis] / grains[axis] for axis, count in self.of.items())
        return self.fixed + round(share)


@dataclass(frozen=True, eq=False)
class Timed:
    """A convolution or linear layer whose time depends on widths of groups."""

    path: str
    layer: _ConvNd | nn.Linear
    rows: tuple[int, ...]
    """The shape of what enters, but for the batch and its inputs: (H, W), (L,) or (rows,)."""
    calls: int
    reads: Span
    makes: Span
    depthwise: bool = False
    """Whether it loses whole groups."""

    @property
    def whole(self) -> Sizes:
        """Its sizes as it is."""
        first, second = self.layer.weight.shape[:2]
        if self.depthwise:
            return first, first
        return (first, second) if transposed(self.layer) else (second, first)

    @property
    def axes(self) -> frozenset[Axis]:
        return frozenset(self.reads.of) | frozenset(self.makes.of)

    def sizes(self, kept: Kept, grains: Mapping[Axis, int]) -> Sizes:
        makes = max(1, self.makes.at(kept, grains))
        if self.depthwise:
            return makes, makes
        return max(1, self.reads.at(kept, grains)), makes

    def alike(self, sizes: Sizes) -> nn.Module:
        """Return a layer of the same kind with random weights, of sizes as `sizes` gives them."""
        reads, makes = sizes
        made: Any
        if isinstance(self.layer, nn.Linear):
            made = nn.Linear(reads, makes)
        else:
            names = ["kernel_size", "stride", "padding", "dilation"]
            names += ["output_padding"] if transposed(self.layer) else []
            options: dict[str, Any] = {name: getattr(self.layer, name) for name in names}
            groups, (size, second) = self.layer.groups, self.layer.weight.shape[:2]
            first = makes
            if self.depthwise:
                groups = max(1, makes // (size // groups))
            else:
                first, second = (reads, makes) if transposed(self.layer) else (makes, reads)
            first, second = max(1, first // groups) * groups, second * groups
            sides = (first, second) if transposed(self.layer) else (second, first)
            kind = next(one for one in CONVOLUTIONS if isinstance(self.layer, one))
            made = kind(*sides, groups=groups, **options)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            noise = torch.randn(made.weight.shape, generator=generator)
            made.weight.copy_(noise * prod(made.weight.shape[1:]) ** -0.5)
            made.bias.zero_()
        return made  # type: ignore[no-any-return]

    def shape(self, made: nn.Module) -> tuple[int, ...]:
        """Return the shape of what enters a layer like this one."""
        if isinstance(made, _ConvNd):
            return (1, made.in_channels, *self.rows)
        assert isinstance(made, nn.Linear)
        return (1, made.in_features) if self.rows == (1,) else (1, *self.rows, made.in_features)


def timed_layers(model: Model, channels: Channels) -> list[Timed]:
    """Return the layers that read or make channels which can be cut, in the order of modules.

    Convolutions and linear layers that are called as such; the time of all else is in the whole
    alone.
    """
    entered: dict[str, list[tuple[int, ...]]] = {}
    layers: dict[str, _ConvNd | nn.Linear] = {
        path: layer
        for path, layer in model.module.named_modules()
        if isinstance(layer, (nn.Linear, _ConvNd))
    }
    hooks = [
        layer.register_forward_pre_hook(
            lambda own, given, path=path: (
                entered.setdefault(path, []).append(tuple(given[0].shape)) if given else None
            )
        )
        for path, layer in layers.items()
    ]
    try:
        forward(model.module, tuple(tensor[:1] for tensor in model.items()))
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for path, layer in layers.items():
        name, order = f"{path}.weight".lstrip("."), (1, 0) if transposed(layer) else (0, 1)
        depthwise = path in channels.plan.trace.whole_groups
        makes, reads = (_span(channels, (name, axis), layer) for axis in order)
        if depthwise:
            makes = _span(channels, (name, 0), layer)
        shapes = entered.get(path, [])
        if shapes and (makes.of or reads.of):
            shape = shapes[0]
            rows = shape[2:] if isinstance(layer, _ConvNd) else (prod(shape[:-1]),)
            found.append(Timed(path, layer, rows, len(shapes), reads, makes, depthwise))  # type: ignore[arg-type]
    return found


def transposed(layer: nn.Module) -> bool:
    """Whether a layer is a transposed convolution: its weight is (inputs, outputs, ...)."""
    return isinstance(layer, _ConvNd) and layer.transposed


def _span(channels: Channels, axis: Axis, layer: _ConvNd | nn.Linear) -> Span:
    if axis not in channels.plan.trace.axes:
        return Span(layer.weight.shape[axis[1]])
    classes = channels.plan.of(axis)
    counts = {group.axis: int(np.isin(classes, group.classes).sum()) for group in channels.groups}
    of = {name: count for name, count in counts.items() if count}
    return Span(len(classes) - sum(of.values()), of)


class Times:
    """Interpolated seconds of layers, and their sum; what else takes time is not in it."""

    def __init__(
        self,
        layers: Sequence[Timed],
        grains: Mapping[Axis, int],
        known: Mapping[str, Mapping[Sizes, float]],
    ) -> None:
        self.layers, self.grains, self.known = layers, grains, known
        self.touching = {axis: [layer for layer in layers if axis in layer.axes] for axis in grains}

    def of(self, layer: Timed, kept: Kept) -> float:
        sizes = layer.sizes(kept, self.grains)
        return layer.calls * interpolated(self.known.get(layer.path, {}), sizes)

    def total(self, kept: Kept) -> float:
        return sum(self.of(layer, kept) for layer in self.layers)

    def beside(self, axis: Axis, kept: Kept) -> float:
        """Return the seconds of the layers that a group has a part in."""
        return sum(self.of(layer, kept) for layer in self.touching[axis])


def interpolated(known: Mapping[Sizes, float], sizes: Sizes) -> float:
    """Return the time at some sizes, bilinear between and beyond those of a grid; never below 0."""
    if not known:
        return 0.0
    axes = [sorted({one[axis] for one in known}) for axis in (0, 1)]
    if len(axes[0]) * len(axes[1]) > len(known):  # a depthwise layer's: a line
        values = [known[one] for one in sorted(known)]
        return max(0.0, _line(axes[1], values, sizes[1]))
    over = [_line(axes[1], [known[r, m] for m in axes[1]], sizes[1]) for r in axes[0]]
    return max(0.0, _line(axes[0], over, sizes[0]))


def _line(places: Sequence[int], values: Sequence[float], place: float) -> float:
    if len(places) == 1:
        return values[0]
    number = int(np.clip(np.searchsorted(places, place), 1, len(places) - 1))
    left, right = places[number - 1], places[number]
    share = (place - left) / (right - left)
    return float(values[number - 1] * (1 - share) + values[number] * share)


def measured(
    layers: Sequence[Timed],
    groups: Sequence[Group],
    steps: Mapping[Axis, int],
    clock: Clock,
    seconds: float,
) -> dict[str, dict[Sizes, float]]:
    """Return the seconds of each layer at a grid of sizes; one that cannot be timed has none."""
    grains = {group.axis: group.grains for group in groups}
    by_axis = {group.axis: group for group in groups}

    def point(share: float) -> dict[Axis, int]:
        return {
            axis: grains_kept(group, share * group.width, steps[axis])
            for axis, group in by_axis.items()
        }

    asked: dict[Timed, set[Sizes]] = {}
    points = [point(share) for share in POINTS]
    for layer in layers:
        some = [layer.sizes(kept, grains) for kept in points]
        if layer.depthwise:
            asked[layer] = set(some)
        else:
            asked[layer] = set(product({one[0] for one in some}, {one[1] for one in some}))
    return seconds_of_layers(asked, clock, seconds)


def seconds_of_layers(
    asked: Mapping[Timed, Iterable[Sizes]], clock: Clock, seconds: float
) -> dict[str, dict[Sizes, float]]:
    """Time layers at some sizes within about so many seconds, those that are alike once.

    Files are timed in turns, and where they are too many for one process, with one of them in all:
    seconds are ratios to its, round by round, so that a load that comes and goes falls out.
    """
    files: dict[str, bytes] = {}
    names: dict[tuple[str, Sizes], str] = {}
    work: dict[str, int] = {}
    for layer, some in asked.items():
        for sizes in sorted(some):
            made = layer.alike(sizes)
            content = from_a_number(file_of(made, layer.shape(made)), layer.shape(made))
            name = hashlib.sha256(content).hexdigest()
            files[name], names[layer.path, sizes] = content, name
            work[name] = made.weight.numel() * prod(layer.rows)  # type: ignore[operator, union-attr]
    known = _relative(files, max(work, key=lambda one: work[one]), clock, seconds) if files else {}
    result: dict[str, dict[Sizes, float]] = {layer.path: {} for layer in asked}
    for (path, sizes), name in names.items():
        if name in known:
            result[path][sizes] = known[name]
    missing = {path for (path, _), name in names.items() if name not in known}
    return {path: {} if path in missing else found for path, found in result.items()}


def _relative(files: Files, measure: str, clock: Clock, seconds: float) -> dict[str, float]:
    """Return the seconds of files, as ratios to those of the file `measure` in the same round."""
    share = min(LONGEST, max(SHORTEST, seconds / len(files)))
    groups: list[dict[str, bytes]] = [{}]
    for name, content in files.items():
        if sum(map(len, groups[-1].values())) + len(content) > TOGETHER:
            groups.append({})
        groups[-1][name] = content
    known: dict[str, float] = {}
    sample, unit = np.ones((1, 1), dtype=np.float32), 0.0
    for together in groups:
        found = clock({**together, measure: files[measure]}, [sample], share * len(together))
        if measure not in found:
            continue
        by_round = np.asarray(found[measure])
        unit = unit or float(np.median(by_round))
        for name in together.keys() & found.keys():
            known[name] = unit * float(np.median(np.asarray(found[name]) / by_round))
    return known


def file_of(layer: nn.Module, shape: tuple[int, ...]) -> bytes:
    """Return the ONNX file of a convolution or linear layer, for an input of some shape."""
    if not isinstance(layer, _ConvNd) or isinstance(layer, nn.Conv2d):
        return layer_file([layer], shape)
    sides = list(layer._reversed_padding_repeated_twice)
    if layer.transposed:  # what is kept there is what remains to be padded
        sides = [size for size in reversed(layer.padding) for _ in (0, 1)]  # type: ignore[misc]
    options: dict[str, Any] = {
        "strides": list(layer.stride),
        "dilations": list(layer.dilation),
        "pads": [*sides[-2::-2], *sides[::-2]],
        "group": layer.groups,
    }
    if layer.transposed:
        options["output_padding"] = list(layer.output_padding)
    names = ["input", "weight", *(["bias"] if layer.bias is not None else [])]
    kind = "ConvTranspose" if layer.transposed else "Conv"
    stored = [
        numpy_helper.from_array(one.detach().numpy(), name)
        for name, one in zip(names[1:], layer.parameters(), strict=True)
    ]
    given = [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)]
    wanted = [helper.make_tensor_value_info("value", TensorProto.FLOAT, [None] * len(shape))]
    nodes = [helper.make_node(kind, names, ["value"], **options)]
    graph = helper.make_graph(nodes, "layer", given, wanted, stored)
    opsets = [helper.make_opsetid("", OPSET)]
    lowest = helper.find_min_ir_version_for(opsets)
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=lowest)
    return bytes(proto.SerializeToString())


def from_a_number(content: bytes, shape: tuple[int, ...]) -> bytes:
    """Return a file of one input of some shape as one that fills it with its input, of (1, 1).

    So files of any shapes can be timed in turns; to fill it costs what a layer before would.
    """
    proto = onnx.load_from_string(content)
    graph, inner = proto.graph, proto.graph.input[0].name
    graph.input.pop()
    graph.input.append(helper.make_tensor_value_info("number", TensorProto.FLOAT, (1, 1)))
    graph.initializer.append(numpy_helper.from_array(np.array(shape, dtype=np.int64), "filled"))
    graph.node.insert(0, helper.make_node("Expand", ["number", "filled"], [inner]))
    return bytes(proto.SerializeToString())
