"""Scaling channels so that few of them do not take the levels of all others.

Between two products, a channel may be divided by any positive number, and the weights that read it
multiplied by that number: the function stays. Chosen as here, activations and weights share what
makes quantization hard (Nagel et al. 2019, section 4.1; Xiao et al. 2023, equation 4, for the
LayerNorm before a linear layer).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compress.deploy.observe import Observed
from compress.int8.units import WEIGHTED, Unit, array, attribute, quantizable, sole_reader
from compress.int8.weights import along

CHANNELWISE = frozenset({"AveragePool", "GlobalAveragePool", "MaxPool", "Relu"})
"""What may stand between: f(x / s) = f(x) / s for each channel."""
STRENGTH = 0.5
"""The share of a channel's spread that moves into the weights."""
SPREAD = 1e-6
"""The least divisor, as a share of the largest: below, a channel counts as nothing."""


@dataclass(frozen=True)
class Link:
    """A value whose channels may be scaled: what makes it, and what reads it."""

    value: ir.Value
    axis: int
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
    """Yield the values whose channels may be scaled."""
    for node in graph:
        for value in node.outputs:
            uses = value.uses()
            if not uses or value.is_graph_output():
                continue
            if not all(_reads(use.node, use.idx) for use in uses):
                continue
            readers = tuple(Unit(use.node) for use in uses)
            axis = 1 if readers[0].kind == "Conv" else -1
            found = _made_by(value, axis)
            if found:
                made = array(found[0][0])
                assert made is not None
                [read, *others] = {unit.weight.shape[_input_axis(unit)] for unit in readers}
                repeats, rest = divmod(read, made.shape[found[0][1]])
                if axis == 1:
                    yield Link(value, axis, found, readers)
                elif repeats and not rest and not others:
                    yield Link(value, axis, found, readers, repeats)


def _reads(node: ir.Node, index: int) -> bool:
    """Whether a node reads channels by a weight of its own that nothing else uses."""
    if index or node.op_type not in WEIGHTED or quantizable(node):
        return False
    unit = Unit(node)
    return _own(node.inputs[1]) and (unit.groups == 1 or unit.weight.shape[1] == 1)


def _own(value: ir.Value | None) -> bool:
    return array(value) is not None and value is not None and len(value.uses()) == 1


def _made_by(value: ir.Value, axis: int) -> tuple[tuple[ir.Value, int], ...]:
    """Return the constants that scale a value's channels; () where there are none."""
    node = value.producer()
    while node is not None and (_flattens(node, axis) or _keeps_channels(node, axis)):
        before = node.inputs[0]
        if before is None or sole_reader(before) is not node:
            return ()
        if _flattens(node, axis):
            axis = 1
        node = before.producer()
    if node is None:
        return ()
    constants = _absorbing(node)
    return constants if constants and all(_own(one) for one, _ in constants) else ()


def _flattens(node: ir.Node, axis: int) -> bool:
    """Whether a node makes (N, C * positions) of images (N, C, ...), a channel's beside another."""
    if axis != -1 or node.op_type not in ("Flatten", "Reshape", "Squeeze"):
        return False
    before, after = (
        None if value is None or value.shape is None else list(value.shape)
        for value in (node.inputs[0], node.outputs[0])
    )
    if before is None or after is None or len(before) < 3 or len(after) != 2:
        return False
    sizes = [size for size in before[1:] if isinstance(size, int)]
    return len(sizes) == len(before) - 1 and after[1] == math.prod(sizes)


def _keeps_channels(node: ir.Node, axis: int) -> bool:
    if node.op_type == "Transpose":
        order = node.attributes["perm"].value
        return axis == -1 and order[-1] == len(order) - 1
    return node.op_type in CHANNELWISE and (node.op_type == "Relu" or axis == 1)


def _absorbing(node: ir.Node) -> tuple[tuple[ir.Value, int], ...]:
    if node.op_type == "LayerNormalization":
        norm = attribute(node, "axis", -1) in (-1, len(node.inputs[0].shape or ()) - 1)  # type: ignore[union-attr]
        return tuple((one, 0) for one in node.inputs[1:] if one is not None) if norm else ()
    if node.op_type == "Add":  # the bias of a product, where it stands on its own
        for one, other in (node.inputs, tuple(reversed(node.inputs))):
            bias, product = array(one), other.producer() if other is not None else None
            if bias is None or bias.ndim != 1 or product is None or product.op_type != "MatMul":
                continue
            assert one is not None
            assert other is not None
            if sole_reader(other) is node and (made := _absorbing(product)):
                return (*made, (one, 0))
        return ()
    if node.op_type not in WEIGHTED or quantizable(node):
        return ()
    unit = Unit(node)
    assert node.inputs[1] is not None
    found = [(node.inputs[1], unit.channel_axis)]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        found.append((node.inputs[2], 0))
    return tuple(found)


def divisors(link: Link, channels: np.ndarray, strength: float = STRENGTH) -> np.ndarray:
    """Return by what each channel is divided, from the largest |value| of each."""
    channels = channels.reshape(-1, link.repeats).max(1)
    largest = np.maximum(channels.astype(np.float64), SPREAD * channels.max())
    if all(unit.groups > 1 for unit in link.readers):
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
        axis = _input_axis(unit)
        others = tuple(i for i in range(unit.weight.ndim) if i != axis)
        found.append(np.abs(unit.weight.astype(np.float64)).max(others))
    return np.asarray(np.max(found, axis=0)).reshape(-1, link.repeats).max(1)


def _input_axis(unit: Unit) -> int:
    if unit.kind == "Conv":
        return 1 if unit.groups == 1 else 0
    return 1 - unit.channel_axis


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
            weight = unit.node.inputs[1]
            assert weight is not None
            _scale(weight, np.repeat(by, link.repeats), _input_axis(unit))
        count += 1
    return made, count


def _scale(value: ir.Value, by: np.ndarray, axis: int) -> None:
    values = array(value)
    assert values is not None
    scaled = (values * along(by, axis, values.ndim)).astype(values.dtype)
    value.const_value = ir.tensor(scaled, name=value.name)
