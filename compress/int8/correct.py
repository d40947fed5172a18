"""What rounding does to each product, and the bias that takes its mean back.

Beside every product its quantized twin reads the same float inputs, so that each error is a
product's own, and what is corrected before it does not change what is corrected after it. Only
means and squares leave the graph: memory is that of one chunk (Nagel et al. 2019, section 4.2,
measured on calibration items in place of a formula).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compress.deploy.observe import Runner
from compress.int8.ranges import Range
from compress.int8.rewrite import constant
from compress.int8.units import Unit, array, sole_reader, units
from compress.int8.weights import Weight
from compress.tasks.base import Tensors

ERROR, NOISE, SIGNAL = "error", "noise", "signal"


@dataclass
class Error:
    """The error of a product: its mean per output channel, and its size."""

    mean: np.ndarray
    noise: float
    signal: float

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise, in dB."""
        return 10 * float(np.log10(max(self.signal, 1e-300) / max(self.noise, 1e-300)))


def errors(
    model: ir.Model,
    names: Iterable[str],
    ranges: Mapping[str, Range],
    weights: Mapping[str, Weight],
    batches: Iterable[Tensors],
) -> dict[str, Error]:
    """Return the error of every weighted unit of these names, by its name.

    `weights` of a unit may be missing: its products then have the error of its inputs alone.
    """
    twin = model.clone()
    wanted = set(names)
    found = [unit for unit in units(twin.graph) if unit.weighted and unit.name in wanted]
    for unit in found:
        _beside(twin.graph, unit, ranges, weights)
    looked_at = [unit.name for unit in found]
    outputs = [f"{name}:{kind}" for name in looked_at for kind in (ERROR, NOISE, SIGNAL)]
    sums: dict[str, np.ndarray] = {}
    items = 0
    for count, values in Runner(twin, outputs).chunks(batches):
        items += count
        for name, value in values.items():
            share = value.astype(np.float64) * (count if name.endswith(ERROR) else 1)
            sums[name] = sums.get(name, 0) + share
    return {
        name: Error(
            sums[f"{name}:{ERROR}"] / items,
            float(sums[f"{name}:{NOISE}"]),
            float(sums[f"{name}:{SIGNAL}"]),
        )
        for name in looked_at
    }


def _beside(
    graph: ir.Graph, unit: Unit, ranges: Mapping[str, Range], weights: Mapping[str, Weight]
) -> None:
    """Add a unit's quantized twin, and the figures of their difference as outputs."""
    node = unit.node
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    assert source.name is not None
    range_ = ranges[source.name]
    weight = weights[unit.name].values if unit.name in weights else unit.weight
    scale = constant(graph, f"{unit.name}:scale", np.array(range_.scale, np.float32))
    zero = constant(graph, f"{unit.name}:zero", np.array(range_.zero, np.uint8))
    to = ir.node("QuantizeLinear", [source, scale, zero])
    back = ir.node("DequantizeLinear", [to.outputs[0], scale, zero])
    values = constant(graph, f"{unit.name}:weight", weight.astype(np.float32))
    inputs = [back.outputs[0], values, *node.inputs[2:]]
    twin = ir.Node("", node.op_type, inputs, node.attributes.values(), num_outputs=1)
    difference = ir.node("Sub", [twin.outputs[0], output])
    for made, like in ((back, source), (twin, output), (difference, output)):
        made.outputs[0].shape, made.outputs[0].type = like.shape, like.type
    new = [to, back, twin, difference]
    rank = len(output.shape) if output.shape is not None else unit.weight.ndim
    axis = 1 if unit.kind == "Conv" else rank - 1
    others = np.array([i for i in range(rank) if i != axis])
    axes = constant(graph, f"{unit.name}:axes", others)
    mean = ir.node("ReduceMean", [difference.outputs[0], axes], {"keepdims": 0})
    noise = ir.node("ReduceSumSquare", [difference.outputs[0]], {"keepdims": 0})
    signal = ir.node("ReduceSumSquare", [output], {"keepdims": 0})
    for one, kind in ((mean, ERROR), (noise, NOISE), (signal, SIGNAL)):
        one.outputs[0].name = f"{unit.name}:{kind}"
    graph.insert_after(node, [*new, mean, noise, signal])


def corrected(model: ir.Model, found: Mapping[str, Error]) -> ir.Model:
    """Return a float graph whose biases take back the mean error of each product."""
    made = model.clone()
    for unit in list(units(made.graph)):
        if unit.name in found and unit.weighted:
            _shift(made.graph, unit, -found[unit.name].mean)
    return made


def _shift(graph: ir.Graph, unit: Unit, by: np.ndarray) -> None:
    node = unit.node
    if unit.kind == "MatMul":
        after = sole_reader(node.outputs[0])
        place = (
            next((i for i, one in enumerate(after.inputs) if array(one) is not None), None)
            if (after is not None and after.op_type == "Add")
            else None
        )
        if after is None or place is None:
            return
        owner, index, old = after, place, array(after.inputs[place])
    else:
        owner, index, old = node, 2, unit.bias
    if old is not None and old.ndim != 1:
        return
    values = (by if old is None else old + by).astype(np.float32)
    new = constant(graph, f"{unit.name}_corrected_bias", values)
    if len(owner.inputs) <= index:
        owner.resize_inputs(index + 1)
    owner.replace_input_with(index, new)
