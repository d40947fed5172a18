"""A row's file where a run would have put it."""

from __future__ import annotations

from pathlib import Path

from compress.benchmark.store.outputs import DEPLOYABLE, UNVERIFIED, Outputs
from compress.system.files import write_atomic


def write_onnx(outputs: Outputs, chain: str, seed: int, onnx: bytes, ok: bool) -> Path:
    path = outputs.model(chain, seed) / (DEPLOYABLE if ok else UNVERIFIED)
    write_atomic(path, onnx)
    return path
