"""Export of a float module to one ONNX file, and the metadata that the file carries."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from compress import amounts
from compress.errors import StepFailed, UserError
from compress.model import Model, main_output, probe
from compress.tasks.base import Tensors

LIMIT = 2_000_000_000
"""Bytes that one ONNX file can hold (protobuf), with some room for the graph."""
OUTPUT = "logits"
BATCH = "batch"
PRODUCER = "compress-models"


def input_names(count: int) -> list[str]:
    """Return the names of a file's inputs: `input`, or `input_0`, `input_1`, ..."""
    return ["input"] if count == 1 else [f"input_{i}" for i in range(count)]


def export(model: Model) -> bytes:
    """Return the float ONNX file of a module, with a dynamic batch dimension named `batch`.

    Inputs are named by `input_names`, the output is `logits`; of auxiliary outputs only the main
    head is exported. Parameters keep their names, and batch norms are folded. The module itself
    is left as it is, whatever its device and memory format.

    Raises UserError for a model of more than 2 GB, StepFailed if torch cannot export it.
    """
    size = sum(tensor.nbytes for tensor in model.module.state_dict().values())
    if size > LIMIT:
        raise UserError(
            f"the model has {amounts.size(size)} of weights, and one ONNX file holds at most 2 GB: "
            f"compress it further, or choose a smaller model"
        )
    return _trace(_exportable(model.module), model.example)


def _trace(module: nn.Module, example: Tensors) -> bytes:
    # Traced with a batch of 2: of 1 would be taken for a constant (pytorch issue 157621).
    inputs = tuple(tensor.cpu() for tensor in probe(tuple(t.cpu() for t in example)))
    names = input_names(len(inputs))
    dynamic = tuple({0: BATCH} for _ in inputs)
    try:
        with _quiet(), _plain_attention(), _without_gpu(), _one_registry():
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                external_data=False,
                verbose=False,
                input_names=names,
                output_names=[OUTPUT],
                # The wrapped forward takes *inputs, which is one argument to torch.export.
                dynamic_shapes=(dynamic,),
            )
        proto = program.model_proto  # type: ignore[union-attr]
    except Exception as error:  # torch.export and the exporter raise classes of many bases
        raise StepFailed(f"torch cannot export this model to ONNX: {_first_line(error)}") from error
    _strip(proto)
    return proto.SerializeToString()


def _first_line(error: BaseException) -> str:
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    return (str(root).strip().splitlines() or [type(root).__name__])[0]


def _exportable(module: nn.Module) -> nn.Module:
    """Return a copy on the CPU, contiguous, in eval mode, whose forward gives one tensor.

    Its class is derived from the module's: a wrapper around it would put a prefix before the
    name of every weight.
    """
    ours = copy.deepcopy(module).cpu().to(memory_format=torch.contiguous_format).eval()
    original = type(ours)

    def forward(self: nn.Module, *inputs: Tensor) -> Tensor:
        return main_output(original.forward(self, *inputs))

    ours.__class__ = type(original.__name__, (original,), {"forward": forward})
    return ours


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """The fused attention of eval mode is no operator that ONNX knows."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def _without_gpu() -> Iterator[None]:
    """Keep the exporter from a GPU's random state, which it would save, and so start CUDA.

    All that is exported lies on the CPU, and where a fork server had started CUDA, none of its
    children could use it. (To say that there is no GPU at all has torch look for one in C++.)
    """
    before = torch.cuda.get_rng_state, torch.cuda.set_rng_state
    torch.cuda.get_rng_state = lambda *_, **__: torch.empty(0)
    torch.cuda.set_rng_state = lambda *_, **__: None
    try:
        yield
    finally:
        torch.cuda.get_rng_state, torch.cuda.set_rng_state = before


@contextlib.contextmanager
def _one_registry() -> Iterator[None]:
    """Have the exporter build its table of operators once in a process, and in its forks never.

    It parses the sources of 500 functions for it, which takes longer than to export a small
    model. The table is only read, since we bring no operators of our own. Where torch keeps it
    in another place, it is built every time.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        plain = ONNXRegistry.__dict__["from_torchlib"]
        build = ONNXRegistry.from_torchlib
    except (ImportError, KeyError):
        yield
        return
    ONNXRegistry.from_torchlib = staticmethod(functools.partial(_built, build))  # type: ignore[method-assign]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = plain  # type: ignore[method-assign]


@functools.cache
def _built(build: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return build(*args, **options)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: its warnings concern its own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _strip(proto: onnx.ModelProto) -> None:
    """Drop the exporter's notes on every node: stack traces with local paths, larger than a
    small model's weights."""
    graph = proto.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.metadata_props[:]
    graph.doc_string = ""
    for function in proto.functions:
        for node in function.node:
            del node.metadata_props[:]


def stamp(onnx_bytes: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return the file with these key-value pairs in its metadata; existing keys are replaced."""
    proto = onnx.load_from_string(onnx_bytes)
    merged = {**_metadata(proto), **metadata}
    proto.producer_name = PRODUCER
    set_metadata(proto, merged)
    return proto.SerializeToString()


def read_metadata(onnx_bytes: bytes) -> dict[str, str]:
    """Return the metadata of a file."""
    return _metadata(onnx.load_from_string(onnx_bytes))


def set_metadata(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Replace all metadata of a file."""
    del proto.metadata_props[:]
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)


def _metadata(proto: Any) -> dict[str, str]:
    return {pair.key: pair.value for pair in proto.metadata_props}
