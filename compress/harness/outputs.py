"""The folder of a run: who may write there, and what lies where."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import UserError
from compress.files import sha256, write_atomic

DEPLOYABLE, UNVERIFIED = "model.onnx", "unverified.onnx"


class Outputs:
    """A writable folder, locked against other runs until `lock` is closed."""

    def __init__(self, folder: Path, seeds: tuple[int, ...]) -> None:
        self.folder = folder
        self.seeds = seeds
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = _locked(folder / ".lock")
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}") from error

    def model(self, chain: str, seed: int) -> Path:
        """Return the folder of a row's model."""
        return self.folder / "models" / slug(chain, seed, self.seeds)

    def write_onnx(self, chain: str, seed: int, onnx: bytes, ok: bool) -> Path:
        """Write a row's file; one that did not pass does not get the name of those that did."""
        folder = self.model(chain, seed)
        name, other = (DEPLOYABLE, UNVERIFIED) if ok else (UNVERIFIED, DEPLOYABLE)
        write_atomic(folder / name, onnx)
        (folder / other).unlink(missing_ok=True)
        return folder / name

    def sidecar(self, name: str, arrays: Mapping[str, np.ndarray]) -> str:
        """Write arrays as `raw/NAME.npz` and return its hash."""
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
        write_atomic(self.folder / "raw" / f"{name}.npz", content.getvalue())
        return sha256(content.getvalue())

    def stored(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays that were written as `raw/NAME.npz`."""
        with np.load(self.folder / "raw" / f"{name}.npz") as arrays:
            return dict(arrays)


def _locked(path: Path) -> Any:
    file = open(path, "w")  # noqa: SIM115 - held until the run ends
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass  # Windows has no flock; there, two runs in one folder are the user's to avoid.
    except BlockingIOError as error:
        file.close()
        raise UserError(
            f"another run is writing to {path.parent}: wait for it, or give --out elsewhere"
        ) from error
    return file


def slug(text: str, seed: int, seeds: tuple[int, ...]) -> str:
    """Return a folder name for a chain: readable, and different for different chains."""
    readable = re.sub(r"[^a-z0-9.]+", "-", text.lower().replace("->", "--")).strip("-.")
    name = readable if len(readable) <= 60 else readable[:60].rstrip("-.")
    if name != "baseline":
        name = f"{name}-{sha256(text.encode())[:6]}"
    return name if len(seeds) == 1 else f"{name}-seed{seed}"
