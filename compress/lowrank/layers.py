"""Which layers of a module can be replaced by others with equal outputs, and why the rest cannot.

A layer is taken if its forward is known (that of `Linear` or `Conv2d` itself) and if the model,
with the layer in each of its forms and nothing lost, answers as before. So a layer whose weight is
read past its forward, or shared, stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from compress import counts
from compress.lowrank.forms import Call, Layer, forms_of, whole
from compress.model import copied, forward, on_device_of
from compress.surgery import WEIGHTED, replace_everywhere
from compress.system.amounts import decimal
from compress.tasks.base import Tensors

TOLERANCE = 1e-3
"""Of the largest output; a layer that is read elsewhere is off by far more."""
NOISE = 0.1
"""Of the weights' spread, what they are changed by in a trial: zeros would hide an error."""
PAST = "its weight is read past its forward"
PACKED = "nn.MultiheadAttention keeps its projections in a parameter of its own"


@dataclass(frozen=True)
class TargetLayer:
    """A layer that can be replaced, with the calls that one item of input makes of it."""

    path: str
    layer: Layer
    calls: tuple[Call, ...]


def target_layers(module: nn.Module, inputs: Tensors) -> tuple[list[TargetLayer], dict[str, str]]:
    """Return what can be replaced, in the order of calls, and the reasons for what cannot.

    `inputs` are at least two items. The module stays as it is.
    """
    found: dict[str, Layer] = {}
    left: dict[str, str] = {}
    owners = Counter(
        id(parameter) for part in module.modules() for parameter in part.parameters(recurse=False)
    )
    for path, layer in module.named_modules():
        if isinstance(layer, nn.MultiheadAttention):
            left[path] = PACKED
        if not isinstance(layer, WEIGHTED):
            continue
        if reason := _unknown(path, layer, owners):
            left[path] = reason
        elif _plain(layer):
            found[path] = layer
    used = {id(one) for one in counts.deployed(module, tuple(tensor[:1] for tensor in inputs))}
    calls = _calls(module, found, inputs)
    for path, layer in list(found.items()):
        if reason := _unreached(layer, calls.get(path, []), id(layer.weight) in used):
            left[path] = reason
            del found[path]
    ordered = [
        TargetLayer(path, found[path], tuple(calls[path])) for path in calls if path in found
    ]
    unsound = differing(module, ordered, inputs)
    left |= unsound
    return [target for target in ordered if target.path not in unsound], left


def _plain(layer: nn.Module) -> TypeGuard[Layer]:
    return isinstance(layer, (nn.Linear, nn.Conv2d))


def _unknown(path: str, layer: Any, owners: Mapping[int, int]) -> str:
    """Say why a layer is not taken ('' if nothing speaks against it)."""
    kind = type(layer)
    if not path:
        return "it is the whole model"
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "nn.MultiheadAttention reads its weight past its forward"
    if isinstance(layer, nn.Conv3d):
        return "a 3-d convolution"
    if isinstance(layer, nn.Conv1d):  # `unpack.py` makes others of height 1
        return _unusual(layer, owners) or "a 1-d convolution that cannot become one of height 1"
    if _own_forward(layer):
        return f"a {kind.__name__}, which has a forward of its own"
    if layer._forward_hooks or layer._forward_pre_hooks or not _is_parameter(layer):
        return "its weight is computed anew in every call, or it has hooks"
    return _unusual(layer, owners)


def _own_forward(layer: Layer) -> bool:
    """Whether a class, or an instance, computes something else than its base class."""
    base: type[nn.Module] = nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d
    names = ("forward", "_conv_forward", "__call__")
    return any(
        getattr(type(layer), name, None) is not getattr(base, name, None) or name in vars(layer)
        for name in names
    )


def _is_parameter(layer: Layer) -> bool:
    return "weight" in layer._parameters and isinstance(layer.weight, nn.Parameter)


def _unusual(layer: Layer | nn.Conv1d, owners: Mapping[int, int]) -> str:
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)) and layer.groups > 1:
        return "a grouped convolution"
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)) and layer.padding_mode != "zeros":
        return f"a convolution with {layer.padding_mode} padding"
    if layer.weight.dtype != torch.float32:
        return f"its weight is of type {layer.weight.dtype}"
    if any(owners[id(one)] > 1 for one in layer.parameters(recurse=False)):
        return "another layer shares its weight or bias"
    if not layer.weight.isfinite().all():
        return "its weight holds values that are not finite"
    return ""


def _unreached(layer: Layer, calls: Sequence[Call], used: bool) -> str:
    """Say what is wrong with how a layer is called ('' if nothing is)."""
    if not used:
        return "the model's answers do not depend on it"
    if not calls:
        return PAST
    if isinstance(layer, nn.Conv2d) and any(len(one.entered) != 4 for one in calls):
        return "it is called without a batch dimension"
    return ""


def _calls(module: nn.Module, found: Mapping[str, Layer], inputs: Tensors) -> dict[str, list[Call]]:
    """Return the calls of layers for one item, layers in the order of their first call."""
    calls: dict[str, list[Call]] = {}
    handles = []
    for path, layer in found.items():

        def note(layer: Any, given: Any, options: Any, output: Tensor, path: str = path) -> None:
            x = given[0] if given else options["input"]
            calls.setdefault(path, []).append(Call(tuple(x.shape), tuple(output.shape)))

        handles.append(layer.register_forward_hook(note, with_kwargs=True))
    try:
        forward(module, on_device_of(module, tuple(tensor[:1] for tensor in inputs)))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def differing(module: nn.Module, ordered: Sequence[TargetLayer], inputs: Tensors) -> dict[str, str]:
    """Return the layers with which, in one of their forms and nothing lost, outputs differ.

    Tried on a copy, all layers at once, and one by one where that fails.
    """
    trial = copied(module).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for target in ordered:
            weight = trial.get_parameter(f"{target.path}.weight")
            spread = float(weight.std(correction=0)) or weight[0].numel() ** -0.5
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(noise.to(weight.device), alpha=NOISE * spread)
    inputs = on_device_of(trial, inputs)
    expected = forward(trial, inputs)
    reasons: dict[str, str] = {}
    rounds = max((len(forms_of(target.layer)) for target in ordered), default=0)
    for number in range(rounds):
        some = [one for one in ordered if one.path not in reasons]
        if _trial(trial, some, number, inputs, expected):
            for target in some:
                if reason := _trial(trial, [target], number, inputs, expected):
                    reasons[target.path] = reason
    return reasons


def _trial(
    trial: nn.Module, some: Sequence[TargetLayer], number: int, inputs: Tensors, expected: Tensor
) -> str:
    """Say how outputs differ with some layers in their form of a number; restore the layers."""
    originals: dict[str, nn.Module] = {}
    try:
        for target in some:
            layer: Any = trial.get_submodule(target.path)
            forms = forms_of(layer)
            originals[target.path] = layer
            replace_everywhere(trial, layer, whole(layer, forms[number % len(forms)]))
        outputs = forward(trial, inputs)
    # A model may do anything with a layer that is not what it expects.
    except Exception as error:
        return f"{PAST} ({type(error).__name__}: {error})"
    finally:
        for path, layer in originals.items():
            replace_everywhere(trial, trial.get_submodule(path), layer)
    largest = float((outputs - expected).abs().max())
    limit = TOLERANCE * max(float(expected.abs().max()), 1e-6)
    if largest <= limit:
        return ""
    return f"in two layers it gives other outputs, off by {decimal(largest)}"
