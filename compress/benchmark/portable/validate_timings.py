"""Reading a file of timings that came from another machine: nothing in it is taken on trust."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Struct

from compress.errors import UserError
from compress.system.amounts import size
from compress.timing.collect import DEADLY
from compress.timing.interleave import KEPT_CALLS
from compress.timing.launch import LOADING, RUNNING
from compress.timing.raw_timings import CONTROL, KIND, LEVELS, SCHEMA, RawTimings
from compress.timing.setting import parse_setting

LIMIT = 256_000_000
"""Bytes of a file; one of a large suite has some ten million."""
LONGEST_TEXT = 300
MOST_ROUNDS = 5_000_000
"""Of all processes, if each had as many rounds as the longest: the bootstrap makes them so."""

T = TypeVar("T")
Text = Annotated[str, Meta(max_length=LONGEST_TEXT)]
Flag = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.+-]{1,40}\Z")]
Count = Annotated[int, Meta(ge=1, le=9999)]
Seconds = Annotated[float, Meta(ge=1e-9, le=1e5)]
"""Of one call."""


class Series(Struct, forbid_unknown_fields=True):
    """What one process measured of one candidate, as `compress.timing.interleave.Series`."""

    error: str
    medians: list[Seconds]
    calls: list[Annotated[list[Seconds], Meta(min_length=1, max_length=KEPT_CALLS)]]
    block_calls: int = 1
    fastest: float = 0.0


class Process(Struct, forbid_unknown_fields=True):
    """What one process measured, as `Launched`."""

    threads: Annotated[int, Meta(ge=0, le=9999)]
    settings: dict[str, dict[str, Series]]
    failure: str


class Environment(Struct, forbid_unknown_fields=True):
    """The machine, as `compress.system.environment.environment` describes it."""

    threads: Count
    cores: Count
    cpu: Text
    cpu_flags: Annotated[list[Flag], Meta(max_length=100)]
    onnxruntime: Text
    system: Text


class Timings(Struct, forbid_unknown_fields=True):
    """As `RawTimings`."""

    names: list[str]
    baseline: Text
    settings: Annotated[list[Text], Meta(min_length=1, max_length=32)]
    all_threads: Count
    launched: Annotated[list[Process], Meta(min_length=1, max_length=500)]
    seconds: Annotated[float, Meta(ge=0, le=1e9)]
    environment: Environment


class Head(Struct):
    """What identifies a file of timings."""

    kind: str
    schema: Count


class File(Head):
    """All of it, as `timings_file` writes it."""

    date: datetime.date
    models: dict[str, str]
    timings: Timings


class ValidatedTimings(NamedTuple):
    """What a machine measured, when, and of which files."""

    raw_timings: RawTimings
    date: str
    models: Mapping[str, str]
    """Name -> SHA-256 of the file that was timed."""


def read_timings(
    path: Path, hashes: Mapping[str, str], baselines: frozenset[str]
) -> ValidatedTimings:
    """Return the content of a file of timings.

    `hashes` are the SHA-256 of the run's files by candidate; `baselines` are those candidates
    that are baselines. Raises UserError for anything that `time_here.py` would not have written
    about files of this run.
    """
    try:
        content = _content(path)
        head = _decode(content, Head)
        if head.kind != KIND:
            raise UserError("it is no file of timings: name the one that time_here.py has written")
        if head.schema != SCHEMA:
            raise UserError(f"it has schema {head.schema}, and this version reads {SCHEMA}")
        file = _decode(content, File)
        _check_models(file.models, hashes)
        _check_timings(file.timings, set(file.models), baselines)
    except UserError as error:
        raise UserError(f"{path.name}: {error}; nothing was merged") from None
    for process in file.timings.launched:
        process.failure = _plain(process.failure)
        for series in process.settings.values():
            for one in series.values():
                one.error = _plain(one.error)
    raw_timings = RawTimings.from_json(msgspec.to_builtins(file.timings))
    return ValidatedTimings(raw_timings, file.date.isoformat(), file.models)


def _content(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise UserError("it is no file: name the one that time_here.py has written")
        with open(path, "rb") as file:
            content = file.read(LIMIT + 1)
    except OSError as error:
        raise UserError(f"it cannot be read ({error.strerror})") from error
    if len(content) > LIMIT:
        raise UserError(f"it has more than {size(LIMIT)}, which no file of timings has")
    return content


def _decode(content: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (ValueError, RecursionError) as error:
        reason = _quoted(str(error))
        raise UserError(f"time_here.py does not write such a file: {reason}") from error


def _check_models(models: Mapping[str, str], hashes: Mapping[str, str]) -> None:
    for name, sha256 in models.items():
        if name not in hashes:
            raise UserError(
                f"the run has no file {_quoted(name)}: were these files packed from another run?"
            )
        if sha256 != hashes[name]:
            raise UserError(
                f"the file of {name} that was timed is not the run's (its SHA-256 differs): pack "
                f"and time the run as it is now"
            )


def _check_timings(timings: Timings, files: set[str], baselines: frozenset[str]) -> None:
    names = set(timings.names)
    if len(names) < len(timings.names) or names != files | {CONTROL, *LEVELS}:
        raise UserError("the names of its candidates are not those of its files and the controls")
    if timings.baseline not in files & baselines:
        raise UserError(f"its baseline {_quoted(timings.baseline)} is not one of the run")
    settings = [parse_setting(name) for name in timings.settings]
    if len(set(settings)) < len(settings):
        raise UserError("a setting occurs twice")
    machine = timings.environment
    if machine.threads != timings.all_threads:
        raise UserError(f"all_threads is {timings.all_threads}, in its environment another number")
    if not all(map(str.isprintable, (machine.cpu, machine.onnxruntime, machine.system))):
        raise UserError("a text of its environment holds characters that cannot be printed")
    # Slow levels are left out, and files at which processes had died.
    required = names - set(LEVELS) - _deadly(timings.launched, files - {timings.baseline})
    for number, process in enumerate(timings.launched, 1):
        batches = {str(one.batch) for one in settings if one.threads == process.threads}
        if not batches or process.settings.keys() != (set() if process.failure else batches):
            raise UserError(f"process {number} has not timed the settings that it should have")
        for batch, series in process.settings.items():
            where = f"process {number}, batches of {batch}"
            if not required <= series.keys() <= names:
                raise UserError(f"{where}: its candidates are not the files and the controls")
            _check_rounds(series, where, MOST_ROUNDS // len(timings.launched))
    timed = {process.threads for process in timings.launched}
    if missing := [setting.name for setting in settings if setting.threads not in timed]:
        raise UserError(f"no process has timed the setting {missing[0]}")


def _check_rounds(series: Mapping[str, Series], where: str, most: int) -> None:
    sound = [one for one in series.values() if not one.error]
    if any(len(one.medians) != len(one.calls) for one in sound):
        raise UserError(f"{where}: there must be one median for every block of calls")
    counts = {len(one.medians) for one in sound}
    if max(counts, default=0) > most:
        raise UserError(f"{where}: it has more than {most} rounds")
    if len(counts) > 1 or 0 in counts:
        raise UserError(
            f"{where}: all candidates must have the same number of rounds, at least one"
        )


def _deadly(launched: Sequence[Process], files: set[str]) -> set[str]:
    """Return the files at which so many processes died that the others did without them."""
    failures = [process.failure for process in launched]
    return {
        name
        for name in files
        if sum(f"({word}{name})" in text for word in (LOADING, RUNNING) for text in failures)
        >= DEADLY
    }


def _plain(text: str) -> str:
    """Return a foreign text as a short line without control characters."""
    shown = "".join(sign if sign.isprintable() else " " for sign in text[:LONGEST_TEXT])
    return " ".join(shown.split()) or ("it gave no reason" if text else "")


def _quoted(text: str) -> str:
    """Return a foreign text as an error may quote it."""
    quoted = ascii(text)
    return quoted if len(quoted) <= 120 else f"{quoted[:120]}..."
