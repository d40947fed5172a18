"""Synthetic runs, written item by item and second by second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compress.benchmark.portable.portable_timer import timings_file
from compress.results.derive import Derived, read_results
from compress.results.log import RunLog, Stage
from compress.results.raw import write_arrays, write_values
from compress.results.record import Record
from compress.timing.raw_timings import CONTROL, LEVELS, Launched, RawTimings

ITEMS = 40


def right(count: int, items: int = ITEMS) -> np.ndarray:
    """Right in the first items."""
    return np.arange(items) < count


def answers(correct: np.ndarray, predictions: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Answers of two classes in turns, confident by 0.75."""
    targets = np.arange(len(correct)) % 2
    if predictions is None:
        predictions = np.where(correct, targets, 1 - targets)
    confidence = np.full(len(correct), 0.75)
    return {
        "predictions": predictions,
        "correct": correct,
        "confidence": confidence,
        "targets": targets,
    }


class Written:
    """A run in a folder, to which rows and timings are added."""

    def __init__(self, folder: Path, **about: Any) -> None:
        self.folder = folder
        self.log = RunLog(folder / "results.jsonl", {"suite": "made up", **about})
        self.records: list[Record] = []

    def row(
        self, record: Record, content: Mapping[str, np.ndarray] | np.ndarray | None = None
    ) -> Record:
        """Write a row and its answers (or just which are right)."""
        if content is not None:
            arrays = answers(content) if isinstance(content, np.ndarray) else content
            place = f"raw/{len(self.records)}.npz"
            digest = write_arrays(self.folder / place, arrays)
            hashes = {"onnx": f"hash of {record.name}", **record.hashes, "answers": digest}
            record = replace(record, files={**record.files, "answers": place}, hashes=hashes)
        self.log.record(record)
        self.records.append(record)
        return record

    def timings(
        self,
        seconds: Mapping[str, float | Sequence[float]],
        settings: Sequence[str] = ("cpu",),
        errors: Mapping[str, str] | None = None,
        failure: str = "",
        **stage: Any,
    ) -> Stage:
        """Write raw seconds: per call and chain, the same in four processes, or one for each."""
        names = [record.name for record in self.records if record.status == "ok"]
        raw_timings = collect(names, seconds, settings, errors or {}, failure)
        hashes = {record.name: record.hashes.get("onnx", "") for record in self.records}
        place = f"raw/{stage.get('machine') or stage.get('runtime') or 'timing'}.json"
        values = timings_file(hashes, raw_timings.to_json())
        digest = write_values(self.folder / place, values)
        known = {"environment": raw_timings.environment, "settings": tuple(settings)}
        written = Stage(**{**known, "file": place, "sha256": digest, **stage})
        self.log.timings(written)
        return written

    def read(self, margin: float | None = None) -> Derived:
        return read_results(self.folder, margin)

    def rows(self, margin: float | None = None) -> dict[str, dict[str, Any]]:
        """Return the rows by chain and seed."""
        return {f"{row['chain']} {row['seed']}": row for row in self.read(margin).rows}


def collect(
    names: Sequence[str],
    seconds: Mapping[str, float | Sequence[float]],
    settings: Sequence[str],
    errors: Mapping[str, str],
    failure: str = "",
) -> RawTimings:
    """Return four processes of three rounds; the control is as fast as the baseline."""
    base = next(name for name in names if name.startswith("baseline"))

    def series(name: str, number: int) -> dict[str, Any]:
        key = (base if name == CONTROL or name in LEVELS else name).partition(" [")[0]
        each = seconds.get(key, 0.002)
        each = each[number] if isinstance(each, Sequence) else each
        return {"error": errors.get(key, ""), "medians": [each] * 3, "calls": [[each, each]] * 3}

    launched = [
        Launched(0, {"1": {name: series(name, number) for name in (*names, CONTROL, *LEVELS)}})
        for number in range(4)
    ]
    launched += [Launched(0, failure=failure)] if failure else []
    environment = {"cpu": "Made Up 9", "cpu_flags": ["avx2"], "threads": 2}
    candidates = (*names, CONTROL, *LEVELS)
    return RawTimings(candidates, base, tuple(settings), 2, tuple(launched), 1.0, environment)
