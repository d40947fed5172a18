"""The timing process: `python -m compress.timing.worker JOB.json RESULT.json`.

It must not import torch, whose threads would contend with the runtime's. All files share threads.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from compress.runtimes import runtime_named
from compress.runtimes.base import Runtime, Session
from compress.timing.interleave import (
    Candidate,
    Plan,
    Series,
    interleave,
    make_in_random_order,
    rotating,
)
from compress.timing.launch import LOADING, RUNNING, load_arrays, serve

TOLERANCE = 0.02
"""What the outputs of timed runs may deviate by from the verified ones, see `deviation`."""
MAX_FEEDS = 64
STRIDE = 7
"""How many inputs later each process begins than the last, so that slow models see all of them."""
DIFFERENT = "the outputs of the timed runs differ from the verified ones"

FLAT = 1e-5
"""Outputs that vary between samples by less than this share of their size count as constant."""

Feeds = tuple[list[np.ndarray], list[list[np.ndarray]]]
"""Rows of sample numbers, one per call, and the arrays of every call (one per input)."""


def feed_indices(items: int, batch: int) -> list[np.ndarray]:
    """Return rows of sample numbers, one per call, `batch` long each; they wrap around."""
    step = max(1, min(batch, items // 4))
    starts = range(0, items, step)[:MAX_FEEDS]
    return [(start + np.arange(batch)) % items for start in starts]


def feeds_of(samples: Sequence[np.ndarray], batch: int, first: int = 0) -> Feeds:
    """Return the inputs of every file in turn, beginning with call `first` of as many as there are.

    The arrays are the same for all files.
    """
    rows = feed_indices(len(samples[0]), batch)
    first %= len(rows)
    rows = rows[first:] + rows[:first]
    return rows, [[np.ascontiguousarray(data[row]) for data in samples] for row in rows]


def deviation(outputs: np.ndarray, expected: np.ndarray, row: np.ndarray) -> float:
    """Return how far outputs are from those expected of some samples, as a share of their spread.

    Root mean squares: ‖outputs − expected[row]‖ over ‖expected − its mean over all samples‖. So
    a constant is off by about 1, however large it is. Where there is no spread to speak of, it is
    a share of the outputs themselves. Infinite for another shape and for outputs not finite.
    """
    target = expected[row].astype(np.float64)
    if outputs.shape != target.shape or not np.isfinite(outputs).all():
        return float("inf")
    size = _root_mean_square(expected)
    spread = _root_mean_square(expected - expected.mean(0, dtype=np.float64))
    scale = spread if spread > FLAT * size else size
    return _root_mean_square(outputs - target) / (scale + 1e-12)


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))


def as_candidate(session: Session, feeds: Feeds, expected: np.ndarray) -> Candidate:
    """Return a session over rotating real samples as something to time and check.

    Raises ValueError if the samples do not suit the session.
    """
    rows, arrays = feeds

    def check(number: int, outputs: Any) -> str:
        off = deviation(outputs, expected, rows[number])
        return "" if off <= TOLERANCE else f"{DIFFERENT} (by {off:.1%} of their spread)"

    return rotating(session.run, by_name(session, arrays), check)


def by_name(session: Session, arrays: list[list[np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Return the inputs of every call by name. Raises ValueError if they are not as many."""
    return [dict(zip(session.names, inputs, strict=True)) for inputs in arrays]


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

    def load(name: str) -> Session:
        _announce(f"{LOADING}{name}")
        path, level = job["candidates"][name]
        return runtime.open(path, level=level)

    sessions, errors = make_in_random_order(
        {name: partial(load, name) for name in job["candidates"]},
        job["seed"],
        lambda error: f"{runtime.title} cannot load the file: {error}",
    )
    plan = Plan(job["seconds"], job["min_rounds"], job["block_seconds"])
    settings: dict[str, dict[str, Any]] = {}
    for batch in job["batches"]:
        feeds = feeds_of(samples, batch, STRIDE * job["seed"])
        candidates = {}
        for name, session in sessions.items():
            try:
                outputs = expected[job["candidates"][name][0]]
                candidates[name] = as_candidate(session, feeds, outputs)
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


def _announce_run(batch: int, name: str) -> None:
    _announce(f"{RUNNING}{name}" if name else f"timing batches of {batch}")


def _announce(text: str) -> None:
    """Print what is being done, so that after a crash it is known where it happened."""
    print(text, file=sys.stderr, flush=True)


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Do the job that `collect` has written: load what it names, and time it."""
    parent = os.getppid()

    def alive() -> None:  # for systems on which `die_with_parent` cannot work
        if os.getppid() != parent:
            raise RuntimeError("the process that started this timing is gone")

    runtime = runtime_named(job["runtime"])
    runtime.share_threads(job["threads"])
    samples = load_arrays(job["samples"])
    expected = dict(zip(job["paths"], load_arrays(job["expected"]), strict=True))
    gc.disable()
    return run_job(job, samples, expected, runtime, alive)


if __name__ == "__main__":
    serve(main)
