"""Compress a trained network with any chain of techniques, and measure what it cost and gained.

    import compress
    print(compress.bench("digits", out="out"))

Names are resolved when they are used: importing this package imports nothing heavy.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# onnxruntime's builds of 2026 report on their use over the network unless told not to, and look
# here when they are imported. This package sends nothing anywhere, nor do its child processes.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# So do Ray, the hub behind timm, and NNCF, of the extras [cluster], [timm] and [nncf].
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("NNCF_CI", "1")

_MODULES = {
    "compress.api": ("Results", "bench", "merge", "pack", "recommend", "run"),
    "compress.benchmark.plan.suite": ("Suite",),
    "compress.compressor": ("Chain", "Compressor"),
    "compress.context": ("StepContext",),
    "compress.errors": ("UserError",),
    "compress.model": ("Model",),
    "compress.techniques": ("chain",),
    "compress.zoo.data": ("from_arrays", "load_data"),
    "compress.zoo.models": ("load",),
}

__all__ = [
    "Chain",
    "Compressor",
    "Model",
    "Results",
    "StepContext",
    "Suite",
    "UserError",
    "bench",
    "chain",
    "from_arrays",
    "load",
    "load_data",
    "merge",
    "pack",
    "recommend",
    "run",
]

if TYPE_CHECKING:
    from compress.api import Results, bench, merge, pack, recommend, run
    from compress.benchmark.plan.suite import Suite
    from compress.compressor import Chain, Compressor
    from compress.context import StepContext
    from compress.errors import UserError
    from compress.model import Model
    from compress.techniques import chain
    from compress.zoo.data import from_arrays, load_data
    from compress.zoo.models import load


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'compress' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
