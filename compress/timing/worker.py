"""The timing process: `python -m compress.timing.worker JOB.json RESULT.json`.

It must not import torch, whose threads would contend with the runtime's. All files share threads.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from compress.runtimes import runtime_named
from compress.runtimes.base import Runtime, Session
from compress.system.lifetime import die_with_parent
from compress.timing.interleave import Candidate, Plan, Series, interleave
from compress.timing.launch import LOADING, RUNNING

MAX_FEEDS = 64
STRIDE = 7
"""Inputs by which one process begins later than the last, so that slow models see all, too."""
DIFFERENT = "the outputs of the timed runs differ from the verified ones"

FLAT = 1e-5
"""Outputs that differ between samples by less than this share of their size are all the same."""

Feeds = tuple[list[np.ndarray], list[list[np.ndarray]]]
"""Rows of sample numbers, one per call, and the arrays of every call (one per input)."""


class Abandoned(RuntimeError):
    """The process that asked for this timing is gone."""


def feed_indices(items: int, batch: int) -> list[np.ndarray]:
    """Return rows of sample numbers, one per call, `batch` long each; they wrap around."""
    step = max(1, min(batch, items // 4))
    starts = range(0, items, step)[:MAX_FEEDS]
    return [(start + np.arange(batch)) % items for start in starts]


def feeds_of(samples: list[np.ndarray], batch: int) -> Feeds:
    """Return what is fed into every file in turn; the arrays are the same for all files."""
    rows = feed_indices(len(samples[0]), batch)
    return rows, [[np.ascontiguousarray(data[row]) for data in samples] for row in rows]


def rotated(feeds: Feeds, by: int) -> Feeds:
    """Return the same calls in the same order, beginning with another one."""
    rows, arrays = feeds
    first = by % len(rows)
    return rows[first:] + rows[:first], arrays[first:] + arrays[:first]


def deviation(outputs: np.ndarray, expected: np.ndarray, row: np.ndarray) -> float:
    """Return how far outputs are from those expected of some samples, as a share of their spread.

    Root mean squares: ‖outputs − expected[row]‖ over ‖expected − its mean over all samples‖. So
    a constant is off by about 1, however large it is. Where there is no spread to speak of, it is
    a share of the outputs themselves. Infinite for what is no answer.
    """
    wanted = expected[row].astype(np.float64)
    if outputs.shape != wanted.shape or not np.isfinite(outputs).all():
        return float("inf")
    size = _root_mean_square(expected)
    spread = _root_mean_square(expected - expected.mean(0, dtype=np.float64))
    scale = spread if spread > FLAT * size else size
    return _root_mean_square(outputs - wanted) / (scale + 1e-12)


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))


def as_candidate(
    session: Session, feeds: Feeds, expected: np.ndarray, tolerance: float
) -> Candidate:
    """Return a session over rotating real samples as something to time and check.

    Raises ValueError if the samples do not suit the session.
    """
    rows, arrays = feeds
    fed = [dict(zip(session.names, given, strict=True)) for given in arrays]

    def call(index: int) -> Any:
        return session.run(fed[index % len(fed)])

    def check(index: int, outputs: Any) -> str:
        off = deviation(outputs, expected, rows[index % len(rows)])
        if off <= tolerance:
            return ""
        return f"{DIFFERENT} (by {off:.1%} of their spread)"

    return Candidate(call, check)


def run_job(
    job: dict[str, Any],
    samples: list[np.ndarray],
    expected: Mapping[str, np.ndarray],
    runtime: Runtime,
    alive: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Time every candidate at every batch size; errors stand with the candidate (JSON).

    `job["candidates"]` maps a name to a path and an optimization level. `expected` are the
    verified outputs by path.
    """
    sessions, errors = _load(job, runtime)
    plan = Plan(job["seconds"], job["min_rounds"], job["block_seconds"])
    settings: dict[str, dict[str, Any]] = {}
    for batch in job["batches"]:
        feeds = rotated(feeds_of(samples, batch), STRIDE * job["seed"])
        candidates = {}
        for name, session in sessions.items():
            outputs = expected[job["candidates"][name][0]]
            try:
                candidates[name] = as_candidate(session, feeds, outputs, job["tolerance"])
            except ValueError as error:
                errors[name] = f"the samples do not suit the file: {error}"
        measured = interleave(
            candidates, plan, job["seed"], alive=alive, announce=partial(_announce_run, batch)
        )
        failed = {name: Series(error=text) for name, text in errors.items()}
        settings[str(batch)] = {
            name: asdict(series) for name, series in {**measured, **failed}.items()
        }
    return {"settings": settings}


def _load(job: dict[str, Any], runtime: Runtime) -> tuple[dict[str, Session], dict[str, str]]:
    """Open all files in a random order: where in memory a file lies depends on who came first."""
    sessions: dict[str, Session] = {}
    errors: dict[str, str] = {}
    order = list(job["candidates"])
    random.Random(job["seed"]).shuffle(order)
    for name in order:
        _announce(f"{LOADING}{name}")
        try:
            path, level = job["candidates"][name]
            sessions[name] = runtime.open(path, level=level)
        except Exception as error:  # onnxruntime's errors share no base class of their own
            errors[name] = f"{runtime.title} cannot load the file: {error}"
    return sessions, errors


def _announce_run(batch: int, name: str) -> None:
    _announce(f"{RUNNING}{name}" if name else f"timing batches of {batch}")


def _announce(text: str) -> None:
    """Say where we are, so that a crash can be told where it happened."""
    print(text, file=sys.stderr, flush=True)


def main(job_path: str, result_path: str, parent: str) -> None:
    die_with_parent(int(parent))
    job = json.loads(Path(job_path).read_text())

    def alive() -> None:  # where the system does not tell
        if os.getppid() != int(parent):
            raise Abandoned("the process that asked for this timing is gone")

    runtime = runtime_named(job["runtime"])
    runtime.share_threads(job["threads"])
    with np.load(job["samples"]) as file:
        samples = [file[f"input_{i}"] for i in range(len(file.files))]
    with np.load(job["expected"]) as file:
        expected = {path: file[str(i)] for i, path in enumerate(job["paths"])}
    gc.disable()
    result = run_job(job, samples, expected, runtime, alive)
    Path(result_path).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
