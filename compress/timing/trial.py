"""A quick comparison of files: `python -m compress.timing.trial JOB.json RESULT.json`.

It decides between ways of writing one network, and no table shows its seconds: one process, no
outputs checked. Like the timing process, it must not import torch.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from compress.runtimes import runtime_named
from compress.system.environment import cpu_threads
from compress.timing.interleave import Candidate, Plan, interleave, make_in_random_order, rotating
from compress.timing.launch import launch, load_arrays, serve

RUNTIME = "cpu"
START = 60.0
"""Seconds that a process may take besides those for measuring, to load files and to warm up."""
ROUNDS = 7


def seconds_of(
    files: Mapping[str, bytes], samples: Sequence[np.ndarray], seconds: float, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return the seconds of a call of every file, round by round, timed in turns.

    `samples` holds one array per input. A file that fails is missing. Raises WorkerFailed if the
    process ends without a result.
    """
    with tempfile.TemporaryDirectory(prefix="compress-trial-") as folder:
        place = Path(folder)
        paths = {}
        for number, (name, content) in enumerate(files.items()):
            paths[name] = str(place / f"{number}.onnx")
            Path(paths[name]).write_bytes(content)
        np.savez(place / "samples.npz", *samples)
        job = {"files": paths, "samples": str(place / "samples.npz"), "seed": seed}
        job |= {"seconds": seconds, "threads": cpu_threads()}
        (place / "job.json").write_text(json.dumps(job))
        result = place / "result.json"
        launch(place / "job.json", result, seconds + START * len(files), "compress.timing.trial")
        found = json.loads(result.read_text())
    return {name: np.array(values) for name, values in found.items()}


def main(job: dict[str, Any]) -> dict[str, Any]:
    runtime = runtime_named(RUNTIME)
    runtime.share_threads(job["threads"])
    makers = {name: partial(runtime.open, path) for name, path in job["files"].items()}
    sessions, _ = make_in_random_order(makers, job["seed"], str)
    samples = load_arrays(job["samples"])
    candidates: dict[str, Candidate] = {}
    for name, session in sessions.items():
        feeds = [
            dict(zip(session.names, (data[index : index + 1] for data in samples), strict=True))
            for index in range(len(samples[0]))
        ]
        candidates[name] = rotating(session.run, feeds, lambda number, outputs: "")
    measured = interleave(candidates, Plan(job["seconds"], ROUNDS), job["seed"])
    return {name: series.medians for name, series in measured.items() if not series.error}


if __name__ == "__main__":
    serve(main)
