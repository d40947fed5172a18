"""Peak memory of all rows' files, each in a fresh process, and what it makes of their records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from compress.benchmark.plan.plan import Plan
from compress.benchmark.store.outputs import Outputs
from compress.results.record import Record
from compress.system.progress import stage
from compress.tasks.base import stacked_inputs
from compress.timing.memory import Peak, peak_bytes

COLUMN = "peak_bytes"


def memory_records(
    records: Mapping[tuple[str, int], Record], plan: Plan, outputs: Outputs
) -> list[Record]:
    """Run the files of all `ok` records, one item at a time, and return these records with peaks.

    Keys are chain text and seed. A file whose memory could not be measured stays `ok`, and its
    record says why the column is empty.
    """
    sound = [
        record for record in records.values() if record.status == "ok" and "onnx" in record.files
    ]
    if not sound:
        return []
    inputs = stacked_inputs(plan.data.task, plan.data.test, 1)
    paths = [outputs.folder / record.files["onnx"] for record in sound]
    with stage(f"measuring the memory of {len(paths)} file(s)"):
        peaks = peak_bytes(paths, [tensor.numpy() for tensor in inputs], plan.threads)
    return [_with_peak(record, peak) for record, peak in zip(sound, peaks, strict=True)]


def _with_peak(record: Record, peak: Peak) -> Record:
    found, reason = peak
    if found is None:
        return replace(record, missing={**record.missing, COLUMN: reason})
    return replace(record, measured={**record.measured, COLUMN: found})
