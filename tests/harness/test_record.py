"""`results.jsonl`: append-only, survives torn lines, and the last run with rows is what counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress.errors import UserError
from compress.harness.record import Record, RunLog, read_results


def test_the_later_line_of_a_row_counts(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "results.jsonl", {"suite": "a"})
    log.record(Record("baseline", 0, "ok", {"accuracy": 0.5}))
    log.record(Record("baseline", 0, "ok", {"accuracy": 0.5, "cpu_ms_p50": 2.0}))
    records, about = read_results(tmp_path / "results.jsonl")
    assert [record.measured for record in records] == [{"accuracy": 0.5, "cpu_ms_p50": 2.0}]
    assert about == {"suite": "a"}


def test_a_run_without_rows_does_not_hide_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    RunLog(path, {"suite": "a"}).record(Record("baseline", 0, "ok"))
    RunLog(path, {"suite": "b"})
    records, about = read_results(path)
    assert len(records) == 1
    assert about == {"suite": "a"}


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    RunLog(path, {"suite": "a"}).record(Record("baseline", 0, "ok"))
    path.write_bytes(path.read_bytes()[:-20])
    RunLog(path, {"suite": "b"}).record(Record("baseline", 0, "failed", error="why"))
    records, about = read_results(path)
    assert records[0].error == "why"
    assert about == {"suite": "b"}


def test_foreign_schemas_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with pytest.raises(UserError, match=r"there is no .*results.jsonl"):
        read_results(path)
    path.write_text("not json\n")
    with pytest.raises(UserError, match="holds no run"):
        read_results(path)
    path.write_text(json.dumps({"schema": 99}) + "\n")
    with pytest.raises(UserError, match="has schema 99, and 1 is known"):
        read_results(path)
