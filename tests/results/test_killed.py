"""What is missing or damaged is a reason, and all that is there is derived."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import Written, answers, right

import compress
from compress.api import rewrite_reports
from compress.benchmark import run as bench
from compress.benchmark.store.outputs import Outputs
from compress.errors import UserError
from compress.results.log import Stage
from compress.results.record import Record

CHAINS = ["prune_weights(sparsity=0.5)", "prune_weights(sparsity=0.95)"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went to its end, but for its timing."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (500, 8, 8), dtype=np.uint8)
    classes = (images[:, :4].mean((1, 2)) > images[:, 4:].mean((1, 2))).astype(np.int64)
    data = compress.from_arrays(
        images[:400], classes[:400], images[400:], classes[400:], classes=["up", "down"]
    )
    out = tmp_path_factory.mktemp("whole")
    chains = [f"train(epochs=2) -> {chain}" for chain in CHAINS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "time_records", lambda *_: [(Stage(reason="left out"), [])])
        compress.run(data=data, model="mlp(width=16)", chain=chains, out=out, progress=False)
    return out


def killed(whole: Path, out: Path, rows: int) -> list[dict[str, Any]]:
    """Lay out what a run leaves that is killed after so many rows; return the whole run's rows."""
    lines = list(map(json.loads, (whole / "results.jsonl").read_text().splitlines()))
    first: dict[str, dict[str, Any]] = {}
    for line in lines:
        if line["kind"] == "row":
            first.setdefault(line["chain"], line)  # as it was when it was measured
    left = [line for line in lines if line["kind"] == "run"] + list(first.values())[:rows]
    (out / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in left))
    (out / "raw").symlink_to(whole / "raw")
    return [dict(row) for row in rewrite_reports(whole).rows]


def test_the_rows_of_a_killed_run_are_compared(whole: Path, tmp_path: Path) -> None:
    expected = killed(whole, tmp_path, 3)
    before = (tmp_path / "results.jsonl").read_text()
    found = rewrite_reports(tmp_path).rows
    assert [row["chain"] for row in found] == ["baseline", *CHAINS]
    later = {"peak_bytes", "cuda_note", "note", "missing"}
    for row, other in zip(found, expected, strict=True):
        assert row.get("accuracy_p") is not None or row["chain"] == "baseline"
        assert all(row[key] == other[key] for key in row if key not in later)
    assert "NOT FINISHED" not in (tmp_path / "table.md").read_text()
    assert (tmp_path / "results.jsonl").read_text() == before, "reading writes nothing down"


def test_what_a_killed_run_has_not_got_to_is_said(whole: Path, tmp_path: Path) -> None:
    killed(whole, tmp_path, 2)
    _, pruned = rewrite_reports(tmp_path).rows
    assert pruned["accuracy_verdict"] in ("better", "equivalent", "worse", "not shown")
    table = " ".join((tmp_path / "table.md").read_text().split())
    assert "NOT FINISHED: 1 of 3 rows is missing, and no file was timed." in table


def test_a_copy_without_what_figures_come_from_keeps_its_reports(
    whole: Path, tmp_path: Path
) -> None:
    rewrite_reports(whole)
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy, ignore=shutil.ignore_patterns("raw"))
    said = r"copy has none of its run's answers \(raw/baseline.*its reports stay as they are"
    with pytest.raises(UserError, match=said):
        rewrite_reports(copy)
    with pytest.raises(UserError, match=said):
        compress.merge(copy, tmp_path / "timings.json")
    assert not (copy / "raw").exists()
    (copy / "raw").mkdir()
    (copy / "raw" / "other-machine.json").write_text("{}")
    with pytest.raises(UserError, match=said):
        rewrite_reports(copy)
    for name in ("table.md", "results.csv"):
        assert (copy / name).read_bytes() == (whole / name).read_bytes()


def test_a_run_that_goes_on_is_derived_as_well(whole: Path, tmp_path: Path) -> None:
    killed(whole, tmp_path, 3)
    with Outputs(tmp_path, (0,)).lock:
        assert "accuracy_verdict" in rewrite_reports(tmp_path).rows[1]


@pytest.mark.parametrize("content", [b"", b"PK damaged", None])
def test_damaged_or_missing_answers_are_the_reason(
    whole: Path, tmp_path: Path, content: bytes | None
) -> None:
    killed(whole, tmp_path, 3)
    (tmp_path / "raw").unlink()
    shutil.copytree(whole / "raw", tmp_path / "raw")
    path = tmp_path / "raw" / "baseline.npz"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    base, pruned, _ = rewrite_reports(tmp_path).rows
    why = "cannot be read (No such file" if content is None else "was changed after it was measured"
    assert why in base["missing"]["accuracy"]
    assert f"no accuracy: raw/baseline.npz {why}" in base["note"]
    assert "accuracy" not in base
    assert pruned["accuracy"] > 0
    assert pruned["missing"]["accuracy_verdict"].startswith("the baseline has no answers: raw/")
    assert "accuracy_p" not in pruned


def test_answers_with_the_right_hash_that_are_none(tmp_path: Path) -> None:
    good = answers(right(3))
    damaged: dict[str, dict[str, np.ndarray]] = {
        "short()": {**good, "targets": good["targets"][:-1]},
        "floats()": {**good, "predictions": good["predictions"] / 2},
        "less()": {key: value for key, value in good.items() if key != "correct"},
        "none()": {key: value[:0] for key, value in good.items()},
        "far()": {**good, "targets": good["targets"] + 10**9},
        "below()": {**good, "targets": good["targets"] - 1},
        "flat()": {key: value[None] for key, value in good.items()},
    }
    run = Written(tmp_path)
    for chain, arrays in damaged.items():
        run.row(Record(chain, 0, "ok"), arrays)
    for row in run.read().rows:
        assert "is damaged" in row["missing"]["accuracy"], row["chain"]
        assert "accuracy" not in row


@pytest.mark.parametrize("place", ["../secret.npz", "/etc/passwd", "results.jsonl", "raw/../x"])
def test_nothing_outside_is_read(tmp_path: Path, place: str) -> None:
    run = Written(tmp_path / "run")
    run.row(Record("a()", 0, "ok", files={"answers": place}))
    why = f"{place} is not in the run's folder raw/"
    assert run.rows()["a() 0"]["missing"]["accuracy"] == why


def test_damaged_seconds_are_the_reason(tmp_path: Path) -> None:
    run = Written(tmp_path)
    run.row(Record("baseline", 0, "ok"), right(20))
    stage = run.timings({})
    assert run.rows()["baseline 0"]["cpu_ms_p50"] == 2.0
    (tmp_path / stage.file).write_text("{}")
    row = run.rows()["baseline 0"]
    why = "raw/timing.json was changed after it was measured (its SHA-256 differs)"
    assert row["missing"]["cpu_ms_p50"] == why
    assert row["note"] == f"not timed: {why}"
    assert not run.read().about["timings"]


def test_results_are_json(tmp_path: Path) -> None:
    """A user's notebook may write them down: figures, texts, lists and dicts, nothing of ours."""
    run = Written(tmp_path)
    run.row(Record("baseline", 0, "ok"), right(20))
    run.timings({})
    found = run.read()
    for values in (list(found.rows), found.about):
        assert json.loads(json.dumps(values)) == values
