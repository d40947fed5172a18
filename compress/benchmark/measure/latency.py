"""Timing of all rows' files together: raw seconds, and files that are caught on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from compress.benchmark.plan.plan import Plan
from compress.benchmark.store.outputs import SAMPLES, TIMED, TIMING_INPUTS, Outputs
from compress.results.log import Stage
from compress.results.raw import write_values
from compress.results.record import BASELINE, Key, Record
from compress.results.timed import in_order
from compress.runtimes import runtimes
from compress.system.progress import Stage as Shown
from compress.system.progress import stage
from compress.tasks.base import stacked_inputs
from compress.timing.collect import Effort, TimingRequest, collect
from compress.timing.launch import WorkerFailed
from compress.timing.raw_timings import RawTimings, timings_file
from compress.timing.summary import error_of

KEPT = "timing{}-so-far.jsonl"
"""What the timing processes of a run that was stopped had found; the next run goes on from it."""
TIMINGS = "raw/timing{}.json"


def time_records(
    records: Mapping[Key, Record],
    plan: Plan,
    outputs: Outputs,
    collector: Callable[..., RawTimings] = collect,
) -> tuple[list[Record], list[Stage]]:
    """Time the files of all `ok` records in turns, in every runtime that is here.

    Returns the records of files that gave other outputs than they were verified by, which are
    `unverified` by that, and where the seconds of each runtime lie. Speed-ups refer to the first
    seed's sound baseline. `collector` collects the seconds; by default processes of this machine
    do.
    """
    sound = {key: record for key, record in records.items() if record.status == "ok"}
    first, *others = runtimes().values()
    stages = [Stage(settings=in_order(plan.suite.timings))]
    stages += [replace(stages[0], runtime=one.name, title=one.title) for one in others]
    baseline = next((key for key in sound if key[0] == BASELINE), None)
    if baseline is None:
        return [], [replace(one, reason="there is no sound baseline file") for one in stages]
    inputs = stacked_inputs(plan.data.task, plan.data.test, SAMPLES)
    samples = [tensor.numpy() for tensor in inputs]
    expected = {r.name: outputs.stored(outputs.model(*key).name)[TIMED] for key, r in sound.items()}
    # Kept, so that the same files can be timed on another machine, with the same inputs.
    arrays = {f"input_{i}": array for i, array in enumerate(samples)}
    outputs.sidecar(TIMING_INPUTS, arrays | {f"expected/{name}": e for name, e in expected.items()})
    request = TimingRequest(
        files={record.name: outputs.folder / record.files["onnx"] for record in sound.values()},
        samples=samples,
        expected=expected,
        baseline=sound[baseline].name,
        settings=plan.suite.timings,
        effort=Effort(seconds=plan.suite.timing_seconds),
        threads=plan.threads,
    )
    caught: list[Record] = []
    for number, (runtime, one) in enumerate(zip((first, *others), stages, strict=True)):
        if reason := runtime.absent():
            stages[number] = replace(one, reason=reason)
            continue
        with stage(f"timing {len(sound)} file(s) in {runtime.title} on the CPU") as shown:
            collect_in = partial(collector, progress=partial(_tell, shown))
            own = replace(request, runtime=one.runtime)
            stages[number], found = _timed(one, list(sound.values()), outputs, own, collect_in)
        if found is not None and not one.runtime:
            caught = [other for record in sound.values() if (other := _caught(found, record))]
    return caught, stages


def _tell(shown: Shown, words: str) -> None:
    shown.advance(words=lambda: words)


def _timed(
    one: Stage,
    records: Sequence[Record],
    outputs: Outputs,
    request: TimingRequest,
    collector: Callable[..., RawTimings],
) -> tuple[Stage, RawTimings | None]:
    """Time files in one runtime; return where their seconds lie, and these."""
    suffix = f"-{one.runtime}" if one.runtime else ""
    checkpoint = outputs.folder / "raw" / KEPT.format(suffix)
    try:
        raw_timings = collector(request, checkpoint=checkpoint)
    except WorkerFailed as error:  # a cluster has lost its nodes: what was computed stands
        return replace(one, reason=str(error)), None
    hashes = {record.name: record.hashes["onnx"] for record in records}
    file = TIMINGS.format(suffix)
    values = timings_file(hashes, raw_timings.to_json())
    sha256 = write_values(outputs.folder / file, values)
    checkpoint.unlink(missing_ok=True)
    kept = replace(one, environment=raw_timings.environment, file=file, sha256=sha256)
    return kept, raw_timings


def _caught(raw_timings: RawTimings, record: Record) -> Record | None:
    """Return the record of a file that ran otherwise than it was verified; None if it did not."""
    found = (error_of(raw_timings, setting, record.name) for setting in raw_timings.settings)
    error = next((why for why, wrong in found if wrong), "")
    if not error:
        return None
    files = {name: place for name, place in record.files.items() if name != "onnx"}
    return replace(record, status="unverified", error=f"while timed: {error}", files=files)
