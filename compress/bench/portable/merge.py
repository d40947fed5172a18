"""Bringing back what other machines found: `compress-models merge RUN FILE...`.

Their figures become further columns of the run's rows: `on_<slug>_<setting>_<figure>`, where the
slug is the name that the user gave the machine, or made of its processor's name and its threads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.bench.measure.latency import candidate_name, latency_figures, noise, unjudged
from compress.bench.plan.rows import BASELINE
from compress.bench.portable.validate_timings import Received, read_timings
from compress.bench.store.outputs import Outputs
from compress.errors import UserError
from compress.results.record import SCHEMA, Record, read_run
from compress.system.files import append_line, write_atomic
from compress.techniques.quantize import saturates
from compress.timing.raw_timings import RawTimings
from compress.timing.summary import Timings, summarise
from compress.timing.worker import DIFFERENT

LONGEST_SLUG = 24
_NAME = re.compile(rf"[a-z0-9][a-z0-9_]{{0,{LONGEST_SLUG - 1}}}")
_SAYS_NOTHING = {"cpu", "processor", "core", "cores", "gen", "with", "at"}


@dataclass(frozen=True)
class _Line:
    """What is to be written of one machine."""

    slug: str
    values: Mapping[str, Any]
    content: bytes


def merge(run: Path, files: Sequence[Path], name: str = "") -> list[str]:
    """Add what other machines found to the last results of a run; return the machines' slugs.

    `files` are what `time_here.py` has written there. What comes from the same machine, by its
    `name` or else by its environment and settings, replaces what was merged before. Raises
    UserError, and writes nothing, if a file is not what it should be or is not about the files of
    this run, or if two files are of machines that only a name could tell apart.
    """
    if not files:
        raise UserError("name at least one file that time_here.py has written")
    if name and len(files) > 1:
        raise UserError(f"{name!r} can name one machine only: merge the files one by one")
    if name and not _NAME.fullmatch(name):
        raise UserError(
            f"a machine's name becomes part of column names: up to {LONGEST_SLUG} of a to z, 0 to "
            f"9 and _, not {name!r}"
        )
    results = run / "results.jsonl"
    read_run(results)  # a folder without results must not be created by locking it
    with Outputs(run, ()).lock:
        run_name, records, about = read_run(results)
        sound = {
            candidate_name((record.chain, record.seed)): record
            for record in records
            if record.status == "ok"
        }
        hashes = {key: record.hashes["onnx"] for key, record in sound.items()}
        baselines = frozenset(key for key, record in sound.items() if record.chain == BASELINE)
        received = [read_timings(path, hashes, baselines) for path in files]
        _tell_apart(files, received)
        known = {
            slug: _identity(there["environment"], there["latency"])
            for slug, there in about.get("elsewhere", {}).items()
        }
        lines = [_line(one, sound, name or _slug(one.raw_timings, known)) for one in received]
        for line in lines:
            write_atomic(run / "raw" / f"elsewhere-{line.slug}.json", line.content)
            head = {"schema": SCHEMA, "kind": "elsewhere", "run": run_name, "slug": line.slug}
            append_line(results, {**head, **line.values})
    return [line.slug for line in lines]


def slug_of(cpu: str, threads: int, number: int = 1) -> str:
    """Return a short name for a machine, of [a-z0-9_]; a number above 1 ends it.

    The end of a long processor's name tells more than its beginning, so that is what is kept.
    """
    plain = re.sub(r"\((r|tm|c)\)|@.*|\d+-core\b", " ", cpu.lower())
    words = [word for word in re.findall(r"[a-z0-9]+", plain) if word not in _SAYS_NOTHING]
    tail = f"_{threads}t" + (f"_{number}" if number > 1 else "")
    room = LONGEST_SLUG - len(tail)
    while len(words) > 1 and len("_".join(words)) > room:
        del words[0]
    return ("_".join(words)[:room] or "machine") + tail


def _identity(environment: Mapping[str, Any], settings: Sequence[str] | Mapping[str, Any]) -> str:
    """Return a text that two merges share if they are of the same machine and settings."""
    lasting = {key: value for key, value in environment.items() if key != "date"}
    return json.dumps([lasting, sorted(settings)], sort_keys=True)


def _tell_apart(files: Sequence[Path], received: Sequence[Received]) -> None:
    """Raise UserError if two files are of equal machines: one would replace the other."""
    seen: dict[str, Path] = {}
    for path, one in zip(files, received, strict=True):
        other = seen.setdefault(
            _identity(one.raw_timings.environment, one.raw_timings.settings), path
        )
        if other is not path:
            raise UserError(
                f"{other} and {path} are of machines that are alike in everything they say: merge "
                "them one by one, with a name for each (--as NAME; name='...' in Python)"
            )


def _slug(raw_timings: RawTimings, known: dict[str, str]) -> str:
    """Name a machine; `known` maps slugs to identities and gains this one's."""
    identity = _identity(raw_timings.environment, raw_timings.settings)
    cpu, number = raw_timings.environment["cpu"], 1
    while known.get(slug := slug_of(cpu, raw_timings.all_threads, number), identity) != identity:
        number += 1
    known[slug] = identity
    return slug


def _line(received: Received, sound: Mapping[str, Record], slug: str) -> _Line:
    """Derive the figures of one machine."""
    raw_timings = received.raw_timings
    timings = summarise(raw_timings)
    values = {
        "environment": {**raw_timings.environment, "date": received.date},
        "latency": timings.about(),
        "rows": [_row(sound[name], name, timings) for name in raw_timings.names if name in sound],
    }
    return _Line(slug, values, received.content)


def _row(record: Record, name: str, timings: Timings) -> dict[str, Any]:
    """Return a row's figures there, and why some are missing."""
    raw_timings = timings.raw_timings
    rows = {setting: timings[name, setting] for setting in raw_timings.settings}
    machine = _words(raw_timings)
    wrong = next((row.error for row in rows.values() if row.wrong), "")
    missing = {f"{setting}_ms_p50": wrong or row.error for setting, row in rows.items()}
    notes: list[str] = []
    if wrong:
        notes = [f"on {machine}: {_explained(wrong, record, raw_timings)}"]
    else:
        reasons = dict.fromkeys(row.error for row in rows.values() if row.error)
        said = [*(f"not timed: {reason}" for reason in reasons), *timings.failures, *noise(rows)]
        notes = [f"on {machine}: {note}" for note in said]
        missing |= {
            f"{setting}_speedup": "the baseline has no time there"
            for setting, row in rows.items()
            if row.speedup is None and not row.error
        }
        missing |= {
            f"{setting}_verdict": unjudged(name, setting, timings)
            for setting, row in rows.items()
            if not row.error
        }
    return {
        "chain": record.chain,
        "seed": record.seed,
        "onnx": record.hashes["onnx"],
        "figures": {} if wrong else latency_figures(name, timings),
        "missing": {column: reason for column, reason in missing.items() if reason},
        "notes": notes,
    }


def _explained(error: str, record: Record, raw_timings: RawTimings) -> str:
    """Say what other outputs mean: there, the file is not what was measured here."""
    if not error.startswith(DIFFERENT):
        return error
    told = f"{error}, so it computes something else there, and its accuracy does not hold there"
    int8 = "quantize(" in record.chain and "reduce_range=True" not in record.chain
    if int8 and saturates(tuple(raw_timings.environment["cpu_flags"])):
        told += (
            ": that processor has no VNNI, and sums of int8 products can saturate, which "
            "quantize(reduce_range=True) avoids"
        )
    return told


def _words(raw_timings: RawTimings) -> str:
    threads = raw_timings.all_threads
    name = raw_timings.environment["cpu"] or "another machine"
    return f"{name} ({threads} thread{'' if threads == 1 else 's'})"
