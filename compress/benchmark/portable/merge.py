"""Adding the timings of other machines to a run: `compress-models merge RUN FILE...`.

Their figures become further columns of the run's rows: `on_<slug>_<setting>_<figure>`, where the
slug is the name that the user gave the machine, or made of its processor's name and its threads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.benchmark.portable.validate_timings import ValidatedTimings, read_timings
from compress.benchmark.store.outputs import Outputs
from compress.errors import UserError
from compress.results.log import RunLog, Stage, read_run
from compress.results.raw import write_values
from compress.results.record import BASELINE
from compress.results.timed import in_order
from compress.timing.raw_timings import RawTimings, timings_file

LONGEST_SLUG = 24
_NAME = re.compile(rf"[a-z0-9][a-z0-9_]{{0,{LONGEST_SLUG - 1}}}")
_NOISE = {"cpu", "processor", "core", "cores", "gen", "with", "at"}


def merge(run: Path, files: Sequence[Path], name: str = "") -> list[str]:
    """Add timings of other machines to the last results of a run; return the machines' slugs.

    `files` are what `time_here.py` has written there. What comes from the same machine, by its
    `name` or else by its environment and settings, replaces what was merged before. Raises
    UserError, and writes nothing, if a file is not what it should be or is not about the files of
    this run, or if two files are of machines that only a name could distinguish.
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
        last = read_run(results)
        sound = {r.name: r for r in last.records.values() if r.status == "ok"}
        hashes = {key: record.hashes["onnx"] for key, record in sound.items()}
        baselines = frozenset(key for key, record in sound.items() if record.chain == BASELINE)
        validated = [read_timings(path, hashes, baselines) for path in files]
        identities = [
            _identity(r.raw_timings.environment, r.raw_timings.settings) for r in validated
        ]
        _check_different(files, identities)
        known = {
            stage.machine: _identity(stage.environment, stage.settings)
            for stage in last.stages.values()
            if stage.machine
        }
        log = RunLog(results, last.about, last.name)
        slugs = []
        for one, identity in zip(validated, identities, strict=True):
            slug = name or _slug(one.raw_timings, identity, known)
            log.timings(_saved(one, slug, run))
            slugs.append(slug)
    return slugs


def _saved(validated: ValidatedTimings, slug: str, run: Path) -> Stage:
    """Save a machine's timings as they were validated; return where they are."""
    raw_timings, place = validated.raw_timings, f"raw/other-machine-{slug}.json"
    values = timings_file(validated.models, raw_timings.to_json()) | {"date": validated.date}
    return Stage(
        machine=slug,
        settings=in_order(raw_timings.settings),
        environment={**raw_timings.environment, "date": validated.date},
        file=place,
        sha256=write_values(run / place, values),
    )


def slug_of(cpu: str, threads: int, number: int = 1) -> str:
    """Return a short name for a machine, of [a-z0-9_]; a number above 1 ends it.

    The end of a long processor's name identifies it better than its beginning, so the end stays.
    """
    plain = re.sub(r"\((r|tm|c)\)|@.*|\d+-core\b", " ", cpu.lower())
    words = [word for word in re.findall(r"[a-z0-9]+", plain) if word not in _NOISE]
    tail = f"_{threads}t" + (f"_{number}" if number > 1 else "")
    room = LONGEST_SLUG - len(tail)
    while len(words) > 1 and len("_".join(words)) > room:
        del words[0]
    return ("_".join(words)[:room] or "machine") + tail


def _slug(raw_timings: RawTimings, identity: str, known: dict[str, str]) -> str:
    """Name a machine; `known` maps slugs to identities and gains this one's."""
    cpu, number = raw_timings.environment["cpu"], 1
    while known.get(slug := slug_of(cpu, raw_timings.all_threads, number), identity) != identity:
        number += 1
    known[slug] = identity
    return slug


def _identity(environment: Mapping[str, Any], settings: Sequence[str] | Mapping[str, Any]) -> str:
    """Return a text that two merges share if they are of the same machine and settings."""
    lasting = {key: value for key, value in environment.items() if key != "date"}
    return json.dumps([lasting, sorted(settings)], sort_keys=True)


def _check_different(files: Sequence[Path], identities: Sequence[str]) -> None:
    """Raise UserError if two files are of equal machines: one would replace the other."""
    first: dict[str, Path] = {}
    for path, identity in zip(files, identities, strict=True):
        other = first.setdefault(identity, path)
        if other is not path:
            raise UserError(
                f"{other} and {path} are of machines that are alike in everything they report: "
                "merge them one by one, with a name for each (--as NAME; name='...' in Python)"
            )
