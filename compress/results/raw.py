"""Measurements that are too large for a line of the log: answers per item, and raw seconds."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compress.system.files import sha256, write_atomic

LARGEST = 256_000_000
"""Bytes of a file; the raw seconds of a large suite have some ten million."""
UNPACKED = 4_000_000_000
"""Bytes of all arrays of a file."""


class Missing(Exception):
    """A file that cannot be read as it was written; the message says why."""


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write arrays as a compressed .npz, atomically, and return its hash."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    return write_bytes(path, content.getvalue())


def write_values(path: Path, values: Any) -> str:
    """Write JSON, atomically, and return its hash."""
    return write_bytes(path, json.dumps(values).encode())


def write_bytes(path: Path, content: bytes) -> str:
    write_atomic(path, content)
    return sha256(content)


def read_arrays(folder: Path, place: str, digest: str) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz in a run's folder. Raises Missing."""
    content = _content(folder, place, digest)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(part.file_size for part in archive.infolist()) > UNPACKED:
                raise Missing(f"{place} is too large")
        with np.load(io.BytesIO(content)) as arrays:
            return dict(arrays)
    except (ValueError, OSError, EOFError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        raise Missing(f"{place} is damaged ({error})") from error


def read_values(folder: Path, place: str, digest: str) -> dict[str, Any]:
    """Return the JSON object that a file in a run's folder holds. Raises Missing."""
    try:
        values = json.loads(_content(folder, place, digest))
    except (ValueError, RecursionError) as error:
        raise Missing(f"{place} is damaged ({error})") from error
    if not isinstance(values, dict):
        raise Missing(f"{place} is damaged (it is not an object)")
    return values


def _content(folder: Path, place: str, digest: str) -> bytes:
    path = folder / place
    if not path.resolve().is_relative_to((folder / "raw").resolve()):
        raise Missing(f"{place} is not in the run's folder raw/")
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise Missing(f"{place} cannot be read ({error.strerror})") from error
    if len(content) > LARGEST:
        raise Missing(f"{place} is too large")
    if sha256(content) != digest:
        raise Missing(f"{place} was changed after it was measured (its SHA-256 differs)")
    return content
