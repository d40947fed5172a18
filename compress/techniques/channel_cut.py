"""Cutting classes of channels out of a module, and what the result must equal.

The reference is the original in which the removed channels are zero: the rows of the weights that
make them, their biases, the vectors of their norms and whatever else is theirs alone. Where a
norm takes its statistics over channels (LayerNorm, RMSNorm, GroupNorm of one group), the removed
ones have no part in them, as they have none in the pruned net.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from compress.errors import first_line
from compress.heads import has_auxiliary, heads_in_training
from compress.model import copied, forward
from compress.rebuild import owner_of
from compress.system.amounts import decimal
from compress.tasks.base import Tensors
from compress.techniques.channel_attention import AttentionLayer, set_widths
from compress.techniques.channel_norms import KeptNorms
from compress.techniques.channel_trace import Axis, Number, Trace, Vector
from compress.techniques.channel_where import Where

PRECISION = 1e-6
"""By how much of the largest output a cut net may differ in float64: rounding gives 1e-12."""
SINGLE = 1e-3
"""The same in float32, for modules that do not run in float64; a wrong cut is off by a tenth."""
DIFFERS = "cut, it differs from the original with these channels zeroed by"


@dataclass(frozen=True)
class Plan:
    """What a trace found, and the class of each of its labels."""

    trace: Trace
    classes: Vector
    attentions: tuple[AttentionLayer, ...] = ()
    rescaled: frozenset[str] = frozenset()
    """Attention layers whose queries make up for a change of their heads' width."""
    unchanged: frozenset[Number] = frozenset()
    """Numbers of layers that stay, though they are as many as some channels were."""

    @property
    def numbers(self) -> dict[Number, list[Vector]]:
        """The numbers of layers that follow a cut -> the labels that they count."""
        every = self.trace.numbers.items()
        return {number: vectors for number, vectors in every if number not in self.unchanged}

    def of(self, axis: Axis) -> Vector:
        """Return the class of each index of an axis of a parameter."""
        return self.classes[self.trace.axes[axis]]


@dataclass
class Cut:
    """A pruned module, and what was removed, in the original's numbering."""

    module: nn.Module
    classes: Vector
    removed: dict[str, list[int]] = field(default_factory=dict)
    """By layer, the indices of the outputs that it lost."""


def cut(module: nn.Module, plan: Plan, removed: Collection[int] | Vector) -> Cut:
    """Return a copy of a module without some classes of channels.

    Raises ValueError where nothing would be left of a layer.
    """
    result, found = copied(module), plan.trace
    gone = np.asarray(removed, dtype=np.int64)
    done = Cut(result, gone)
    _set_sizes_of_groups(result, plan, gone)
    by_name: dict[str, dict[int, Vector]] = {}
    for name, axis in found.axes:
        lost = np.isin(plan.of((name, axis)), gone)
        if lost.any():
            if lost.all():
                raise ValueError(f"nothing would be left of {name}")
            by_name.setdefault(name, {})[axis] = np.flatnonzero(~lost)
            if (name, axis) in found.made:
                done.removed[found.made[name, axis]] = np.flatnonzero(lost).tolist()
    same = _names_by_tensor(result)
    for name, kept in by_name.items():
        _slice(result, same[name], kept)
        _set_shape(result, module, same[name])
    for path, part in result.named_modules():
        if any(f"{path}.{leaf}".lstrip(".") in by_name for leaf in _own_tensors(part)):
            _set_sizes(part)
    _set_sizes_of_others(result, plan, gone)
    _set_numbers(result, plan, gone)
    set_widths(result, plan.attentions, plan.rescaled)
    return done


def _names_by_tensor(module: nn.Module) -> dict[str, list[str]]:
    """Return, by the first name of each tensor, all of its names: what is tied stays tied."""
    names: dict[int, list[str]] = {}
    for tensors in (module.named_parameters, module.named_buffers):
        for name, tensor in tensors(remove_duplicate=False):
            names.setdefault(id(tensor), []).append(name)
    return {together[0]: together for together in names.values()}


def _own_tensors(part: nn.Module) -> list[str]:
    own = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
    return [name for name, _ in own]


def _slice(module: nn.Module, names: list[str], kept: Mapping[int, Vector]) -> None:
    """Put what is kept of a tensor in all of its places, trained or frozen as it was."""
    owner, leaf = owner_of(module, names[0])
    old: Tensor = getattr(owner, leaf)
    new = old.detach()
    for axis, index in kept.items():
        new = new.index_select(axis, torch.from_numpy(index).to(new.device))
    new = new.contiguous().clone()
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    for name in names:
        owner, leaf = owner_of(module, name)
        setattr(owner, leaf, new)


def _set_shape(result: nn.Module, module: nn.Module, names: list[str]) -> None:
    """Have layers that keep the shape of their vector as a tuple, as timm's scales, say the new."""
    for name in names:
        owner, leaf = owner_of(result, name)
        before: Tensor = getattr(owner_of(module, name)[0], leaf)
        shape = vars(owner).get("shape")
        if isinstance(shape, tuple) and before.ndim == 1 and shape.count(len(before)) == 1:
            now = len(getattr(owner, leaf))
            owner.shape = tuple(now if size == len(before) else size for size in shape)  # type: ignore[assignment]


def _set_sizes(part: nn.Module) -> None:
    """Have a layer's numbers say what shapes its tensors have."""
    weight = getattr(part, "weight", None)
    if isinstance(part, nn.RNNBase):
        part.input_size = int(cast(Tensor, part.weight_ih_l0).shape[1])
    if not isinstance(weight, Tensor):
        return
    if isinstance(part, nn.modules.conv._ConvNd):
        first, second = weight.shape[:2]
        sizes = (first, second * part.groups) if part.transposed else (second * part.groups, first)
        part.in_channels, part.out_channels = sizes
    elif isinstance(part, nn.Linear):
        part.out_features, part.in_features = weight.shape
    elif isinstance(part, nn.Embedding):
        part.embedding_dim = weight.shape[1]
    elif isinstance(part, nn.PReLU):
        part.num_parameters = len(weight)


def _set_sizes_of_groups(module: nn.Module, plan: Plan, gone: Vector) -> None:
    """Have convolutions that lose whole groups have as many fewer."""
    parts = dict(module.named_modules())
    weights = {path: name for (name, _), path in plan.trace.made.items()}
    for path in plan.trace.whole_groups:
        part = parts[path]
        if isinstance(part, nn.modules.conv._ConvNd):
            lost = np.isin(plan.of((weights[path], 0)), gone)
            part.groups = round(part.groups * (1 - lost.mean()))


def _set_numbers(module: nn.Module, plan: Plan, gone: Vector) -> None:
    """Have the numbers that layers take sizes from be as many as is kept.

    One that would have to be two different ones stays.
    """
    for (path, name), vectors in plan.numbers.items():
        counts = {_kept(plan, gone, labels) for labels in vectors}
        if len(counts) == 1:
            setattr(module.get_submodule(path), name, counts.pop())


def _kept(plan: Plan, gone: Vector, labels: Vector) -> int:
    return int((~np.isin(plan.classes[labels], gone)).sum())


def _set_sizes_of_others(module: nn.Module, plan: Plan, gone: Vector) -> None:
    """Have norms, and layers that pad channels with zeros, have the sizes of what is kept."""

    def kept(labels: Vector) -> int:
        return _kept(plan, gone, labels)

    parts = dict(module.named_modules())
    for (path, _), vector in plan.trace.norms.items():
        if isinstance(getattr(parts[path], "normalized_shape", None), tuple):
            parts[path].normalized_shape = (kept(vector),)  # type: ignore[assignment]
    for path, vector in plan.trace.vectors.items():
        part, count = parts[path], kept(vector)
        if isinstance(part, nn.GroupNorm):
            part.num_groups = max(1, part.num_groups * count // part.num_channels)
            part.num_channels = count
        elif isinstance(getattr(part, "num_features", None), int):
            part.num_features = count  # type: ignore[assignment]
    for path, (before, after) in plan.trace.padded.items():
        if hasattr(parts[path], "before") and hasattr(parts[path], "after"):
            parts[path].before, parts[path].after = kept(before), kept(after)  # type: ignore[assignment]


# --- the reference ----------------------------------------------------------------------------


def zeroed(module: nn.Module, plan: Plan, removed: Collection[int] | Vector) -> nn.Module:
    """Return a copy in which everything that makes channels of some classes is zero."""
    result, gone = copied(module), np.asarray(removed, dtype=np.int64)
    tensors = {**dict(result.named_parameters()), **dict(result.named_buffers())}
    with torch.no_grad():
        for name, axis in plan.trace.axes:
            if (name, axis) in plan.trace.read - plan.trace.made.keys():
                continue
            lost = np.flatnonzero(np.isin(plan.of((name, axis)), gone))
            if len(lost):
                tensors[name].index_fill_(axis, torch.from_numpy(lost), 0)
    return result


def _outputs(module: nn.Module, inputs: Tensors) -> list[Tensor]:
    """Return the logits, and where a module has auxiliary heads, all heads of training."""
    outputs = [forward(module, inputs)]
    if has_auxiliary(module):
        with torch.no_grad():
            outputs += heads_in_training(module, inputs)
    return outputs


def _reference(module: nn.Module, pruned: Cut, plan: Plan, inputs: Tensors) -> list[Tensor]:
    reference = zeroed(module, plan, pruned.classes).eval()
    kept = {}
    for call, vector in plan.trace.norms.items():
        stays = ~np.isin(plan.classes[vector], pruned.classes)
        if not stays.all():
            kept[call] = torch.from_numpy(np.flatnonzero(stays))
    if not kept:
        return _outputs(reference, inputs)
    with Where(reference) as where, KeptNorms(where, kept):
        return _outputs(reference, inputs)


def differs_from_zeroed(
    module: nn.Module, pruned: Cut, plan: Plan, inputs: Tensors, double: bool = True
) -> str:
    """Say how a pruned module differs from the original with those channels zeroed ('' if not).

    In float64, unless the module does not run in it. Without `double`, float32 is tried first,
    which is faster, and float64 decides where it may be rounding that differs there.
    """
    if not double:
        reason = _difference(module, pruned, plan, inputs, SINGLE)
        if not reason.startswith(DIFFERS):
            return reason
    doubled = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    if not _runs(copied(module).double(), doubled):
        return _difference(module, pruned, plan, inputs, SINGLE) if double else reason
    ours = replace(pruned, module=copied(pruned.module).double())
    return _difference(copied(module).double(), ours, plan, doubled, PRECISION)


def _difference(
    module: nn.Module, pruned: Cut, plan: Plan, inputs: Tensors, tolerance: float
) -> str:
    try:
        outputs = _outputs(pruned.module.eval(), inputs)
    except Exception as error:  # whatever a foreign forward trips over
        return f"cut, it does not run: {_where(error, pruned.module)}{first_line(error)}"
    try:
        expected = _reference(module, pruned, plan, inputs)
    except Exception as error:
        return f"with these channels zeroed, it does not run: {first_line(error)}"
    for one, other in zip(outputs, expected, strict=True):
        if one.shape != other.shape:
            return f"cut, it has outputs of shape {tuple(one.shape)}, not {tuple(other.shape)}"
        largest = max(float(other.abs().max()), 1e-6)
        off = float((one - other).abs().max()) / largest
        if not (math.isfinite(off) and off <= tolerance):
            return f"{DIFFERS} {decimal(off)} of the largest output"
    return ""


def _where(error: Exception, module: nn.Module) -> str:
    """Return the innermost layer in which an error was raised, and the error's name."""
    paths = {id(part): path for path, part in module.named_modules() if path}
    frames = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    layers = [one for one in frames if id(one) in paths]
    place = f"in {paths[id(layers[-1])]!r} ({type(layers[-1]).__name__}), " if layers else ""
    return f"{place}{type(error).__name__}: "


def _runs(module: nn.Module, inputs: Tensors) -> bool:
    """Whether a module runs in float64: one that makes float32 of its own does not."""
    try:
        forward(module.eval(), tuple(x[:1] for x in inputs))
    except Exception:
        return False
    return True


def unable(error: Exception) -> str:
    return f"it cannot be cut: {type(error).__name__}: {first_line(error)}"
