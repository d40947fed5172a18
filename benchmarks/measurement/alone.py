"""Do five models, timed in turns, take as long as each of them alone? And in ordinary sessions?

    python benchmarks/measurement/alone.py --out reports/measurement [--cycles 32]

A cycle runs seven fresh processes: one in which all five take turns as in every table of ours
(one shared pool of threads), one for each model alone, and one in which all five take turns in
sessions as onnxruntime makes them by default, each with threads of its own. What is compared are
medians within a cycle, so that a slow hour of the machine cancels.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from trials import Trial, publish, run_trials, table

from compress.timing.environment import cpu_threads
from compress.timing.rounds import Candidate, Plan, time_rounds
from compress.timing.statistics import student
from compress.timing.worker import as_candidate, feeds_of, open_session

if TYPE_CHECKING:
    from networks import Network

NAMES = [
    "cnn-small, 28 px",
    "resnet20, 32 px",
    "shufflenet, 64 px",
    "mobilenet_v2, 96 px",
    "resnet18, 224 px",
]
SECONDS = 2.0


def ordinary_session(path: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def worker(job: dict[str, Any]) -> None:
    """The process itself: time the files of a job in turns and print the medians in ms."""
    if job["shared"]:
        onnxruntime.set_global_thread_pool_sizes(job["threads"], 1)
    candidates: dict[str, Candidate] = {}
    for name, path in job["files"].items():
        with np.load(job["arrays"]) as arrays:
            samples, expected = arrays[f"samples/{name}"], arrays[f"expected/{name}"]
        session = (
            open_session(path, "default")
            if job["shared"]
            else ordinary_session(path, job["threads"])
        )
        candidates[name] = as_candidate(session, feeds_of([samples], 1), expected, 0.02)
    found = time_rounds(candidates, Plan(job["seconds"], 5), job["seed"])
    for name, series in found.items():
        if series.error:
            raise RuntimeError(f"{name}: {series.error}")
    print(json.dumps({name: 1e3 * float(np.median(s.medians)) for name, s in found.items()}))


def start(files: Mapping[str, str], shared: bool, arrays: Path, seed: int) -> dict[str, float]:
    job = {
        "files": dict(files),
        "shared": shared,
        "arrays": str(arrays),
        "threads": cpu_threads(),
        "seconds": SECONDS * len(files) / len(NAMES),
        "seed": seed,
    }
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def cycle(trial: dict[str, Any], networks: dict[str, Network], arrays: Path) -> dict[str, Any]:
    """Run the seven processes of a cycle in a random order."""
    seed = trial["cycle"]
    files = {name: str(network.path) for name, network in networks.items()}
    ways: list[tuple[str, dict[str, str], bool]] = [
        ("turns", files, True),
        ("ordinary", files, False),
        *((f"alone {name}", {name: path}, True) for name, path in files.items()),
    ]
    random.Random(seed).shuffle(ways)
    found = {way: start(given, shared, arrays, seed) for way, given, shared in ways}
    alone = {name: found[f"alone {name}"][name] for name in files}
    return {"turns": found["turns"], "ordinary": found["ordinary"], "alone": alone}


def ratio(found: list[Trial], way: str, name: str) -> str:
    """Return how many times the time alone, with a 95 % t interval over the cycles' logarithms."""
    logs = np.log([t["found"][way][name] / t["found"]["alone"][name] for t in found])
    half = student(len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    low, middle, high = np.exp([logs.mean() - half, logs.mean(), logs.mean() + half])
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cycles", type=int, default=32)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        worker(json.loads(options.job))
        return
    if options.out is None:
        parser.error("--out is missing: name the folder of the report")
    # Not above: it imports torch, whose threads have no place in the timing processes.
    from networks import by_name

    with tempfile.TemporaryDirectory() as folder:
        networks = by_name(NAMES, Path(folder))
        arrays = Path(folder) / "arrays.npz"
        content: dict[str, Any] = {f"samples/{n}": net.samples for n, net in networks.items()}
        np.savez(arrays, **content, **{f"expected/{n}": v.expected for n, v in networks.items()})
        wanted = [{"cycle": i} for i in range(options.cycles)]
        path = options.out / "alone.jsonl"
        found = run_trials(path, wanted, lambda trial: cycle(trial, networks, arrays))
    lines = [
        [
            name,
            f"{np.median([t['found']['alone'][name] for t in found]):.3g}",
            ratio(found, "turns", name),
            ratio(found, "ordinary", name),
        ]
        for name in NAMES
    ]
    publish(
        options.out / "alone.md",
        "Five models in turns, alone, and in ordinary sessions",
        [
            table(("model", "alone, ms", "in turns / alone", "ordinary sessions / alone"), lines),
            f"Geometric means over {len(found)} cycles of ratios within a cycle, and 95 % t"
            " intervals. In turns: one shared pool of threads, as in every table of ours."
            " Ordinary sessions: as onnxruntime makes them, all five in one process.\n",
        ],
        f"python benchmarks/measurement/alone.py --out reports/measurement --cycles {len(found)}",
    )


if __name__ == "__main__":
    main()
