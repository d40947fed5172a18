"""Timing a run's files on another machine: what `python time_here.py` runs in an unpacked archive.

`compress-models pack` writes the archive; numpy and onnxruntime are all that this needs. It reads
`pack.json`, writes one file of JSON, and sends nothing anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import UserError
from compress.system.amounts import decimal
from compress.system.files import sha256_file, write_atomic
from compress.system.processes import PACKAGE_ROOT
from compress.timing.collect import Effort, TimingRequest, collect
from compress.timing.launch import Launch, WorkerFailed, launch
from compress.timing.raw_timings import CONTROL, LEVELS, RawTimings, timings_file
from compress.timing.setting import parse_setting

PACK, INPUTS = "pack.json", "inputs.npz"
DONE, FAILED, WRONG_CALL, INTERRUPTED = 0, 1, 2, 130
GO_ON = "What was timed so far is kept: the same command goes on from there."

_QUOTED = re.compile(r"""(['"])(?:/|[A-Za-z]:[\\/]|\\\\)[^'"]*[\\/]([^'"\\/]+)\1""")
_PATH = re.compile(r"(?:(?<![\w./~\\])/|\b[A-Za-z]:[\\/]|\\\\)(?:[^\s'\"<>|:;,()/\\]+[/\\])+")
"""An absolute path in quotes, and the folders of one without: there, a space ends it."""


def main(
    arguments: Sequence[str] | None = None, folder: Path = PACKAGE_ROOT, launch: Launch = launch
) -> int:
    """Time the files of an unpacked archive and write the result; return the exit code."""
    options = _options(arguments)
    try:
        pack = _read_pack(folder)
        _check_writable(options.out)
        checkpoint = options.out.with_name(f"{options.out.name}.part")
        raw_timings = _time(folder, pack, options, launch, checkpoint)
        table = _table(raw_timings)
        models = {c["name"]: pack["files"][c["file"]] for c in pack["candidates"]}
        timings = _without_traces(raw_timings.to_json(), _private_folders(folder))
        values = {**timings_file(models, timings), "run": pack["run"]}
        write_atomic(options.out, json.dumps(values))
        checkpoint.unlink(missing_ok=True)
    except UserError as error:
        return _fail(WRONG_CALL, f"Error: {error}")
    except WorkerFailed as error:
        return _fail(FAILED, f"Failed, {options.out} was not written: {error}")
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, f"Stopped. {GO_ON}")
    except Exception as error:
        return _fail(FAILED, f"Failed. {GO_ON} {type(error).__name__}: {error}")
    print(table)
    print(
        f"Written to {options.out}: these times, the processor's name and abilities, the versions, "
        f"the date, reasons for what is missing; of paths in these, the last part alone.\n"
        f"Where the run is: compress-models merge RUN {options.out.name}"
    )
    return DONE


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="time_here.py",
        description="Time the models of this archive with onnxruntime, all of them in turns.",
    )
    add = parser.add_argument
    add("--seconds", type=float, metavar="S", help="budget; by default what pack.json says")
    add("--threads", type=int, metavar="N", help="by default all available cores")
    add("--out", type=Path, default=Path("timings.json"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.seconds is not None and not 0 < options.seconds < float("inf"):
        parser.error(f"argument --seconds: must be a positive number, not {options.seconds}")
    if options.threads is not None and options.threads < 1:
        parser.error(f"argument --threads: must be at least 1, not {options.threads}")
    return options


def _read_pack(folder: Path) -> dict[str, Any]:
    """Return the content of `pack.json`; raise UserError if a file is missing or was changed."""
    try:
        pack: dict[str, Any] = json.loads((folder / PACK).read_bytes())
    except OSError:
        raise UserError(
            f"there is no {PACK} beside time_here.py: unpack the whole archive"
        ) from None
    for name, expected in pack["files"].items():
        try:
            if sha256_file(folder / name) != expected:
                raise UserError(f"{name} is not the file that was packed: unpack the archive again")
        except OSError as error:
            raise UserError(f"{name} cannot be read ({error.strerror}): unpack again") from None
    return pack


def _check_writable(out: Path) -> None:
    """Raise UserError now rather than after the timing if its result could not be written."""
    if out.is_dir():
        raise UserError(f"{out} is a folder: name a file for --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise UserError(f"cannot write to {out.parent}: {error.strerror}") from None


def _time(
    folder: Path,
    pack: Mapping[str, Any],
    options: argparse.Namespace,
    launch: Launch,
    checkpoint: Path,
) -> RawTimings:
    """Time the files of an archive. Raises WorkerFailed if every timing process failed."""
    files = {candidate["name"]: folder / candidate["file"] for candidate in pack["candidates"]}
    with np.load(folder / INPUTS) as arrays:
        count = sum(key.startswith("input_") for key in arrays.files)
        samples = [arrays[f"input_{i}"] for i in range(count)]
        expected = {name: arrays[f"expected/{name}"] for name in files}
    request = TimingRequest(
        files,
        samples,
        expected,
        baseline=pack["baseline"],
        settings=pack["settings"],
        effort=Effort(seconds=options.seconds or pack["seconds"]),
        threads=options.threads,
    )
    raw_timings = collect(request, progress=_show, checkpoint=checkpoint, launch=launch)
    if all(part.failure for part in raw_timings.launched):
        raise WorkerFailed(raw_timings.launched[0].failure)
    return raw_timings


def _show(words: str) -> None:
    if sys.stderr.isatty():
        print(f"timing: {words}", file=sys.stderr, flush=True)


def _private_folders(folder: Path) -> list[str]:
    """Return beginnings of paths that identify this machine: onnxruntime's errors name files."""
    folders = [folder, Path(tempfile.gettempdir()), Path(os.path.expanduser("~"))]
    return [f"{path}{os.sep}" for place in folders for path in (place, place.resolve())]


def _without_traces(value: Any, private: Sequence[str], key: str = "") -> Any:
    """Return JSON with seconds as fine as a clock ticks, and paths in its errors cut short."""
    if isinstance(value, float):
        return round(value, 10)
    if isinstance(value, dict):
        return {name: _without_traces(part, private, name) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_traces(part, private) for part in value]
    if key in ("error", "failure"):
        for place in private:
            value = value.replace(place, "").replace(place.rstrip(os.sep), "")
        return _PATH.sub("", _QUOTED.sub(r"\1\2\1", value))
    return value


def _table(raw_timings: RawTimings) -> str:
    """Return the median milliseconds of every file at every setting, and why some are missing."""
    settings = raw_timings.settings
    rows, reasons = [[*settings, "file"]], []
    for name in raw_timings.names:
        if name == CONTROL or name in LEVELS:
            continue
        cells = []
        for setting in settings:
            cell, reason = _median(raw_timings, setting, name)
            cells.append(cell)
            if reason:
                reasons.append(f"{name}: {reason}")
        rows.append([*cells, name])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"Median milliseconds per call (all threads: {raw_timings.all_threads})."]
    lines += [f"{setting}: {parse_setting(setting).words}" for setting in settings]
    lines.append("")
    for *cells, name in rows:
        shown = (cell.rjust(width) for cell, width in zip(cells, widths, strict=False))
        lines.append("  ".join([*shown, name]))
    return "\n".join([*lines, "", *dict.fromkeys(reasons)])


def _median(raw_timings: RawTimings, setting: str, name: str) -> tuple[str, str]:
    """Return a cell of the table, and why it is empty."""
    series = [part for part in raw_timings.series(setting, name) if part is not None]
    error = next((part["error"] for part in series if part["error"]), "")
    if error or not series:
        return "-", error or "; ".join(raw_timings.failures(setting))
    calls = np.concatenate([block for part in series for block in part["calls"]])
    return decimal(1e3 * float(np.median(calls)), 4, zeros=True), ""


def _fail(code: int, sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return code
