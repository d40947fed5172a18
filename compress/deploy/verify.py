"""Verification of an ONNX file against its module on real data, at several batch sizes.

Exports have been silently wrong (pytorch issue 169178), so no file counts as deployable before
it has passed. Whatever goes wrong with a file is a reason, never an exception.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx.external_data_helper import uses_external_data
from torch import Tensor

from compress.deploy.export import OUTPUT, first_line
from compress.deploy.protobuf import within
from compress.deploy.session import predict, predict_in_streams, session, split
from compress.errors import UserError
from compress.model import Model, forward
from compress.system.amounts import decimal
from compress.system.progress import counted, stage
from compress.tasks.base import InputSpec, Tensors, spaced

BATCHES = (1, 2, 7, 32)
MOST_ITEMS, LEAST_ITEMS = 512, 64
LOWERED_ITEMS, AT_FIRST = 272, 160
"""Items with and without graph optimizations. Of a large module the second number is enough where
all their answers are the same, as without optimizations a file takes several times as long: a file
of which only 98 % are the same then passes once in nine times (without the short cut once in
eleven; with 512 items once in seventeen)."""
FEW = 14
"""Items of a large module at each of these sizes, and a whole batch at least: what a fixed batch
spoils, it spoils for any."""
SMALL, SMALL_IN_TORCH = 4, 8
"""Batches of a large module, whose activations then stay in the caches: EfficientNet-Lite0 takes a
third longer at 32 in onnxruntime, and more than twice as long in torch."""
COST = 25e9
"""Multiply-adds in which a module answers the items of the verification. One that can answer fewer
than 512 in them is large."""
TOLERANCE = 1e-3
"""The allowed error of a float file, as a fraction of the module's largest |logit|."""
BACKWARDS, FEW_BACKWARDS = 64, 14
"""Items that the module answers again, in the opposite order and in batches of 7, and of a large
module: what remembers, or mixes the items of a batch, does so for any."""
AGREEMENT = 0.99
"""Top-1 answers of a lowered file that must not depend on graph optimizations."""
SAME = 1e-5
"""The difference, as a fraction of the largest |logit|, that the order of a sum may make."""
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


def verification_items(macs: float, lowered: bool) -> int:
    """Return on how many items the file of a module of so many multiply-adds is verified.

    On 512 where that costs little; on the least, 64, a fault of one item in twenty is met with a
    chance of 96 %.
    """
    most = LOWERED_ITEMS if lowered else LEAST_ITEMS
    return max(most, _compared(macs))


def pass_batch(macs: float) -> int:
    """Return the batch size in which the file of a module of so many multiply-adds answers all."""
    return SMALL if _compared(macs) < MOST_ITEMS else BATCHES[-1]


def _compared(macs: float) -> int:
    """Return how many items the module answers, too."""
    return int(min(MOST_ITEMS, max(LEAST_ITEMS, COST / max(macs, 1))))


class _Bad(Exception):
    """The file is not deployable."""


@contextlib.contextmanager
def _failing(reason: str) -> Iterator[None]:
    """Turn whatever is raised into a reason: onnxruntime's errors share no base class."""
    try:
        yield
    except UserError:  # an image that cannot be read is no fault of the file
        raise
    except Exception as error:
        raise _Bad(f"{reason}: {first_line(error)}") from None


def verify(
    onnx_bytes: bytes,
    model: Model,
    inputs: Tensors,
    lowered: bool,
    others: Sequence[Tensors] = (),
    macs: float = 0,
    answers: Callable[[], np.ndarray] | None = None,
    unit: str = "items",
) -> Verification:
    """Check a file against `model.module` on `inputs` (prepared, real, (N, ...), N >= 64).

    A large module, one of many multiply-adds (`macs`), answers only some of them, evenly spaced,
    and at batch sizes 1, 2, 7 and 32 its file answers only a few (see `verification_items`).

    `answers` runs the file on all of `inputs`, `pass_batch` at a time, if its answers are wanted
    for something else as well: it returns their logits (N, ...). `unit` is what progress counts.

    `others` are further batches, of other lengths where the model takes any length: there the file
    must give what the module gives; a lowered one must give finite outputs of the same shape.

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
    count = len(inputs[0])
    compared, batch = spaced(_compared(macs), count), pass_batch(macs)
    few, backwards = (FEW, FEW_BACKWARDS) if batch == SMALL else (count, BACKWARDS)
    few, backwards = min(few, len(compared)), min(backwards, len(compared))
    passes = (answers is None) + lowered
    sizes = [max(few, size) for size in BATCHES if size != batch]
    total = len(compared) + passes * count + sum(sizes) + backwards
    with stage(f"verifying the file on {count:,} {unit}", total, "answers"):
        return _verify(
            *(onnx_bytes, model, inputs, lowered, others, compared),
            *(few, backwards, batch, answers),
        )


def _verify(
    onnx_bytes: bytes,
    model: Model,
    inputs: Tensors,
    lowered: bool,
    others: Sequence[Tensors],
    compared: Tensor,
    few: int,
    backwards: int,
    batch: int,
    answers: Callable[[], np.ndarray] | None,
) -> Verification:
    items = _chosen(inputs, compared)
    layout = _layout(model, items) if batch == SMALL else torch.contiguous_format
    batches = split(items, SMALL_IN_TORCH if batch == SMALL else batch)
    reference = _reference(model, counted(batches), layout)
    largest = float(np.abs(reference).max())
    agreement = worst = float("nan")
    try:
        if not np.isfinite(reference).all():
            raise _Bad("the module itself gives outputs that are not finite")
        _check_memory(model, items, reference, TOLERANCE * largest, backwards, layout)
        proto = _read(onnx_bytes)
        _check_graph(proto, model.signature)
        whole, outputs = _run(onnx_bytes, inputs, reference, compared, few, batch, answers)
        usual = outputs[batch]
        agreement = float((_top(usual) == _top(reference)).mean())
        worst = max(_error(logits, reference) for logits in outputs.values())
        if lowered:
            step = output_step(proto) or 2 * TOLERANCE * largest
            _gate_lowered(onnx_bytes, inputs, whole, outputs, step, batch)
        else:
            _gate_float(outputs, reference, TOLERANCE * largest)
        _gate_constant(usual, reference)
        for other in others:
            _gate_other(onnx_bytes, model, other, None if lowered else TOLERANCE * largest)
    except _Bad as error:
        return Verification(False, str(error), agreement, worst, largest)
    return Verification(True, "", agreement, worst, largest)


def _chosen(inputs: Tensors, index: Tensor) -> Tensors:
    """Return some items; not copied where they are the first ones, as they may be large images."""
    if torch.equal(index, torch.arange(len(index))):
        return tuple(tensor[: len(index)] for tensor in inputs)
    return tuple(tensor[index] for tensor in inputs)


def _layout(model: Model, inputs: Tensors) -> torch.memory_format:
    """Return the memory format in which a module answers soonest, of images channels last.

    EfficientNet-Lite0 takes less than half as long so, ResNet-18 four fifths, a transformer as
    long as before. What refuses it, or gives other answers on two items, is left as it is.
    """
    if any(tensor.ndim != 4 for tensor in inputs):
        return torch.contiguous_format
    two = tuple(tensor[:2] for tensor in inputs)
    expected = _reference(model, [two])
    try:
        actual = _reference(model, [two], torch.channels_last)
    except Exception:  # of the user's module: to view what is not contiguous is an error
        return torch.contiguous_format
    same = np.abs(actual - expected).max() <= SAME * np.abs(expected).max()
    return torch.channels_last if same else torch.contiguous_format


def _reference(
    model: Model,
    batches: Iterable[Tensors],
    layout: torch.memory_format = torch.contiguous_format,
) -> np.ndarray:
    """Return the module's own logits, computed on the CPU in float32."""
    module = copy.deepcopy(model.module).cpu().float().to(memory_format=layout).eval()
    cpu = (tuple(one.cpu().contiguous(memory_format=layout) for one in some) for some in batches)
    return torch.cat([forward(module, batch) for batch in cpu]).numpy()


def _check_memory(
    model: Model,
    inputs: Tensors,
    reference: np.ndarray,
    allowed: float,
    count: int,
    layout: torch.memory_format,
) -> None:
    """Check that items get the same outputs in the opposite order and in other batches.

    Else the module answers from memory, and whatever is measured of it says nothing.
    """
    ends = range(count, 0, -7)
    backwards = (tuple(one[max(0, end - 7) : end].flip(0) for one in inputs) for end in ends)
    again = _reference(model, counted(backwards), layout)[::-1]
    if float(np.abs(again - reference[:count]).max()) > allowed:
        raise _Bad(
            "the module's outputs for an item depend on earlier items or on its batch: it "
            "remembers, or mixes the items of a batch"
        )


# --- the graph ----------------------------------------------------------------------------


def _read(onnx_bytes: bytes) -> onnx.ModelProto:
    with _failing("the file is not a readable ONNX file"):
        proto = onnx.load_from_string(onnx_bytes)
    # First, because the checker would look for the other files.
    if any(map(uses_external_data, within(proto, onnx.TensorProto))):
        raise _Bad("the file keeps weights in another file (external data)")
    with _failing("ONNX's checker refuses the file"):
        onnx.checker.check_model(onnx_bytes, full_check=True)
    return proto


def _check_graph(proto: onnx.ModelProto, signature: Sequence[InputSpec]) -> None:
    """Check the names of inputs and output, and that their dynamic dimensions are open."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    for kind, values, specs in (
        ("inputs", inputs, signature),
        ("outputs", proto.graph.output, [InputSpec(OUTPUT)]),
    ):
        actual, expected = [value.name for value in values], [spec.name for spec in specs]
        if actual != expected:
            raise _Bad(f"the {kind} are named {actual}, but should be {expected}")
        for value, spec in zip(values, specs, strict=True):
            dimensions = value.type.tensor_type.shape.dim
            for number, label in spec.dynamic.items():
                if len(dimensions) <= number or dimensions[number].HasField("dim_value"):
                    raise _Bad(f"the {label} dimension of {value.name} is fixed or missing")


def output_step(proto: onnx.ModelProto) -> float:
    """Return the scale of the DequantizeLinear that gives the output, or 0 if there is none."""
    scales = {
        node.output[0]: node.input[1]
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear"
    }
    for tensor in proto.graph.initializer:
        if tensor.name == scales.get(OUTPUT):
            return float(onnx.numpy_helper.to_array(tensor).max())
    return 0.0


# --- the outputs --------------------------------------------------------------------------


def _run(
    onnx_bytes: bytes,
    inputs: Tensors,
    reference: np.ndarray,
    compared: Tensor,
    few: int,
    batch: int,
    answers: Callable[[], np.ndarray] | None,
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Return the file's logits of all inputs, and by batch size those of items to compare.

    These are all that the module has answered, in `reference`, or the first few: all at the size
    of `batch`.
    """
    outputs = {}
    with _failing("onnxruntime cannot load the file"):
        runner = session(onnx_bytes)
    for size in (size for size in BATCHES if size != batch):
        first = compared[: max(few, size)]
        items = _chosen(inputs, first)
        with _failing(f"the file fails at batch size {size}"):
            outputs[size] = predict(runner, counted(split(items, size)))
        _gate_sound(outputs[size], reference[: len(first)], size)
    with _failing(f"the file fails at batch size {batch}"):
        whole = predict(runner, counted(split(inputs, batch))) if answers is None else answers()
    _gate_sound(whole, reference, batch, len(inputs[0]))
    outputs[batch] = whole[compared.numpy()]
    return whole, outputs


def _error(logits: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(logits - reference[: len(logits)]).max())


def _gate_sound(
    outputs: np.ndarray, reference: np.ndarray, batch: int, count: int | None = None
) -> None:
    """Check outputs of `count` items; by default of those that `reference` has."""
    expected = (len(reference) if count is None else count, *reference.shape[1:])
    if outputs.shape != expected:
        raise _Bad(
            f"at batch size {batch} the outputs have the shape {outputs.shape}, the module's "
            f"{expected}"
        )
    if not np.isfinite(outputs).all():
        raise _Bad(f"at batch size {batch} some outputs are not finite")


def _gate_float(outputs: dict[int, np.ndarray], reference: np.ndarray, allowed: float) -> None:
    for batch, logits in outputs.items():
        error = _error(logits, reference)
        if error > allowed:
            raise _Bad(
                f"at batch size {batch} an output is off by {decimal(error)}, and "
                f"{decimal(allowed)} (a thousandth of the largest logit) is allowed"
            )


def _gate_lowered(
    onnx_bytes: bytes,
    inputs: Tensors,
    whole: np.ndarray,
    outputs: dict[int, np.ndarray],
    step: float,
    batch: int,
) -> None:
    with _failing("without graph optimizations the file fails"):
        same = _same_without_optimizations(onnx_bytes, inputs, whole, step, batch)
    if same.mean() < AGREEMENT:
        raise _Bad(
            f"only {same.mean():.1%} of the answers ({same.sum():,} of {len(same):,}) are the "
            f"same with and without onnxruntime's graph optimizations, and {AGREEMENT:.0%} are "
            f"required. The net decides by as little as int8 rounds, often because it has learnt "
            f"little: train it longer, or keep layers as floats"
        )
    usual = outputs[batch]
    for size, logits in outputs.items():
        different = int((~same_answer(usual[: len(logits)], logits, step)).sum())
        if different:
            raise _Bad(f"{different} answer(s) at batch size {size} differ from the others")


def _same_without_optimizations(
    onnx_bytes: bytes, inputs: Tensors, whole: np.ndarray, step: float, batch: int
) -> np.ndarray:
    """Return of items whether the file answers them the same without graph optimizations."""
    count = len(whole)
    first = spaced(AT_FIRST if batch == SMALL else count, count)
    rest = torch.from_numpy(np.setdiff1d(np.arange(count), first.numpy()))
    runner = session(onnx_bytes, threads=1, optimize=False)

    def same(index: Tensor) -> np.ndarray:
        plain = predict_in_streams(runner, counted(split(_chosen(inputs, index), batch)))
        return same_answer(whole[index.numpy()], plain, step)

    found = same(first)
    if not found.all() and len(rest):
        found = np.append(found, same(rest))
    return found


def _gate_other(onnx_bytes: bytes, model: Model, batch: Tensors, allowed: float | None) -> None:
    """Check a batch of another length: against the module, or that the file runs at all."""
    length = " x ".join(map(str, batch[0].shape[1:]))
    reference = _reference(model, [batch])
    with _failing(f"the file fails for inputs of length {length}"):
        outputs = predict(session(onnx_bytes), [batch])
    _gate_sound(outputs, reference, len(reference))
    worst = float(np.abs(outputs - reference).max())
    if allowed is not None and worst > allowed:
        raise _Bad(f"for inputs of length {length} an output is off by {decimal(worst)}")


def _gate_constant(outputs: np.ndarray, reference: np.ndarray) -> None:
    spread, expected = np.ptp(outputs, axis=0).max(), np.ptp(reference, axis=0).max()
    if expected > 0 and spread <= CONSTANT * expected:
        raise _Bad(
            "the file gives (nearly) the same outputs for every item, and the module does not"
        )


def _top(logits: np.ndarray) -> np.ndarray:
    return logits.argmax(-1)


def same_answer(first: np.ndarray, second: np.ndarray, step: float) -> np.ndarray:
    """Return for each item whether both give the same top-1, or one of them has a tie."""
    return (_top(first) == _top(second)) | _tied(first, step) | _tied(second, step)


def _tied(logits: np.ndarray, step: float) -> np.ndarray:
    """Return for each item whether its two largest logits are less than a step apart."""
    top = np.sort(logits, axis=-1)[..., -2:]
    # Quantized logits are multiples of the step: one step apart is no tie, rounding aside.
    return top[..., 1] - top[..., 0] < step * (1 - 1e-4)
