"""Files without settled ranges: weights alone as integers, or activations as they come."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from compress.deploy.export import quiet, read_metadata
from compress.deploy.graphs import serialized
from compress.deploy.versions import INT4
from compress.errors import StepFailed, UserError
from compress.int8.calibration import Batches
from compress.int8.lower import Lowered, bits_of, matching
from compress.int8.rewrite import constant
from compress.int8.rounding import all_rounded
from compress.int8.settings import Bits
from compress.int8.units import Unit, described, units
from compress.int8.weights import BITS, Weight, along, rounded, scales

ALONE = "only weights of convolutions and linear layers are stored as integers"
PACKED = 4
"""Bits of the integers of which a byte holds two."""
OTHER_SINCE = frozenset({"GroupNormalization"})
"""Operators that mean something else from the opset on that these came with."""


def weight_only(
    float_model: ir.Model,
    bits: Bits = BITS,
    exclude: tuple[str, ...] = (),
    calibration: Batches | None = None,
) -> Lowered:
    """Return a file that stores its weights as integers and computes with floats.

    A quarter of the size, where most weights are those of convolutions and linear layers, or an
    eighth where they have 4 bits or fewer; as fast as the float file, since a runtime makes the
    floats once, when it opens the file. With `calibration`, weights are rounded so that products
    change least (`rounding`), and otherwise to the nearest integers.
    Raises UserError where nothing is left to do.
    """
    model = float_model.clone()
    found = [unit for unit in units(model.graph) if unit.weighted]
    left = matching(found, exclude)
    whys = {unit.name: "it was excluded" for unit in found if unit.name in left}
    inside = [unit for unit in found if unit.name not in left]
    if not inside:
        raise UserError("weight_only=True is for products with weights, and none is left")
    rows = _rows(model, inside, whys, ALONE)
    of, weights = bits_of(found, bits), {}
    for unit in inside:
        axis, weight = unit.channel_axis, unit.weight
        scale = scales(weight, axis, False, np.zeros(weight.shape[axis]), of[unit.name])
        weights[unit.name] = rounded(weight, axis, scale, of[unit.name])
    if calibration is not None:
        chosen = {unit.name: unit for unit in inside}
        weights = all_rounded(model, chosen, weights, calibration, portable=False, bits=of)
    for unit in inside:
        packed = of[unit.name] <= PACKED
        if packed:
            _allow_packed(model)
        _store(model.graph, unit, weights[unit.name], packed)
    passes.RemoveUnusedNodesPass()(model)
    return Lowered(serialized(model), rows)


def _store(graph: ir.Graph, unit: Unit, made: Weight, packed: bool) -> None:
    """Replace a weight by the product of its integers and their scales; `packed`: two in a byte.

    A product of constants is computed once. DequantizeLinear, which says the same, is left for
    every call (ResNet-18 takes half as long again), and before a MatMul onnxruntime has an integer
    kernel do both, which rounds the activations (MatMulNBits, of weights of 8 bits since 1.25).
    """
    name = f"{unit.node.inputs[1].name}"  # type: ignore[union-attr]
    integers = made.integers.astype(ir.DataType.INT4.numpy()) if packed else made.integers
    scale = along(made.scale.astype(np.float32), made.axis, integers.ndim)
    to = ir.node(
        "Cast",
        [constant(graph, f"{name}_quantized", integers)],
        {"to": ir.DataType.FLOAT},
        name=f"{unit.name}_weight_cast",
    )
    of = ir.node(
        "Mul",
        [to.outputs[0], constant(graph, f"{name}_scale", scale)],
        name=f"{unit.name}_weight_scaled",
    )
    to.outputs[0].name, of.outputs[0].name = f"{unit.name}_{name}_cast", f"{unit.name}_{name}_back"
    graph.insert_before(unit.node, [to, of])
    unit.node.replace_input_with(1, of.outputs[0])


def _allow_packed(model: ir.Model) -> None:
    """Give a file the opset that packed integers need; it has the one before, or a newer one."""
    opset = model.graph.opset_imports[""]
    if opset >= INT4:
        return
    if other := OTHER_SINCE & {node.op_type for node in model.graph}:
        raise StepFailed(
            f"weights of {PACKED} bits need opset {INT4}, where {min(other)} means "
            f"something else than in this file's opset {opset}: give bits={PACKED + 1} or more"
        )
    model.graph.opset_imports[""] = INT4


def _rows(
    model: ir.Model, chosen: Collection[Unit], whys: Mapping[str, str], other: str
) -> list[dict[str, Any]]:
    """Return for every node whether it is int8, and why not; `other` holds where nothing else."""
    names = {unit.name for unit in chosen}
    return [
        described(node, node.name in names)
        | ({} if node.name in names else {"why": whys.get(str(node.name), other)})
        for node in model.graph
    ]


def dynamic(float_model: ir.Model, portable: bool, exclude: tuple[str, ...] = ()) -> Lowered:
    """Return a file whose linear layers take their activations' range anew in every call.

    By onnxruntime's own `quantize_dynamic`; `portable` gives weights 7 bits, which saturate on no
    CPU. Convolutions stay float: their integer kernels for this are slow. Raises UserError where
    nothing is left to do.
    """
    from onnxruntime import quantization as ort

    found = [unit for unit in units(float_model.graph) if unit.weighted]
    left = matching(found, exclude)
    chosen = [unit.name for unit in found if unit.kind != "Conv" and unit.name not in left]
    if not chosen:
        raise UserError(
            "dynamic=True is for linear layers, and "
            + ("all of them are excluded" if left else "there are none to quantize")
        )
    with tempfile.TemporaryDirectory(prefix="compress-int8-") as folder, quiet("root"):
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(float_onnx := serialized(float_model))
        ort.quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["Gemm", "MatMul"],
            # A Gemm is split into a product and a sum first.
            nodes_to_quantize=[name + end for name in chosen for end in ("", "_MatMul")],
            per_channel=True,
            reduce_range=portable,
            weight_type=ort.QuantType.QInt8,
        )
        made = onnx.load(target)
    done = sum(node.op_type == "MatMulInteger" for node in made.graph.node)
    assert done == len(chosen), f"{len(chosen)} layers were to be int8, and {done} are"
    onnx.helper.set_model_props(made, read_metadata(float_onnx))
    slow = "its integer kernel for changing ranges is slow"
    whys = {unit.name: "it was excluded" if unit.name in left else slow for unit in found}
    inside = [unit for unit in found if unit.name in chosen]
    rows = _rows(float_model, inside, whys, "only linear layers are int8")
    return Lowered(made.SerializeToString(), rows)
