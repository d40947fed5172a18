"""Export of a float module to one ONNX file, and the metadata that the file carries."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from compress.deploy.fold import fold_batch_norms
from compress.deploy.protobuf import within
from compress.deploy.versions import settle
from compress.errors import StepFailed, UserError
from compress.heads import main_output
from compress.model import Model
from compress.system import amounts
from compress.system.patched import patched
from compress.system.processes import gc_disabled
from compress.tasks.base import InputSpec, Tensors

LIMIT = 2_000_000_000
"""Bytes that one ONNX file can hold (protobuf), with some room for the graph."""
OUTPUT = "logits"
NOTED: tuple[type[Any], ...] = (
    onnx.GraphProto,
    onnx.NodeProto,
    onnx.ValueInfoProto,
    onnx.TensorProto,
)
PRODUCER = "compress-models"
LOGGERS = ("torch.onnx", "torch.export", "onnxscript")
"""What these log during an export concerns the exporter's own internals."""


def export(model: Model) -> bytes:
    """Return the float ONNX file of a module, open in the dimensions that `Model.inputs` names.

    Inputs are named as `Model.inputs` says, the output is `logits`; no auxiliary head is exported.
    Parameters keep their names, and batch norms are folded. The module itself is left as it is,
    whatever its device and memory format.

    Raises UserError for a model of more than 2 GB, StepFailed if torch cannot export it.
    """
    size = sum(tensor.nbytes for tensor in model.module.state_dict().values())
    if size > LIMIT:
        raise UserError(
            f"the model has {amounts.size(size)} of weights, and one ONNX file holds at most 2 GB: "
            f"compress it further, or choose a smaller model"
        )
    module = _exportable(model.module)
    given, made = {id(tensor) for tensor in _tensors(model.module)}, list[Tensor]()
    try:
        # Traced with a batch of 2: of 1 would be taken for a constant (pytorch issue 157621).
        return _trace(module, model.items(2), model.signature, made)
    finally:
        # What the exporter has made refers to itself, and would hold the copy for a while.
        for tensor in (*_tensors(module), *made):
            if id(tensor) not in given:  # a module may copy itself as it likes
                tensor.data = tensor.new_empty(0)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _trace(
    module: nn.Module, inputs: Tensors, signature: Sequence[InputSpec], made: list[Tensor]
) -> bytes:
    """Return the file of a module; `made` gets the weights that are new in it."""
    dynamic = tuple(dict(spec.dynamic) for spec in signature)
    try:
        with (
            quiet(*LOGGERS),
            _plain_attention(),
            _attention_of_four_dimensions(),
            _without_gpu(),
            _one_registry(),
            _operators_looked_up_once(),
            _folding(made),
            gc_disabled(),
        ):
            program = torch.onnx.export(
                module,
                tuple(tensor.cpu() for tensor in inputs),
                dynamo=True,
                external_data=False,
                verbose=False,
                input_names=[spec.name for spec in signature],
                output_names=[OUTPUT],
                # The wrapped forward takes *inputs, which is one argument to torch.export.
                dynamic_shapes=(dynamic,),
            )
        proto = program.model_proto  # type: ignore[union-attr]
    except Exception as error:  # torch.export and the exporter raise classes of many bases
        raise StepFailed(f"torch cannot export this model to ONNX: {first_line(error)}") from error
    _strip(proto)
    return proto.SerializeToString()


def first_line(error: BaseException) -> str:
    """Return the first line of the message of an error's first cause."""
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
    for layer in ours.modules():
        if type(layer) in (nn.ReLU6, nn.Hardtanh):
            layer.__class__ = _Clamp
    original = type(ours)

    def forward(self: nn.Module, *inputs: Tensor) -> Tensor:
        return main_output(self, original.forward(self, *inputs))

    ours.__class__ = type(original.__name__, (original,), {"forward": forward})
    return ours


class _Clamp(nn.Hardtanh):
    """ReLU6 and Hardtanh as what torch.export would decompose them to, each in a tenth of a second.

    (That took 40 % of the export of a MobileNet.)
    """

    def forward(self, input: Tensor) -> Tensor:
        return torch.clamp(input, self.min_val, self.max_val)


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Switch off the fused attention of eval mode, which is no operator that ONNX knows."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _attention_of_four_dimensions() -> contextlib.AbstractContextManager[None]:
    """Have attention that has other dimensions than four, the exporter's, computed in four."""
    attend = nn.functional.scaled_dot_product_attention

    def in_four(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        *args: Any,
        **options: Any,
    ) -> Tensor:
        if query.ndim == 4:
            return attend(query, key, value, attn_mask, *args, **options)
        outer = query.shape[:-2]
        mask = attn_mask
        if mask is not None and mask.ndim > 2:
            mask = _four(mask.expand(*outer, *mask.shape[-2:]))
        found = attend(_four(query), _four(key), _four(value), mask, *args, **options)
        return found.reshape(*outer, *found.shape[-2:])

    return patched(nn.functional, scaled_dot_product_attention=in_four)


def _four(tensor: Tensor) -> Tensor:
    """Return a tensor of three dimensions or more with four, the last three as they are."""
    return tensor[None] if tensor.ndim == 3 else tensor.flatten(0, -4)


def _without_gpu() -> contextlib.AbstractContextManager[None]:
    """Keep the exporter from a GPU's random state, which it would save, and so start CUDA.

    All that is exported lies on the CPU, and if a fork server started CUDA, none of its children
    could use it. (To pretend that there is no GPU at all has torch look for one in C++.)
    """
    return patched(
        torch.cuda,
        get_rng_state=lambda *_, **__: torch.empty(0),
        set_rng_state=lambda *_, **__: None,
    )


def _folding(made: list[Tensor]) -> contextlib.AbstractContextManager[None]:
    """Fold batch norms in what the exporter traces; `made` gets the new weights.

    Where it traces in another way, it folds them itself, later.
    """
    trace = torch.export.export

    def traced(*args: Any, **options: Any) -> Any:
        program = trace(*args, **options)
        made.extend(fold_batch_norms(program))
        return program

    return patched(torch.export, export=traced)


def _one_registry() -> contextlib.AbstractContextManager[None]:
    """Have the exporter build its table of operators once in a process, and in its forks never.

    The table is only read, since we bring no operators of our own. Where torch keeps it in
    another place, it is built every time.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        return contextlib.nullcontext()
    if "from_torchlib" not in vars(ONNXRegistry):
        return contextlib.nullcontext()
    build = functools.partial(_build_registry, ONNXRegistry.from_torchlib)
    return patched(ONNXRegistry, from_torchlib=staticmethod(build))


def _operators_looked_up_once() -> contextlib.AbstractContextManager[None]:
    """Have an export walk C++'s operators once, not once for each of torch's name spaces and use.

    That was a quarter of the export of a small net. Where torch has no such function, nothing is
    changed.
    """
    from torch._export import utils

    name = "_materialize_cpp_cia_ops"
    if (walk := vars(utils).get(name)) is None:
        return contextlib.nullcontext()
    return patched(utils, **{name: functools.cache(walk)})


class _Signature:
    """A parsed function of the exporter's, which is parsed only if more than its domain is used."""

    def __init__(self, parse: Callable[[], Any], domain: str) -> None:
        self._parse, self.domain = parse, domain

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parse(), name)


@functools.cache
def _build_registry(build: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Build the table without parsing the sources of 500 functions for the domain of each."""
    from onnxscript import values

    owner = getattr(values, "TracedOnnxFunction", None)
    parsed = vars(owner).get("function_ir") if owner else None
    if not isinstance(parsed, property) or parsed.fget is None:
        return build(*args, **options)
    parse = parsed.fget
    lazy = property(lambda one: _Signature(lambda: parse(one), one.opset.domain))
    with patched(owner, function_ir=lazy):
        return build(*args, **options)


class _Errors(logging.Handler):
    """Keeps one line of every error that is logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        lines = record.getMessage().strip().splitlines()
        # A traceback is logged on its own; its last line is what happened.
        self.messages.append(lines[-1] if lines else record.levelname)


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[list[str]]:
    """Silence warnings, prints and some loggers; yield the list of errors that these log.

    Some of a library's lines go to the root logger, which is therefore silenced by its level.
    """
    errors, root = _Errors(), logging.getLogger()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.callback(root.setLevel, root.level)
        root.setLevel(logging.CRITICAL)
        for logger in map(logging.getLogger, loggers):
            stack.callback(logger.setLevel, logger.level)
            stack.callback(logger.removeHandler, errors)
            stack.enter_context(patched(logger, propagate=False))
            logger.setLevel(logging.ERROR)
            logger.addHandler(errors)
        yield errors.messages


def _strip(proto: onnx.ModelProto) -> None:
    """Drop the exporter's notes on everything: stack traces with local paths, larger than a
    small model's weights."""
    for part in within(proto, *NOTED):
        del part.metadata_props[:]
        part.doc_string = ""


def stamp(onnx_bytes: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return the file with these key-value pairs in its metadata; existing keys are replaced.

    It is what others open, so it asks for no newer format than it needs.
    """
    proto = onnx.load_from_string(onnx_bytes)
    settle(proto)
    proto.producer_name = PRODUCER
    onnx.helper.set_model_props(proto, {**read_metadata(proto), **metadata})
    return proto.SerializeToString()


def read_metadata(file: bytes | onnx.ModelProto) -> dict[str, str]:
    """Return the metadata of a file."""
    proto = onnx.load_from_string(file) if isinstance(file, bytes) else file
    return {pair.key: pair.value for pair in proto.metadata_props}
