"""What timing makes of the records: a wrong answer costs the name, a dead process does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bench_fixtures import small_digits
from written import write_onnx

from compress.bench.measure import latency
from compress.bench.store.outputs import Outputs, slug
from compress.errors import UserError
from compress.results.record import Record
from compress.timing.raw_timings import RawTimings
from compress.timing.setting import DEFAULT
from compress.timing.summary import Timing, Timings

QUICK = Timing(
    1,
    p50_ms=2.0,
    p90_ms=3.0,
    iqr_ms=0.1,
    per_second=500.0,
    speedup=1.5,
    low=1.4,
    high=1.6,
    verdict="faster",
)


@pytest.fixture
def outputs(tmp_path: Path) -> Iterator[Outputs]:
    made = Outputs(tmp_path, (0,))
    with made.lock:
        yield made


def records(outputs: Outputs, *chains: str) -> dict[tuple[str, int], Record]:
    made = {}
    for chain in chains:
        path = write_onnx(outputs, chain, 0, b"onnx", ok=True)
        figures = {"onnx_path": str(path.relative_to(outputs.folder)), "accuracy": 0.9}
        made[chain, 0] = Record(chain, 0, "ok", figures)
    return made


def time(
    monkeypatch: pytest.MonkeyPatch,
    outputs: Outputs,
    given: dict[tuple[str, int], Record],
    timing: Timing,
    failures: tuple[str, ...] = (),
) -> dict[str, Record]:
    def fake(candidates: dict[str, Path], *rest: Any, baseline: str, **options: Any) -> RawTimings:
        return RawTimings((*candidates,), baseline, DEFAULT, 1, (), 1.0, {})

    def made(raw_timings: RawTimings) -> Timings:
        rows = {(name, setting): timing for name in raw_timings.names for setting in DEFAULT}
        return Timings(rows, {}, raw_timings, failures)

    monkeypatch.setattr(latency, "summarise", made)
    for record in given.values():
        if record.status == "ok":
            answers = {"timed_logits": np.zeros((64, 10))}
            outputs.sidecar(outputs.model(record.chain, record.seed).name, answers)
    plan = SimpleNamespace(
        data=small_digits(),
        threads=1,
        suite=SimpleNamespace(timing_seconds=1.0, timings=DEFAULT),
    )
    timed, _ = latency.time_records(given, plan, outputs, fake)  # type: ignore[arg-type]
    return {record.chain: record for record in timed}


def test_figures_go_to_their_columns(monkeypatch: pytest.MonkeyPatch, outputs: Outputs) -> None:
    timed = time(monkeypatch, outputs, records(outputs, "baseline", "a()"), QUICK)
    row = timed["a()"].row()
    assert (row["cpu_ms_p50"], row["cpu_ms_p90"], row["cpu_batch32_per_s"]) == (2.0, 3.0, 500.0)
    assert (row["cpu_speedup"], row["cpu_speedup_low"], row["cpu_speedup_high"]) == (1.5, 1.4, 1.6)
    assert (row["cpu1_ms_p50"], row["cpu1_verdict"], row["cpu_batch32_ms_iqr"]) == (
        2,
        "faster",
        0.1,
    )
    assert row["status"] == "ok"
    assert row["note"] == ""


def test_other_outputs_while_timed_cost_the_name(
    monkeypatch: pytest.MonkeyPatch, outputs: Outputs
) -> None:
    wrong = Timing(1, error="outputs differ from the verified ones", wrong=True)
    timed = time(monkeypatch, outputs, records(outputs, "baseline", "a()"), wrong)
    assert timed["a()"].status == "unverified"
    assert "while timed: outputs differ" in timed["a()"].error
    assert "onnx_path" not in timed["a()"].measured
    assert [path.name for path in outputs.model("a()", 0).iterdir()] == ["unverified.onnx"]


def test_a_dead_timing_process_leaves_sound_files_sound(
    monkeypatch: pytest.MonkeyPatch, outputs: Outputs
) -> None:
    dead = Timing(1, error="the timing process was killed by signal 9")
    timed = time(monkeypatch, outputs, records(outputs, "baseline", "a()"), dead)
    assert timed["a()"].status == "ok"
    assert timed["a()"].missing["cpu_ms_p50"] == "the timing process was killed by signal 9"
    assert "not timed: the timing process was killed" in timed["a()"].row()["note"]
    assert [path.name for path in outputs.model("a()", 0).iterdir()] == ["model.onnx"]


def test_without_a_baseline_there_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, outputs: Outputs
) -> None:
    timed = time(monkeypatch, outputs, records(outputs, "a()"), QUICK)
    assert timed["a()"].missing["cpu_ms_p50"] == "there is no sound baseline file"


def test_another_seeds_baseline_as_denominator_is_told(
    monkeypatch: pytest.MonkeyPatch, outputs: Outputs
) -> None:
    given = {("baseline", 0): Record("baseline", 0, "unverified"), **records(outputs, "a()")}
    path = write_onnx(outputs, "baseline", 1, b"onnx", ok=True)
    figures = {"onnx_path": str(path.relative_to(outputs.folder))}
    given["baseline", 1] = Record("baseline", 1, "ok", figures)
    note = time(monkeypatch, outputs, given, QUICK)["a()"].row()["note"]
    assert note == (
        "speed-ups refer to the baseline of seed 1, because that of seed 0 is unverified"
    )


def test_what_was_timed_so_far_is_removed_once_the_whole_is_kept(
    monkeypatch: pytest.MonkeyPatch, outputs: Outputs
) -> None:
    kept = outputs.folder / "raw" / latency.KEPT
    kept.parent.mkdir()
    kept.write_text("of a run that was stopped")
    time(monkeypatch, outputs, records(outputs, "baseline"), QUICK)
    assert not kept.exists()
    assert (kept.parent / "timing.npz").exists()


def test_noise_is_noted(monkeypatch: pytest.MonkeyPatch, outputs: Outputs) -> None:
    noisy = Timing(1, p50_ms=2.0, p90_ms=3.0, iqr_ms=0.5, per_second=1.0, speedup=1.0)
    timed = time(monkeypatch, outputs, records(outputs, "baseline"), noisy)
    note = timed["baseline"].row()["note"]
    assert "noisy latency (batch 1, all threads; batch 1, 1 thread; batch 32, all" in note


def test_inputs_and_answers_are_kept_for_other_machines(
    monkeypatch: pytest.MonkeyPatch, outputs: Outputs
) -> None:
    time(monkeypatch, outputs, records(outputs, "baseline", "a()"), QUICK)
    kept = outputs.stored(latency.INPUTS)
    assert set(kept) == {"input_0", "expected/baseline [seed 0]", "expected/a() [seed 0]"}
    assert len(kept["input_0"]) == len(kept["expected/a() [seed 0]"]) == 64


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with (
        Outputs(tmp_path, (0,)).lock,
        pytest.raises(UserError, match="another run is writing"),
    ):
        Outputs(tmp_path, (0,))
    with Outputs(tmp_path, (0,)).lock:
        pass  # it is free again


def test_slugs_are_readable_different_and_harmless() -> None:
    assert slug("baseline", 0, (0,)) == "baseline"
    assert slug("baseline", 3, (0, 3)) == "baseline-seed3"
    texts = ["quantize()", "quantize(method='entropy')", "../../etc", "a" * 500, "é() -> b()"]
    names = [slug(text, 0, (0,)) for text in texts]
    assert len(set(names)) == len(texts)
    assert all(len(name) < 80 and "/" not in name and ".." not in name for name in names)
    assert names[0].startswith("quantize-")
