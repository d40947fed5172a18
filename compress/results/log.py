"""`results.jsonl`: the log of a run, append-only, one JSON object a line.

A `run` line describes what was run and where. A `row` line holds what was measured for a chain and
seed, with the environment, so that it can be read by itself (of several, the last counts). An
`about` line adds to the description. A `timings` line names the file with the raw seconds of a
machine and runtime, or the reason why there is none.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from compress.errors import UserError
from compress.results.record import SCHEMA, Key, Record
from compress.system.files import append_line


@dataclass(frozen=True)
class Stage:
    """The file with the raw seconds of one machine and runtime, or why there is none."""

    machine: str = ""
    """The short name of another machine; '' for the run's own."""
    runtime: str = ""
    """'' for onnxruntime's CPU provider; otherwise the prefix of its columns' names."""
    title: str = ""
    """The runtime's display name."""
    settings: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""
    """In the run's folder."""
    sha256: str = ""
    reason: str = ""

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Stage:
        return msgspec.convert(values, Stage)


class RunLog:
    """Writes the lines of one run: a new one, or the one called `run` that the file has already."""

    def __init__(self, path: Path, about: Mapping[str, Any], run: str = "") -> None:
        self.path = path
        self.run = run or datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self.environment = dict(about.get("environment") or {})
        if not run:
            self._write("run", {"about": dict(about)})

    def record(self, record: Record) -> None:
        self._write("row", {**asdict(record), "environment": self.environment})

    def timings(self, stage: Stage) -> None:
        self._write("timings", asdict(stage))

    def _write(self, kind: str, values: Mapping[str, Any]) -> None:
        append_line(self.path, {"schema": SCHEMA, "kind": kind, "run": self.run, **values})


@dataclass
class Run:
    """The content of one run's lines."""

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


def read_run(path: Path) -> Run:
    """Return the last run that has rows, so that one that was stopped early hides no other.

    Its rows are in the order of its table: their lines are written as rows are finished, which on
    a cluster is in any order. A half-written line (a crash) is skipped. Raises UserError for a
    missing file or one of another version.
    """
    if not path.is_file():
        raise UserError(f"there is no {path}: name the folder of a run")
    try:
        run = _last_run(path)
        order = {tuple(key): number for number, key in enumerate(run.about.get("order", []))}
        keys = sorted(run.records, key=lambda key: order.get(key, len(order)))
    except UserError:
        raise
    except RecursionError:
        raise UserError(f"{path} is damaged: a line is nested too deeply") from None
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error!r}") from error
    return replace(run, records={key: run.records[key] for key in keys})


def _last_run(path: Path) -> Run:
    runs: dict[str, Run] = {}
    older = False
    for line in path.read_bytes().splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        schema = values.get("schema") if isinstance(values, dict) else None
        if schema == 1:
            older = True
        elif schema == SCHEMA:
            runs.setdefault(values["run"], Run(values["run"])).add(values)
        else:
            raise UserError(f"{path} has schema {schema!r}, and this version reads {SCHEMA}")
    with_rows = [run for run in runs.values() if run.records]
    if older and not with_rows:
        raise UserError(
            f"{path} was written by an older version (schema 1), which stored figures without all "
            f"of the measurements behind them: the table beside it remains valid, and running the "
            f"suite again creates a new one"
        )
    if not runs:
        raise UserError(f"{path} holds no run")
    return (with_rows or list(runs.values()))[-1]
