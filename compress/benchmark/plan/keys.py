"""What a result depends on, as hashes: the input, the text, libraries, our code, others' code."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from compress.benchmark.plan.sources import followed, techniques_may_import
from compress.compressor import Compressor
from compress.parts import Configured
from compress.system.files import digest, sha256

LIBRARIES = (
    *("torch", "torchvision", "torch-pruning", "onnx", "onnxscript", "onnxruntime", "numpy"),
    *("pillow", "scipy"),
)
OPTIONAL = ("timm",)
"""Libraries of models that may be missing."""
RUNNING = (
    *(
        "compress.compressor",
        "compress.benchmark.store.step_cache",
        "compress.zoo.data",
        "compress.zoo.models",
    ),
    *("compress.zoo.transfer", "compress.zoo.weights"),
)
"""What makes a step's input and runs it, whatever the step."""
HANDING = frozenset({"compress.benchmark.execute.job", "compress.benchmark.plan.plan"})
"""What hands a step its input. Most of what these import is for other purposes."""


def step_key(parent: str, step: str, context: Mapping[str, Any]) -> str:
    """Return the key of a step's result, given the key of its input and what else matters."""
    return digest({"parent": parent, "step": step, "context": dict(context)})


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of the libraries that a result depends on."""
    found = {name: _version(name) for name in LIBRARIES}
    for name in OPTIONAL:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        # onnxruntime may be installed under another name, such as onnxruntime-gpu.
        return str(importlib.import_module(name.replace("-", "_")).__version__)


def step_modules(*steps: Compressor) -> frozenset[str]:
    """Return our modules that make what enters some steps and that the steps run."""
    classes = set().union(*map(_classes, steps))
    modules = {cls.__module__ for cls in classes if _is_ours(cls)}
    if not all(map(_is_ours, classes)):
        modules |= techniques_may_import()
    return followed(*RUNNING, *modules) | HANDING


def technique_modules() -> frozenset[str]:
    """Return our modules that any of our techniques runs."""
    return followed(*RUNNING, "compress.techniques") | HANDING


def measuring_modules() -> frozenset[str]:
    """Return our modules that measure a row."""
    return followed("compress.benchmark.measure.row") | HANDING


def foreign_sources(step: Configured) -> dict[str, str]:
    """Return a hash of the code of every class in a step that is not ours, by its name.

    Of a class in a package that is all Python files of the package. Parts, such as losses, count.
    """
    return {
        f"{cls.__module__}.{cls.__qualname__}": _package_digest(
            cls.__module__, inspect.getsourcefile(cls)
        )
        for cls in _classes(step)
        if not _is_ours(cls)
    }


def _classes(step: Configured) -> set[type[Configured]]:
    """Return the classes of a step, of all steps inside it, and of their parts."""
    inner: list[object] = [*vars(step).values()]
    inner += [part for part in getattr(step, "steps", ()) if part is not step]
    found: set[type[Configured]] = {type(step)}
    for value in inner:
        for part in value if isinstance(value, (list, tuple)) else (value,):
            found |= _classes(part) if isinstance(part, Configured) else set()
    return found


def _is_ours(cls: type[Configured]) -> bool:
    return cls.__module__.partition(".")[0] == "compress"


@functools.cache
def _package_digest(module: str, source: str | None) -> str:
    """Return a hash of the package that a module is in, or of its own file if it is in none."""
    places = getattr(sys.modules.get(module.partition(".")[0]), "__path__", [])
    files = sorted(path for place in places for path in Path(place).rglob("*.py"))
    files = files or ([Path(source)] if source else [])
    return digest([[path.name, sha256(path.read_bytes())] for path in files])
