"""The model that flows through a chain, and how it is saved and rebuilt without a pickle.

A saved model is `model.safetensors` (every parameter and buffer) and `blueprint.json`: the
factory and its arguments, and the difference between the model and a fresh build of it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from compress.errors import CannotSave, UserError
from compress.heads import Heads, heads_by_path, main_output, set_all_heads
from compress.rebuild import decode, difference, encode, place_tensors, rebuilt
from compress.system.files import digest, sha256, write_atomic, write_json
from compress.tasks.base import InputChange, InputSpec, Sight, Tensors

FORMAT = 1
INSTANCE = "(instance)"
"""The factory of a module that a Python user gave: only their process can build it again."""


@dataclass(frozen=True)
class Blueprint:
    """What a fresh model is built from: a factory by name, and the arguments it was given."""

    factory: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


Builder = Callable[[Blueprint], nn.Module]


@dataclass(frozen=True)
class Model:
    """A trained network and what deploys it.

    `module` is float32 and in eval mode; `probe` a few different inputs of the task, used
    wherever something is tried out (a tuple of tensors, each with a leading batch dimension): real
    ones in a run, but noise where they are floats in a model loaded from a folder, as files keep no
    inputs that may be private; `sparse` the names of the weights that a pruning step masked;
    `hints` small JSON for later steps, which `run` drops once a step changes the weights and leaves
    no others; `onnx` the deployed bytes once a step has lowered the model; `blueprint` None for a
    module instance that has no factory; `inputs` how the file names its inputs, by default `input`,
    or `input_0` and so on, each with an open batch dimension; `sight` is there where it does not
    take the run's inputs, as a teacher may, and `probe` holds its own.
    """

    module: nn.Module
    probe: Tensors
    sparse: frozenset[str] = frozenset()
    hints: Mapping[str, Any] = field(default_factory=dict)
    onnx: bytes | None = None
    blueprint: Blueprint | None = None
    inputs: tuple[InputSpec, ...] = ()
    sight: Sight | None = None

    @property
    def lowered(self) -> bool:
        return self.onnx is not None

    @property
    def example(self) -> Tensors:
        """One item of the probe: input tensors with a batch dimension of 1."""
        return tuple(tensor[:1] for tensor in self.probe)

    @property
    def signature(self) -> tuple[InputSpec, ...]:
        """How the file names its inputs."""
        names = [f"input_{i}" for i in range(len(self.probe))] if len(self.probe) > 1 else ["input"]
        return self.inputs or tuple(map(InputSpec, names))

    def items(self, count: int = 2) -> Tensors:
        """Return `count` items of the probe; where it has too few, others like them."""
        if all(len(tensor) >= count for tensor in self.probe):
            return tuple(tensor[:count] for tensor in self.probe)
        return items_like(self.probe, count)

    def copy(self) -> Model:
        """Return a model whose module shares no tensor with this one."""
        hints = copy.deepcopy(dict(self.hints))
        return replace(self, module=copied(self.module), hints=hints)


def copied(module: nn.Module) -> nn.Module:
    """Return a deep copy; of tensors that a pass has left in the module, copies without a graph.

    `copy.deepcopy` refuses these.
    """
    values = [value for part in module.modules() for value in vars(part).values()]
    values += [one for value in values if isinstance(value, dict) for one in value.values()]
    results = [value for value in values if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(module, {id(value): value.detach().clone() for value in results})


def items_like(items: Tensors, count: int = 2, seed: int = 0) -> Tensors:
    """Return `count` items shaped like others: noise, or of integers those again."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn((count, *tensor.shape[1:]), generator=generator, dtype=tensor.dtype)
        if tensor.is_floating_point()
        else tensor[torch.arange(count) % len(tensor)].clone()
        for tensor in items
    )


def on_device_of(module: nn.Module, inputs: Tensors) -> Tensors:
    """Return inputs on the device of a module's parameters (the CPU where it has none)."""
    device = next(module.parameters(), torch.empty(0)).device
    return tuple(tensor.to(device) for tensor in inputs)


def forward(module: nn.Module, inputs: Tensors) -> Tensor:
    """Return a module's logits, without gradients."""
    with torch.no_grad():
        return main_output(module, module(*inputs))


def frozen_names(module: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that must not be trained (`requires_grad` is off)."""
    return frozenset(
        name
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if parameter.is_floating_point() and not parameter.requires_grad
    )


def weights_hash(module: nn.Module) -> str:
    """Return a hash of every parameter and buffer, by name, and of which of them are frozen."""
    parts = {
        name: [str(tensor.dtype), list(tensor.shape), sha256(tensor.cpu().numpy().tobytes())]
        for name, tensor in module.state_dict().items()
    }
    frozen = sorted(frozen_names(module))
    return digest([parts, frozen] if frozen else parts)


def identity(model: Model) -> list[str]:
    """Return what a model's outputs depend on: factory, inputs, layers, weights, heads."""
    factory = "" if model.blueprint is None else model.blueprint.factory
    which = [digest(heads.to_json()) for heads in heads_by_path(model.module).values()]
    hooks = model.module._forward_pre_hooks.values()
    changes = [repr(hook) for hook in hooks if isinstance(hook, InputChange)]
    if model.sight is not None:
        changes.append(digest(model.sight.task.describe()))
    return [factory, *changes, digest(repr(model.module)), weights_hash(model.module), *which]


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
    before, after = _tensors(model.module), _tensors(again.module)
    if before.keys() != after.keys() or not all(map(_same_bits, before.values(), after.values())):
        raise CannotSave("the saved model does not have the same tensors when loaded again")
    inputs = model.items()
    outputs, outputs_again = forward(model.module, inputs), forward(again.module, inputs)
    tolerance = 1e-5 * float(outputs.abs().max() + 1)
    if not torch.allclose(outputs, outputs_again, rtol=1e-4, atol=tolerance):
        raise CannotSave("the saved model does not give the same outputs when loaded again")
    folder.mkdir(parents=True, exist_ok=True)
    if model.onnx is not None:
        write_atomic(folder / "model.onnx", model.onnx)
    write_atomic(folder / "model.safetensors", tensors)
    write_json(folder / "blueprint.json", {**description, "about": dict(about or {})})


def pack(model: Model, build: Builder) -> tuple[dict[str, Any], bytes]:
    """Return the blueprint as JSON, and the tensors in the safetensors format."""
    if model.blueprint is None:
        raise CannotSave("no factory builds this module, so it cannot be rebuilt from a file")
    module, tensors = model.module, _tensors(model.module)
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    tied = {name: first[id(tensor)] for name, tensor in tensors.items()}
    tied = {name: other for name, other in tied.items() if other != name}
    description = {
        "format": FORMAT,
        "factory": model.blueprint.factory,
        "arguments": encode(dict(model.blueprint.arguments)),
        **difference(module, build(model.blueprint)),
        "shapes": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "tied": tied,
        "frozen": sorted(frozen_names(module)),
        "sparse": sorted(model.sparse),
        "hints": dict(model.hints),
        "heads": {path: heads.to_json() for path, heads in heads_by_path(module).items()},
        "probe": [_encode_input(tensor) for tensor in model.probe],
        "inputs": [[one.name, {str(k): v for k, v in one.dynamic.items()}] for one in model.inputs],
    }
    # Clones: safetensors refuses views that share memory, and channels_last strides.
    stored = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in tensors.items()
        if name not in tied
    }
    return json.loads(json.dumps(description)), save_tensors(stored)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.detach().cpu(), b.detach())


# --- loading ----------------------------------------------------------------------------


def load(folder: Path, build: Builder) -> Model:
    """Rebuild a saved model. Raises UserError if the files are missing, damaged or foreign."""
    try:
        description = json.loads((folder / "blueprint.json").read_text())
        model = unpack(description, (folder / "model.safetensors").read_bytes(), build)
        lowered = folder / "model.onnx"
        if description.get("about", {}).get("lowered") and lowered.exists():
            model = replace(model, onnx=lowered.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no saved model: {error.filename} is missing") from error
    except UserError:
        raise
    except Exception as error:  # what a damaged or foreign file leads to may raise anything
        raise UserError(f"the model saved in {folder} is damaged: {error!r}") from error
    return model


def unpack(description: Mapping[str, Any], tensors: bytes, build: Builder) -> Model:
    """Rebuild a model from the two parts that `pack` returned."""
    if description.get("format") != FORMAT:
        raise UserError(f"blueprint format {description.get('format')!r} is not known here")
    blueprint = Blueprint(description["factory"], decode(description["arguments"]))
    module = rebuilt(build(blueprint), description)
    stored, tied, shapes = load_tensors(tensors), description["tied"], description["shapes"]
    if set(shapes) != stored.keys() | tied.keys():
        raise UserError("blueprint.json and model.safetensors name different tensors")
    for name, tensor in stored.items():
        if list(tensor.shape) != shapes[name]:
            raise UserError(
                f"model.safetensors has {name} of shape {list(tensor.shape)}, but blueprint.json "
                f"says {shapes[name]}"
            )
    # Files of an earlier version do not say what is frozen: then it is what the factory froze.
    frozen = description.get("frozen", frozen_names(module) & set(shapes))
    place_tensors(module, stored, tied)
    heads = description.get("heads", {})
    set_all_heads(module, {path: Heads.from_json(values) for path, values in heads.items()})
    _set_frozen(module, set(frozen))
    return Model(
        module.eval(),
        tuple(map(_decode_input, description["probe"])),
        frozenset(description["sparse"]),
        description["hints"],
        blueprint=blueprint,
        inputs=tuple(
            InputSpec(name, {int(k): v for k, v in dynamic.items()})
            for name, dynamic in description["inputs"]
        ),
    )


def _encode_input(tensor: Tensor) -> dict[str, Any]:
    """Return an input as JSON: of floats, which may be private, the shape and type alone."""
    kind = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
    return kind if tensor.is_floating_point() else {**kind, "values": tensor.flatten().tolist()}


def _decode_input(saved: Mapping[str, Any]) -> Tensor:
    shape, dtype = saved["shape"], getattr(torch, saved["dtype"])
    if "values" in saved:
        return torch.tensor(saved["values"], dtype=dtype).view(shape)
    return items_like((torch.empty(shape, dtype=dtype),), shape[0])[0]


def _set_frozen(module: nn.Module, names: set[str]) -> None:
    """Let all parameters be trained but those of some names."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    if unknown := names - parameters.keys():
        raise UserError(f"blueprint.json freezes {min(unknown)}, and there is no such parameter")
    for name, parameter in parameters.items():
        parameter.requires_grad_(parameter.is_floating_point() and name not in names)
