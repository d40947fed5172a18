"""Timing of all rows' files together: raw seconds, and files that are caught on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from compress.bench.plan.plan import Plan
from compress.bench.store.outputs import SAMPLES, TIMED, TIMING_INPUTS, Outputs
from compress.results.log import Stage
from compress.results.raw import write_values
from compress.results.record import BASELINE, Key, Record
from compress.results.timed import in_order
from compress.system.progress import stage
from compress.tasks.base import stacked_inputs
from compress.timing.collect import Effort, collect
from compress.timing.launch import WorkerFailed
from compress.timing.raw_timings import RawTimings, timings_file
from compress.timing.summary import error_of

KEPT = "timing-so-far.jsonl"
"""What the timing processes of a run that was stopped had found; the next run goes on from it."""
TIMINGS = "raw/timing.json"


def time_records(
    records: Mapping[Key, Record],
    plan: Plan,
    outputs: Outputs,
    collector: Callable[..., RawTimings] = collect,
) -> tuple[list[Record], Stage]:
    """Time the files of all `ok` records in turns.

    Returns the records of files that gave other outputs while they were timed, which are
    `unverified` by that, and where the seconds lie. Speed-ups refer to the first seed's sound
    baseline. `collector` collects the seconds; by default processes of this machine do.
    """
    sound = {key: record for key, record in records.items() if record.status == "ok"}
    baseline = next((key for key in sound if key[0] == BASELINE), None)
    timed = Stage(settings=in_order(plan.suite.timings))
    if baseline is None:
        return [], replace(timed, reason="there is no sound baseline file")
    files = {record.name: outputs.folder / record.files["onnx"] for record in sound.values()}
    inputs = stacked_inputs(plan.data.task, plan.data.test, SAMPLES)
    samples = [tensor.numpy() for tensor in inputs]
    expected = {r.name: outputs.stored(outputs.model(*key).name)[TIMED] for key, r in sound.items()}
    # Kept, so that the same files can be timed on another machine, with the same inputs.
    arrays = {f"input_{i}": array for i, array in enumerate(samples)}
    outputs.sidecar(TIMING_INPUTS, arrays | {f"expected/{name}": e for name, e in expected.items()})
    checkpoint = outputs.folder / "raw" / KEPT
    try:
        with stage(f"timing {len(files)} file(s) on the CPU") as shown:
            raw_timings = collector(
                files,
                samples,
                expected,
                baseline=sound[baseline].name,
                threads=plan.threads,
                settings=plan.suite.timings,
                effort=Effort(seconds=plan.suite.timing_seconds),
                tell=lambda words: shown.advance(words=lambda: words),
                checkpoint=checkpoint,
            )
    except WorkerFailed as error:  # a cluster has lost its nodes: what was computed stands
        return [], replace(timed, reason=str(error))
    hashes = {record.name: record.hashes["onnx"] for record in sound.values()}
    values = timings_file(hashes, raw_timings.to_json())
    timed = replace(
        timed,
        environment=raw_timings.environment,
        file=TIMINGS,
        sha256=write_values(outputs.folder / TIMINGS, values),
    )
    checkpoint.unlink(missing_ok=True)
    return [one for one in map(partial(_caught, raw_timings), sound.values()) if one], timed


def _caught(raw_timings: RawTimings, record: Record) -> Record | None:
    """Return the record of a file that ran otherwise than it was verified; None if it did not."""
    found = (error_of(raw_timings, setting, record.name) for setting in raw_timings.settings)
    error = next((why for why, wrong in found if wrong), "")
    if not error:
        return None
    files = {name: place for name, place in record.files.items() if name != "onnx"}
    return replace(record, status="unverified", error=f"while timed: {error}", files=files)
