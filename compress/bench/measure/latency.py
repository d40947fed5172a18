"""Timing of all rows' files together, and what it makes of their records."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from compress.bench.plan.plan import Plan
from compress.bench.plan.rows import BASELINE
from compress.bench.store.outputs import SAMPLES, TIMED, UNVERIFIED, Outputs
from compress.results.record import Key, Record
from compress.stats.spread import NOISY
from compress.tasks.base import stacked_inputs
from compress.timing.collect import Effort, collect
from compress.timing.launch import WorkerFailed
from compress.timing.raw_timings import RawTimings
from compress.timing.setting import parse_setting
from compress.timing.summary import Timing, Timings, summarise

INPUTS = "timing-inputs"
"""The sidecar that holds what was fed in (`input_0`, ...) and what came out (`expected/NAME`)."""

KEPT = "timing-so-far.jsonl"
"""What the timing processes of a run that was stopped had found; the next run goes on from it."""


def time_records(
    records: Mapping[Key, Record],
    plan: Plan,
    outputs: Outputs,
    progress: bool,
    collector: Callable[..., RawTimings] | None = None,
) -> tuple[list[Record], dict[str, Any]]:
    """Time the files of all `ok` records in turns.

    Returns these records with latencies, and what the run's description gains. Speed-ups refer
    to the first seed's baseline. A file that gives other outputs while it is timed becomes
    `unverified` and loses its name. `gatherer` collects the seconds; by default processes of this
    machine do.
    """
    sound = {key: record for key, record in records.items() if record.status == "ok"}
    baseline = next((key for key in sound if key[0] == BASELINE), None)
    settings = plan.suite.timings
    if baseline is None:
        return _all_untimed(sound, settings, "there is no sound baseline file"), {}
    files = {key: outputs.folder / record.measured["onnx_path"] for key, record in sound.items()}
    names = {key: candidate_name(key) for key in sound}
    inputs = stacked_inputs(plan.data.task, plan.data.test, SAMPLES)
    samples = [tensor.numpy() for tensor in inputs]
    expected = {names[key]: outputs.stored(outputs.model(*key).name)[TIMED] for key in files}
    # Kept, so that the same files can be timed on another machine, with the same inputs.
    arrays = {f"input_{i}": array for i, array in enumerate(samples)}
    outputs.sidecar(INPUTS, arrays | {f"expected/{name}": e for name, e in expected.items()})
    checkpoint = outputs.folder / "raw" / KEPT
    try:
        raw_timings = (collector or collect)(
            {names[key]: path for key, path in files.items()},
            samples,
            expected,
            baseline=names[baseline],
            threads=plan.threads,
            settings=settings,
            effort=Effort(seconds=plan.suite.timing_seconds),
            progress=progress and sys.stderr.isatty(),
            checkpoint=checkpoint,
        )
    except WorkerFailed as error:  # a cluster has lost its nodes: what was computed stands
        return _all_untimed(sound, settings, str(error)), {}
    timings = summarise(raw_timings)
    outputs.sidecar("timing", timings.raw())
    checkpoint.unlink(missing_ok=True)
    told = _denominator(records, baseline)
    timed = {key: _timed(record, names[key], timings, told) for key, record in sound.items()}
    for key, record in timed.items():
        if record.status != "ok":
            files[key].rename(files[key].with_name(UNVERIFIED))
    return list(timed.values()), {
        "latency": timings.about(),
        "timed_on": dict(raw_timings.environment),
    }


def candidate_name(key: Key) -> str:
    """Return the name under which a row's file is timed."""
    return f"{key[0]} [seed {key[1]}]"


def _denominator(records: Mapping[Key, Record], baseline: Key) -> list[str]:
    """Say if speed-ups do not refer to the first seed's baseline, because that one is not sound."""
    first = next(key for key in records if key[0] == BASELINE)
    if first == baseline:
        return []
    return [
        f"speed-ups refer to the baseline of seed {baseline[1]}, because that of seed {first[1]} "
        f"is {records[first].status}"
    ]


def _timed(record: Record, name: str, timings: Timings, told: Sequence[str]) -> Record:
    rows = {setting: timings[name, setting] for setting in timings.raw_timings.settings}
    wrong = next((row for row in rows.values() if row.wrong), None)
    if wrong is not None:
        measured = {k: v for k, v in record.measured.items() if k != "onnx_path"}
        return replace(
            record, status="unverified", error=f"while timed: {wrong.error}", measured=measured
        )
    for setting, row in rows.items():
        if row.error:
            record = _untimed(record, [setting], row.error)
        elif reason := unjudged(name, setting, timings):
            missing = {**record.missing, f"{setting}_verdict": reason}
            record = replace(record, missing=missing)
    notes = (*record.notes, *told, *timings.failures, *noise(rows))
    figures = latency_figures(name, timings)
    return replace(record, measured={**record.measured, **figures}, notes=notes)


def unjudged(name: str, setting: str, timings: Timings) -> str:
    """Return why a file that was timed has no verdict; '' if it has one or needs none."""
    row, baseline = timings[name, setting], timings.raw_timings.baseline
    if row.verdict or name == baseline:
        return ""
    if row.speedup is None:
        return f"the baseline was not timed: {timings[baseline, setting].error}"
    if timings.controls[setting].ratio is None:
        return "there is no timing of a second copy of the baseline, by which it would be judged"
    return "the baseline and its copy differed too much for a verdict on this difference"


def noise(rows: Mapping[str, Timing]) -> list[str]:
    """Return a note on the settings (name -> timing) at which a file's times were noisy, if any."""
    noisy = [parse_setting(setting).words for setting, row in rows.items() if row.noisy]
    if not noisy:
        return []
    return [
        f"noisy latency ({'; '.join(noisy)}): half of the calls lie further apart than "
        f"{NOISY:.0%} of the median"
    ]


def latency_figures(name: str, timings: Timings) -> dict[str, Any]:
    """Return a file's columns, those of every setting begin with the setting's name."""
    figures: dict[str, Any] = {}
    for setting in timings.raw_timings.settings:
        row = timings[name, setting]
        found = {
            "ms_p50": row.p50_ms,
            "ms_p90": row.p90_ms,
            "ms_iqr": row.iqr_ms,
            "per_s": row.per_second,
            "speedup": row.speedup,
            "speedup_low": row.low,
            "speedup_high": row.high,
            "verdict": row.verdict or None,
        }
        figures |= {f"{setting}_{key}": value for key, value in found.items() if value is not None}
    return figures


def _all_untimed(sound: Mapping[Key, Record], settings: Sequence[str], reason: str) -> list[Record]:
    return [_untimed(record, settings, reason) for record in sound.values()]


def _untimed(record: Record, settings: Sequence[str], reason: str) -> Record:
    """The file is sound, but no timing process lived to time it."""
    columns = {f"{setting}_ms_p50": reason for setting in settings}
    note = f"not timed: {reason}"
    notes = record.notes if note in record.notes else (*record.notes, note)
    return replace(record, missing={**record.missing, **columns}, notes=notes)
