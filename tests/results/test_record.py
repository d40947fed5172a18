"""`results.jsonl`: append-only, survives torn lines, and the last run with rows is what counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress.errors import UserError
from compress.results.record import Record, RunLog, environment, read_results


def test_the_later_line_of_a_row_counts(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "results.jsonl", {"suite": "a"})
    log.record(Record("baseline", 0, "ok", {"accuracy": 0.5}))
    log.record(Record("baseline", 0, "ok", {"accuracy": 0.5, "cpu_ms_p50": 2.0}))
    records, about = read_results(tmp_path / "results.jsonl")
    assert [record.measured for record in records] == [{"accuracy": 0.5, "cpu_ms_p50": 2.0}]
    assert about == {"suite": "a"}


def test_what_becomes_known_later_is_added_to_the_description(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    log = RunLog(path, {"suite": "a", "latency": {}})
    log.record(Record("baseline", 0, "ok"))
    log.about({"latency": {"cpu": {"margin": 0.01}}, "split_hash": "f00"})
    RunLog(path, {"suite": "b"}).about({"split_hash": "bar"})
    records, about = read_results(path)
    assert len(records) == 1
    assert about == {"suite": "a", "latency": {"cpu": {"margin": 0.01}}, "split_hash": "f00"}


def test_why_a_figure_is_missing_stands_in_the_note() -> None:
    missing = {"peak_bytes": "killed by signal 9", "top5": "ten classes", "int8_convs": "no graph"}
    row = Record("a()", 0, "ok", notes=("seen",), missing=missing).row()
    assert row["note"] == "seen; no peak memory: killed by signal 9; no graph"


def test_every_rows_line_says_where_it_was_measured(tmp_path: Path) -> None:
    where = {"cpu": "a processor", "versions": {"torch": "3.0"}}
    log = RunLog(tmp_path / "results.jsonl", {"suite": "a", "environment": where})
    log.record(Record("baseline", 0, "ok"))
    log.record(Record("quantize()", 0, "ok"))
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [line["environment"] for line in lines if line["kind"] == "row"] == [where, where]


def test_lines_of_the_first_version_and_of_later_ones_are_read(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    RunLog(path, {"suite": "a"}).record(Record("baseline", 0, "ok", role="control", control="x"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert read_results(path)[0][0].row()["control"] == "x"
    del lines[1]["role"], lines[1]["control"]
    news = {**lines[0], "kind": "something newer"}
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, news]))
    (record,), _ = read_results(path)
    assert (record.chain, record.seed, record.status) == ("baseline", 0, "ok")
    assert (record.row()["role"], record.row()["control"]) == ("", "")


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


def test_the_environment_is_json_and_says_what_figures_depend_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Big GPU")
    monkeypatch.setattr("compress.system.environment.gpu", lambda: ("", ""))
    found = json.loads(json.dumps(environment(2, "cpu", "bfloat16", (0, 3))))
    assert (found["threads"], found["device"], found["precision"]) == (2, "cpu", "bfloat16")
    assert (found["seeds"], found["gpu"], found["driver"]) == ([0, 3], "Big GPU", "")
    known = {"cpu", "cpu_flags", "cores", "logical_cores", "physical_cores", "cpu_quota", "system"}
    assert known | {"governor", "memory_bytes", "python", "versions", "git"} <= found.keys()
    # The folder of our own checkout is no part of what is written down.
    assert str(Path(__file__).resolve().parents[2]) not in json.dumps(found)
