"""Verification of an ONNX file against its module on real data, at several batch sizes.

Exports have been silently wrong (pytorch issue 169178), so no file counts as deployable before
it has passed. Whatever goes wrong with a file is a reason, never an exception.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx.external_data_helper import uses_external_data

from compress.amounts import decimal
from compress.deploy.export import OUTPUT, input_names
from compress.deploy.session import predict, session, split
from compress.model import Model, forward
from compress.tasks.base import Tensors

BATCHES = (1, 2, 7, 32)
TOLERANCE = 1e-3
"""The allowed error of a float file, as a fraction of the module's largest |logit|."""
BACKWARDS = 64
"""Items that the module answers again, in the opposite order."""
AGREEMENT = 0.99
"""Top-1 answers of a lowered file that must not depend on graph optimizations."""
CONSTANT = 0.01
"""A file is constant if its logits vary over the items by less than this share of the module's."""


@dataclass(frozen=True)
class Verification:
    """Whether a file may be deployed; if not, `reason` says why in plain English.

    `top1_agreement` (fraction of items) and `max_abs_error` compare the file with the float
    module, whose largest |logit| is `largest_logit`; NaN where the file did not run.
    """

    ok: bool
    reason: str
    top1_agreement: float = float("nan")
    max_abs_error: float = float("nan")
    largest_logit: float = float("nan")


class _Bad(Exception):
    """The file is not deployable."""


def verify(onnx_bytes: bytes, model: Model, inputs: Tensors, lowered: bool) -> Verification:
    """Check a file against `model.module` on `inputs` (prepared, real, (N, ...), N >= 64).

    Both kinds: the module gives items the same outputs in any order; the file passes ONNX's
    checker, has the agreed names, a dynamic batch and no external data, and gives finite outputs
    of the module's shape at batch sizes 1, 2, 7 and 32, which differ between items where the
    module's do.

    A float file: no |error| above 1e-3 of the module's largest |logit|. The same top-1 follows,
    except where the module's two largest logits lie closer than twice that error.

    A lowered file: 99 % of top-1 answers are the same with and without graph optimizations, and
    all of them at every batch size. Ties are excepted: the two largest logits lie closer than
    the step of the output's quantization (without one, than twice the error above).
    """
    reference = _reference(model, inputs)
    largest = float(np.abs(reference).max())
    if not np.isfinite(reference).all():
        reason = "the module itself gives outputs that are not finite"
        return Verification(False, reason, largest_logit=largest)
    if _remembers(model, inputs, reference, TOLERANCE * largest):
        reason = (
            "the module's outputs depend on what it was given before or beside an item: it "
            "remembers, or mixes the items of a batch"
        )
        return Verification(False, reason, largest_logit=largest)
    try:
        proto = _read(onnx_bytes)
        _check_graph(proto, len(inputs))
        outputs = _run(onnx_bytes, inputs, reference)
    except _Bad as error:
        return Verification(False, str(error), largest_logit=largest)
    compared = outputs[BATCHES[-1]]
    agreement = float((_top(compared) == _top(reference)).mean())
    worst = max(float(np.abs(given - reference).max()) for given in outputs.values())
    try:
        if lowered:
            step = _output_step(proto) or 2 * TOLERANCE * largest
            _gate_lowered(onnx_bytes, inputs, outputs, step)
        else:
            _gate_float(outputs, reference, TOLERANCE * largest)
        _gate_constant(compared, reference)
    except _Bad as error:
        return Verification(False, str(error), agreement, worst, largest)
    return Verification(True, "", agreement, worst, largest)


def _reference(model: Model, inputs: Tensors, batch: int = BATCHES[-1]) -> np.ndarray:
    """Return the module's own logits, computed on the CPU in float32, contiguous."""
    module = copy.deepcopy(model.module).cpu().float()
    module = module.to(memory_format=torch.contiguous_format).eval()
    cpu = tuple(tensor.cpu() for tensor in inputs)
    return torch.cat([forward(module, part) for part in split(cpu, batch)]).numpy()


def _remembers(model: Model, inputs: Tensors, reference: np.ndarray, allowed: float) -> bool:
    """Whether some items get other outputs in the opposite order and in other batches.

    Then the module answers from memory, and whatever is measured of it says nothing.
    """
    backwards = tuple(tensor[:BACKWARDS].flip(0) for tensor in inputs)
    again = _reference(model, backwards, batch=7)[::-1]
    return float(np.abs(again - reference[:BACKWARDS]).max()) > allowed


# --- the graph ----------------------------------------------------------------------------


def _read(onnx_bytes: bytes) -> onnx.ModelProto:
    try:
        proto = onnx.load_from_string(onnx_bytes)
    except Exception as error:  # protobuf's DecodeError, or worse
        raise _Bad(f"the file is not a readable ONNX file: {error}") from None
    # First, because the checker would look for the other files.
    if any(uses_external_data(tensor) for tensor in _tensors(proto.graph)):
        raise _Bad("the file keeps weights in another file (external data)")
    try:
        onnx.checker.check_model(onnx_bytes, full_check=True)
    except Exception as error:  # ValidationError, InferenceError, TypeError, MemoryError
        raise _Bad(f"ONNX's checker refuses the file: {_sentence(error)}") from None
    return proto


def _sentence(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a graph: initializers, attributes, and those of its subgraphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _tensors(inner)


def _check_graph(proto: onnx.ModelProto, count: int) -> None:
    """Check the names of inputs and output, and that the batch dimension is open."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    given = [value for value in proto.graph.input if value.name not in weights]
    for kind, values, names in (
        ("inputs", given, input_names(count)),
        ("outputs", proto.graph.output, [OUTPUT]),
    ):
        found = [value.name for value in values]
        if found != names:
            raise _Bad(f"the {kind} are named {found}, but should be {names}")
        for value in values:
            dimensions = value.type.tensor_type.shape.dim
            if not dimensions or dimensions[0].HasField("dim_value"):
                raise _Bad(f"the batch dimension of {value.name} is fixed or missing")


def _output_step(proto: onnx.ModelProto) -> float:
    """Return the scale of the DequantizeLinear that gives the output, or 0 if there is none."""
    producer = [node for node in proto.graph.node if OUTPUT in node.output]
    if not producer or producer[0].op_type != "DequantizeLinear":
        return 0.0
    for tensor in proto.graph.initializer:
        if tensor.name == producer[0].input[1]:
            return float(onnx.numpy_helper.to_array(tensor).max())
    return 0.0


# --- the outputs --------------------------------------------------------------------------


def _run(onnx_bytes: bytes, inputs: Tensors, reference: np.ndarray) -> dict[int, np.ndarray]:
    """Return the file's logits by batch size."""
    outputs = {}
    try:
        runner = session(onnx_bytes)
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise _Bad(f"onnxruntime cannot load the file: {_sentence(error)}") from None
    for batch in BATCHES:
        try:
            outputs[batch] = predict(runner, split(inputs, batch))
        except Exception as error:
            raise _Bad(f"the file fails at batch size {batch}: {_sentence(error)}") from None
        _gate_sound(outputs[batch], reference, batch)
    return outputs


def _gate_sound(outputs: np.ndarray, reference: np.ndarray, batch: int) -> None:
    if outputs.shape != reference.shape:
        raise _Bad(
            f"at batch size {batch} the outputs have the shape {outputs.shape}, the module's "
            f"{reference.shape}"
        )
    if not np.isfinite(outputs).all():
        raise _Bad(f"at batch size {batch} some outputs are not finite")


def _gate_float(outputs: dict[int, np.ndarray], reference: np.ndarray, allowed: float) -> None:
    for batch, given in outputs.items():
        error = float(np.abs(given - reference).max())
        if error > allowed:
            raise _Bad(
                f"at batch size {batch} an output is off by {decimal(error)}, and "
                f"{decimal(allowed)} (a thousandth of the largest logit) is allowed"
            )


def _gate_lowered(
    onnx_bytes: bytes, inputs: Tensors, outputs: dict[int, np.ndarray], step: float
) -> None:
    usual = outputs[BATCHES[-1]]
    try:
        plain = predict(session(onnx_bytes, optimize=False), split(inputs, BATCHES[-1]))
    except Exception as error:
        raise _Bad(f"without graph optimizations the file fails: {_sentence(error)}") from None
    same = float(_same_answer(usual, plain, step).mean())
    if same < AGREEMENT:
        raise _Bad(
            f"only {same:.1%} of the answers are the same with and without onnxruntime's graph "
            f"optimizations, and {AGREEMENT:.0%} are required"
        )
    for batch, given in outputs.items():
        other = int((~_same_answer(usual, given, step)).sum())
        if other:
            raise _Bad(f"{other} answer(s) at batch size {batch} differ from the others")


def _gate_constant(outputs: np.ndarray, reference: np.ndarray) -> None:
    spread, wanted = np.ptp(outputs, axis=0).max(), np.ptp(reference, axis=0).max()
    if wanted > 0 and spread <= CONSTANT * wanted:
        raise _Bad(
            "the file gives (nearly) the same outputs for every item, and the module does not"
        )


def _top(logits: np.ndarray) -> np.ndarray:
    return logits.argmax(-1)


def _same_answer(first: np.ndarray, second: np.ndarray, step: float) -> np.ndarray:
    """Return for each item whether both give the same top-1, or one of them has a tie."""
    return (_top(first) == _top(second)) | _tied(first, step) | _tied(second, step)


def _tied(logits: np.ndarray, step: float) -> np.ndarray:
    """Return for each item whether its two largest logits are less than a step apart."""
    top = np.sort(logits, axis=-1)[..., -2:]
    # Quantized logits are multiples of the step: one step apart is no tie, rounding aside.
    return top[..., 1] - top[..., 0] < step * (1 - 1e-4)
