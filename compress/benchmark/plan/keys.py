"""What a result depends on, as hashes: the input, the text, libraries, our code, others' code.

Of our own code that is what ran: the imports of a step, or of the measuring, followed to their end.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import CodeType
from typing import Any

from compress.compressor import Compressor
from compress.parts import Configured
from compress.system.files import digest, sha256
from compress.tasks.base import Data, Split

LIBRARIES = (
    *("torch", "torchvision", "onnx", "onnx-ir", "onnxscript", "onnxruntime"),
    *("numpy", "pillow", "scipy"),
)
OPTIONAL = ("timm",)
"""Libraries of models that may be missing."""
RUNNING = (
    *("compress.compressor", "compress.benchmark.store.store", "compress.zoo.data"),
    *("compress.zoo.models", "compress.zoo.transfer", "compress.zoo.weights"),
)
"""What makes a step's input and runs it, whatever the step."""
HANDING = frozenset(
    f"compress.benchmark.{module}" for module in ("execute.job", "plan.models", "plan.plan")
)
"""What hands a step its input. Most of what these import is for other purposes."""
PACKAGE = Path(__file__).resolve().parents[2]
OUTSIDE = {"benchmark", "results", "report", "recommender", "suites", "api", "cli", "__main__"}
"""What no technique may import, a plug-in's neither."""
IMPORT = re.compile(
    r"^[ \t]*(?:from (compress[\w.]*) import (\([^)]*\)|.*)|import (compress[\w.]*))", re.MULTILINE
)
FOR_TYPES = re.compile(r"^if TYPE_CHECKING:\n(?:(?:[ \t].*)?\n)+", re.MULTILINE)


def step_key(parent: str, step: str, context: Mapping[str, Any]) -> str:
    """Return the key of a step's result, given the key of its input and what else matters."""
    return digest({"parent": parent, "step": step, "context": dict(context)})


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of the libraries that a result depends on."""
    return {name: _version(name) for name in (*LIBRARIES, *filter(find_spec, OPTIONAL))}


def own_versions(step: Compressor) -> dict[str, str]:
    """Return the versions of the libraries that a step alone uses; of missing ones none."""
    found = {}
    for name in step.libraries:
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


def techniques_may_import() -> frozenset[str]:
    """Return all modules of ours that a plug-in's technique may import."""
    rooms = {module: module.split(".")[1:2] for module in files()}
    return frozenset(module for module, room in rooms.items() if room and room[0] not in OUTSIDE)


@functools.cache
def code_digest(modules: frozenset[str]) -> str:
    """Return a hash of the files of some modules of ours."""
    return digest({module: sha256(files()[module].read_bytes()) for module in modules})


@functools.cache
def followed(*modules: str) -> frozenset[str]:
    """Return modules of ours and all that they import, inside functions too.

    A package's `__init__` counts where names are imported from it, not where it is passed on the
    way to a module: what it offers to others matters to nobody there.
    """
    reached: set[str] = set()
    pending = list(modules)
    while pending:
        module = pending.pop()
        if module not in reached:
            reached.add(module)
            pending += imported(module)
    return frozenset(reached)


@functools.cache
def imported(module: str) -> frozenset[str]:
    """Return the modules of ours that one imports when it runs.

    A test holds this against the parsed files, and that nothing is imported in other ways.
    """
    modules: set[str] = set()
    for base, imports, plain in IMPORT.findall(FOR_TYPES.sub("", files()[module].read_text())):
        names = {f"{base}.{name}" for name in re.findall(r"\w+", imports)}
        inside = names & files().keys()
        modules |= inside if inside and inside == names else {*inside, base or plain}
    return frozenset(modules)


@functools.cache
def files() -> dict[str, Path]:
    """Return the file of every module of ours, by the module's name."""
    paths = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(("compress", *path.relative_to(PACKAGE).with_suffix("").parts))
        paths[name.removesuffix(".__init__")] = path
    return paths


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


def sources_of_data(data: Data) -> dict[str, str]:
    """Return a hash of the code of data's task and splits, by class, of what `step_modules` lacks.

    Losses, preprocessing and augmentation are code of theirs.
    """
    classes: set[type] = {type(data.task)}
    for split in (data.train, data.validation, data.calibration, data.test):
        inside: object = split
        while isinstance(inside, Split):
            classes.add(type(inside))
            inside = getattr(inside, "whole", None)
    usual = followed(*RUNNING)
    found = {}
    for cls in classes:
        if not _is_ours(cls):
            found[f"{cls.__module__}.{cls.__qualname__}"] = _source_digest(cls)
        elif cls.__module__ not in usual:
            found[cls.__module__] = code_digest(followed(cls.__module__))
    return found


def _source_digest(cls: type) -> str:
    """Return a hash of a class's package; of one in a script, which others get by value, its own.

    In another process the script is not the main module.
    """
    if cls.__module__ != "__main__":
        source = None
        with contextlib.suppress(TypeError):  # a class of no file
            source = inspect.getsourcefile(cls)
        return _package_digest(cls.__module__, source)
    found: dict[str, Any] = {}
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", getattr(value, "fget", value))
        if hasattr(function, "__code__"):
            found[name] = _of_code(function.__code__)
        elif isinstance(value, (bool, int, float, str)) and not name.startswith("__"):
            found[name] = value
    return digest(found)


def _of_code(code: CodeType) -> list[Any]:
    """Return what a function does, as JSON."""
    constants = [_of_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names)]


def _classes(step: Configured) -> set[type[Configured]]:
    """Return the classes of a step, of all steps inside it, and of their parts."""
    classes = {type(step)}
    inner = [part for part in getattr(step, "steps", ()) if part is not step]
    for value in (*vars(step).values(), inner):
        for part in value if isinstance(value, (list, tuple)) else (value,):
            classes |= _classes(part) if isinstance(part, Configured) else set()
    return classes


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "compress"


@functools.cache
def _package_digest(module: str, source: str | None) -> str:
    """Return a hash of the package that a module is in, or of its own file if it is in none."""
    places = getattr(sys.modules.get(module.partition(".")[0]), "__path__", [])
    sources = sorted(path for place in places for path in Path(place).rglob("*.py"))
    sources = sources or ([Path(source)] if source else [])
    return digest([[path.name, sha256(path.read_bytes())] for path in sources])
