"""`results.jsonl`: append-only, survives torn lines, and the last run with rows is what counts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from report_rows import steps

from compress.errors import UserError
from compress.results.derive import read_results
from compress.results.log import RunLog, Stage, read_run
from compress.results.record import Record, flat
from compress.system.files import append_line


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record = Record(
        *("a()", 3, "unverified"),
        {"params": 2**60 + 1, "seconds": 0.1 + 0.2},
        error="why",
        notes=("one", "two"),
        missing={"accuracy": "it does not run"},
        hashes={"onnx": "f00"},
        log=({"kind": "step", "seconds": 1.0},),
        role="control",
        control="b()",
        steps=steps("repeat(2, prune_channels(macs=0.5) -> finetune(epochs=1)) -> quantize()"),
        files={"answers": "raw/a.npz"},
    )
    RunLog(tmp_path / "results.jsonl", {"suite": "a"}).record(record)
    (found,) = read_run(tmp_path / "results.jsonl").records.values()
    assert found == record
    assert [step.name for step in flat(found.steps)] == ["prune_channels", "finetune", "quantize"]


def test_steps_say_what_they_do() -> None:
    """So that no reader of results parses their text."""
    train, student, pruned, repeated, int8 = (
        *steps("train(epochs=1) -> distill(student='s', epochs=1)"),
        *steps("prune_channels(macs=0.5)"),
        *steps("repeat(2, distill(epochs=1))"),
        *steps("quantize()"),
    )
    assert (train.trains, train.restarts, train.builds, train.lowers) == (True, True, False, False)
    assert (student.trains, student.builds, student.text) == (
        True,
        True,
        "distill(student='s', epochs=1)",
    )
    assert (pruned.trains, pruned.builds, pruned.lowers) == (False, False, False)
    assert [step.text for step in repeated.steps] == ["distill(epochs=1)"]
    assert (int8.trains, int8.lowers) == (False, True)


def test_the_later_line_of_a_row_counts(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "results.jsonl", {"suite": "a"})
    log.record(Record("baseline", 0, "ok", {"params": 5}))
    log.record(Record("baseline", 0, "ok", {"params": 5, "peak_bytes": 2}))
    run = read_run(tmp_path / "results.jsonl")
    assert [r.measured for r in run.records.values()] == [{"params": 5, "peak_bytes": 2}]
    assert run.about == {"suite": "a"}


def test_the_later_line_of_a_stage_counts(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "results.jsonl", {})
    stages = Stage(reason="no"), Stage(file="raw/x"), Stage(machine="x"), Stage(runtime="cuda")
    for stage in stages:
        log.timings(stage)
    found = read_run(tmp_path / "results.jsonl").stages
    assert found == {("", ""): stages[1], ("x", ""): stages[2], ("", "cuda"): stages[3]}


def test_an_about_line_adds_to_the_description(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    log = RunLog(path, {"suite": "a", "isolation": ""})
    log.record(Record("baseline", 0, "ok"))
    line = {"schema": 2, "kind": "about", "run": log.run}
    append_line(path, {**line, "about": {"isolation": "none", "more": "f00"}})
    append_line(path, {**line, "run": RunLog(path, {}).run, "about": {"more": "bar"}})
    run = read_run(path)
    assert len(run.records) == 1
    assert run.about == {"suite": "a", "isolation": "none", "more": "f00"}


def test_every_rows_line_says_where_it_was_measured(tmp_path: Path) -> None:
    where = {"cpu": "a processor", "versions": {"torch": "3.0"}}
    log = RunLog(tmp_path / "results.jsonl", {"suite": "a", "environment": where})
    log.record(Record("baseline", 0, "ok"))
    log.record(Record("quantize()", 0, "ok"))
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [line["environment"] for line in lines if line["kind"] == "row"] == [where, where]


def test_lines_and_keys_of_later_versions_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    RunLog(path, {"suite": "a"}).record(Record("baseline", 0, "ok", control="x"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["something"] = "newer"
    news = {**lines[0], "kind": "something newer"}
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, news]))
    (record,) = read_run(path).records.values()
    assert record == Record("baseline", 0, "ok", control="x")


def test_a_run_without_rows_does_not_hide_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    RunLog(path, {"suite": "a"}).record(Record("baseline", 0, "ok"))
    RunLog(path, {"suite": "b"})
    run = read_run(path)
    assert len(run.records) == 1
    assert run.about == {"suite": "a"}


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    RunLog(path, {"suite": "a"}).record(Record("baseline", 0, "ok"))
    path.write_bytes(path.read_bytes()[:-20])
    RunLog(path, {"suite": "b"}).record(Record("baseline", 0, "failed", error="why"))
    run = read_run(path)
    assert run.records["baseline", 0].error == "why"
    assert run.about == {"suite": "b"}


def test_rows_stand_as_the_table_shows_them(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "results.jsonl", {"order": [["a()", 0], ["baseline", 1], ["b()", 0]]})
    for chain, seed in (("b()", 0), ("baseline", 1), ("later()", 0), ("a()", 0)):
        log.record(Record(chain, seed, "ok"))
    assert list(read_run(tmp_path / "results.jsonl").records) == [
        *(("a()", 0), ("baseline", 1), ("b()", 0), ("later()", 0))
    ]


def test_foreign_schemas_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with pytest.raises(UserError, match=r"there is no .*results.jsonl"):
        read_run(path)
    path.write_text("not json\n")
    with pytest.raises(UserError, match="holds no run"):
        read_run(path)
    path.write_text(json.dumps({"schema": 99}) + "\n")
    with pytest.raises(UserError, match="has schema 99, and this version reads 2"):
        read_run(path)


def test_results_of_the_first_version_are_refused_and_do_not_stand_in_the_way(
    tmp_path: Path,
) -> None:
    path = tmp_path / "results.jsonl"
    old = {"schema": 1, "kind": "row", "run": "x", **asdict(Record("baseline", 0, "ok"))}
    path.write_text(json.dumps(old) + "\n")
    words = r"an older version \(schema 1\).* the table beside it remains valid, and running"
    with pytest.raises(UserError, match=words):
        read_results(tmp_path)
    RunLog(path, {"suite": "a"})
    with pytest.raises(UserError, match=words):
        read_results(tmp_path)  # a run that was stopped before its first row
    RunLog(path, {"suite": "b"}).record(Record("a()", 0, "failed"))
    assert [row["chain"] for row in read_results(tmp_path).rows] == ["a()"]


@pytest.mark.parametrize(
    "line",
    [
        {"kind": "row", "run": "x"},
        {"kind": "row", "run": ["x"]},
        {"kind": "run", "run": "x", "about": 7},
        {"kind": "timings", "run": "x", "settings": 7},
        {"kind": "row", "run": "x", **asdict(Record("a()", 0, "ok")), "steps": [7]},
        {"run": "x"},
    ],
)
def test_what_no_run_has_written_is_damaged(tmp_path: Path, line: dict[str, object]) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({"schema": 2, **line}) + "\n")
    with pytest.raises(UserError, match="is damaged"):
        read_run(path)


def test_why_a_figure_is_missing_stands_in_the_note(tmp_path: Path) -> None:
    missing = {"peak_bytes": "killed by signal 9", "top5": "ten classes", "int8_convs": "no graph"}
    log = RunLog(tmp_path / "results.jsonl", {})
    log.record(Record("a()", 0, "failed", notes=("seen",), missing=missing))
    (row,) = read_results(tmp_path).rows
    assert row["note"] == "seen; no peak memory: killed by signal 9; no graph"
