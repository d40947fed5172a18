"""What a row says of a GPU follows from the stage's facts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gpu_rows import derived

from compress.benchmark.plan.rows import Row
from compress.results import gpu as results_gpu
from compress.results.gpu import LOWERED as IS_LOWERED
from compress.results.gpu import UNJUDGED, GpuFacts, RowFacts
from compress.results.log import Stage
from compress.results.raw import write_values
from compress.results.record import Key, Record, candidate_name
from compress.results.timed import GPU
from compress.techniques import chain
from compress.timing.raw_timings import RawTimings
from compress.timing.summary import Timing

PRUNED: Key = ("prune_channels(channels=0.5)", 0)
LOWERED: Key = ("quantize(calibration=64)", 0)
TIMING = Timing(1, p50_ms=2.0, iqr_ms=0.1, speedup=1.5, low=1.4, high=1.6, verdict="faster")


def fixed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, facts: GpuFacts, timing: Timing) -> Any:
    """Return the row of a float and of a lowered file, all of whose timings are alike."""
    made = SimpleNamespace(
        raw_timings=SimpleNamespace(settings=("cpu",)),
        rows={(candidate_name(key), "cpu"): timing for key in (PRUNED, LOWERED)},
        about=lambda: {"cpu": {}},
    )
    monkeypatch.setattr(results_gpu, "summarise", lambda raw_timings: made)
    stage = Stage(runtime=GPU, file="raw/cuda.json", sha256="")
    sha256 = write_values(tmp_path / stage.file, facts.to_json())
    steps = Row(LOWERED[0], chain(LOWERED[0])).steps
    records = {PRUNED: Record(*PRUNED, "ok"), LOWERED: Record(*LOWERED, "ok", steps=steps)}
    found, _, _ = derived(records, replace(stage, sha256=sha256), tmp_path)
    return found[PRUNED], found[LOWERED]


def of(*columns: str) -> dict[str, RawTimings]:
    return dict.fromkeys(columns, RawTimings((), "", ("cpu",), 0, (), 1.0, {}))


def test_the_file_has_a_speedup_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    facts = GpuFacts(raw_timings=of("cuda_ms_p50", "cuda_trt_ms_p50"))
    row, _ = fixed(monkeypatch, tmp_path, facts, TIMING)
    assert {key: value for key, value in row.figures.items() if key != "cuda_note"} == {
        "cuda_ms_p50": 2.0,
        "cuda_trt_ms_p50": 2.0,
        "cuda_file_speedup": 1.5,
        "cuda_file_speedup_low": 1.4,
        "cuda_file_speedup_high": 1.6,
        "cuda_file_verdict": "faster",
    }
    row, _ = fixed(monkeypatch, tmp_path, facts, replace(TIMING, verdict=""))
    assert row.missing["cuda_file_verdict"] == UNJUDGED


def test_a_file_that_was_not_timed_has_that_as_the_reason_for_its_speedup(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    facts = GpuFacts(raw_timings=of("cuda_ms_p50"))
    row, _ = fixed(monkeypatch, tmp_path, facts, Timing(1, error="Conv: no kernel"))
    for column in ("cuda_ms_p50", "cuda_file_speedup"):
        assert row.missing[column] == "Conv: no kernel"
    missing = RowFacts(reasons={"cuda_ms_p50": "no memory"})
    facts = GpuFacts(rows={candidate_name(LOWERED): missing})
    _, row = fixed(monkeypatch, tmp_path, facts, TIMING)
    assert row.missing["cuda_file_speedup"] == "no memory"
    assert row.missing["cuda_speedup"] == IS_LOWERED


def test_noise_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    facts = GpuFacts(raw_timings=of("cuda_ms_p50"))
    row, _ = fixed(monkeypatch, tmp_path, facts, replace(TIMING, iqr_ms=0.5))
    assert "noisy latency on the GPU: half of the calls" in row.row()["note"]
    row, _ = fixed(monkeypatch, tmp_path, facts, TIMING)
    assert row.row()["note"] == ""
