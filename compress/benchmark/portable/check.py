"""Can this file be trusted? What is in it, and whether reading it could do harm."""

from __future__ import annotations

import json
import math
from pathlib import Path

from compress.errors import UserError
from compress.system.amounts import plural
from compress.zoo.checkpoints import PICKLED, sets_in
from compress.zoo.weights import read_state


def check_file(path: Path) -> list[str]:
    """Describe the content of a file of weights, an ONNX file or a saved model's folder, in lines.

    Nothing in it is run. Raises UserError with the reason if it must not be read.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if path.suffix == ".onnx":
        return _onnx(path)
    if path.suffix == ".safetensors" or path.suffix in PICKLED:
        state = read_state(path)
        count = sum(tensor.numel() for tensor in state.values())
        size = f"{plural(len(state), 'tensor')}, {count:,} values"
        lines = [f"{path}: {size}; holds nothing that could run"]
        sets = sets_in(path)
        if len(sets) > 1:
            lines += [f"  {path.name}:{key}: {plural(n, 'tensor')}" for key, n in sets.items()]
        return lines
    raise UserError(f"cannot tell what {path.name} is: .onnx, .safetensors and .pt can be checked")


def _onnx(path: Path) -> list[str]:
    from compress.deploy.trust import read_onnx

    model = read_onnx(path)
    values = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
    opsets = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import)
    lines = [f"{path}: {len(model.graph.node)} nodes, {values:,} values; opsets {opsets}"]
    for kind, tensors in (("input", model.graph.input), ("output", model.graph.output)):
        for value in tensors:
            shape = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            lines.append(f"  {kind} {value.name}: {' x '.join(map(str, shape))}")
    external = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    lines += [f"  data beside it: {name}" for name in sorted(external)]
    lines += [f"  {entry.key}: {entry.value[:80]}" for entry in model.metadata_props]
    return lines


def _folder(path: Path) -> list[str]:
    names = ("blueprint.json", "model.safetensors")
    if not all((path / name).is_file() for name in names):
        raise UserError(f"{path} holds no saved model: {' and '.join(names)} are missing")
    try:
        blueprint = json.loads((path / "blueprint.json").read_text())
        factory = str(blueprint["factory"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path / 'blueprint.json'} is damaged: {error!r}") from error
    code = factory.partition("(")[0].rpartition(":")[0]
    why = f", code that runs only with --allow-code {code}" if code.endswith(".py") else ""
    return [*check_file(path / "model.safetensors"), f"  built by {factory}{why}"]
