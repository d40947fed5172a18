"""Paired timing of ONNX files: fresh processes, interleaved rounds, checked outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import UserError
from compress.timing.environment import cpu_threads, environment
from compress.timing.result import Repetition, Timings, summarise

PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class WorkerFailed(RuntimeError):
    """A timing process ended without a result; the sentence says how."""


Launch = Callable[[Path, Path, float], None]


def launch(job: Path, result: Path, timeout: float) -> None:
    """Run the timing process on a job; raise WorkerFailed if it crashes or takes too long."""
    paths = [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    # -P: a file of the user's current folder must not be taken for one of our modules.
    command = [sys.executable, "-P", "-m", "compress.timing.worker", str(job), str(result)]
    try:
        done = subprocess.run(
            command, env=variables, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired as error:
        raise WorkerFailed(
            f"the timing process took more than {timeout:.0f} s and was ended "
            f"({_last_line(error.stderr)})"
        ) from None
    if done.returncode < 0:
        raise WorkerFailed(
            f"the timing process was killed by signal {-done.returncode} "
            f"({_last_line(done.stderr)})"
        )
    if done.returncode:
        raise WorkerFailed(f"the timing process failed: {_last_line(done.stderr)}")


def _last_line(text: str | bytes | None) -> str:
    plain = text.decode(errors="replace") if isinstance(text, bytes) else text or ""
    return (plain.strip().splitlines() or ["it said nothing"])[-1]


def measure(
    candidates: Mapping[str, Path],
    samples: Sequence[np.ndarray],
    expected: Mapping[str, np.ndarray],
    *,
    baseline: str,
    threads: int | None = None,
    batches: Sequence[int] = (1, 32),
    processes: int = 3,
    seconds: float = 60.0,
    seed: int = 0,
    progress: bool = False,
    min_rounds: int = 5,
    block_seconds: float = 0.005,
    tolerance: float = 0.02,
    timeout: float | None = None,
    launch: Launch = launch,
) -> Timings:
    """Time ONNX files against each other with onnxruntime on the CPU.

    `samples` holds one array per input of the files, each of shape (M, ...), real and prepared;
    `expected` the verified logits of every file for them, (M, classes): timed outputs may
    deviate from them by `tolerance` of their norm. `seconds` is for all `processes` together;
    large models exceed it, because each process runs at least `min_rounds` rounds. `timeout`
    (seconds) is for one process. `threads` defaults to the cores at hand.

    A file that fails gets its error and the others are still timed; so is a process that
    crashes or hangs, as `Timings.failures`. Raises UserError for a call that cannot work.
    """
    _check(candidates, samples, expected, baseline, batches, processes)
    threads = threads or cpu_threads()
    job = {
        "candidates": {name: str(Path(path).resolve()) for name, path in candidates.items()},
        "threads": threads,
        "batches": list(batches),
        "seconds": seconds / processes,
        "min_rounds": min_rounds,
        "block_seconds": block_seconds,
        "tolerance": tolerance,
    }
    repetitions = []
    with tempfile.TemporaryDirectory(prefix="compress-timing-") as folder:
        _save_arrays(Path(folder), candidates, samples, expected, job)
        for number in range(processes):
            if progress:
                print(f"timing, process {number + 1} of {processes}", file=sys.stderr, flush=True)
            limit = timeout or 600 + 20 * seconds / processes
            own = {**job, "seed": seed * 1000 + number}
            repetitions.append(_repeat(Path(folder), own, number, limit, launch))
    return summarise(
        repetitions, list(candidates), list(batches), baseline, seed, environment(threads)
    )


def _check(
    candidates: Mapping[str, Path],
    samples: Sequence[np.ndarray],
    expected: Mapping[str, np.ndarray],
    baseline: str,
    batches: Sequence[int],
    processes: int,
) -> None:
    if baseline not in candidates:
        raise UserError(f"the baseline {baseline!r} is not among the files to time")
    if processes < 1 or not batches or min(batches) < 1:
        raise UserError("timing needs at least one process and batch sizes of at least 1")
    counts = {len(array) for array in samples}
    if len(counts) != 1 or 0 in counts:
        raise UserError("timing needs samples, and the same number for every input")
    for name in candidates:
        if name not in expected or len(expected[name]) not in counts:
            raise UserError(f"timing needs the verified logits of {name!r} for every sample")


def _save_arrays(
    folder: Path,
    candidates: Mapping[str, Path],
    samples: Sequence[np.ndarray],
    expected: Mapping[str, np.ndarray],
    job: dict[str, Any],
) -> None:
    job["samples"] = str(folder / "samples.npz")
    job["expected"] = str(folder / "expected.npz")
    inputs: dict[str, Any] = {f"input_{i}": array for i, array in enumerate(samples)}
    logits: dict[str, Any] = {str(i): expected[name] for i, name in enumerate(candidates)}
    np.savez(job["samples"], **inputs)
    np.savez(job["expected"], **logits)


def _repeat(
    folder: Path, job: dict[str, Any], number: int, timeout: float, launch: Launch
) -> Repetition:
    job_path, result_path = folder / f"job-{number}.json", folder / f"result-{number}.json"
    job_path.write_text(json.dumps(job))
    try:
        launch(job_path, result_path, timeout)
        return Repetition(json.loads(result_path.read_text())["settings"])
    except WorkerFailed as error:
        return Repetition({}, f"process {number + 1}: {error}")
    except (OSError, ValueError, KeyError) as error:
        return Repetition({}, f"process {number + 1} left no readable result: {error}")
