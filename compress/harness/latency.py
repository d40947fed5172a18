"""Timing of all rows' files together, and what it makes of their records."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace

from compress.harness.accuracy import logits_of
from compress.harness.outputs import UNVERIFIED, Outputs
from compress.harness.plan import Plan
from compress.harness.record import Record
from compress.task import stacked_inputs
from compress.timing.measure import measure
from compress.timing.result import Timings

SAMPLES = 64
LATENCY_BATCH, THROUGHPUT_BATCH = 1, 32

Key = tuple[str, int]
"""Chain text and seed."""


def time_records(
    records: Mapping[Key, Record], plan: Plan, outputs: Outputs, progress: bool
) -> list[Record]:
    """Time the files of all `ok` records in turns, and return these records with latencies.

    Speed-ups refer to the first seed's baseline. A file that gives other outputs while it is
    timed becomes `unverified` and loses its name.
    """
    sound = {key: record for key, record in records.items() if record.status == "ok"}
    baseline = next((key for key in sound if key[0] == "baseline"), None)
    if baseline is None:
        return [_untimed(record, "there is no sound baseline file") for record in sound.values()]
    files = {key: outputs.folder / record.measured["onnx_path"] for key, record in sound.items()}
    names = {key: f"{key[0]} [seed {key[1]}]" for key in sound}
    inputs = stacked_inputs(plan.data.task, plan.data.test, SAMPLES)
    timings = measure(
        {names[key]: path for key, path in files.items()},
        [tensor.numpy() for tensor in inputs],
        {names[key]: logits_of(path, inputs, plan.threads) for key, path in files.items()},
        baseline=names[baseline],
        threads=plan.threads,
        batches=(LATENCY_BATCH, THROUGHPUT_BATCH),
        seconds=plan.suite.timing_seconds,
        progress=progress and sys.stderr.isatty(),
    )
    outputs.sidecar("timing", timings.raw())
    timed = {key: _timed(record, names[key], timings) for key, record in sound.items()}
    for key, record in timed.items():
        if record.status != "ok":
            files[key].rename(files[key].with_name(UNVERIFIED))
    return list(timed.values())


def _timed(record: Record, name: str, timings: Timings) -> Record:
    single, batched = timings[name, LATENCY_BATCH], timings[name, THROUGHPUT_BATCH]
    error = single.error or batched.error
    if error and not (single.wrong or batched.wrong):
        return _untimed(record, error)
    if error:
        measured = {k: v for k, v in record.measured.items() if k != "onnx_path"}
        return replace(
            record, status="unverified", error=f"while timed: {error}", measured=measured
        )
    notes = list(record.notes)
    if single.noisy:
        notes.append("noisy latency: half of the calls lie further apart than a fifth")
    measured = {
        **record.measured,
        "cpu_ms_p50": single.p50_ms,
        "cpu_ms_p90": single.p90_ms,
        "cpu_speedup": single.speedup,
        "cpu_speedup_low": single.low,
        "cpu_speedup_high": single.high,
        "cpu_batch32_per_s": batched.per_second,
    }
    return replace(record, measured=measured, notes=(*notes, *timings.failures))


def _untimed(record: Record, reason: str) -> Record:
    """The file is sound, but no timing process lived to time it."""
    missing = {**record.missing, "cpu_ms_p50": reason}
    return replace(record, missing=missing, notes=(*record.notes, f"not timed: {reason}"))
