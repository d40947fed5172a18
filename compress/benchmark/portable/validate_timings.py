"""Reading a file of timings that came from another machine: nothing in it is taken on trust."""

from __future__ import annotations

import datetime
import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from compress.errors import UserError
from compress.system.amounts import size
from compress.timing.collect import DEADLY
from compress.timing.interleave import KEPT_CALLS, Series
from compress.timing.launch import LOADING, RUNNING
from compress.timing.raw_timings import CONTROL, KIND, LEVELS, SCHEMA, RawTimings
from compress.timing.setting import Setting, parse_setting

LIMIT = 256_000_000
"""Bytes of a file; one of a large suite has some ten million."""
SHORTEST_CALL, LONGEST_CALL = 1e-9, 1e5
"""Seconds."""
LONGEST_RUN = 1e9
"""Seconds."""
LONGEST_TEXT = 300
MOST_SETTINGS, MOST_PROCESSES, MOST_THREADS = 32, 500, 9999
MOST_ROUNDS = 5_000_000
"""Of all processes, if each had as many rounds as the longest: the bootstrap makes them so."""

_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,40}")


@dataclass(frozen=True)
class Received:
    """What a machine found, when, and of which files."""

    raw_timings: RawTimings
    date: str
    models: Mapping[str, str]
    """Name -> SHA-256 of the file that was timed."""


class _Odd(Exception):
    """Something that `time_here.py` would not have written; the sentence says what."""


def read_timings(path: Path, hashes: Mapping[str, str], baselines: frozenset[str]) -> Received:
    """Return what a file of timings says.

    `hashes` are the SHA-256 of the run's files by candidate; `baselines` are those candidates
    that are baselines. Raises UserError for anything that `time_here.py` would not have written
    about files of this run.
    """
    try:
        values = _parsed(_content(path))
        _check_kind(values)
        _check_models(_dict(values, "models"), hashes)
        given = _dict(values, "timings")
        _check_timings(given, frozenset(values["models"]), baselines)
        return Received(_gathered(given), _date(values.get("date")), values["models"])
    except _Odd as error:
        raise UserError(f"{path.name}: {error}; nothing was merged") from None


def _content(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            _odd("it is no file: name the one that time_here.py has written")
        with open(path, "rb") as file:
            content = file.read(LIMIT + 1)
    except OSError as error:
        _odd(f"it cannot be read ({error.strerror})")
    if len(content) > LIMIT:
        _odd(f"it has more than {size(LIMIT)}, no file of timings has")
    return content


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        _odd("it is not JSON: name the file that time_here.py has written")
    return values if isinstance(values, dict) else _odd("it is no file of timings")


def _check_kind(values: Mapping[str, Any]) -> None:
    if values.get("kind") != KIND:
        _odd("it is no file of timings: name the file that time_here.py has written")
    if values.get("schema") != SCHEMA:
        _odd(f"it has schema {_shown(values.get('schema'))}, and {SCHEMA} is known")


def _check_models(models: Mapping[str, Any], hashes: Mapping[str, str]) -> None:
    for name, found in models.items():
        if name not in hashes:
            _odd(f"it has a file {_shown(name)}, which the run has not: was it packed from there?")
        if found != hashes[name]:
            _odd(
                f"the file of {_shown(name)} that was timed is not the run's (its SHA-256 is "
                f"another): pack and time the run as it is now"
            )


def _check_timings(given: dict[str, Any], files: frozenset[str], baselines: frozenset[str]) -> None:
    wanted = {"names", "baseline", "settings", "all_threads", "launched", "seconds", "environment"}
    if given.keys() != wanted:
        _odd(f"its timings must have the keys {', '.join(sorted(wanted))}, and no others")
    names = _texts(given["names"], "names")
    if len(set(names)) < len(names) or set(names) != files | {CONTROL, *LEVELS}:
        _odd("the names of its candidates are not those of its files and the controls")
    if not isinstance(given["baseline"], str) or given["baseline"] not in files & baselines:
        _odd(f"its baseline {_shown(given['baseline'])} is none of the run")
    settings = _settings(given["settings"])
    _whole(given["all_threads"], 1, MOST_THREADS, "all_threads")
    if not _number(given["seconds"]) or not 0 <= given["seconds"] <= LONGEST_RUN:
        _odd(f"seconds must be a number from 0 to {LONGEST_RUN:.0f}")
    _check_environment(_dict(given, "environment"), given["all_threads"])
    launched = given["launched"]
    if not isinstance(launched, list) or not 0 < len(launched) <= MOST_PROCESSES:
        _odd(f"launched must be a list of 1 to {MOST_PROCESSES} processes")
    most = MOST_ROUNDS // len(launched)
    # Slow levels are left out, and files at which processes had died.
    least = set(names) - set(LEVELS) - _deadly(launched, files - {given["baseline"]})
    allowed = frozenset(least), frozenset(names)
    for number, part in enumerate(launched):
        _check_process(part, f"process {number + 1}", settings, allowed, most)
    for setting in settings:
        if not any(part["threads"] == setting.threads for part in launched):
            _odd(f"no process has timed the setting {setting.name}")


def _deadly(launched: list[Any], files: frozenset[str]) -> set[str]:
    """Return the files at which so many processes died that the others did without them."""
    said = [str(part.get("failure")) for part in launched if isinstance(part, dict)]
    return {
        name
        for name in files
        if sum(f"({word}{name})" in text for word in (LOADING, RUNNING) for text in said) >= DEADLY
    }


def _settings(given: Any) -> list[Setting]:
    names = _texts(given, "settings")
    if not 0 < len(names) <= MOST_SETTINGS or len(set(names)) < len(names):
        _odd(f"settings must be 1 to {MOST_SETTINGS} different ones")
    try:
        return [parse_setting(name) for name in names]
    except UserError:
        _odd("a name among its settings is no latency setting")


def _check_environment(given: Mapping[str, Any], threads: int) -> None:
    if given.keys() != {"threads", "cores", "cpu", "cpu_flags", "onnxruntime", "system"}:
        _odd("its environment is not what time_here.py writes")
    _whole(given["cores"], 1, MOST_THREADS, "cores")
    _whole(given["threads"], threads, threads, "threads of its environment")
    for key in ("cpu", "onnxruntime", "system"):
        text = given[key]
        if not isinstance(text, str) or len(text) > LONGEST_TEXT or not text.isprintable():
            _odd(f"{key} of its environment is no plain text of at most {LONGEST_TEXT} characters")
    flags = _texts(given["cpu_flags"], "cpu_flags")
    if len(flags) > 100 or not all(_NAME.fullmatch(flag) for flag in flags):
        _odd("cpu_flags of its environment are not names")


def _check_process(
    part: Any,
    where: str,
    settings: list[Setting],
    allowed: tuple[frozenset[str], frozenset[str]],
    most: int,
) -> None:
    """Check what one process found of the candidates: at least, and at most, those allowed."""
    if not isinstance(part, dict) or part.keys() != {"threads", "settings", "failure"}:
        _odd(f"{where} must have the keys threads, settings and failure")
    _whole(part["threads"], 0, MOST_THREADS, f"threads of {where}")
    if not isinstance(part["failure"], str):
        _odd(f"failure of {where} must be a text")
    found = _dict(part, "settings")
    batches = {str(one.batch) for one in settings if one.threads == part["threads"]}
    if not batches or found.keys() != (set() if part["failure"] else batches):
        _odd(f"{where} has not timed the settings that it should have")
    for batch, series in found.items():
        place = f"{where}, batches of {batch}"
        if not isinstance(series, dict) or not allowed[0] <= series.keys() <= allowed[1]:
            _odd(f"{place}: the candidates are not those of its files and the controls")
        rounds = {
            _rounds(one, f"{place}, {name}", most)
            for name, one in series.items()
            if not _failed(one, f"{place}, {name}")
        }
        if len(rounds) > 1:
            _odd(f"{place}: not all candidates have as many rounds")


def _failed(series: Any, where: str) -> bool:
    known = {field.name for field in fields(Series)}
    if not isinstance(series, dict) or not {"error", "medians", "calls"} <= series.keys() <= known:
        _odd(f"{where}: it must have the keys error, medians and calls")
    if not isinstance(series["error"], str):
        _odd(f"{where}: its error must be a text")
    return bool(series["error"])


def _rounds(series: Mapping[str, Any], where: str, most: int) -> int:
    medians, calls = series["medians"], series["calls"]
    if isinstance(medians, list) and len(medians) > most:
        _odd(f"{where}: it has more than {most} rounds")
    if not _seconds(medians) or not isinstance(calls, list) or len(calls) != len(medians):
        _odd(f"{where}: medians must be positive seconds, one for every block of calls")
    if not all(_seconds(block) and len(block) <= KEPT_CALLS for block in calls):
        _odd(f"{where}: calls must be lists of 1 to {KEPT_CALLS} positive seconds")
    return len(medians)


def _gathered(given: dict[str, Any]) -> RawTimings:
    """Return the checked timings, their errors as short lines of plain text."""
    for part in given["launched"]:
        part["failure"] = _plain(part["failure"])
        for series in part["settings"].values():
            for one in series.values():
                one["error"] = _plain(one["error"])
    return RawTimings.from_json(given)


def _plain(text: str) -> str:
    shown = "".join(sign if sign.isprintable() else " " for sign in text[:LONGEST_TEXT])
    return " ".join(shown.split()) or ("it gave no reason" if text else "")


def _date(given: Any) -> str:
    try:
        return datetime.date.fromisoformat(given).isoformat()
    except (TypeError, ValueError):
        _odd("its date is none")


def _seconds(values: Any) -> bool:
    return (
        isinstance(values, list)
        and bool(values)
        and all(_number(value) and SHORTEST_CALL <= value <= LONGEST_CALL for value in values)
    )


def _number(value: Any) -> bool:
    return type(value) in (int, float)  # Python counts True among the integers


def _whole(value: Any, low: int, high: int, what: str) -> None:
    if type(value) is not int or not low <= value <= high:
        _odd(f"{what} must be a whole number from {low} to {high}, not {_shown(value)}")


def _texts(values: Any, what: str) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        _odd(f"{what} must be a list of texts")
    return values


def _dict(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else _odd(f"it has no {key}")


def _shown(value: Any) -> str:
    """Return a foreign value as an error may quote it."""
    text = ascii(value)
    return text if len(text) <= 120 else f"{text[:120]}..."


def _odd(sentence: str) -> NoReturn:
    raise _Odd(sentence)
