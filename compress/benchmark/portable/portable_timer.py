"""Timing a run's files on another machine: what `python time_here.py` runs in an unpacked archive.

`compress-models pack` writes the archive; numpy and onnxruntime are all that this needs. It reads
`pack.json`, writes one file of JSON, and sends nothing anywhere.
"""

from __future__ import annotations

import argparse
import hashlib
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
from compress.system.files import write_atomic
from compress.system.processes import PACKAGE_ROOT
from compress.timing.collect import Effort, TimingRequest, collect
from compress.timing.launch import Launch, WorkerFailed, launch
from compress.timing.raw_timings import CONTROL, LEVELS, RawTimings, timings_file
from compress.timing.setting import parse_setting

PACK, INPUTS = "pack.json", "inputs.npz"
"""What a file of timings says it is."""
DONE, FAILED, WRONG_CALL, INTERRUPTED = 0, 1, 2, 130
GO_ON = "What was timed so far is kept: the same command goes on from there."

_QUOTED = re.compile(r"""(['"])(?:/|[A-Za-z]:[\\/]|\\\\)[^'"]*[\\/]([^'"\\/]+)\1""")
_PATH = re.compile(r"(?:(?<![\w./~\\])/|\b[A-Za-z]:[\\/]|\\\\)(?:[^\s'\"<>|:;,()/\\]+[/\\])+")
"""An absolute path in quotes, and the folders of one without: there, a space ends it."""


def main(
    arguments: Sequence[str] | None = None, folder: Path = PACKAGE_ROOT, launch: Launch = launch
) -> int:
    """Time the files of an unpacked archive and write what was found; return the exit code."""
    options = _options(arguments)
    try:
        pack = read_pack(folder)
        _writable(options.out)
        checkpoint = options.out.with_name(f"{options.out.name}.part")
        raw_timings = time_pack(folder, pack, options.seconds, options.threads, launch, checkpoint)
        table = table_of(raw_timings)
        write_atomic(options.out, to_json(pack, raw_timings, folder))
        checkpoint.unlink(missing_ok=True)
    except UserError as error:
        return _say(WRONG_CALL, f"Error: {error}")
    except WorkerFailed as error:
        return _say(FAILED, f"Failed, {options.out} was not written: {error}")
    except KeyboardInterrupt:
        return _say(INTERRUPTED, f"Stopped. {GO_ON}")
    except Exception as error:
        return _say(FAILED, f"Failed. {GO_ON} {type(error).__name__}: {error}")
    print(table)
    print(
        f"Written to {options.out}: these times, the processor's name and abilities, the versions, "
        f"the date, reasons for what is missing; of paths in these, the last part alone.\n"
        f"Where the run is: compress-models merge RUN {options.out.name}"
    )
    return DONE


def read_pack(folder: Path) -> dict[str, Any]:
    """Return what `pack.json` says; raise UserError if a file is missing or was changed."""
    try:
        pack: dict[str, Any] = json.loads((folder / PACK).read_bytes())
    except OSError:
        raise UserError(
            f"there is no {PACK} beside time_here.py: unpack the whole archive"
        ) from None
    for name, wanted in pack["files"].items():
        try:
            with open(folder / name, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{name} cannot be read ({error.strerror}): unpack again") from None
        if found != wanted:
            raise UserError(f"{name} is not the file that was packed: unpack the archive again")
    return pack


def time_pack(
    folder: Path,
    pack: Mapping[str, Any],
    seconds: float | None,
    threads: int | None,
    launch: Launch = launch,
    checkpoint: Path | None = None,
) -> RawTimings:
    """Time the files of an archive; `kept` as in `gather`. Raises WorkerFailed if none lived."""
    names = [candidate["name"] for candidate in pack["candidates"]]
    with np.load(folder / INPUTS) as arrays:
        count = sum(key.startswith("input_") for key in arrays.files)
        samples = [arrays[f"input_{i}"] for i in range(count)]
        expected = {name: arrays[f"expected/{name}"] for name in names}
    request = TimingRequest(
        {candidate["name"]: folder / candidate["file"] for candidate in pack["candidates"]},
        samples,
        expected,
        baseline=pack["baseline"],
        settings=pack["settings"],
        effort=Effort(seconds=seconds or pack["seconds"]),
        threads=threads,
    )
    raw_timings = collect(request, progress=_tell, checkpoint=checkpoint, launch=launch)
    if all(part.failure for part in raw_timings.launched):
        raise WorkerFailed(raw_timings.launched[0].failure)
    return raw_timings


def _tell(words: str) -> None:
    if sys.stderr.isatty():
        print(f"timing: {words}", file=sys.stderr, flush=True)


def to_json(pack: Mapping[str, Any], raw_timings: RawTimings, folder: Path) -> str:
    """Return what `compress-models merge` reads."""
    models = {c["name"]: pack["files"][c["file"]] for c in pack["candidates"]}
    timings = _discreet(raw_timings.to_json(), _places(folder))
    return json.dumps({**timings_file(models, timings), "run": pack["run"]})


def _places(folder: Path) -> list[str]:
    """Return what paths begin with that tell of this machine: errors of onnxruntime name files."""
    found = [folder, Path(tempfile.gettempdir()), Path(os.path.expanduser("~"))]
    return [f"{path}{os.sep}" for place in found for path in (place, place.resolve())]


def _discreet(value: Any, places: Sequence[str], key: str = "") -> Any:
    """Return JSON with seconds as fine as a clock ticks, and paths in its errors cut short."""
    if isinstance(value, float):
        return round(value, 10)
    if isinstance(value, dict):
        return {name: _discreet(part, places, name) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_discreet(part, places) for part in value]
    if key in ("error", "failure"):
        value = _without_folders(value, places)
    return value


def _without_folders(text: str, places: Sequence[str]) -> str:
    """Return a text with the last part alone of every absolute path."""
    for place in places:
        text = text.replace(place, "").replace(place.rstrip(os.sep), "")
    return _PATH.sub("", _QUOTED.sub(r"\1\2\1", text))


def table_of(raw_timings: RawTimings) -> str:
    """Return the median milliseconds of every file at every setting, and why some are missing."""
    found = [parse_setting(name) for name in raw_timings.settings]
    threads = f"all threads: {raw_timings.all_threads}"
    lines = [f"{one.name}: {one.words}" for one in found]
    lines = [f"Median milliseconds per call ({threads}).", *lines, ""]
    names = [name for name in raw_timings.names if name != CONTROL and name not in LEVELS]
    rows = [[*raw_timings.settings, "file"]]
    reasons: dict[str, None] = {}
    for name in names:
        cells = []
        for setting in raw_timings.settings:
            cell, reason = _median(raw_timings, setting, name)
            cells.append(cell)
            if reason:
                reasons[f"{name}: {reason}"] = None
        rows.append([*cells, name])
    widths = [max(len(row[i]) for row in rows) for i in range(len(raw_timings.settings))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]))
    return "\n".join([*lines, "", *reasons])


def _median(raw_timings: RawTimings, setting: str, name: str) -> tuple[str, str]:
    series = [part for part in raw_timings.series(setting, name) if part is not None]
    error = next((part["error"] for part in series if part["error"]), "")
    if error or not series:
        return "-", error or "; ".join(raw_timings.failures(setting))
    calls = np.concatenate([block for part in series for block in part["calls"]])
    return decimal(1e3 * float(np.median(calls)), 4, zeros=True), ""


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="time_here.py",
        description="Time the models of this archive with onnxruntime, all of them in turns.",
    )
    parser.add_argument(
        "--seconds", type=_seconds, metavar="S", help="budget; by default what pack.json says"
    )
    parser.add_argument(
        "--threads", type=_threads, metavar="N", help="by default the cores at hand"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("timings.json"), help="default: %(default)s"
    )
    return parser.parse_args(arguments)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text!r}")
    return value


def _threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _writable(out: Path) -> None:
    """Raise UserError now rather than after the timing if its result could not be written."""
    if out.is_dir():
        raise UserError(f"{out} is a folder: name a file for --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise UserError(f"cannot write to {out.parent}: {error.strerror}") from None


def _say(code: int, sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return code
