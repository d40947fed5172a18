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

from compress.compressor import Compressor
from compress.system.files import digest, sha256

LIBRARIES = (
    *("torch", "torchvision", "torch-pruning", "onnx", "onnxscript", "onnxruntime", "numpy"),
    *("pillow", "scipy"),
)
OPTIONAL = ("timm",)
"""Libraries of models that may be missing."""
MAKING = (".", "training", "techniques", "deploy", "zoo")
"""Folders of our code that make models."""
MEASURING = (*MAKING, "harness", "timing", "stats")
UNUSED = {"cli.py", "__main__.py", "__init__.py", "api.py"}


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


def foreign_sources(step: Compressor) -> dict[str, str]:
    """Return a hash of the code of every technique in a step that is not ours, by its class.

    Of a class in a package that is all Python files of the package.
    """
    inner = [value for value in vars(step).values() if isinstance(value, Compressor)]
    found = {} if step.steps != (step,) else _foreign(type(step))
    for part in [*inner, *(part for part in step.steps if part is not step)]:
        found |= foreign_sources(part)
    return found


def _foreign(cls: type[Compressor]) -> dict[str, str]:
    if cls.__module__.partition(".")[0] == "compress":
        return {}
    source = inspect.getsourcefile(cls)
    return {f"{cls.__module__}.{cls.__qualname__}": _package_digest(cls.__module__, source)}


@functools.cache
def _package_digest(module: str, source: str | None) -> str:
    """Return a hash of the package that a module is in, or of its own file if it is in none."""
    places = getattr(sys.modules.get(module.partition(".")[0]), "__path__", [])
    files = sorted(path for place in places for path in Path(place).rglob("*.py"))
    files = files or ([Path(source)] if source else [])
    return digest([[path.name, sha256(path.read_bytes())] for path in files])


@functools.cache
def code_digest(folders: tuple[str, ...] = MAKING) -> str:
    """Return a hash of our own code in some folders (not of the command line)."""
    package = Path(__file__).resolve().parents[1]
    files = sorted(path for folder in folders for path in (package / folder).glob("*.py"))
    return digest(
        {
            path.relative_to(package).as_posix(): sha256(path.read_bytes())
            for path in files
            if path.name not in UNUSED
        }
    )
