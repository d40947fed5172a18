"""What a run writes down: `results.jsonl`, append-only, one JSON object a line.

`run` lines say what was run and where; `row` lines what was measured for a chain and seed, with
the environment, so that a line stands for itself. A row is written when it is measured and again
when it is compared and timed; the later line counts.
`about` lines say what became known of the run as a whole while it went on; `elsewhere` lines what
another machine found when it timed the run's files (see `compress.bench.portable.merge`).
"""

from __future__ import annotations

import datetime
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from compress.bench.plan.keys import versions
from compress.errors import UserError
from compress.system.environment import environment as timing_environment
from compress.system.environment import machine
from compress.system.files import append_line

SCHEMA = 1

Key = tuple[str, int]
"""A row's chain text and seed."""


TOLD = {
    "peak_bytes": "no peak memory: ",
    "int8_convs": "",
    "ece": "no calibration error: ",
}
"""Columns whose reason for being empty stands in the row's note, and how it begins."""


@dataclass(frozen=True)
class Record:
    """One row: what was run, what was measured, and why a figure is missing."""

    chain: str
    seed: int
    status: str
    measured: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    notes: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    """Column -> why it is empty."""
    hashes: Mapping[str, str] = field(default_factory=dict)
    step_log: tuple[Mapping[str, Any], ...] = ()
    role: str = ""
    """'control' where the harness added the row as a control of equal cost."""
    control: str = ""
    """The chain of the row that is this one's control of equal cost; '' if it has none."""

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Record:
        """Read what `asdict` gave; lines of older versions lack what has a default by now."""
        known = {key: values[key] for key in Record.__dataclass_fields__ if key in values}
        return Record(**{**known, "notes": tuple(known["notes"])})

    def row(self) -> dict[str, Any]:
        """Return the flat row of a table (see `compress.report.columns`)."""
        told = [f"{words}{self.missing[key]}" for key, words in TOLD.items() if key in self.missing]
        note = "; ".join([*self.notes, *told])
        return {
            "chain": self.chain,
            "seed": self.seed,
            "status": self.status,
            "role": self.role,
            "control": self.control,
            "error": self.error,
            "note": note,
            "cuda_note": self.missing.get("cuda_ms_p50", ""),
            **self.measured,
        }


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

    def _write(self, kind: str, values: Mapping[str, Any]) -> None:
        append_line(self.path, {"schema": SCHEMA, "kind": kind, "run": self.run, **values})


@dataclass
class _Run:
    """What the lines of one run say."""

    name: str
    records: dict[Key, Record] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    elsewhere: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """By slug, the last line of every other machine on which the files were timed."""

    def add(self, line: Mapping[str, Any]) -> None:
        if line["kind"] in ("run", "about"):
            self.about.update(line["about"])
        elif line["kind"] == "row":
            record = Record.from_json(line)
            self.records[record.chain, record.seed] = record
        elif line["kind"] == "elsewhere":
            self.elsewhere[line["slug"]] = line

    def told(self) -> tuple[list[Record], dict[str, Any]]:
        """Return the records and the description, with what other machines found."""
        order = {tuple(key): number for number, key in enumerate(self.about.get("order", []))}
        # Rows are written as they are finished, which on a cluster is in any order.
        sorted_keys = sorted(self.records, key=lambda key: order.get(key, len(order)))
        records = {key: self.records[key] for key in sorted_keys}
        for slug, line in self.elsewhere.items():
            for row in line["rows"]:
                key = row["chain"], row["seed"]
                if key in records and records[key].hashes.get("onnx") == row["onnx"]:
                    records[key] = _with_elsewhere(records[key], slug, row)
        machines = {
            slug: {"environment": line["environment"], "latency": line["latency"]}
            for slug, line in self.elsewhere.items()
        }
        return list(records.values()), self.about | ({"elsewhere": machines} if machines else {})


def _with_elsewhere(record: Record, slug: str, row: Mapping[str, Any]) -> Record:
    figures = {f"on_{slug}_{key}": value for key, value in row["figures"].items()}
    missing = {f"on_{slug}_{key}": reason for key, reason in row["missing"].items()}
    return replace(
        record,
        measured={**record.measured, **figures},
        missing={**record.missing, **missing},
        notes=(*record.notes, *row["notes"]),
    )


def read_run(path: Path) -> tuple[str, list[Record], dict[str, Any]]:
    """Return the name, the records and the description of the last run that has rows.

    So a run that was stopped before its first row does not hide an earlier one's. A half-written
    line (a crash) is passed over. Raises UserError for a missing file or a foreign schema.
    """
    if not path.is_file():
        raise UserError(f"there is no {path}: name the folder that a run has written")
    runs: dict[str, _Run] = {}
    for line in path.read_bytes().splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        except RecursionError:
            raise UserError(f"{path} is damaged: a line is nested too deeply") from None
        schema = values.get("schema") if isinstance(values, dict) else None
        if schema != SCHEMA:
            raise UserError(f"{path} has schema {schema!r}, and {SCHEMA} is known")
        try:
            runs.setdefault(values["run"], _Run(values["run"])).add(values)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{path} is damaged: {error!r}") from error
    told = [run for run in runs.values() if run.records] or list(runs.values())
    if not told:
        raise UserError(f"{path} holds no run")
    try:
        return (told[-1].name, *told[-1].told())
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error!r}") from error


def read_results(path: Path) -> tuple[list[Record], dict[str, Any]]:
    """Return what `read_run` does, without the run's name."""
    _, records, about = read_run(path)
    return records, about


def environment(
    threads: int, device: str, precision: str, seeds: Sequence[int] = ()
) -> dict[str, Any]:
    """Return where and with which seeds a run takes place (JSON): machine, versions, git state.

    Names neither host, user nor path.
    """
    return {
        **timing_environment(threads),
        **_machine(),
        "device": device,
        "precision": precision,
        "seeds": list(seeds),
        "versions": versions(),
        "git": _git_state(),
        "date": datetime.date.today().isoformat(),
    }


def _machine() -> dict[str, Any]:
    """Return the machine; torch names a GPU where NVIDIA's own tool is missing."""
    found = machine()
    if not found["gpu"]:
        import torch

        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
    return found


def _git_state() -> str | None:
    """Return the commit of our own checkout, with `+` if it has changes; None if there is none."""
    here = Path(__file__).resolve()
    # Installed into a folder of somebody's repository we are not part of it.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty=+")


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says, None if it says nothing or fails."""
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
