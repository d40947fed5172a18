"""What the files of all rows take beside one another: peak memory, and seconds in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from compress.benchmark.plan.plan import Plan
from compress.benchmark.store.outputs import SAMPLES, TIMED, TIMING_INPUTS, Outputs
from compress.results.log import Stage
from compress.results.raw import write_values
from compress.results.record import BASELINE, Key, Record
from compress.results.timed import in_order
from compress.runtimes import runtimes, why_absent
from compress.system.progress import Stage as Shown
from compress.system.progress import stage
from compress.tasks.base import stacked_inputs
from compress.timing.collect import Effort, TimingRequest, collect
from compress.timing.launch import WorkerFailed
from compress.timing.memory import peak_bytes
from compress.timing.raw_timings import RawTimings, timings_file
from compress.timing.summary import error_of

PEAK = "peak_bytes"
CHECKPOINT = "timing{}-so-far.jsonl"
"""The timings of a run so far: one that was stopped goes on from them."""
TIMINGS = "raw/timing{}.json"


def memory_records(records: Mapping[Key, Record], plan: Plan, outputs: Outputs) -> list[Record]:
    """Run the files of all `ok` records, one item at a time, and return these records with peaks.

    A file whose memory could not be measured stays `ok`, and its record says why the column is
    empty.
    """
    sound = [record for record in records.values() if record.status == "ok"]
    if not sound:
        return []
    inputs = [tensor.numpy() for tensor in stacked_inputs(plan.data.task, plan.data.test, 1)]
    paths = [outputs.folder / record.files["onnx"] for record in sound]
    with stage(f"measuring the memory of {len(paths)} file(s)"):
        peaks = peak_bytes(paths, inputs, plan.threads)
    return [
        replace(record, missing={**record.missing, PEAK: reason})
        if peak is None
        else replace(record, measured={**record.measured, PEAK: peak})
        for record, (peak, reason) in zip(sound, peaks, strict=True)
    ]


def time_records(
    records: Mapping[Key, Record],
    plan: Plan,
    outputs: Outputs,
    collector: Callable[..., RawTimings] = collect,
) -> Iterator[tuple[Stage, list[Record]]]:
    """Time the files of all `ok` records in turns, in one runtime of this machine after another.

    Yields where the seconds of a runtime lie as soon as they do, and the records of files that gave
    other outputs than they were verified by, which are `unverified` by that. Speed-ups refer to the
    first seed's sound baseline. `collector` collects the seconds; by default processes of this
    machine do.
    """
    sound = [record for record in records.values() if record.status == "ok"]
    first, *others = runtimes().values()
    stages = [Stage(settings=in_order(plan.suite.timings))]
    stages += [replace(stages[0], runtime=other.name, title=other.title) for other in others]
    baseline = next((record.name for record in sound if record.chain == BASELINE), None)
    if baseline is None:
        for one in stages:
            yield replace(one, reason="there is no sound baseline file"), []
        return
    inputs = stacked_inputs(plan.data.task, plan.data.test, SAMPLES)
    samples = [tensor.numpy() for tensor in inputs]
    expected = {r.name: outputs.stored(outputs.model(*r.key).name)[TIMED] for r in sound}
    # Saved, so that the same files can be timed on another machine, with the same inputs.
    arrays = {f"input_{i}": array for i, array in enumerate(samples)}
    outputs.sidecar(TIMING_INPUTS, arrays | {f"expected/{name}": e for name, e in expected.items()})
    request = TimingRequest(
        files={record.name: outputs.folder / record.files["onnx"] for record in sound},
        samples=samples,
        expected=expected,
        baseline=baseline,
        settings=plan.suite.timings,
        effort=Effort(seconds=plan.suite.timing_seconds),
        threads=plan.threads,
    )
    for runtime, one in zip((first, *others), stages, strict=True):
        if reason := why_absent(runtime):
            yield replace(one, reason=reason), []
            continue
        with stage(f"timing {len(sound)} file(s) in {runtime.title} on the CPU") as shown:
            collect_in = partial(collector, progress=partial(_show, shown))
            own = replace(request, runtime=one.runtime)
            timed, raw_timings = _timed(one, sound, outputs, own, collect_in)
        deviating: list[Record] = []
        if raw_timings is not None and not one.runtime:
            deviating = [bad for record in sound if (bad := _deviating(raw_timings, record))]
        yield timed, deviating


def _show(shown: Shown, words: str) -> None:
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
    checkpoint = outputs.folder / "raw" / CHECKPOINT.format(suffix)
    try:
        raw_timings = collector(request, checkpoint=checkpoint)
    except WorkerFailed as error:  # a cluster has lost its nodes: what was computed stands
        return replace(one, reason=str(error)), None
    hashes = {record.name: record.hashes["onnx"] for record in records}
    file = TIMINGS.format(suffix)
    sha256 = write_values(outputs.folder / file, timings_file(hashes, raw_timings.to_json()))
    checkpoint.unlink(missing_ok=True)
    written = replace(one, environment=raw_timings.environment, file=file, sha256=sha256)
    return written, raw_timings


def _deviating(raw_timings: RawTimings, record: Record) -> Record | None:
    """Return the record of a file that ran otherwise than it was verified; None if it did not."""
    errors = (error_of(raw_timings, setting, record.name) for setting in raw_timings.settings)
    error = next((why for why, deviates in errors if deviates), "")
    if not error:
        return None
    files = {name: place for name, place in record.files.items() if name != "onnx"}
    return replace(record, status="unverified", error=f"while timed: {error}", files=files)
