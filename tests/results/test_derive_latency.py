"""What follows from raw seconds, here, in another runtime and on another machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from made_runs import Written, right

from compress.api import rewrite_reports
from compress.results.record import Record
from compress.results.timed import timed_files, timings
from compress.timing.worker import DIFFERENT

SECONDS = {"baseline": 0.004, "a()": 0.001, "b()": 0.004}


@pytest.fixture
def run(tmp_path: Path) -> Written:
    """Three files: as fast as the baseline, and four times as fast."""
    made = Written(tmp_path)
    for chain in SECONDS:
        wide = {"int8_pair": 254} if chain == "a()" else {}
        made.row(Record(chain, 0, "ok", wide), right(20))
    return made


def test_latencies_by_hand(run: Written) -> None:
    run.timings(SECONDS)
    rows = run.rows()
    a, b, base = (rows[f"{chain} 0"] for chain in ("a()", "b()", "baseline"))
    assert (a["cpu_ms_p50"], a["cpu_ms_p90"], a["cpu_ms_iqr"]) == (1.0, 1.0, 0.0)
    assert a["cpu_per_s"] == 1000
    assert [a[f"cpu_speedup{end}"] for end in ("", "_low", "_high")] == [pytest.approx(4)] * 3
    assert (a["cpu_verdict"], b["cpu_verdict"]) == ("faster", "indistinguishable")
    assert (base["cpu_speedup"], base.get("cpu_verdict")) == (1.0, None)
    assert all(row["note"] == "" for row in rows.values())
    about = run.read().about
    (timed,) = timings(about)
    assert (timed.setting, timed.machine, timed.trusted) == ("cpu", "", True)
    assert timed.known["control"] == 1.0
    assert about["timed_on"]["cpu"] == "Made Up 9"


def test_a_second_runtime_has_columns_verdicts_and_a_table(run: Written) -> None:
    """A fake one, by nothing but a line of the log and its seconds."""
    run.timings(SECONDS)
    run.timings({**SECONDS, "b()": 0.016}, runtime="fake", title="Fake 1.0")
    rows = run.rows()
    assert rows["b() 0"]["cpu_verdict"] == "indistinguishable"
    assert rows["b() 0"]["fake_cpu_verdict"] == "slower"
    assert rows["b() 0"]["fake_cpu_ms_p50"] == 16
    results = rewrite_reports(run.folder)
    assert "fake_cpu_speedup_low" in results.frame.columns
    shown = (run.folder / "table.md").read_text()
    part = " ".join(shown.partition("## In Fake 1.0")[2].split())
    assert re.search(r"\| 2\| `b\(\)` \| 16\.0 0\.25 ±\S+ ▼\|", part)
    assert "Fake 1.0, batch 1, 2 threads: 1.000" in shown.replace("\n  ", " ")


def test_another_machine(run: Written) -> None:
    run.timings(SECONDS)
    there = {"cpu": "Other 7", "cpu_flags": ["avx2"], "threads": 2}
    run.timings({**SECONDS, "b()": 0.002}, machine="other", environment=there)
    row = run.rows()["b() 0"]
    assert (row["cpu_verdict"], row["on_other_cpu_verdict"]) == ("indistinguishable", "faster")
    assert row["on_other_cpu_speedup"] == pytest.approx(2)
    assert row["note"] == ""
    assert run.read().about["other_machines"] == {"other": {"environment": there}}


def test_other_outputs_there_cost_the_figures_and_wide_int8_weights_may_be_why(
    run: Written,
) -> None:
    error = f"{DIFFERENT} (by 31.0%)"
    there = {"cpu": "Other 7", "cpu_flags": ["avx2"]}
    errors = {"a()": error, "b()": error}
    run.timings(SECONDS, errors=errors, machine="other", environment=there)
    rows = run.rows()
    note = f"on Other 7 (2 threads): {error}, so it computes something else there, and its "
    note += "accuracy does not hold there"
    why = ": that processor has no VNNI, and sums of int8 products can saturate, which "
    assert rows["a() 0"]["note"] == f"{note}{why}quantize() avoids by default"
    assert rows["b() 0"]["note"] == note, "its weights are float, whatever its chain says"
    assert not [key for key in rows["a() 0"] if key.startswith("on_")]
    assert rows["a() 0"]["missing"]["on_other_cpu_ms_p50"] == error
    assert rows["a() 0"]["status"] == "ok"


def test_seconds_are_those_of_the_file_that_was_timed(run: Written) -> None:
    run.timings(SECONDS)
    run.row(Record("a()", 0, "ok", hashes={"onnx": "another"}), right(20))
    rows = run.rows()
    assert "cpu_ms_p50" not in rows["a() 0"]
    assert rows["b() 0"]["cpu_ms_p50"] == 4


def test_a_file_that_failed_has_its_reason_and_a_dead_process_is_noted(run: Written) -> None:
    run.timings(SECONDS, errors={"a()": "no kernel"}, failure="process 5: killed by signal 9")
    row = run.rows()["a() 0"]
    assert row["missing"]["cpu_ms_p50"] == "no kernel"
    # The file does not run: that is said, and nothing else is.
    assert row["note"] == "no kernel"
    assert run.rows()["b() 0"]["note"] == "process 5: killed by signal 9"


def test_without_seconds_every_sound_row_says_why(run: Written) -> None:
    run.row(Record("bad()", 0, "unverified"), right(3))
    stage = run.timings(SECONDS, settings=("cpu", "cpu1"), reason="all nodes are lost")
    assert stage.reason
    rows = run.rows()
    assert rows["a() 0"]["missing"] == dict.fromkeys(
        ("cpu_ms_p50", "cpu1_ms_p50"), "all nodes are lost"
    )
    assert rows["a() 0"]["note"] == "not timed: all nodes are lost"
    assert rows["bad() 0"]["note"] == ""


def test_if_the_baseline_fails_there_are_times_without_speedups(run: Written) -> None:
    run.timings(SECONDS, errors={"baseline": f"{DIFFERENT} (by 3%)"})
    row = run.rows()["a() 0"]
    assert row["cpu_ms_p50"] == 1
    assert "cpu_speedup" not in row
    assert row["missing"]["cpu_speedup"] == "the baseline has no time there"
    assert row["missing"]["cpu_verdict"].startswith(f"the baseline was not timed: {DIFFERENT}")
    assert not timings(run.read().about)[0].trusted


def test_another_seeds_baseline_as_denominator_is_told(tmp_path: Path) -> None:
    run = Written(tmp_path)
    run.row(Record("baseline", 0, "unverified"), right(20))
    run.row(Record("a()", 0, "ok"), right(20))
    run.row(Record("baseline", 1, "ok"), right(20))
    run.timings(SECONDS)
    assert run.rows()["a() 0"]["note"] == (
        "speed-ups refer to the baseline of seed 1, because that of seed 0 is unverified"
    )


def test_noise_is_noted(run: Written) -> None:
    run.timings({**SECONDS, "a()": (0.001, 0.002, 0.003, 0.004)})
    assert run.rows()["a() 0"]["note"] == (
        "noisy latency (batch 1, 2 threads): half of the calls lie further apart than 20% of "
        "the median"
    )


def test_a_doubtful_control_leaves_small_differences_without_a_verdict(run: Written) -> None:
    stage = run.timings({**SECONDS, "b()": 0.0039})
    assert stage.file
    assert run.rows()["b() 0"]["cpu_verdict"] == "faster"
    names = timed_files("cpu").names
    assert set(names.values()) <= run.rows()["b() 0"].keys()
