"""What a result depends on, as hashes: the input, the text, libraries, our code, others' code."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from compress.compressor import Compressor
from compress.files import digest, sha256

LIBRARIES = ("torch", "torchvision", "torch-pruning", "onnx", "onnxscript", "onnxruntime", "numpy")
MAKING = (".", "training", "techniques", "deploy", "zoo")
"""Folders of our code that make models."""
MEASURING = (*MAKING, "harness", "timing")
UNUSED = {"cli.py", "__main__.py", "__init__.py", "api.py"}


def step_key(parent: str, step: str, context: Mapping[str, Any]) -> str:
    """Return the key of a step's result, given the key of its input and what else matters."""
    return digest({"parent": parent, "step": step, "context": dict(context)})


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of the libraries that a result depends on."""
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        # onnxruntime may be installed under another name, such as onnxruntime-gpu.
        return str(importlib.import_module(name.replace("-", "_")).__version__)


def foreign_sources(step: Compressor) -> dict[str, str]:
    """Return a hash of the source of every technique in a step that is not ours, by its class."""
    inner = [value for value in vars(step).values() if isinstance(value, Compressor)]
    found = {} if step.steps != (step,) else _foreign(type(step))
    for part in [*inner, *(part for part in step.steps if part is not step)]:
        found |= foreign_sources(part)
    return found


def _foreign(cls: type[Compressor]) -> dict[str, str]:
    if cls.__module__.partition(".")[0] == "compress":
        return {}
    source = inspect.getsourcefile(cls)
    content = Path(source).read_bytes() if source else b""
    return {f"{cls.__module__}.{cls.__qualname__}": sha256(content)}


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
