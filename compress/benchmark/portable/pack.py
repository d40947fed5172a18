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
from compress.system.files import replacing, sha256
from compress.system.processes import PACKAGE_ROOT
from compress.timing.collect import Effort

SCHEMA = 1

MODULES = (
    *(
        "compress/__init__.py",
        "compress/errors.py",
        "compress/benchmark/__init__.py",
        "compress/benchmark/portable/__init__.py",
        "compress/system/__init__.py",
        "compress/system/amounts.py",
        "compress/system/files.py",
    ),
    *("compress/timing/__init__.py", "compress/benchmark/portable/portable_timer.py"),
    *(
        "compress/system/environment.py",
        "compress/timing/collect.py",
        "compress/timing/checkpoint.py",
    ),
    *("compress/timing/raw_timings.py", "compress/timing/launch.py", "compress/system/lifetime.py"),
    "compress/system/processes.py",
    *("compress/runtimes/__init__.py", "compress/runtimes/base.py"),
    "compress/runtimes/onnxruntime_cpu.py",
    *("compress/timing/interleave.py", "compress/timing/setting.py"),
    *("compress/timing/worker.py", "compress/stats/__init__.py", "compress/stats/bootstrap.py"),
)
"""All that `time_here.py` imports, and they import, of this package."""

TIME_HERE = '''\
"""Time the models of this archive: `python time_here.py --help`."""

import os
import sys

if sys.version_info < (3, 11):
    sys.exit("time_here.py needs Python 3.11 or newer; this is " + sys.version.split()[0])
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
# onnxruntime reports on its use over the network unless this is there when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    import numpy
    import onnxruntime
except ImportError as error:
    sys.exit(str(error) + "; to install both: python -m pip install numpy onnxruntime")

from compress.benchmark.portable.portable_timer import main

sys.exit(main())
'''

README = """\
How fast are these models on this machine?

Needed: Python 3.11 or newer, numpy and onnxruntime{version}. Nothing else.

    python -m pip install numpy onnxruntime
    python time_here.py

It times {models} with onnxruntime on the processor, all of them in turns, for about
{seconds:.0f} seconds (--seconds S; large models take longer), with all cores at hand (--threads N).
Leave the machine alone meanwhile. It prints the median times and writes timings.json (--out FILE).

timings.json holds the seconds of every model, the processor's name and its abilities, the number
of cores, the system, the version of onnxruntime, the date, and of a model that could not be timed
the reason, in which paths are cut to their last part. Nothing else of this machine is in it, and
nothing is sent anywhere. Take the file back to where the run is:

    compress-models merge RUN timings.json

This archive holds the models, what the run says of them (the chains, with any folders that these
name) and {items} of the run's test data in {inputs}: pass it on only to those who
may have all of it.
"""


def pack(run: Path, out: Path | None = None) -> Path:
    """Write a zip of the verified files of a run's last results and what times them elsewhere.

    By default it is `pack.zip` in the run's folder; its path is returned. Raises UserError for a
    run whose files were not timed or have changed since, and if the archive cannot be written.
    """
    last = read_run(run / "results.jsonl")
    sound = [record for record in last.records.values() if record.status == "ok"]
    stage = last.stages.get(("", ""))
    if stage is None or stage.reason or not any(record.chain == BASELINE for record in sound):
        raise UserError(
            f"{run} holds no timing to be repeated elsewhere: its last run is of an older version, "
            f"has no sound baseline or was stopped before it; let compress-models bench finish"
        )
    inputs, items = _inputs(run, [record.name for record in sound])
    texts = {
        **{path: (PACKAGE_ROOT / path).read_bytes() for path in MODULES},
        INPUTS: inputs,
        "time_here.py": TIME_HERE.encode(),
        "README.txt": _readme(len(sound), items, last.about).encode(),
    }
    texts[PACK] = _manifest(last.name, sound, stage.settings, texts)
    models = {_file(record): record for record in sound}
    target = out or run / "pack.zip"
    try:
        with replacing(target) as file, zipfile.ZipFile(file, "w") as archive:
            for path in sorted([*texts, *models]):
                content = texts[path] if path in texts else _model(run, models[path])
                _add(archive, path, content)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from error
    return target


def _file(record: Record) -> str:
    """Return the name of a record's model in the archive."""
    return f"models/{Path(record.files['onnx']).parent.name}.onnx"


def _manifest(
    run: str, sound: Sequence[Record], settings: Sequence[str], texts: Mapping[str, bytes]
) -> bytes:
    """Return what the portable timer reads: what is to be timed, and all hashes."""
    values = {
        "schema": SCHEMA,
        "run": run,
        "compress-models": __version__,
        "baseline": next(record.name for record in sound if record.chain == BASELINE),
        "settings": settings,
        "seconds": Effort().seconds,
        "candidates": [
            {"name": r.name, "chain": r.chain, "seed": r.seed, "file": _file(r)} for r in sound
        ],
        "files": {
            **{path: sha256(content) for path, content in texts.items()},
            **{_file(record): record.hashes["onnx"] for record in sound},
        },
    }
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()


def _inputs(run: Path, names: Sequence[str]) -> tuple[bytes, int]:
    """Return what is fed into the files and what comes out, as an .npz, and the number of items."""
    path = run / "raw" / f"{SIDECAR}.npz"
    try:
        with np.load(path) as stored:
            wanted = [key for key in stored.files if key.startswith("input_")]
            wanted += [f"expected/{name}" for name in names]
            arrays: dict[str, Any] = {key: stored[key] for key in wanted}
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
    return README.format(
        version=f" ({version}, or another that loads the models)" if version else "",
        models=f"{models} model{'' if models == 1 else 's'}",
        seconds=Effort().seconds,
        items=f"{items} item{'' if items == 1 else 's'}",
        inputs=INPUTS,
    )
