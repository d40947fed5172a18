"""The model that flows through a chain, and how it is saved and rebuilt without a pickle.

A saved model is `model.safetensors` (every parameter and buffer) and `blueprint.json`: the
factory and its arguments, and the difference between the model and a fresh build of it.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from compress.errors import CannotSave, UserError
from compress.system.files import digest, sha256, write_atomic, write_json
from compress.tasks.base import Tensors

FORMAT = 1
INSTANCE = "(instance)"
"""The factory of a module that a Python user gave: only their process can build it again."""
# What reading a damaged or foreign file can raise.
DAMAGE = (
    *(ValueError, TypeError, LookupError, AttributeError, RuntimeError, MemoryError, OSError),
    SafetensorError,
)


class Skipped(nn.Identity):
    """In the place of a block that was taken out: also of one that is called with a mask."""

    def forward(self, input: Tensor, *_: Any, **__: Any) -> Tensor:
        return input


# The closed vocabulary of layers that steps may emit: class, and the constructor's arguments
# as they can be read back from an instance.
VOCABULARY: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "Conv2d": (
        nn.Conv2d,
        (
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "bias",
            "padding_mode",
        ),
    ),
    "Linear": (nn.Linear, ("in_features", "out_features", "bias")),
    "BatchNorm1d": (
        nn.BatchNorm1d,
        ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    ),
    "BatchNorm2d": (
        nn.BatchNorm2d,
        ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    ),
    "LayerNorm": (nn.LayerNorm, ("normalized_shape", "eps", "elementwise_affine")),
    "Sequential": (nn.Sequential, ()),
    "Identity": (nn.Identity, ()),
    "Skipped": (Skipped, ()),
    "ReLU": (nn.ReLU, ("inplace",)),
}


@dataclass(frozen=True)
class Blueprint:
    """What a fresh model is built from: a factory by name, and the arguments it was given."""

    factory: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


Builder = Callable[[Blueprint], nn.Module]


@dataclass(frozen=True)
class Model:
    """A trained network and what deploys it.

    `module` is float32 and in eval mode; `example` a tuple of input tensors with a batch
    dimension of 1; `sparse` the names of the weights that a pruning step masked; `hints` small
    JSON for later steps; `onnx` the deployed bytes once a step has lowered the model;
    `blueprint` None for a module instance that has no factory.
    """

    module: nn.Module
    example: Tensors
    sparse: frozenset[str] = frozenset()
    hints: Mapping[str, Any] = field(default_factory=dict)
    onnx: bytes | None = None
    blueprint: Blueprint | None = None

    @property
    def lowered(self) -> bool:
        return self.onnx is not None

    def copy(self) -> Model:
        """Return a model whose module shares no tensor with this one."""
        return Model(
            copy.deepcopy(self.module),
            self.example,
            self.sparse,
            copy.deepcopy(dict(self.hints)),
            self.onnx,
            self.blueprint,
        )


def probe(example: Tensors, batch: int = 2, seed: int = 0) -> Tensors:
    """Return random inputs shaped like `example` with a batch dimension of `batch`."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for tensor in example:
        shape = (batch, *tensor.shape[1:])
        if tensor.is_floating_point():
            made.append(torch.randn(shape, generator=generator, dtype=tensor.dtype))
        else:
            made.append(tensor.expand(shape).clone())
    return tuple(made)


def forward(module: nn.Module, inputs: Tensors) -> Tensor:
    """Run the module without gradients; of a tuple of outputs (auxiliary heads) take the first."""
    with torch.no_grad():
        return main_output(module(*inputs))


def main_output(outputs: Any) -> Tensor:
    """Return the tensor of the main head from what a forward pass returned."""
    while not isinstance(outputs, Tensor):
        if isinstance(outputs, Mapping):
            outputs = next(iter(outputs.values()))
        elif isinstance(outputs, (tuple, list)):
            outputs = outputs[0]
        else:
            raise UserError(f"the model returned {type(outputs).__name__}, not a tensor of logits")
    return outputs


def weights_hash(module: nn.Module) -> str:
    """Return a hash of every parameter and buffer, by name."""
    parts = {
        name: [str(tensor.dtype), list(tensor.shape), sha256(tensor.cpu().numpy().tobytes())]
        for name, tensor in module.state_dict().items()
    }
    return digest(parts)


def identity(model: Model) -> list[str]:
    """Return what a model's outputs depend on: its factory, its layers, its weights."""
    factory = "" if model.blueprint is None else model.blueprint.factory
    return [factory, digest(repr(model.module)), weights_hash(model.module)]


def became_nonfinite(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> list[str]:
    """Return the names of what holds values that are not finite and were not there before.

    A causal mask is a buffer of infinities, and fine.
    """
    return [
        name
        for name, value in after.items()
        if value.is_floating_point()
        and not value.isfinite().all()
        and not (name in before and torch.equal(value, before[name].to(value.device)))
    ]


# --- saving -----------------------------------------------------------------------------


def save(
    model: Model, folder: Path, build: Builder, about: Mapping[str, Any] | None = None
) -> None:
    """Write the model under `folder`; `about` (JSON, such as the preprocessing) goes along.

    Raises CannotSave, and writes nothing, if no factory builds the module (of a lowered model the
    ONNX file alone is no model: it is verified against the module, whose weights are counted), if
    the model differs from a fresh build in a way that the format cannot hold, or does not come
    back equal.
    """
    description, tensors = pack(model, build)
    again = unpack(description, tensors, build)
    inputs = probe(model.example)
    ours, theirs = _tensors(model.module), _tensors(again.module)
    if ours.keys() != theirs.keys() or not all(_same_bits(ours[k], theirs[k]) for k in ours):
        raise CannotSave("the saved model does not have the same tensors when loaded again")
    before, after = forward(model.module, inputs), forward(again.module, inputs)
    if not torch.allclose(before, after, rtol=1e-4, atol=1e-5 * float(before.abs().max() + 1)):
        raise CannotSave("the saved model does not give the same outputs when loaded again")
    folder.mkdir(parents=True, exist_ok=True)
    if model.onnx is not None:
        write_atomic(folder / "model.onnx", model.onnx)
    write_atomic(folder / "model.safetensors", tensors)
    write_json(folder / "blueprint.json", {**description, "about": dict(about or {})})


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.detach().cpu(), b.detach())


def pack(model: Model, build: Builder) -> tuple[dict[str, Any], bytes]:
    """Return the blueprint as JSON, and the tensors in the safetensors format."""
    if model.blueprint is None:
        raise CannotSave("no factory builds this module, so it cannot be rebuilt from a file")
    ours, fresh = model.module, build(model.blueprint)
    named = _tensors(ours)
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in named.items():
        if id(tensor) in first:
            tied[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
    description = {
        "format": FORMAT,
        "factory": model.blueprint.factory,
        "arguments": _encode(dict(model.blueprint.arguments)),
        **_difference(ours, fresh),
        "shapes": {name: list(tensor.shape) for name, tensor in named.items()},
        "tied": tied,
        "sparse": sorted(model.sparse),
        "hints": dict(model.hints),
        "example": [[list(t.shape), str(t.dtype).removeprefix("torch.")] for t in model.example],
    }
    # Clones: safetensors refuses views that share memory, and channels_last strides.
    stored = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in named.items()
        if name not in tied
    }
    return json.loads(json.dumps(description)), save_tensors(stored)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    named: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    named.update(module.named_buffers(remove_duplicate=False))
    return named


def _difference(ours: nn.Module, fresh: nn.Module) -> dict[str, Any]:
    fresh_modules = dict(fresh.named_modules(remove_duplicate=False))
    replaced: dict[str, Any] = {}
    attributes: dict[str, Any] = {}
    our_paths = set()
    for path, module in ours.named_modules(remove_duplicate=False):
        our_paths.add(path)
        parent = path.rpartition(".")[0]
        other = fresh_modules.get(path)
        if (path and parent in replaced) or other is None or type(other) is not type(module):
            replaced[path] = _constructor(path, module)
        elif changed := _changed_attributes(path, module, other):
            attributes[path] = changed
    removed = [
        path
        for path in fresh_modules
        if path not in our_paths and path.rpartition(".")[0] in our_paths - replaced.keys()
    ]
    return {"modules": replaced, "attributes": attributes, "removed": removed}


def _constructor(path: str, module: nn.Module) -> dict[str, Any]:
    name = type(module).__name__
    cls, arguments = VOCABULARY.get(name, (None, ()))
    if cls is not type(module):
        raise CannotSave(f"layer {path!r} is a {name}, which is not in the vocabulary of layers")
    values = {key: getattr(module, key, None) for key in arguments}
    if "bias" in values:
        values["bias"] = values["bias"] is not None
    return {"type": name, "arguments": _encode(values)}


@functools.cache
def _internal() -> frozenset[str]:
    return frozenset(vars(nn.Module()))


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if key not in _internal()}


def _changed_attributes(path: str, module: nn.Module, fresh: nn.Module) -> dict[str, Any]:
    ours, theirs = _own_attributes(module), _own_attributes(fresh)
    changed = {}
    for key in sorted(ours.keys() | theirs.keys()):
        if key in ours and key in theirs and _same(ours[key], theirs[key]):
            continue
        if key not in ours or key not in theirs or not _plain(ours[key]):
            raise CannotSave(
                f"attribute {key!r} of layer {path!r} differs from a fresh build and is not a "
                f"plain value, so the model cannot be saved"
            )
        changed[key] = _encode(ours[key])
    return changed


def _plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if _plain(a) or isinstance(a, (set, frozenset)):
        return bool(a == b)
    # Functions, partials, enums, modules held outside the tree: equal but for their address.
    return _anonymous(a) == _anonymous(b)


def _anonymous(value: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _encode(value: Any) -> Any:
    if isinstance(value, tuple):
        return {"tuple": [_encode(item) for item in value]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, Mapping):
        return {"dict": {key: _encode(item) for key, item in value.items()}}
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if isinstance(value, dict):
        if "tuple" in value:
            return tuple(_decode(item) for item in value["tuple"])
        return {key: _decode(item) for key, item in value["dict"].items()}
    return value


# --- loading ----------------------------------------------------------------------------


def load(folder: Path, build: Builder) -> Model:
    """Rebuild a saved model. Raises UserError if the files are missing, damaged or foreign."""
    try:
        description = json.loads((folder / "blueprint.json").read_text())
        tensors = (folder / "model.safetensors").read_bytes()
        model = unpack(description, tensors, build)
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no saved model: {error.filename} is missing") from error
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"the model saved in {folder} is damaged: {error!r}") from error
    lowered = folder / "model.onnx"
    if description.get("about", {}).get("lowered") and lowered.exists():
        model = Model(**{**vars(model), "onnx": lowered.read_bytes()})
    return model


def unpack(description: Mapping[str, Any], tensors: bytes, build: Builder) -> Model:
    """Rebuild a model from the two parts that `pack` returned."""
    if description.get("format") != FORMAT:
        raise UserError(f"blueprint format {description.get('format')!r} is not known here")
    blueprint = Blueprint(description["factory"], _decode(description["arguments"]))
    module = build(blueprint)
    for path in description["removed"]:
        parent, leaf = _parent(module, path)
        del parent._modules[leaf]
    for path, spec in description["modules"].items():
        made = _construct(path, spec)
        if path:
            parent, leaf = _parent(module, path)
            parent._modules[leaf] = made
        else:
            module = made
    for path, changed in description["attributes"].items():
        owner = module.get_submodule(path)
        for key, value in changed.items():
            # Only plain values in the place of plain values: nothing that could be called.
            if not _plain(_own_attributes(owner).get(key, ())) or key not in _own_attributes(owner):
                raise UserError(f"layer {path!r} has no plain attribute {key!r} to set")
            setattr(owner, key, _decode(value))
    stored = load_tensors(tensors)
    tied = description["tied"]
    if set(description["shapes"]) != stored.keys() | tied.keys():
        raise UserError("blueprint.json and model.safetensors name different tensors")
    for name, tensor in stored.items():
        if list(tensor.shape) != description["shapes"][name]:
            raise UserError(
                f"model.safetensors has {name} of shape {list(tensor.shape)}, but blueprint.json "
                f"says {description['shapes'][name]}"
            )
    _place_tensors(module, stored, tied)
    example = tuple(
        torch.zeros(shape, dtype=getattr(torch, dtype)) for shape, dtype in description["example"]
    )
    return Model(
        module.eval(),
        example,
        frozenset(description["sparse"]),
        description["hints"],
        blueprint=blueprint,
    )


def _construct(path: str, spec: Mapping[str, Any]) -> nn.Module:
    if spec["type"] not in VOCABULARY:
        raise UserError(f"layer {path!r} has the unknown type {spec['type']!r}")
    cls, allowed = VOCABULARY[spec["type"]]
    arguments = _decode(spec["arguments"])
    if foreign := arguments.keys() - set(allowed):
        raise UserError(f"layer {path!r} has unknown arguments {sorted(foreign)}")
    return cls(**arguments)


def _parent(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, leaf = path.rpartition(".")
    return module.get_submodule(parent), leaf


def _place_tensors(
    module: nn.Module, stored: Mapping[str, Tensor], tied: Mapping[str, str]
) -> None:
    placed: dict[str, Tensor] = {}
    buffers = dict(module.named_buffers(remove_duplicate=False))
    for name in [*stored, *tied]:
        owner, leaf = _parent(module, name)
        if name in tied:
            tensor = placed[tied[name]]
        elif name in buffers:
            tensor = stored[name]
        else:
            tensor = nn.Parameter(stored[name], requires_grad=stored[name].is_floating_point())
        placed[name] = tensor
        if leaf in owner._buffers:
            owner._buffers[leaf] = tensor
        else:
            owner._parameters[leaf] = tensor  # type: ignore[assignment]
    for name in [*dict(module.named_parameters(remove_duplicate=False)), *buffers]:
        if name not in placed:
            owner, leaf = _parent(module, name)
            (owner._buffers if leaf in owner._buffers else owner._parameters)[leaf] = None
