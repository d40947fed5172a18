"""Which channels of a module depend on which: one forward pass, followed operator by operator.

Every axis of every parameter gets a label per index, and so does every axis of a tensor that is
computed from them. An operator unites the labels of what must go together (the channels of two
tensors that are added, the inputs of a convolution and what enters it) and fixes those that
cannot go at all, with its reason. An operator without a rule fixes whatever enters it. So the
time is that of one forward pass, a part that is not understood costs only its own neighbours, and
every reason names the operator and the layer that gave it.

The operators are those of the dispatcher (`aten`), so it does not matter which module, function
or method called them, and views, `cat` along any axis, chunks and shuffles are exact. What the
rules assume about code (that sizes follow from shapes) is not trusted: see `channel_groups`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from compress.dataflow import tensors_in
from compress.errors import UserError
from compress.heads import all_heads, as_in_training, has_auxiliary
from compress.tasks.base import Tensors
from compress.techniques.channel_attention import attention_layers, heads_names
from compress.techniques.channel_norms import Call, NormCalls
from compress.techniques.channel_rules import RULES
from compress.techniques.channel_rules.pointwise import pointwise
from compress.techniques.channel_where import Where

Vector = npt.NDArray[np.int64]
Axes = tuple[Vector | None, ...]
"""By axis of a tensor, the label of each index; None for an axis that stays as it is."""
Axis = tuple[str, int]
"""The name of a parameter or buffer, and one of its axes."""
Number = tuple[str, str]
"""The path of a layer, and the name of a whole number that it keeps."""
FIXED = 0
"""The label of what stays."""
OUTPUT = "it produces the model's output"
SIDE_OUTPUT = "the model also returns it, beside the logits: it would change shape"


@dataclass
class Trace:
    """What one or more passes found; labels are numbers that `edges` unites."""

    axes: dict[Axis, Vector] = field(default_factory=dict)
    """The labels along the axes of parameters and buffers."""
    edges: list[tuple[Vector, Vector]] = field(default_factory=list)
    locks: list[tuple[Vector, str]] = field(default_factory=list)
    """Labels that must stay, and why."""
    made: dict[Axis, str] = field(default_factory=dict)
    """The axes of weights that become the channels of a result -> the layer."""
    read: set[Axis] = field(default_factory=set)
    """The axes of weights that are summed over: those of a layer's inputs."""
    whole_groups: set[str] = field(default_factory=set)
    """Grouped convolutions (depthwise ones included) that lose groups, not channels of each."""
    norms: dict[Call, Vector] = field(default_factory=dict)
    """Normalisations over a labelled axis, by call -> the labels."""
    vectors: dict[str, Vector] = field(default_factory=dict)
    """Batch and group norms, by the layer's path -> the labels of their channels."""
    padded: dict[str, tuple[Vector, Vector]] = field(default_factory=dict)
    """Layers that pad channels with zeros -> the labels of those before, and of those after."""
    added: list[Vector] = field(default_factory=list)
    """Labels of activations that are added to others of their shape: residual streams."""
    numbers: dict[Number, list[Vector]] = field(default_factory=dict)
    """Numbers that layers may take sizes from -> the labels of the axes whose sizes they are."""
    scaled: set[str] = field(default_factory=set)
    """Layers whose attention is scaled by the width of a head, as torch does by default."""
    computed: set[str] = field(default_factory=set)
    """Convolutions whose weight is the result of a computation that is not followed."""
    labels: int = 1
    """The number of labels given, `FIXED` included."""

    @property
    def norm_layers(self) -> set[str]:
        """The paths of all normalisations."""
        return self.vectors.keys() | {path for path, _ in self.norms}

    def fresh(self, count: int) -> Vector:
        first, self.labels = self.labels, self.labels + count
        return np.arange(first, first + count)

    def unite(self, first: Vector, second: Vector) -> None:
        """Unite labels index by index; what meets `FIXED` stays."""
        self.edges.append((first, second))

    def lock(self, vector: Vector | None, reason: str) -> None:
        if vector is not None:
            self.locks.append((vector, reason))


def trace(module: nn.Module, inputs: Tensors, whole_heads: Collection[str] = ()) -> Trace:
    """Follow one item through a module in eval mode, and to the heads of training if it has any.

    Attention layers in `whole_heads` lose heads, others channels of each. The module is left as it
    is but for what its own forward pass keeps; give a copy.
    """
    found = Trace()
    one = tuple(tensor[:1] for tensor in inputs)
    with _plain_kernels(), torch.no_grad(), Where(module) as where:
        passes: list[Any] = [contextlib.nullcontext()]
        if has_auxiliary(module):
            passes.append(as_in_training(module))
        norms = _Norms(where)
        for mode in passes:
            norms.tracer = tracer = Tracer(module, found, where, whole_heads)
            with mode, norms, tracer:
                outputs = module(*one)
            heads = _heads(module, outputs)
            tracer.lock_all(heads, OUTPUT)
            tracer.lock_all(_plain(outputs), SIDE_OUTPUT if heads else OUTPUT)
        for path, part in module.named_modules():
            if isinstance(part, torch.jit.ScriptModule):
                who = repr(path) if path else "the model"
                tracer.lock_all([*part.parameters()], f"{who} is compiled by torch.jit")
    return found


def _heads(module: nn.Module, outputs: Any) -> tuple[Tensor, ...]:
    """Return the logits, and auxiliary heads in training; () where no rule tells which they are."""
    try:
        return all_heads(module, outputs)
    except UserError:
        return ()


def _plain(outputs: Any) -> Any:
    """Return outputs as lists and dictionaries: fields of data classes as well."""
    if isinstance(outputs, (Tensor, list, tuple, dict)):
        return outputs
    return dict(outputs) if hasattr(outputs, "keys") else vars(outputs)


@contextlib.contextmanager
def _plain_kernels() -> Iterator[None]:
    """Have attention and recurrent layers run operator by operator."""
    fast = torch.backends.mha.get_fastpath_enabled()
    onednn = torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)  # `backends.mkldnn.flags` warns of GPUs that are not here
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(onednn)


class _Norms(NormCalls):
    """Tells the tracer which call it sees, and RMS norms as one operator.

    Of these the dispatcher sees the parts alone.
    """

    tracer: Tracer

    def called(self, call: Call, func: Any, args: Any, options: dict[str, Any]) -> Any:
        if func not in (F.rms_norm, torch.rms_norm):
            with self.tracer.within(call):
                return func(*args, **options)
        with self.tracer.paused():
            result = func(*args, **options)
        named = dict(zip(("input", "normalized_shape", "weight"), args, strict=False)) | options
        x, count = named["input"], len(named["normalized_shape"])
        with self.tracer.within(call):
            self.tracer.keep(result, self.tracer.normalized(x, count, named.get("weight")))
        return result


class Tracer(TorchDispatchMode):
    """Labels results by the rules below."""

    def __init__(
        self, module: nn.Module, found: Trace, where: Where, whole_heads: Collection[str] = ()
    ) -> None:
        super().__init__()
        self.found, self.where, self._paused = found, where, False
        self._call: Call | None = None
        attentions = attention_layers(module)
        self.rescalable = {one.path for one in attentions if one.queries}
        """Attention layers whose queries' weights are known."""
        self.heads = {one.path: one.heads for one in attentions if one.path in whole_heads}
        self._parts = dict(module.named_modules())
        self._axes: Any = WeakIdKeyDictionary()
        self._origin: Any = WeakIdKeyDictionary()
        """Weights and plain views of them -> name, and the weight's axis that each axis is."""
        self._source: Any = WeakIdKeyDictionary()
        """Weights of another shape, and what was made of them value by value -> name, shape."""
        for name, tensor in named_tensors(module).items():
            self._origin[tensor] = (name, tuple(range(tensor.ndim)))
            self._axes[tensor] = tuple(
                self._of_parameter(name, axis, size) for axis, size in enumerate(tensor.shape)
            )

    def _of_parameter(self, name: str, axis: int, size: int) -> Vector | None:
        if size == 1:
            return None
        if (name, axis) not in self.found.axes:
            self.found.axes[name, axis] = self.found.fresh(size)
        return self.found.axes[name, axis]

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    @contextlib.contextmanager
    def within(self, call: Call) -> Iterator[None]:
        self._call = call
        try:
            yield
        finally:
            self._call = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        result = func(*args, **options)
        if not self._paused:
            self._apply(func, args, options, result)
        return result

    def _apply(self, func: Any, args: Any, options: dict[str, Any], result: Any) -> None:
        name = _bare_name(func)
        labelled = any(self.axes(value) for value in tensors_in((args, options)))
        if not labelled:
            return
        if rule := RULES.get(name):
            rule(self, func, args, options, result)
        elif _is_pointwise(func, name):
            pointwise(self, func, args, options, result)
        else:
            self.unknown(name, args, options)

    # --- what rules use ---------------------------------------------------------------

    def axes(self, tensor: Tensor) -> Axes:
        """Return a tensor's labels, () if it has none."""
        found: Axes = self._axes.get(tensor, ())
        return found

    def axis(self, tensor: Tensor, axis: int) -> Vector | None:
        axes = self.axes(tensor)
        return axes[axis] if axes and tensor.ndim else None

    def keep(self, tensor: Tensor, axes: Sequence[Vector | None]) -> None:
        """Give a result its labels; an axis of one index has none."""
        axes = tuple(
            vector if size > 1 else None for vector, size in zip(axes, tensor.shape, strict=True)
        )
        if any(vector is not None for vector in axes):
            self._axes[tensor] = axes
        else:
            self._axes.pop(tensor, None)

    def origin(self, tensor: Tensor) -> tuple[str, tuple[int, ...]] | None:
        found: tuple[str, tuple[int, ...]] | None = self._origin.get(tensor)
        return found

    def keep_origin(self, tensor: Tensor, source: Tensor, order: Sequence[int]) -> None:
        """Note that a result is a weight, its axes in another order."""
        if found := self.origin(source):
            self._origin[tensor] = (found[0], tuple(found[1][axis] for axis in order))

    def source(self, tensor: Tensor) -> tuple[str, tuple[int, ...]] | None:
        """Return of which weight a tensor holds a value for each of its values, and its shape."""
        known: tuple[str, tuple[int, ...]] | None = self._source.get(tensor)
        found = self.origin(tensor)
        if found and found[1] == tuple(range(tensor.ndim)):
            return found[0], tuple(tensor.shape)
        return known

    def keep_source(self, tensor: Tensor, source: Tensor) -> None:
        """Note that a result is made of a weight; in the weight's shape it stands for it."""
        if found := self.source(source):
            self._source[tensor] = found
            if found[1] == tuple(tensor.shape):
                self._origin[tensor] = (found[0], tuple(range(tensor.ndim)))

    def here(self) -> str:
        return f"{self.where.path!r}" if self.where.path else "the model's own forward"

    def layer(self) -> nn.Module:
        """Return the layer that is running."""
        return self._parts[self.where.path]

    def lock(self, vector: Vector | None, reason: str) -> None:
        self.found.lock(vector, reason)

    def lock_all(self, values: Any, reason: str) -> None:
        for tensor in tensors_in(values):
            for vector in self.axes(tensor):
                self.lock(vector, reason)

    def unknown(self, name: str, args: Any, options: dict[str, Any]) -> None:
        self.lock_all((args, options), f"there is no rule for {name}, in {self.here()}")

    def meet(self, first: Vector | None, second: Vector | None, reason: str) -> Vector | None:
        """Unite the labels of two axes of one size; where one has none, the other stays whole."""
        if first is not None and second is not None:
            self.found.unite(first, second)
            return first
        self.lock(first if second is None else second, reason)
        return None

    def blocks(self, vector: Vector | None, parts: int) -> Vector | None:
        """Unite the same index of equal parts of an axis; return the labels of the first."""
        if vector is None or parts == 1:
            return vector
        rows = vector.reshape(parts, -1)
        for row in rows[1:]:
            self.found.unite(rows[0], row)
        return rows[0]

    def sized(self, vector: Vector | None, heads: bool = False) -> bool:
        """Note which numbers of the layer that is running are as many as some labels are.

        Those of heads are numbers of heads, and no others are. Returns whether there are any: its
        code may take a size from them.
        """
        if vector is None:
            return False
        part = self.layer()
        of_heads = heads_names(part)
        names = [
            key
            for key, number in vars(part).items()
            if type(number) is int and number == len(vector) and heads is (key in of_heads)
        ]
        for name in names:
            self.found.numbers.setdefault((self.where.path, name), []).append(vector)
        return bool(names)

    def makes(self, tensor: Tensor, axis: int) -> Vector | None:
        """Return the labels of an axis of a factor that becomes an axis of the product."""
        if found := self.origin(tensor):
            self.found.made.setdefault((found[0], found[1][axis]), self.where.path)
        return self.axis(tensor, axis)

    def reads(self, tensor: Tensor, axis: int) -> Vector | None:
        """Return the labels of an axis of a factor that is summed over."""
        if found := self.origin(tensor):
            self.found.read.add((found[0], found[1][axis]))
        return self.axis(tensor, axis)

    def normalized(self, x: Tensor, count: int, *weights: Tensor | None) -> list[Vector | None]:
        """Return the labels of a normalisation over the last `count` axes, and note it."""
        axes = list(self.axes(x) or (None,) * x.ndim)
        for weight in weights:
            for axis in range(-count, 0) if weight is not None else ():
                if x.shape[axis] > 1:
                    assert weight is not None
                    reason = f"{self.here()} normalises an axis of fixed size"
                    axes[axis] = self.meet(axes[axis], self.axis(weight, axis), reason)
        inside = [vector for vector in axes[-count:] if vector is not None]
        if count > 1:
            for vector in inside:
                self.lock(vector, f"{self.here()} normalises over several axes")
        elif inside:
            self.takes_statistics(inside[0])
        return axes

    def takes_statistics(self, vector: Vector | None) -> None:
        """Note a normalisation over an axis: those channels that are kept take part in it."""
        if vector is None:
            return
        if self._call is None:
            self.lock(vector, f"{self.here()} normalises by an operator, not by torch's function")
            return
        if hasattr(self.layer(), "normalized_shape"):  # one size for all of its calls
            for (path, _), known in self.found.norms.items():
                if path == self._call[0]:
                    self.found.unite(known, vector)
        self.found.norms[self._call] = vector


def _bare_name(func: Any) -> str:
    """Return an operator's name, without the underscore of one that works in place."""
    name: str = getattr(func, "_overloadpacket", func).__name__
    return name if name.endswith("__") else name.removesuffix("_")


@functools.cache
def _is_pointwise(func: Any, name: str) -> bool:
    """Whether torch calls an operator pointwise, or the one that it is in place."""
    packet = getattr(torch.ops.aten, name, None)
    overloads = [getattr(packet, one) for one in packet.overloads()] if packet else []
    return any(torch.Tag.pointwise in getattr(one, "tags", ()) for one in [func, *overloads])


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers, what is tied under its first name alone."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
