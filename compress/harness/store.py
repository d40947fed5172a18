"""Results of steps on disk, found by a hash of everything that went into them.

So chains share their common beginnings, and a run that was stopped goes on where it was.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from compress.compressor import Compressor
from compress.errors import CannotSave, UserError
from compress.files import digest, sha256, write_json
from compress.model import Builder, Model, load, save

LIBRARIES = ("torch", "torchvision", "torch-pruning", "onnx", "onnxscript", "onnxruntime", "numpy")


class Store:
    """A folder of step results. An entry appears by a rename, whole or not at all."""

    def __init__(self, folder: Path, build: Builder) -> None:
        self.folder = folder
        self.build = build

    def get(self, key: str) -> tuple[Model, list[dict[str, Any]]] | None:
        """Return the model and the journal kept under a key; None if absent or damaged."""
        entry = self.folder / key
        if not (entry / "entry.json").exists():
            return None
        try:
            listed = json.loads((entry / "entry.json").read_text())
            for name, expected in listed["files"].items():
                if sha256((entry / name).read_bytes()) != expected:
                    raise UserError(f"{name} is not what was written")
            model = load(entry, self.build)
        except (OSError, ValueError, KeyError, UserError):
            # Set aside, not deleted: the step runs again, and the damage can be looked at.
            entry.rename(Path(tempfile.mkdtemp(dir=self.folder, prefix="damaged-")) / key)
            return None
        if "model.onnx" in listed["files"]:
            model = replace(model, onnx=(entry / "model.onnx").read_bytes())
        return model, listed["journal"]

    def put(self, key: str, model: Model, journal: list[dict[str, Any]]) -> None:
        """Keep a step's result. A module instance cannot be rebuilt, so it is not kept."""
        if model.blueprint is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=self.folder, prefix="writing-"))
        try:
            try:
                save(model, made, self.build)
            except CannotSave:
                # The row of the table says so; the step runs again next time.
                return
            files = {path.name: sha256(path.read_bytes()) for path in made.iterdir()}
            write_json(made / "entry.json", {"files": files, "journal": journal})
            if not (self.folder / key).exists():
                made.rename(self.folder / key)
        finally:
            shutil.rmtree(made, ignore_errors=True)


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
def code_digest() -> str:
    """Return a hash of our own code that makes models (not of reports or the command line)."""
    package = Path(__file__).resolve().parents[1]
    folders = [package, package / "techniques", package / "deploy", package / "zoo"]
    files = sorted(path for folder in folders for path in folder.glob("*.py"))
    unused = {"cli.py", "__main__.py", "__init__.py", "api.py"}
    return digest(
        {
            str(path.relative_to(package)): sha256(path.read_bytes())
            for path in files
            if path.name not in unused
        }
    )
