"""What a run writes down: `results.jsonl`, append-only, one JSON object a line.

`run` lines say what was run and where; `row` lines what was measured for a chain and seed. A row
is written when it is measured and again when it is timed; the later line counts.
"""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compress.errors import UserError
from compress.files import append_line
from compress.harness.store import versions
from compress.timing.environment import cpu_info, cpu_threads

SCHEMA = 1


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
    journal: tuple[Mapping[str, Any], ...] = ()

    def row(self) -> dict[str, Any]:
        """Return the flat row of a table (see `compress.report.columns`)."""
        note = "; ".join(self.notes)
        return {
            "chain": self.chain,
            "seed": self.seed,
            "status": self.status,
            "error": self.error,
            "note": note,
            "cuda_note": self.missing.get("cuda_ms_p50", ""),
            **self.measured,
        }


class RunLog:
    """Writes the lines of one run."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self.run = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self._write("run", {"about": dict(about)})

    def record(self, record: Record) -> None:
        self._write("row", asdict(record))

    def _write(self, kind: str, values: Mapping[str, Any]) -> None:
        append_line(self.path, {"schema": SCHEMA, "kind": kind, "run": self.run, **values})


def read_results(path: Path) -> tuple[list[Record], dict[str, Any]]:
    """Return the records and the description of the last run that has rows.

    So a run that was stopped before its first row does not hide an earlier one's. A half-written
    line (a crash) is passed over. Raises UserError for a missing file or a foreign schema.
    """
    if not path.is_file():
        raise UserError(f"there is no {path}: name the folder that a run has written")
    runs: dict[str, tuple[dict[tuple[str, int], Record], dict[str, Any]]] = {}
    for line in path.read_bytes().splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if values.get("schema") != SCHEMA:
            raise UserError(f"{path} has schema {values.get('schema')!r}, and {SCHEMA} is known")
        records, about = runs.setdefault(values["run"], ({}, {}))
        if values["kind"] == "run":
            about.update(values["about"])
        else:
            known = {key: values[key] for key in Record.__dataclass_fields__}
            record = Record(**{**known, "notes": tuple(known["notes"])})
            records[record.chain, record.seed] = record
    told = [run for run in runs.values() if run[0]] or list(runs.values())
    if not told:
        raise UserError(f"{path} holds no run")
    return list(told[-1][0].values()), told[-1][1]


def environment(threads: int, device: str, precision: str) -> dict[str, Any]:
    """Return where a run takes place: machine, cores, versions, git state of the working folder."""
    cpu, flags = cpu_info()
    return {
        "cpu": cpu,
        "flags": list(flags),
        "cores": cpu_threads(),
        "threads": threads,
        "device": device,
        "precision": precision,
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "versions": versions(),
        "git": _git_state(),
        "date": datetime.date.today().isoformat(),
    }


def _git_state() -> str | None:
    """Return the commit of our own checkout, with `+` if it has changes; None if there is none."""
    here = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
