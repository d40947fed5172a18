"""How a trained module differs from a fresh build of it, as JSON, and how that is applied again.

Layers may have been replaced or removed, and plain attributes changed. All else must be as the
factory builds it. Tensors are stored beside the JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.attention import Attention
from compress.errors import CannotSave, UserError
from compress.heads import ATTRIBUTE


class Skipped(nn.Identity):
    """In the place of a block that was taken out: also of one that is called with a mask."""

    def forward(self, input: Tensor, *_: Any, **__: Any) -> Tensor:
        return input


_CONVOLUTION = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    *("bias", "padding_mode"),
)
_BATCH_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")

# The closed vocabulary of layers that steps may emit: class, and the constructor's arguments
# as they can be read back from an instance.
VOCABULARY: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.Linear: ("in_features", "out_features", "bias"),
    nn.BatchNorm1d: _BATCH_NORM,
    nn.BatchNorm2d: _BATCH_NORM,
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.Sequential: (),
    nn.Identity: (),
    Skipped: (),
    nn.ReLU: ("inplace",),
    Attention: ("embed_dim", "num_heads", "batch_first", "dropout"),
}
BY_NAME = {cls.__name__: cls for cls in VOCABULARY}

INTERNAL = frozenset({*vars(nn.Module()), ATTRIBUTE, "_flat_weights", "_flat_weight_refs"})
"""Attributes of every module: tensors, submodules, hooks, mode, heads; of recurrent layers also
lists of their parameters."""


def difference(ours: nn.Module, fresh: nn.Module) -> dict[str, Any]:
    """Return how `ours` differs from `fresh`, but for tensors; raise CannotSave if JSON cannot."""
    our_modules = dict(ours.named_modules(remove_duplicate=False))
    fresh_modules = dict(fresh.named_modules(remove_duplicate=False))
    replaced: dict[str, Any] = {}
    attributes: dict[str, Any] = {}
    for path, module in our_modules.items():
        other = fresh_modules.get(path)
        inside_replaced = bool(path) and path.rpartition(".")[0] in replaced
        if inside_replaced or other is None or type(other) is not type(module):
            replaced[path] = _constructor_call(path, module)
        elif changed := _changed_attributes(path, module, other):
            attributes[path] = changed
    same_type = our_modules.keys() - replaced.keys()
    removed = [
        path
        for path in fresh_modules
        if path not in our_modules and path.rpartition(".")[0] in same_type
    ]
    return {"modules": replaced, "attributes": attributes, "removed": removed}


def rebuilt(fresh: nn.Module, differences: Mapping[str, Any]) -> nn.Module:
    """Return a fresh build with the differences applied: layers and attributes, not tensors."""
    module = fresh
    for path in differences["removed"]:
        parent, name = owner_of(module, path)
        del parent._modules[name]
    for path, call in differences["modules"].items():
        layer = _construct(path, call)
        if path:
            parent, name = owner_of(module, path)
            parent._modules[name] = layer
        else:
            module = layer
    for path, changed in differences["attributes"].items():
        layer = module.get_submodule(path)
        for key, value in changed.items():
            # Only plain values in the place of plain values: nothing that could be called.
            attributes = _own_attributes(layer)
            if key not in attributes or not _is_plain(attributes[key]):
                raise UserError(f"layer {path!r} has no plain attribute {key!r} to set")
            setattr(layer, key, decode(value))
    return module


def place_tensors(module: nn.Module, stored: Mapping[str, Tensor], tied: Mapping[str, str]) -> None:
    """Put stored tensors in their places, whatever their shapes, and nothing in all others.

    `tied` names a stored tensor for each further place that shares it.
    """
    buffers = dict(module.named_buffers(remove_duplicate=False))
    placed = {
        name: tensor if name in buffers else nn.Parameter(tensor, requires_grad=False)
        for name, tensor in stored.items()
    }
    placed.update({name: placed[first] for name, first in tied.items()})
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name in {**placed, **parameters, **buffers}:
        owner, attribute = owner_of(module, name)
        tensors = owner._buffers if attribute in owner._buffers else owner._parameters
        tensors[attribute] = placed.get(name)  # type: ignore[assignment]
    for part in module.modules():
        if isinstance(part, nn.RNNBase):
            part._init_flat_weights()


def owner_of(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Return the submodule that holds what a path leads to, and its name there."""
    parent, _, name = path.rpartition(".")
    return module.get_submodule(parent), name


def _constructor_call(path: str, module: nn.Module) -> dict[str, Any]:
    cls, name = type(module), type(module).__name__
    if cls not in VOCABULARY:
        raise CannotSave(f"layer {path!r} is a {name}, which is not in the vocabulary of layers")
    values = {key: getattr(module, key, None) for key in VOCABULARY[cls]}
    if "bias" in values:
        values["bias"] = values["bias"] is not None
    return {"type": name, "arguments": encode(values)}


def _construct(path: str, call: Mapping[str, Any]) -> nn.Module:
    cls, arguments = BY_NAME.get(call["type"]), decode(call["arguments"])
    if cls is None:
        raise UserError(f"layer {path!r} has the unknown type {call['type']!r}")
    if foreign := arguments.keys() - set(VOCABULARY[cls]):
        raise UserError(f"layer {path!r} has unknown arguments {sorted(foreign)}")
    return cls(**arguments)


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if key not in INTERNAL}


def _changed_attributes(path: str, module: nn.Module, fresh: nn.Module) -> dict[str, Any]:
    ours, theirs = _own_attributes(module), _own_attributes(fresh)
    changed = {}
    for key in sorted(ours.keys() | theirs.keys()):
        in_both = key in ours and key in theirs
        if in_both and _same(ours[key], theirs[key]):
            continue
        if not in_both or not _is_plain(ours[key]):
            raise CannotSave(
                f"attribute {key!r} of layer {path!r} differs from a fresh build and is not a "
                f"plain value, so the model cannot be saved"
            )
        changed[key] = encode(ours[key])
    return changed


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if _is_plain(a) or isinstance(a, (set, frozenset)):
        return bool(a == b)
    # Functions, partials, enums, modules held outside the tree: equal but for their address.
    return _without_addresses(a) == _without_addresses(b)


def _without_addresses(value: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def encode(value: Any) -> Any:
    """Return plain values as JSON that tells tuples from lists."""
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {"dict": {key: encode(item) for key, item in value.items()}}
    return value


def decode(value: Any) -> Any:
    """Return what was encoded."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, dict):
        if "tuple" in value:
            return tuple(decode(item) for item in value["tuple"])
        return {key: decode(item) for key, item in value["dict"].items()}
    return value
