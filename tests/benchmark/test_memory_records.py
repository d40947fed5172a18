"""What measuring memory makes of the records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from bench_fixtures import small_digits

from compress.benchmark.measure import latency
from compress.benchmark.store.outputs import Outputs
from compress.results.record import Record


@pytest.fixture
def outputs(tmp_path: Path) -> Iterator[Outputs]:
    made = Outputs(tmp_path, (0,))
    with made.lock:
        yield made


def test_peaks_go_to_the_sound_rows(monkeypatch: pytest.MonkeyPatch, outputs: Outputs) -> None:
    asked = []

    def fake(paths: list[Path], inputs: list, threads: int) -> list[tuple[int | None, str]]:
        asked.append((paths, [array.shape for array in inputs], threads))
        return [(5000, ""), (None, "killed by signal 9")]

    monkeypatch.setattr(latency, "peak_bytes", fake)
    given = [
        Record("baseline", 0, "ok", {"macs": 7}, files={"onnx": "a.onnx"}),
        Record("wrong()", 0, "unverified", {"macs": 7}),
        Record("large()", 0, "ok", missing={"macs": "why"}, files={"onnx": "b.onnx"}),
    ]
    plan = SimpleNamespace(data=small_digits(), threads=3)
    keyed = {(record.chain, record.seed): record for record in given}
    found = latency.memory_records(keyed, plan, outputs)  # type: ignore[arg-type]
    folder = outputs.folder
    assert asked == [([folder / "a.onnx", folder / "b.onnx"], [(1, 1, 8, 8)], 3)]
    assert [record.chain for record in found] == ["baseline", "large()"]
    assert found[0].measured == {"macs": 7, "peak_bytes": 5000}
    assert found[1].missing == {"macs": "why", "peak_bytes": "killed by signal 9"}
    assert "peak_bytes" not in found[1].measured


def test_without_a_sound_row_no_process_starts(
    monkeypatch: pytest.MonkeyPatch, outputs: Outputs
) -> None:
    monkeypatch.setattr(latency, "peak_bytes", None)
    records = {("baseline", 0): Record("baseline", 0, "failed", error="why")}
    plan = SimpleNamespace(data=small_digits(), threads=1)
    assert latency.memory_records(records, plan, outputs) == []  # type: ignore[arg-type]
