"""Writing the QDQ file: which values are quantized, and the integers of the weights.

Quantize and dequantize stand around every quantized value, as ONNX has it, and onnxruntime fuses
them with the nodes between into integer kernels. A runtime that cannot fuse them computes the same
in floats.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from compress.deploy.graphs import serialized
from compress.int8.ranges import LEVELS, ROOM, Range, begins_at_minus_three
from compress.int8.rewrite import constant, replace_node
from compress.int8.units import Unit, array, miscounts, sole_reader, stored_as_integers, units
from compress.int8.weights import Weight


class _Writer:
    """A graph being rewritten; `quantized` are the values by the name of their float."""

    def __init__(
        self,
        model: ir.Model,
        chosen: Mapping[str, Unit],
        ranges: Mapping[str, Range],
        weights: Mapping[str, Weight],
    ) -> None:
        self.graph, self.chosen, self.ranges, self.weights = model.graph, chosen, ranges, weights
        self.names = {value.name for node in self.graph for value in node.outputs}

    def constant(self, name: str, values: np.ndarray) -> ir.Value:
        return constant(self.graph, name, values)

    def pair(self, after: ir.Value, name: str, into: Range, out_of: Range) -> ir.Value:
        """Quantize a value and dequantize it; return the latter's output."""
        zero = self.constant(f"{name}_zero", np.array(into.zero, np.uint8))
        scale = self.constant(f"{name}_scale", np.array(into.scale, np.float32))
        back = scale
        if out_of.scale != into.scale:
            back = self.constant(f"{name}_scale_back", np.array(out_of.scale, np.float32))
        to = ir.node("QuantizeLinear", [after, scale, zero], name=f"{name}_quantize")
        of = ir.node("DequantizeLinear", [to.outputs[0], back, zero], name=f"{name}_dequantize")
        to.outputs[0].name, of.outputs[0].name = f"{name}_quantized", f"{name}_dequantized"
        producer = after.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], [to, of])
        else:
            self.graph.insert_after(producer, [to, of])
        return of.outputs[0]

    def value(self, value: ir.Value, everywhere: bool) -> None:
        """Have a value's readers read it quantized: all of them, or the integer kernels alone."""
        assert value.name is not None
        uses = [
            (use.node, use.idx)
            for use in value.uses()
            if everywhere or (use.node.name in self.chosen)
        ]
        found = self.pair(value, value.name, self.ranges[value.name], self.ranges[value.name])
        for node, index in uses:
            node.replace_input_with(index, found)
        if everywhere and value.is_graph_output():
            name = value.name
            value.name = f"{name}_float"
            found.name = name
            found.shape, found.type = value.shape, value.type
            self.graph.outputs[self.graph.outputs.index(value)] = found

    def drop_clipping(self, unit: Unit) -> None:
        """Let the range do the clipping."""
        if unit.clipping is None:
            return
        output, before = unit.clipping.outputs[0], unit.node.outputs[0]
        name = output.name
        before.shape, before.type = output.shape, output.type
        ir.convenience.replace_all_uses_with(output, before, replace_graph_outputs=True)
        self.graph.remove(unit.clipping, safe=True)
        before.name = name

    def weight(self, unit: Unit, source: str) -> None:
        """Replace a weight and a bias by integers that are dequantized."""
        made, bias = self.weights[unit.name], unit.bias
        store_weight(self.graph, unit, made)
        if bias is not None:
            name = f"{unit.name}_bias"
            step = made.scale * np.float32(self.ranges[source].scale)
            integers = np.round(bias.astype(np.float64) / step).astype(np.int32)
            value = _dequantized(self.graph, unit, name, Weight(integers, step, 0))
            unit.node.replace_input_with(2, value)

    def hard_swish(self, unit: Unit) -> None:
        """Write x * clip(x + 3, 0, 6) / 6: a range does the clipping, and its scale divides."""
        [source] = unit.node.inputs
        assert source is not None
        gate = self.shifted(unit, source) or self.added(unit, source)
        replace_node(self.graph, unit.node, [ir.node("Mul", [source, gate], name=unit.name)])

    def shifted(self, unit: Unit, source: ir.Value) -> ir.Value | None:
        """Read the integers of x as those of x + 3, where its range begins at -3."""
        back = source.producer()
        assert back is not None
        quantized, scale, zero = back.inputs
        one = Range(float(array(scale)), int(array(zero)))  # type: ignore[arg-type]
        if quantized is None or not begins_at_minus_three(one):
            return None
        if 2 * one.zero < LEVELS:
            top = self.constant(f"{unit.name}_top", np.array(2 * one.zero, np.uint8))
            clip = ir.node("Clip", [quantized, None, top], name=f"{unit.name}_clip")
            self.graph.insert_before(unit.node, clip)
            [quantized] = clip.outputs
            quantized.name = f"{unit.name}_clipped"
        scale = self.constant(f"{unit.name}_gate_scale", np.array(one.scale / 6, np.float32))
        zero = self.constant(f"{unit.name}_gate_zero", np.array(0, np.uint8))
        of = ir.node("DequantizeLinear", [quantized, scale, zero], name=f"{unit.name}_gate")
        self.graph.insert_before(unit.node, of)
        of.outputs[0].name = f"{unit.name}_gated"
        return of.outputs[0]

    def added(self, unit: Unit, source: ir.Value) -> ir.Value:
        """Add 3; the range of the sum clips."""
        three = Range(float(np.float32(ROOM / LEVELS)), 0)
        held = self.constant(f"{unit.name}_three_quantized", np.array(LEVELS, np.uint8))
        scale = self.constant(f"{unit.name}_three_scale", np.array(three.scale, np.float32))
        zero = self.constant(f"{unit.name}_three_zero", np.array(0, np.uint8))
        dequantize = ir.node("DequantizeLinear", [held, scale, zero])
        added = ir.node("Add", [source, dequantize.outputs[0]], name=f"{unit.name}_add")
        added.outputs[0].name = f"{unit.name}_sum"
        self.graph.insert_before(unit.node, [dequantize, added])
        sums, gates = Range(2 * ROOM / LEVELS, 0), Range(1 / LEVELS, 0)
        return self.pair(added.outputs[0], f"{unit.name}_gate", sums, gates)

    def keep_floats(self) -> None:
        """Have onnxruntime leave float products between quantized values in float.

        By itself it gives them weights of one scale for all channels, which saturate as well
        (weight_bias_quantization.cc), and has the integer kernel compute pools that it computes
        wrongly. It does not where a node stands behind the dequantizing: one
        that clips at the least value there is.
        """
        for node in list(self.graph):
            known = node.op_type in QUANTIZED_BY_ITSELF or miscounts(node)
            if not known or node.name in self.chosen:
                continue
            source = node.inputs[0]
            back = source.producer() if source is not None else None
            if back is None or back.op_type != "DequantizeLinear" or not _ends_quantized(node):
                continue
            scale, zero = array(back.inputs[1]), array(back.inputs[2])
            assert scale is not None
            assert zero is not None
            name = f"{node.name}_least"
            least = self.constant(name, np.asarray(-np.float32(zero) * np.float32(scale)))
            clip = ir.node("Clip", [source, least], name=f"{node.name}_in_float")
            clip.outputs[0].name = f"{node.name}_input"
            self.graph.insert_before(node, clip)
            node.replace_input_with(0, clip.outputs[0])


QUANTIZED_BY_ITSELF = frozenset({"Conv", "ConvTranspose", "Gemm"})


def _ends_quantized(node: ir.Node) -> bool:
    """Whether all that reads a node, past activations that clip, is one that quantizes."""
    reader = sole_reader(node.outputs[0])
    while reader is not None and reader.op_type in ("Relu", "Clip"):
        reader = sole_reader(reader.outputs[0])
    return reader is not None and reader.op_type == "QuantizeLinear"


def store_weight(graph: ir.Graph, unit: Unit, made: Weight) -> None:
    """Replace a unit's weight by integers that are dequantized."""
    weight = unit.node.inputs[1]
    assert weight is not None
    assert weight.name is not None
    unit.node.replace_input_with(1, _dequantized(graph, unit, weight.name, made))


def _dequantized(graph: ir.Graph, unit: Unit, name: str, made: Weight) -> ir.Value:
    inputs = [
        constant(graph, f"{name}_quantized", made.integers),
        constant(graph, f"{name}_scale", made.scale.astype(np.float32)),
        constant(graph, f"{name}_zero", np.zeros(len(made.scale), made.integers.dtype)),
    ]
    options = {"axis": made.axis}
    node = ir.node("DequantizeLinear", inputs, options, name=f"{unit.name}_{name}_back")
    node.outputs[0].name = f"{unit.name}_{name}_dequantized"
    graph.insert_before(unit.node, node)
    return node.outputs[0]


def write(
    float_model: ir.Model,
    chosen: set[str],
    ranges: Mapping[str, Range],
    weights: Mapping[str, Weight],
) -> bytes:
    """Return the QDQ file of a float graph in which the units of these names are int8.

    `ranges` are those of activations, by name; `weights` the integers, by the name of the unit.
    """
    model = float_model.clone()
    picked = {unit.name: unit for unit in units(model.graph) if unit.name in chosen}
    stored = stored_as_integers(picked)
    writer = _Writer(model, picked, ranges, weights)
    sources = {name: unit.activations[0].name for name, unit in picked.items()}
    read = {value.name: value for unit in picked.values() for value in unit.activations}
    for unit in picked.values():
        if unit.output.name in stored:
            writer.drop_clipping(unit)
    by_name = {value.name: value for node in model.graph for value in node.outputs}
    by_name |= {value.name: value for value in model.graph.inputs}
    for name in dict.fromkeys([*read, *stored]):
        writer.value(by_name[name], everywhere=name in stored)
    for unit in picked.values():
        if unit.weighted:
            source = sources[unit.name]
            assert source is not None
            writer.weight(unit, source)
        elif unit.kind == "HardSwish":
            writer.hard_swish(unit)
    writer.keep_floats()
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    return serialized(model)
