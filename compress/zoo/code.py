"""Functions of a user's own Python file, which runs only if they allowed that file."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from compress.errors import UserError, unknown
from compress.zoo.libraries import call


def from_file(
    place: str,
    factory: str,
    options: Mapping[str, Any],
    task_arguments: Mapping[str, Any],
    allow_code: Collection[Path],
) -> nn.Module:
    """Call `factory` of the Python file `place` with the options and what it takes of the task's.

    Raises UserError unless the file is in `allow_code` and returns an nn.Module.
    """
    full = f"{place}:{factory}"
    function = load_function(place, factory, "factory", allow_code)
    parameters = inspect.signature(function).parameters
    arguments = {key: value for key, value in task_arguments.items() if key in parameters}
    module = call(function, full, {**arguments, **options})
    if not isinstance(module, nn.Module):
        raise UserError(f"{full} returned {type(module).__name__}, not an nn.Module")
    # A module of inference mode can be neither loaded into nor trained; a copy of it can.
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module) if any(tensor.is_inference() for tensor in tensors) else module


def load_function(
    place: str, name: str, kind: str, allow_code: Collection[Path]
) -> Callable[..., Any]:
    """Import the Python file `place` and return its function `name`; `kind` says what it is for.

    Raises UserError if the file does not exist, is not in `allow_code`, cannot be imported, or
    has no such function.
    """
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"there is no file {place!r}")
    if path not in {Path(allowed).expanduser().resolve() for allowed in allow_code}:
        raise UserError(
            f"{place} is Python code, and would run on this machine: if you trust it, allow it "
            f"with --allow-code {place}"
        )
    module = _module(path)
    function = getattr(module, name, None)
    if not callable(function):
        known = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        raise unknown(f"{kind} in {place}", name, known)
    return function


def _module(path: Path) -> ModuleType:
    """Import a file once per content, so that a rebuilt model has the same classes.

    What runs is the content that was read, never the bytecode that may lie beside the file.
    """
    content = path.read_bytes()
    name = "compress_user_" + hashlib.sha256(str(path).encode() + b"\0" + content).hexdigest()
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(compile(content, str(path), "exec", dont_inherit=True), vars(module))
    except Exception as error:  # the file is the user's: it may raise anything
        del sys.modules[name]
        raise UserError(f"{path} cannot be imported: {error!r}") from error
    return module
