"""`results.jsonl`: what a run writes down, append-only, one JSON object a line.

`run` lines say what was run and where; `row` lines what was measured for a chain and seed, with
the environment, so that a line stands for itself (of several, the last counts); `about` lines what
became known of the run as a whole; `timings` lines where the raw seconds of a machine and runtime
lie, or why there are none.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compress.errors import UserError
from compress.results.record import SCHEMA, Key, Record
from compress.system.files import append_line


@dataclass(frozen=True)
class Stage:
    """Where the raw seconds of one machine and runtime lie, or why there are none."""

    machine: str = ""
    """The short name of another machine; '' for the run's own."""
    runtime: str = ""
    """'' for onnxruntime's CPU provider; of others, how their columns' names begin."""
    title: str = ""
    """A runtime's name for people."""
    settings: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""
    """In the run's folder."""
    sha256: str = ""
    reason: str = ""

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Stage:
        known = {key: values[key] for key in Stage.__dataclass_fields__ if key in values}
        return Stage(**{**known, "settings": tuple(map(str, known["settings"]))})


class RunLog:
    """Writes the lines of one run: a new one, or one of that name that is in the file already."""

    def __init__(self, path: Path, about: Mapping[str, Any], run: str = "") -> None:
        self.path = path
        self.run = run or datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self.environment = dict(about.get("environment") or {})
        if not run:
            self._write("run", {"about": dict(about)})

    def record(self, record: Record) -> None:
        self._write("row", {**asdict(record), "environment": self.environment})

    def about(self, news: Mapping[str, Any]) -> None:
        """Add to the run's description; a key that it had already gets the new value."""
        self._write("about", {"about": dict(news)})

    def timings(self, stage: Stage) -> None:
        self._write("timings", asdict(stage))

    def _write(self, kind: str, values: Mapping[str, Any]) -> None:
        append_line(self.path, {"schema": SCHEMA, "kind": kind, "run": self.run, **values})


@dataclass
class Run:
    """What the lines of one run say."""

    name: str
    records: dict[Key, Record] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    stages: dict[tuple[str, str], Stage] = field(default_factory=dict)
    """By machine and runtime, the last line of each."""

    def add(self, line: Mapping[str, Any]) -> None:
        if line["kind"] in ("run", "about"):
            self.about.update(line["about"])
        elif line["kind"] == "row":
            record = Record.from_json(line)
            self.records[record.key] = record
        elif line["kind"] == "timings":
            stage = Stage.from_json(line)
            self.stages[stage.machine, stage.runtime] = stage

    def ordered(self) -> Run:
        """Return the run with its rows as its table shows them.

        Lines are written as rows are finished, which on a cluster is in any order.
        """
        order = {tuple(key): number for number, key in enumerate(self.about.get("order", []))}
        keys = sorted(self.records, key=lambda key: order.get(key, len(order)))
        return Run(self.name, {key: self.records[key] for key in keys}, self.about, self.stages)


def read_run(path: Path) -> Run:
    """Return the last run that has rows, so that one that was stopped early hides no other.

    A half-written line (a crash) is passed over. Raises UserError for a missing file or one of
    another version.
    """
    if not path.is_file():
        raise UserError(f"there is no {path}: name the folder that a run has written")
    runs: dict[str, Run] = {}
    older = False
    for line in path.read_bytes().splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        except RecursionError:
            raise UserError(f"{path} is damaged: a line is nested too deeply") from None
        schema = values.get("schema") if isinstance(values, dict) else None
        if schema == 1:
            older = True
            continue
        if schema != SCHEMA:
            raise UserError(f"{path} has schema {schema!r}, and {SCHEMA} is known")
        try:
            runs.setdefault(values["run"], Run(values["run"])).add(values)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{path} is damaged: {error!r}") from error
    told = [run for run in runs.values() if run.records] or list(runs.values())
    if older and not (told and told[-1].records):
        raise UserError(
            f"{path} was written by an older version (schema 1), which kept figures and not all "
            f"that they follow from: the table beside it still stands, and running the suite again "
            f"derives it anew"
        )
    if not told:
        raise UserError(f"{path} holds no run")
    try:
        return told[-1].ordered()
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error!r}") from error
