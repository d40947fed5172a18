"""Gathering raw seconds: fresh processes one after another, until it is known well enough.

numpy and onnxruntime are all it needs, so that it runs where models are deployed.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import UserError
from compress.stats.bootstrap import log_ratio, rough_half
from compress.system.environment import cpu_threads, environment
from compress.timing.checkpoint import Checkpoint, question
from compress.timing.launch import LOADING, RUNNING, Launch, WorkerFailed, launch
from compress.timing.raw_timings import CONTROL, FLOOR, LEVELS, Launched, RawTimings, process_ratio
from compress.timing.setting import Setting, parse_setting

SLOW_LEVELS = (0.9, 0.97)
"""What a level must reach in the first process and in the first two to go on.

After the third its 95 % interval must reach `FLOOR`, after later ones its median: what does not
will hardly be the denominator, and its turns cost the others'.
"""
DEADLY = 2
"""Processes that die at one file before the others are timed without it."""
QUICK = 100
"""Resamples that tell when to stop."""
PLANNED = 24
"""Processes for every number of threads that share the budget; starting them costs some of it.

With many short processes rather than few long ones, what differs from process to process (where
the weights lie in memory, what the machine's other tenants do) averages out sooner.
"""


@dataclass(frozen=True)
class Effort:
    """How much is spent on timing, and when it is enough.

    At least `processes` for every thread count, then more until every speed-up's 95 % interval
    is within ± `precision` (a fraction) or `seconds` are spent: what an interval contains plays
    no part. `min_rounds` in each process come first, so large models exceed the budget.
    """

    seconds: float = 60.0
    processes: int = 5
    precision: float = 0.01
    min_rounds: int = 3
    block_seconds: float = 0.002
    timeout: float | None = None
    """Seconds for one process."""


def collect(
    files: Mapping[str, Path],
    samples: Sequence[np.ndarray],
    expected: Mapping[str, np.ndarray],
    *,
    baseline: str,
    settings: Sequence[str],
    effort: Effort,
    threads: int | None = None,
    seed: int = 0,
    tolerance: float = 0.02,
    progress: bool = False,
    checkpoint: Path | None = None,
    launch: Launch = launch,
    clock: Callable[[], float] = time.perf_counter,
) -> RawTimings:
    """Time files in turns in fresh processes; arguments as in `compress.timing.measure`.

    What every process found is written to `kept` at once, and what lies there of an earlier call
    with the same files, inputs, effort and machine is taken as if it were found now. The caller
    removes that file once the result lies elsewhere.
    Raises UserError for a call that cannot work.
    """
    wanted = [parse_setting(name) for name in settings]
    _check(files, samples, expected, baseline, wanted, effort)
    all_threads = threads or cpu_threads()
    with tempfile.TemporaryDirectory(prefix="compress-timing-") as folder:
        run = _Run(
            Path(folder),
            dict(files),
            baseline,
            wanted,
            effort,
            all_threads,
            seed,
            tolerance,
            launch,
        )
        run.save(samples, expected)
        where = environment(all_threads)
        asked = {**run.question(), "where": where, "settings": list(settings)}
        book = Checkpoint(
            checkpoint, question(files, [*samples, *expected.values()], asked) if checkpoint else ""
        )
        turns = run.resume(book.read())
        before = clock()
        while not run.enough(turns):
            for count in run.counts:
                if progress:
                    _say(run, sum(turns))
                started = clock()
                part = run.start(count)
                if not part.failure:  # next time it may live
                    book.add({**asdict(part), "seconds": clock() - started})
            turns.append(clock() - before)
            before = clock()
    return RawTimings(
        names=tuple(run.candidates),
        baseline=baseline,
        settings=tuple(setting.name for setting in wanted),
        all_threads=all_threads,
        launched=tuple(run.launched),
        seconds=round(sum(turns), 3),
        environment=where,
    )


def _say(run: _Run, seconds: float) -> None:
    print(
        f"timing: process {len(run.launched) + 1}, {seconds:.0f} of {run.effort.seconds:.0f} s",
        file=sys.stderr,
        flush=True,
    )


def _check(
    files: Mapping[str, Path],
    samples: Sequence[np.ndarray],
    expected: Mapping[str, np.ndarray],
    baseline: str,
    settings: Sequence[Setting],
    effort: Effort,
) -> None:
    if baseline not in files:
        raise UserError(f"the baseline {baseline!r} is not among the files to time")
    if effort.processes < 2 or not settings:
        raise UserError("timing needs at least two processes and one setting")
    counts = {len(array) for array in samples}
    if len(counts) != 1 or 0 in counts:
        raise UserError("timing needs samples, and the same number for every input")
    for name in files:
        if name not in expected or len(expected[name]) not in counts:
            raise UserError(f"timing needs the verified logits of {name!r} for every sample")


class _Run:
    """The state of one gathering: what is timed, and what was found so far."""

    def __init__(
        self,
        folder: Path,
        files: dict[str, Path],
        baseline: str,
        settings: Sequence[Setting],
        effort: Effort,
        all_threads: int,
        seed: int,
        tolerance: float,
        launch: Launch,
    ) -> None:
        self.folder, self.baseline, self.settings = folder, baseline, settings
        self.effort, self.all_threads, self.launch = effort, all_threads, launch
        paths = {name: str(Path(path).resolve()) for name, path in files.items()}
        self.files = list(paths)
        self.candidates = {name: [path, "default"] for name, path in paths.items()}
        self.candidates[CONTROL] = [paths[baseline], "default"]
        self.candidates |= {name: [paths[baseline], level] for name, level in LEVELS.items()}
        self.dropped: dict[int, set[str]] = {}
        self.deaths: Counter[str] = Counter()
        """How many processes died while they opened a file or ran it for the first time."""
        self.paths = list(dict.fromkeys(paths.values()))
        self.names_of = {path: name for name, path in paths.items()}
        self.job: dict[str, Any] = {
            "paths": self.paths,
            "tolerance": tolerance,
            "min_rounds": effort.min_rounds,
            "block_seconds": effort.block_seconds,
            "seconds": effort.seconds / (PLANNED * len(settings)),
        }
        self.seed = seed
        self.launched: list[Launched] = []

    @property
    def counts(self) -> list[int]:
        """The thread counts; a turn is one process of each."""
        return list(dict.fromkeys(setting.threads for setting in self.settings))

    def enough(self, turns: Sequence[float]) -> bool:
        """Whether to stop, after turns of so many seconds."""
        lived = [part.threads for part in self.launched if not part.failure]
        least = self.effort.processes
        if min(map(lived.count, self.counts)) < least and len(turns) < 2 * least:
            return False
        return sum(turns) + max(turns) > self.effort.seconds or self.narrow()

    def save(self, samples: Sequence[np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
        self.job["samples"] = str(self.folder / "samples.npz")
        self.job["expected"] = str(self.folder / "expected.npz")
        inputs: dict[str, Any] = {f"input_{i}": array for i, array in enumerate(samples)}
        logits: dict[str, Any] = {
            str(i): expected[self.names_of[path]] for i, path in enumerate(self.paths)
        }
        np.savez(self.job["samples"], **inputs)
        np.savez(self.job["expected"], **logits)

    def question(self) -> dict[str, Any]:
        """Return what the seconds depend on, besides the files, the inputs and the machine."""
        job = {key: value for key, value in self.job.items() if isinstance(value, int | float)}
        return {"job": job, "effort": asdict(self.effort), "seed": self.seed}

    def resume(self, found: Sequence[Mapping[str, Any]]) -> list[float]:
        """Take what earlier processes found, whole turns of them; return the turns' seconds."""
        lines = [[one for one in found if one["threads"] == count] for count in self.counts]
        turns = []
        for turn in zip(*lines, strict=False):
            for one in turn:
                self._take(Launched(one["threads"], one["settings"], one["failure"]))
            turns.append(sum(one["seconds"] for one in turn))
        return turns

    def start(self, threads: int) -> Launched:
        """Run one process with a thread count, take what it found, and return that."""
        number = len(self.launched)
        left_out = self.dropped.get(threads, set()) | self._aside()
        job = {
            **self.job,
            "candidates": {k: v for k, v in self.candidates.items() if k not in left_out},
            "threads": threads or self.all_threads,
            "batches": [s.batch for s in self.settings if s.threads == threads],
            "seed": self.seed * 1000 + number,
        }
        part = replace(self._repeat(job, number), threads=threads)
        self._take(part)
        return part

    def _take(self, part: Launched) -> None:
        self.launched.append(part)
        if part.failure:
            return
        lived = [p for p in self.launched if p.threads == part.threads and not p.failure]
        left_out = self.dropped.setdefault(part.threads, set())
        left_out |= {name for name in LEVELS if name not in left_out and self._slow(lived, name)}

    def _repeat(self, job: dict[str, Any], number: int) -> Launched:
        job_path, result_path = self.folder / f"job-{number}.json", self.folder / f"{number}.json"
        job_path.write_text(json.dumps(job))
        effort = self.effort
        try:
            self.launch(job_path, result_path, effort.timeout or 600 + 20 * effort.seconds)
            return Launched(0, json.loads(result_path.read_text())["settings"])
        except WorkerFailed as error:
            for word in (LOADING, RUNNING):
                if error.said.startswith(word):
                    self.deaths[error.said.removeprefix(word)] += 1
            return Launched(0, failure=f"process {number + 1}: {error}")
        except (OSError, ValueError, KeyError) as error:
            return Launched(0, failure=f"process {number + 1} left no readable result: {error}")

    def _aside(self) -> set[str]:
        """Return the files that go no further, lest they cost the others their figures."""
        needed = {self.baseline, CONTROL}
        return {n for n in self.candidates if self.deaths[n] >= DEADLY and n not in needed}

    def _slow(self, parts: Sequence[Launched], level: str) -> bool:
        """Whether a level is slow at every batch size, so that it need not be timed again."""
        for batch in parts[0].settings:
            found = [part.settings[batch] for part in parts]
            ratios = [process_ratio(f.get(self.baseline), f.get(level)) for f in found]
            known = np.log([ratio for ratio in ratios if ratio is not None])
            if len(known) and not _is_slow(known):
                return False
        return True

    def narrow(self) -> bool:
        """Whether every file's speed-up is known to the precision that is asked for."""
        return all(
            self._narrow(setting, name)
            for setting in self.settings
            for name in (*self.files, CONTROL)
            if name != self.baseline
        )

    def _narrow(self, setting: Setting, name: str) -> bool:
        parts = [p for p in self.launched if p.threads == setting.threads and not p.failure]
        found = [part.settings[str(setting.batch)] for part in parts]
        pairs = [
            (np.array(f[self.baseline]["medians"]), np.array(f[name]["medians"]))
            for f in found
            if name in f and not f[self.baseline]["error"] and not f[name]["error"]
        ]
        if not pairs:
            return True  # it has no speed-up, and more processes would give it none
        before, after = [b for b, _ in pairs], [c for _, c in pairs]
        _, error, count = log_ratio(before, after, resamples=QUICK)
        return rough_half(error, count) <= self.effort.precision


def _is_slow(logs: np.ndarray) -> bool:
    """Whether a level is too slow, by the logarithms of its speed-ups, one for each process."""
    count = len(logs)
    if count <= len(SLOW_LEVELS):
        return bool(np.exp(logs.mean()) < SLOW_LEVELS[count - 1])
    if count > len(SLOW_LEVELS) + 1:
        return bool(np.median(logs) < np.log1p(FLOOR))
    half = rough_half(float(logs.std(ddof=1) / np.sqrt(count)), count)
    return bool(logs.mean() + half < np.log1p(FLOOR))
