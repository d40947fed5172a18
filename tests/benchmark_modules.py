"""Modules of benchmarks/, which find what they import in folders of their own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def benchmark(folder: str, name: str) -> ModuleType:
    """Return a module of a folder; what it has imported from there is forgotten again."""
    place = BENCHMARKS / folder
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", place / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    path, modules = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(place))
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = path
        for one in set(sys.modules) - modules:
            if str(BENCHMARKS) in str(getattr(sys.modules[one], "__file__", "")):
                del sys.modules[one]
    return module
