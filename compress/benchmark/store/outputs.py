"""The folder of a run: its lock, and the places of its files."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from compress.benchmark.store.store import ENTRY, locked
from compress.errors import UserError
from compress.results.raw import write_arrays
from compress.results.record import Record
from compress.system.files import copy_atomic, sha256

DEPLOYABLE, UNVERIFIED = "model.onnx", "unverified.onnx"
SCRIPT = "preprocess.py"
"""Makes the input of the file beside it."""
LAYERS = "layers.csv"
"""What the steps did with each layer."""
ANSWERS, TARGETS = "answers.npz", "targets.npz"
SAMPLES = 64
"""Test items, evenly spaced, on which files are timed."""
TIMED = "timed_logits"
"""What a row's answers hold of them, shape (SAMPLES, classes)."""
SCRATCH = ".scratch"
TIMING_INPUTS = "timing-inputs"
"""The sidecar that holds what was fed in (`input_0`, ...) and what came out (`expected/NAME`)."""


class Outputs:
    """A writable folder, locked against other runs until `lock` is released."""

    def __init__(self, folder: Path, seeds: tuple[int, ...], lock: bool = True) -> None:
        self.folder = folder
        self.seeds = seeds
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock_held = locked(folder / ".lock") if lock else contextlib.nullcontext()
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}") from error
        if lock_held is None:
            raise UserError(
                f"another run is writing to {folder}: wait for it, or give --out elsewhere"
            )
        self.lock = lock_held

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def scratch(self) -> tempfile.TemporaryDirectory[str]:
        """Return a folder for what lasts as long as the run; remove those of dead runs."""
        for left in self.folder.glob(f"{SCRATCH}-*"):
            shutil.rmtree(left, ignore_errors=True)  # nobody else has the lock
        return tempfile.TemporaryDirectory(
            dir=self.folder, prefix=f"{SCRATCH}-", ignore_cleanup_errors=True
        )

    def publish(self, measured: Path, record: Record) -> Record:
        """Copy the files of a measuring to where a row's files lie, and name them in its record."""
        folder = self.model(*record.key)
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in measured.iterdir()} - {ENTRY}
        raw = {ANSWERS: f"{folder.name}.npz", TARGETS: TARGETS}
        for stale in folder.iterdir():
            if stale.name not in names and not stale.is_dir():
                stale.unlink(missing_ok=True)
        for name in sorted(names - raw.keys()):
            copy_atomic(measured / name, folder / name)
        for name in sorted(names & raw.keys()):
            if name == ANSWERS or record.seed == self.seeds[0]:
                copy_atomic(measured / name, self.folder / "raw" / raw[name])
        files = {"answers": f"raw/{raw[ANSWERS]}"} if ANSWERS in names else {}
        if record.status == "ok":
            files["onnx"] = str((folder / DEPLOYABLE).relative_to(self.folder))
        return replace(record, files=files)

    def withdraw(self, record: Record) -> None:
        """Rename a record's file from that of a sound one to that of an unverified one."""
        path = self.model(*record.key) / DEPLOYABLE
        path.rename(path.with_name(UNVERIFIED))

    def model(self, chain: str, seed: int) -> Path:
        """Return the folder of a row's model."""
        return self.folder / "models" / slug(chain, seed, self.seeds)

    def sidecar(self, name: str, arrays: Mapping[str, np.ndarray]) -> str:
        """Write arrays as `raw/NAME.npz` and return its hash."""
        return write_arrays(self.folder / "raw" / f"{name}.npz", arrays)

    def stored(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays that were written as `raw/NAME.npz`."""
        with np.load(self.folder / "raw" / f"{name}.npz") as arrays:
            return dict(arrays)


def slug(text: str, seed: int, seeds: tuple[int, ...]) -> str:
    """Return a folder name for a chain: readable, and different for different chains."""
    readable = re.sub(r"[^a-z0-9.]+", "-", text.lower().replace("->", "--")).strip("-.")
    name = readable if len(readable) <= 60 else readable[:60].rstrip("-.")
    if name != "baseline":
        name = f"{name}-{sha256(text.encode())[:6]}"
    return name if len(seeds) == 1 else f"{name}-seed{seed}"
