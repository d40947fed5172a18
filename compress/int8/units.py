"""A float graph as units: what an integer kernel can compute, from one quantized value to the next.

A unit is a node, and the activation after it where the range of the output does the work of that:
an unsigned output whose zero point is 0 has clipped below 0 already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

WEIGHT = ".weight"
"""How the names of the parameters end that name a layer."""
WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
PASSING = frozenset(
    {"Flatten", "Gather", "MaxPool", "Reshape", "Slice", "Split", "Squeeze", "Transpose"}
    | {"Unsqueeze"}
)
"""These move values and change none: their outputs have the range of their input."""
OTHERS = frozenset(
    {"Add", "AveragePool", "Concat", "GlobalAveragePool", "HardSwish", "LeakyRelu", "Mul"}
    | {"Sigmoid"}
)


def described(node: ir.Node, int8: bool) -> dict[str, Any]:
    """Return what a table of nodes begins with: the layer of the module whose weight a node has."""
    second = node.inputs[1] if len(node.inputs) > 1 else None
    name = str(second.name) if second is not None and second.producer() is None else ""
    layer = name.removesuffix(WEIGHT) if name.endswith(WEIGHT) else ""
    return {"layer": layer, "node": str(node.name), "type": node.op_type, "int8": int8}


@dataclass(frozen=True)
class Unit:
    """A node that an integer kernel can compute, and the clipping after it that its output does."""

    node: ir.Node
    clipping: ir.Node | None = None

    @property
    def kind(self) -> str:
        return self.node.op_type

    @property
    def name(self) -> str:
        assert self.node.name is not None
        return self.node.name

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        return (self.node,) if self.clipping is None else (self.node, self.clipping)

    @property
    def outputs(self) -> tuple[ir.Value, ...]:
        return tuple(self.nodes[-1].outputs)

    @property
    def output(self) -> ir.Value:
        return self.outputs[0]

    @property
    def weighted(self) -> bool:
        return self.kind in WEIGHTED and array(self.node.inputs[1]) is not None

    @property
    def passing(self) -> bool:
        return self.kind in PASSING

    @property
    def float_output(self) -> bool:
        """Whether its kernel can also give floats, so that no rounding follows it."""
        return self.kind in ("Gemm", "MatMul") and self.clipping is None

    @property
    def activations(self) -> tuple[ir.Value, ...]:
        """The values that it reads and that depend on the input."""
        last = 1 if self.weighted or self.passing else len(self.node.inputs)
        return tuple(
            value for value in self.node.inputs[:last] if value is not None and array(value) is None
        )

    @property
    def weight(self) -> np.ndarray:
        """The weight of a weighted unit."""
        found = array(self.node.inputs[1])
        assert found is not None
        return found

    @property
    def bias(self) -> np.ndarray | None:
        return array(self.node.inputs[2]) if len(self.node.inputs) > 2 else None

    @cached_property
    def channel_axis(self) -> int:
        """The axis of the weight that counts output channels."""
        if self.kind == "Conv":
            return 0
        return 0 if self.kind == "Gemm" and attribute(self.node, "transB", 0) else 1

    @property
    def groups(self) -> int:
        return int(attribute(self.node, "group", 1)) if self.kind == "Conv" else 1


def array(value: ir.Value | None) -> np.ndarray | None:
    """Return the constant that a value is, if it is one."""
    if value is None or value.const_value is None or value.producer() is not None:
        return None
    return np.asarray(value.const_value.numpy())


def attribute(node: ir.Node, name: str, default: float) -> float:
    found = node.attributes.get(name)
    return default if found is None else float(found.value)


def sole_reader(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads a value, if it is read once and is no output of the graph."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def clips_at_zero(node: ir.Node) -> bool:
    """Whether a node clips to [0, top]: what an unsigned range does by itself."""
    if node.op_type == "Relu":
        return True
    low = array(node.inputs[1]) if len(node.inputs) > 1 else None
    return node.op_type == "Clip" and low is not None and float(low) == 0


def quantizable(node: ir.Node) -> str:
    """Return why no integer kernel computes a node; '' if one does."""
    kind = node.op_type
    if node.domain not in ("", "ai.onnx"):
        return "it is no standard operator"
    if kind == "Softmax":
        return "its integer kernel is slower than its float one"
    if kind not in WEIGHTED | PASSING | OTHERS:
        return f"no integer kernel for {kind} is used"
    if miscounts(node):
        return "its integer kernel counts places beyond the padding"
    if kind in WEIGHTED and array(node.inputs[1]) is None:
        if array(node.inputs[0]) is not None:
            return "its constant is the first factor, and integer kernels take weights second"
        return "both its factors are activations"
    if kind == "MatMul" and Unit(node).weight.ndim != 2:
        return "its weight is no matrix"
    if kind == "Gemm" and (
        attribute(node, "transA", 0)
        or attribute(node, "alpha", 1) != 1
        or attribute(node, "beta", 1) != 1
        or (len(node.inputs) > 2 and (array(node.inputs[2]) is None or Unit(node).bias.ndim != 1))  # type: ignore[union-attr]
    ):
        return "its product is scaled or transposed"
    if kind in ("Add", "Mul") and any(array(value) is not None for value in node.inputs):
        return "one of its operands is a constant"
    first = node.inputs[0]
    if first is None or first.dtype != ir.DataType.FLOAT:
        return "it computes no floats"
    return ""


def miscounts(node: ir.Node) -> bool:
    """Whether onnxruntime's integer kernel of an average pool divides by too much.

    Where windows reach beyond the padding, and padding counts, it counts what is beyond as well.
    """
    beyond, padding = attribute(node, "ceil_mode", 0), attribute(node, "count_include_pad", 0)
    return node.op_type == "AveragePool" and bool(beyond and padding)


def units(graph: ir.Graph) -> Iterator[Unit]:
    """Yield what integer kernels could compute, in the order of the graph."""
    taken: set[int] = set()
    for node in graph:
        if id(node) in taken or quantizable(node):
            continue
        after = sole_reader(node.outputs[0])
        clips = (
            after is not None
            and node.op_type in WEIGHTED | {"Add", "Concat"}
            and len(node.outputs) == 1
            and clips_at_zero(after)
        )
        if clips:
            assert after is not None
            taken.add(id(after))
        unit = Unit(node, after if clips else None)
        if unit.activations:
            yield unit


def stored_as_integers(chosen: Mapping[str, Unit]) -> set[str]:
    """Return the names of the values that chosen units write as integers.

    A product whose readers are all float gives floats: nothing is gained by rounding it.
    """
    readers: dict[str, int] = {}
    for unit in chosen.values():
        for value in unit.activations:
            assert value.name is not None
            readers[value.name] = readers.get(value.name, 0) + 1
    stored = set()
    for unit in chosen.values():
        for value in unit.outputs:
            assert value.name is not None
            if not unit.float_output or readers.get(value.name):
                stored.add(value.name)
    return stored
