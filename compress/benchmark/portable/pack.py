"""Packing a run's files and the timer into one archive: `compress-models pack RUN`.

Packing adds nothing of this machine or moment, so the same run gives the same bytes. What the run
itself says goes along: a folder that a chain or a model is named by stands in the archive too.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compress import __version__
from compress.benchmark.portable.portable_timer import INPUTS, PACK
from compress.benchmark.store.outputs import TIMING_INPUTS as SIDECAR
from compress.errors import UserError
from compress.results.log import read_run
from compress.results.record import BASELINE, Record
from compress.runtimes import BUILT_IN
from compress.system.files import replacing, sha256
from compress.system.processes import PACKAGE_ROOT
from compress.timing.collect import Effort

SCHEMA = 1
HERE = Path(__file__).resolve().parent

IMPORTED = {
    "": ("__init__", "errors"),
    "benchmark/": ("__init__",),
    "benchmark/portable/": ("__init__", "portable_timer"),
    "runtimes/": ("__init__", "base", *(cls.__module__.rpartition(".")[2] for cls in BUILT_IN)),
    "stats/": ("__init__", "bootstrap"),
    "system/": ("__init__", "amounts", "environment", "files", "lifetime", "processes"),
    "timing/": (
        *("__init__", "checkpoint", "collect", "interleave", "launch", "raw_timings", "setting"),
        "worker",
    ),
}
"""All that `time_here.py` imports of this package, and what that imports in turn."""
MODULES = [f"compress/{folder}{name}.py" for folder, names in IMPORTED.items() for name in names]


def pack(run: Path, out: Path | None = None) -> Path:
    """Write a zip of the verified files of a run's last results and what times them elsewhere.

    By default it is `pack.zip` in the run's folder; its path is returned. Raises UserError for a
    run whose files were not timed or have changed since, and if the archive cannot be written.
    """
    last = read_run(run / "results.jsonl")
    sound = [record for record in last.records.values() if record.status == "ok"]
    baseline = next((record.name for record in sound if record.chain == BASELINE), None)
    stage = last.stages.get(("", ""))
    if stage is None or stage.reason or baseline is None:
        raise UserError(
            f"{run} holds no timing to be repeated elsewhere: its last run is of an older version, "
            f"has no sound baseline or was stopped before it; let compress-models bench finish"
        )
    inputs, items = _inputs(run, [record.name for record in sound])
    texts = {
        **{path: (PACKAGE_ROOT / path).read_bytes() for path in MODULES},
        INPUTS: inputs,
        "time_here.py": (HERE / "time_here.py").read_bytes(),
        "README.txt": _readme(len(sound), items, last.about).encode(),
    }
    models = {f"models/{Path(r.files['onnx']).parent.name}.onnx": r for r in sound}
    hashes = {path: sha256(content) for path, content in texts.items()}
    manifest = {
        "schema": SCHEMA,
        "run": last.name,
        "compress-models": __version__,
        "baseline": baseline,
        "settings": stage.settings,
        "seconds": Effort().seconds,
        "candidates": [
            {"name": record.name, "chain": record.chain, "seed": record.seed, "file": path}
            for path, record in models.items()
        ],
        "files": hashes | {path: record.hashes["onnx"] for path, record in models.items()},
    }
    texts[PACK] = (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()
    target = out or run / "pack.zip"
    try:
        with replacing(target) as file, zipfile.ZipFile(file, "w") as archive:
            for path in sorted([*texts, *models]):
                content = texts[path] if path in texts else _model(run, models[path])
                _add(archive, path, content)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from error
    return target


def _inputs(run: Path, names: Sequence[str]) -> tuple[bytes, int]:
    """Return the inputs and expected outputs of the files, as an .npz, and the number of items."""
    path = run / "raw" / f"{SIDECAR}.npz"
    try:
        with np.load(path) as stored:
            keys = [key for key in stored.files if key.startswith("input_")]
            keys += [f"expected/{name}" for name in names]
            arrays: dict[str, Any] = {key: stored[key] for key in keys}
    except (OSError, KeyError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} does not hold the inputs of this run's timing ({error}): run "
            f"compress-models bench again"
        ) from error
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue(), len(arrays["input_0"])


def _add(archive: zipfile.ZipFile, path: str, content: bytes) -> None:
    """Add a file with nothing of the moment or the system in its entry."""
    entry = zipfile.ZipInfo(path)  # of 1980, the first year that a zip knows
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.create_system = 3
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)


def _model(run: Path, record: Record) -> bytes:
    path = run / record.files["onnx"]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if sha256(content) != record.hashes["onnx"]:
        raise UserError(f"{path} is not the file that was measured: let compress-models bench run")
    return content


def _readme(models: int, items: int, about: Mapping[str, Any]) -> str:
    versions = (about.get("environment") or {}).get("versions") or {}
    version = versions.get("onnxruntime")
    return (
        (HERE / "archive-readme.txt")
        .read_text()
        .format(
            version=f" ({version}, or another that loads the models)" if version else "",
            models=f"{models} model{'' if models == 1 else 's'}",
            seconds=Effort().seconds,
            items=f"{items} item{'' if items == 1 else 's'}",
            inputs=INPUTS,
        )
    )
