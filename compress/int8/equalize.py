"""Scaling channels so that few of them do not take the levels of all others.

Between two products, a channel may be divided by any positive number, and the weights that read it
multiplied by that number: the function stays. Chosen as here, activations and weights share what
makes quantization hard (Nagel et al. 2019, section 4.1; Xiao et al. 2023, equation 4, for the
LayerNorm before a linear layer).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compress.deploy.observe import Observed, Runner
from compress.deploy.session import split
from compress.int8.units import WEIGHTED, Unit, array, attribute, quantizable, sole_reader
from compress.int8.weights import along
from compress.tasks.base import Tensors

ELEMENTWISE = frozenset({"LeakyRelu", "PRelu", "Relu"})
"""What may stand between: f(x / s) = f(x) / s for each element and every s > 0."""
POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})
"""The same for each channel of images, whose axis is 1."""
NORMS = frozenset({"BatchNormalization", "InstanceNormalization"})
"""Their scale and bias are those of channels, whose axis is 1. Those of a group norm stand in nodes
of their own."""
STRENGTH = 0.5
"""The share of a channel's spread that moves into the weights."""
SPREAD = 1e-6
"""The least divisor, as a share of the largest: below, a channel counts as nothing."""
MOVED = 1e-3
"""The most that outputs may move, as a share of the largest. Rounding to float32 moves them by a
thousandth of that."""


@dataclass(frozen=True)
class Link:
    """A value whose channels may be scaled: what makes it, and what reads it."""

    value: ir.Value
    axis: int
    """Along which the channels lie, from 0."""
    scaled: tuple[tuple[ir.Value, int], ...]
    """Constants that make it, each with the axis along which the channels lie."""
    readers: tuple[Unit, ...]
    repeats: int = 1
    """How many neighbours each channel has become by flattening."""

    @property
    def name(self) -> str:
        assert self.value.name is not None
        return self.value.name


def links(graph: ir.Graph) -> Iterator[Link]:
    """Yield the values whose channels may be scaled: one axis is the channels of all around them.

    A product may read any axis: a convolution the second one, a linear layer the last.
    """
    for node in graph:
        for value in node.outputs:
            uses = value.uses()
            if not uses or value.is_graph_output():
                continue
            if not all(_reads(use.node, use.idx) for use in uses):
                continue
            readers = tuple(Unit(use.node) for use in uses)
            axes = {_channels(unit.node, value) for unit in readers}
            sizes = {_inputs(unit) for unit in readers}
            if len(axes) != 1 or len(sizes) != 1 or (axis := axes.pop()) is None:
                continue
            if found := _made_by(value, axis):
                # A bias may have one element for all of them.
                made = max(_size(one, along) for one, along in found)
                repeats, rest = divmod(sizes.pop(), made)
                if repeats and not rest:
                    yield Link(value, axis, found, readers, repeats)


def _size(value: ir.Value, axis: int) -> int:
    values = array(value)
    assert values is not None
    return int(values.shape[axis])


def _reads(node: ir.Node, index: int) -> bool:
    """Whether a node reads channels by a weight of its own that nothing else uses."""
    return (
        index == 0 and node.op_type in WEIGHTED and not quantizable(node) and _own(node.inputs[1])
    )


def _channels(node: ir.Node, value: ir.Value | None) -> int | None:
    """Return the axis of a product's input or output that counts channels; None if not known."""
    if node.op_type == "Conv":
        return 1
    return None if value is None or value.shape is None else len(value.shape) - 1


def _inputs(unit: Unit) -> int:
    """Return how many channels a product reads."""
    if unit.kind == "Conv":
        return int(unit.weight.shape[1] * unit.groups)
    return int(unit.weight.shape[1 - unit.channel_axis])


def _own(value: ir.Value | None) -> bool:
    return array(value) is not None and value is not None and len(value.uses()) == 1


def _made_by(value: ir.Value, axis: int) -> tuple[tuple[ir.Value, int], ...]:
    """Return the constants that scale a value along an axis; () where there are none."""
    node = value.producer()
    while node is not None and (before := _axis_before(node, axis)) is not None:
        source = node.inputs[0]
        if source is None or sole_reader(source) is not node:
            return ()
        node, axis = source.producer(), before
    if node is None or node.outputs[0].shape is None:
        return ()
    constants = _absorbing(node, axis)
    return constants if all(_own(one) for one, _ in constants) else ()


def _axis_before(node: ir.Node, axis: int) -> int | None:
    """Return which axis of a node's input becomes this one, if scaling along both is the same."""
    if node.op_type == "Transpose":
        return int(node.attributes["perm"].value[axis]) if "perm" in node.attributes else None
    if node.op_type in ("Flatten", "Reshape", "Squeeze"):
        return 1 if axis == 1 and _flattens(node) else None
    if node.op_type in ELEMENTWISE or (node.op_type in POOLS and axis == 1):
        return axis
    return None


def _flattens(node: ir.Node) -> bool:
    """Whether a node makes (N, C * positions) of images (N, C, ...), a channel's beside another."""
    before, after = (
        None if value is None or value.shape is None else list(value.shape)
        for value in (node.inputs[0], node.outputs[0])
    )
    if before is None or after is None or len(before) < 3 or len(after) != 2:
        return False
    sizes = [size for size in before[1:] if isinstance(size, int)]
    return len(sizes) == len(before) - 1 and after[1] == math.prod(sizes)


def _absorbing(node: ir.Node, axis: int) -> tuple[tuple[ir.Value, int], ...]:
    """Return the constants of a node that scale its output along an axis, each with their own."""
    kind, rank = node.op_type, len(node.outputs[0].shape or ())
    if kind == "LayerNormalization":
        last = attribute(node, "axis", -1) in (-1, rank - 1) and axis == rank - 1
        return tuple((one, 0) for one in node.inputs[1:] if one is not None) if last else ()
    if kind in NORMS:
        return tuple((one, 0) for one in node.inputs[1:3] if one is not None and axis == 1)
    if kind in ("Add", "Mul"):
        return _with_a_constant(node, axis - rank)
    if kind not in WEIGHTED or quantizable(node) or _channels(node, node.outputs[0]) != axis:
        return ()
    assert node.inputs[1] is not None
    found = [(node.inputs[1], Unit(node).channel_axis)]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        found.append((node.inputs[2], 0))
    return tuple(found)


def _with_a_constant(node: ir.Node, from_end: int) -> tuple[tuple[ir.Value, int], ...]:
    """Return the constants that scale a sum or product with a constant along an axis from the end.

    A factor does it alone; of a sum, what is added and the constants that make the other part: a
    product's bias, or a norm's, where it stands on its own.
    """
    for one, other in (node.inputs, tuple(reversed(node.inputs))):
        values, before = array(one), other.producer() if other is not None else None
        if values is None or values.ndim + from_end < 0:
            continue
        assert one is not None
        if node.op_type == "Mul":
            several = values.shape[from_end] > 1
            return ((one, values.ndim + from_end),) if several else ()
        assert other is not None
        if before is None or sole_reader(other) is not node:
            continue
        axis = len(other.shape or ()) + from_end
        if made := _absorbing(before, axis):
            return (*made, (one, values.ndim + from_end))
    return ()


def divisors(link: Link, channels: np.ndarray, strength: float = STRENGTH) -> np.ndarray:
    """Return by what each channel is divided, from the largest |value| of each."""
    channels = channels.reshape(-1, link.repeats).max(1)
    largest = np.maximum(channels.astype(np.float64), SPREAD * channels.max())
    if all(unit.groups > 1 and unit.weight.shape[1] == 1 for unit in link.readers):
        found = largest  # a depthwise weight has a scale for each channel anyway
    else:
        read = _read(link)
        read = np.maximum(read, SPREAD * read.max())
        found = largest**strength / read ** (1 - strength)
    return np.asarray(found / np.exp(np.log(found).mean()))


def _read(link: Link) -> np.ndarray:
    """Return the largest |weight| that reads each channel."""
    found = []
    for unit in link.readers:
        weight, axes = _by_input(unit)
        others = tuple(i for i in range(weight.ndim) if i not in axes)
        found.append(np.abs(weight.astype(np.float64)).max(others).reshape(-1))
    return np.asarray(np.max(found, axis=0)).reshape(-1, link.repeats).max(1)


def _by_input(unit: Unit) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return a weight so shaped that some axes, in order, count the channels that it reads."""
    weight = unit.weight
    if unit.kind != "Conv":
        return weight, (1 - unit.channel_axis,)
    return weight.reshape(unit.groups, -1, *weight.shape[1:]), (0, 2)


def equalized(model: ir.Model, observed: Mapping[str, Observed]) -> tuple[ir.Model, int]:
    """Return a graph of the same function with its channels scaled, and at how many values.

    `observed` holds the channels of every link's value.
    """
    made = model.clone()
    count = 0
    for link in links(made.graph):
        channels = observed[link.name].channels
        # Of nothing but zeros, or read by nothing but zeros: there is nothing to share.
        if channels is None or not channels.max() > 0 or not _read(link).max() > 0:
            continue
        by = divisors(link, channels)
        for value, axis in link.scaled:
            _scale(value, 1 / by, axis)
        for unit in link.readers:
            _scale_read(unit, np.repeat(by, link.repeats))
        count += 1
    return made, count


def same_function(one: ir.Model, other: ir.Model, batches: Iterable[Tensors]) -> bool:
    """Whether two graphs give the same outputs on some items, apart from rounding."""
    names = [str(value.name) for value in one.graph.outputs]
    # One by one: how many items are run at once depends on the memory that is left at the moment.
    items = [item for batch in batches for item in split(batch, 1)]
    pairs = zip(Runner(one, names).chunks(items), Runner(other, names).chunks(items), strict=True)
    return all(
        np.abs(before[name] - after[name]).max() <= MOVED * np.abs(before[name]).max()
        for (_, before), (_, after) in pairs
        for name in names
    )


def _scale(value: ir.Value, by: np.ndarray, axis: int) -> None:
    values = array(value)
    assert values is not None
    _put(value, values * along(by, axis, values.ndim), values.dtype)


def _scale_read(unit: Unit, by: np.ndarray) -> None:
    """Multiply the weights that read each channel."""
    value = unit.node.inputs[1]
    assert value is not None
    weight, axes = _by_input(unit)
    shape = [size if i in axes else 1 for i, size in enumerate(weight.shape)]
    _put(value, (weight * by.reshape(shape)).reshape(unit.weight.shape), unit.weight.dtype)


def _put(value: ir.Value, values: np.ndarray, dtype: np.dtype) -> None:
    value.const_value = ir.tensor(values.astype(dtype), name=value.name)
    value.shape = ir.Shape(values.shape)  # a bias of one element becomes one for each channel
