"""Timing of all rows' files together: raw seconds, and files that are caught on the way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from compress.bench.plan.plan import Plan
from compress.bench.portable.portable_timer import timings_file
from compress.bench.store.outputs import SAMPLES, TIMED, Outputs
from compress.results.log import Stage
from compress.results.raw import write_values
from compress.results.record import BASELINE, Key, Record
from compress.results.timed import in_order
from compress.tasks.base import stacked_inputs
from compress.timing.collect import Effort, collect
from compress.timing.launch import WorkerFailed
from compress.timing.raw_timings import RawTimings
from compress.timing.summary import error_of

INPUTS = "timing-inputs"
"""The sidecar that holds what was fed in (`input_0`, ...) and what came out (`expected/NAME`)."""

KEPT = "timing-so-far.jsonl"
"""What the timing processes of a run that was stopped had found; the next run goes on from it."""
TIMINGS = "raw/timing.json"


def time_records(
    records: Mapping[Key, Record],
    plan: Plan,
    outputs: Outputs,
    progress: bool,
    collector: Callable[..., RawTimings] | None = None,
) -> tuple[list[Record], Stage]:
    """Time the files of all `ok` records in turns.

    Returns the records of files that gave other outputs while they were timed, which are
    `unverified` by that, and where the seconds lie. Speed-ups refer to the first seed's sound
    baseline. `gatherer` collects the seconds; by default processes of this machine do.
    """
    sound = {key: record for key, record in records.items() if record.status == "ok"}
    baseline = next((key for key in sound if key[0] == BASELINE), None)
    stage = Stage(settings=in_order(plan.suite.timings))
    if baseline is None:
        return [], replace(stage, reason="there is no sound baseline file")
    files = {record.name: outputs.folder / record.files["onnx"] for record in sound.values()}
    inputs = stacked_inputs(plan.data.task, plan.data.test, SAMPLES)
    samples = [tensor.numpy() for tensor in inputs]
    expected = {r.name: outputs.stored(outputs.model(*key).name)[TIMED] for key, r in sound.items()}
    # Kept, so that the same files can be timed on another machine, with the same inputs.
    arrays = {f"input_{i}": array for i, array in enumerate(samples)}
    outputs.sidecar(INPUTS, arrays | {f"expected/{name}": e for name, e in expected.items()})
    checkpoint = outputs.folder / "raw" / KEPT
    try:
        raw_timings = (collector or collect)(
            files,
            samples,
            expected,
            baseline=sound[baseline].name,
            threads=plan.threads,
            settings=plan.suite.timings,
            effort=Effort(seconds=plan.suite.timing_seconds),
            progress=progress and sys.stderr.isatty(),
            checkpoint=checkpoint,
        )
    except WorkerFailed as error:  # a cluster has lost its nodes: what was computed stands
        return [], replace(stage, reason=str(error))
    hashes = {record.name: record.hashes["onnx"] for record in sound.values()}
    values = timings_file(hashes, raw_timings.to_json())
    stage = replace(
        stage,
        environment=raw_timings.environment,
        file=TIMINGS,
        sha256=write_values(outputs.folder / TIMINGS, values),
    )
    checkpoint.unlink(missing_ok=True)
    return [one for one in map(partial(_caught, raw_timings), sound.values()) if one], stage


def _caught(raw_timings: RawTimings, record: Record) -> Record | None:
    """Return the record of a file that ran otherwise than it was verified; None if it did not."""
    found = (error_of(raw_timings, setting, record.name) for setting in raw_timings.settings)
    error = next((why for why, wrong in found if wrong), "")
    if not error:
        return None
    files = {name: place for name, place in record.files.items() if name != "onnx"}
    return replace(record, status="unverified", error=f"while timed: {error}", files=files)
