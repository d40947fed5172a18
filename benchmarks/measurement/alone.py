"""Do five models, timed in turns, take as long as each of them alone? And in ordinary sessions?

    python benchmarks/measurement/alone.py --out reports/measurement [--cycles 24]

A cycle starts seven fresh processes: one in which all five take turns as in every table of ours
(one shared pool of threads), one for each model alone, and one in which all five take turns in
sessions as onnxruntime makes them by default, each with threads of its own. All seven live side
by side, but only one at a time works: they are given short slices in random order, since on a
shared machine one and the same file takes 1.3 times as long a few seconds later. A ratio is the
median over a cycle's rounds of slices.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from trials import Trial, publish, run_trials, table

from compress.runtimes.onnxruntime_cpu import OnnxruntimeCpu
from compress.stats.levels import student
from compress.system.environment import cpu_threads
from compress.timing.interleave import Candidate, Plan, interleave
from compress.timing.worker import as_candidate, feeds_of

if TYPE_CHECKING:
    from networks import Network

NAMES = [
    "cnn-small, 28 px",
    "resnet20, 32 px",
    "shufflenet, 64 px",
    "mobilenet_v2, 96 px",
    "resnet18, 224 px",
]
ROUNDS = 12
"""Slices of every process in a cycle."""
SECONDS = 0.4
"""Of a slice, of one model or of five: what follows a rest weighs the same everywhere."""
LEAD = 0.1
"""Seconds before that do not count, in which threads and caches wake up."""
REST = 0.005
"""Seconds between two slices, in which the threads of the last go to sleep."""


def worker(job: dict[str, Any]) -> None:
    """The process itself: for every seed on stdin, time the files in turns and print medians."""
    runtime = OnnxruntimeCpu()
    if job["shared"]:
        runtime.share_threads(job["threads"])
    candidates: dict[str, Candidate] = {}
    for name, path in job["files"].items():
        with np.load(job["arrays"]) as arrays:
            samples, expected = arrays[f"samples/{name}"], arrays[f"expected/{name}"]
        session = runtime.open(path, job["threads"])
        candidates[name] = as_candidate(session, feeds_of([samples], 1), expected)
    gc.disable()
    for seed in map(int, sys.stdin):
        interleave(candidates, Plan(LEAD, 1), seed)
        found = interleave(candidates, Plan(SECONDS, 3), seed)
        wrong = [f"{name}: {series.error}" for name, series in found.items() if series.error]
        if wrong:
            raise RuntimeError("; ".join(wrong))
        medians = {name: 1e3 * float(np.median(s.medians)) for name, s in found.items()}
        print(json.dumps(medians), flush=True)


class Process:
    """One way to run files, waiting for its next slice."""

    def __init__(self, files: Mapping[str, str], shared: bool, arrays: Path) -> None:
        job = {
            "files": dict(files),
            "shared": shared,
            "arrays": str(arrays),
            "threads": cpu_threads(),
        }
        command = [sys.executable, __file__, "--job", json.dumps(job)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.slice(0)  # the first is a warm-up

    def slice(self, seed: int) -> dict[str, float]:
        """Return the median milliseconds of every file in one slice."""
        time.sleep(REST)
        asked, answers = self.process.stdin, self.process.stdout
        assert asked is not None
        assert answers is not None
        print(seed, file=asked, flush=True)
        line = answers.readline()
        if not line:
            raise RuntimeError("a timing process ended too early; its error stands above")
        found: dict[str, float] = json.loads(line)
        return found

    def close(self) -> None:
        self.process.communicate()


def cycle(trial: dict[str, Any], networks: dict[str, Network], arrays: Path) -> dict[str, Any]:
    """Start the seven processes in a random order, and give them slices in random orders."""
    shuffle = random.Random(trial["cycle"]).shuffle
    files = {name: str(network.path) for name, network in networks.items()}
    ways: list[tuple[str, dict[str, str], bool]] = [
        ("turns", files, True),
        ("ordinary", files, False),
        *((name, {name: path}, True) for name, path in files.items()),
    ]
    shuffle(ways)
    processes = {way: Process(given, shared, arrays) for way, given, shared in ways}
    rounds = []
    for seed in range(1, ROUNDS + 1):
        order = list(processes)
        shuffle(order)
        found = {way: processes[way].slice(seed) for way in order}
        alone = {name: found[name][name] for name in files}
        rounds.append({"alone": alone} | {way: found[way] for way in ("turns", "ordinary")})
    for process in processes.values():
        process.close()
    return {
        way: {name: [one[way][name] for one in rounds] for name in files}
        for way in ("alone", "turns", "ordinary")
    }


def ratio(found: list[Trial], way: str, name: str) -> str:
    """Return how many times the time alone, with a 95 % t interval over the cycles' logarithms."""
    times = [(np.array(t["found"][way][name]), np.array(t["found"]["alone"][name])) for t in found]
    logs = np.array([np.median(np.log(one / alone)) for one, alone in times])
    half = student(len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    low, middle, high = np.exp([logs.mean() - half, logs.mean(), logs.mean() + half])
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cycles", type=int, default=24)
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
        content |= {f"expected/{n}": v.expected for n, v in networks.items()}
        np.savez(arrays, **content)
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
            f"Geometric means over {len(found)} cycles (each the median of {ROUNDS} rounds of"
            " slices), and 95 % t intervals. In turns: one shared pool of threads, as in every"
            " table of ours. Ordinary sessions: as onnxruntime makes them, all five in one"
            " process.\n",
        ],
        f"python benchmarks/measurement/alone.py --out reports/measurement --cycles {len(found)}",
    )


if __name__ == "__main__":
    main()
