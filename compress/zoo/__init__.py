"""Data sources and models by name."""

from __future__ import annotations

from compress.zoo.data import DATA, data_root, from_arrays, load_data
from compress.zoo.models import MODELS, build_module, fresh
from compress.zoo.weights import load_weights

__all__ = [
    "DATA",
    "MODELS",
    "build_module",
    "data_root",
    "fresh",
    "from_arrays",
    "load_data",
    "load_weights",
]
