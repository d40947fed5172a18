"""Collecting raw seconds: fresh processes one after another, until ratios are known well enough.

numpy and onnxruntime are all it needs, so that it runs where models are deployed.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import UserError
from compress.runtimes import runtime_named
from compress.stats.bootstrap import log_ratio, rough_half
from compress.system.amounts import decimal
from compress.system.environment import cpu_threads, environment
from compress.timing.checkpoint import Checkpoint, question
from compress.timing.launch import LOADING, RUNNING, Launch, WorkerFailed, launch
from compress.timing.raw_timings import (
    CONTROL,
    FLOOR,
    LEVELS,
    Launched,
    Measured,
    RawTimings,
    pairs,
    process_ratios,
    series_of,
)
from compress.timing.setting import DEFAULT, Setting, parse_setting

SLOW_LEVELS = (0.9, 0.97)
"""What a level must reach in the first process and in the first two to go on.

After the third its 95 % interval must reach `FLOOR`, after later ones its median: a level that
does not will hardly be the denominator, and its turns take time from the others.
"""
DEADLY = 2
"""Processes that die at one file before the others are timed without it."""
QUICK = 100
"""Resamples of the bootstrap that decides when to stop."""
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


@dataclass(frozen=True)
class TimingRequest:
    """Which files are timed against each other, on which inputs, and how.

    `samples` holds one array per input of the files, each of shape (M, ...), real and
    preprocessed; `expected` the verified logits of every file for them, (M, classes), from which
    the outputs of timed runs may deviate a little. `settings` are names as `parse_setting` reads
    them; `threads` are those of a setting that names none, by default all available cores.
    `runtime` names what runs the files (see `compress.runtimes`).
    """

    files: Mapping[str, Path]
    samples: Sequence[np.ndarray]
    expected: Mapping[str, np.ndarray]
    baseline: str
    settings: Sequence[str] = DEFAULT
    effort: Effort = Effort()
    threads: int | None = None
    runtime: str = ""
    seed: int = 0


def collect(
    request: TimingRequest,
    *,
    progress: Callable[[str], None] = lambda words: None,
    checkpoint: Path | None = None,
    launch: Launch = launch,
    clock: Callable[[], float] = time.perf_counter,
) -> RawTimings:
    """Time files in turns in fresh processes.

    A second copy of the baseline and the baseline at the runtime's other optimization levels take
    part, all other files at the default level. A file that fails gets an error, a process that
    crashes or hangs is a failure, and the others are still timed.

    The result of every process is appended to `checkpoint` at once, and what an earlier call with
    the same files, inputs, effort and machine has left there is used as if it were measured now.
    The caller removes that file once the result is stored. `progress` is called with how far it
    is, in words. Raises UserError for a request that cannot work.
    """
    _check(request)
    with tempfile.TemporaryDirectory(prefix="compress-timing-") as folder:
        run = _Run(Path(folder), request, launch)
        where = environment(run.all_threads)
        if request.runtime:
            where["runtime"] = dict(run.runtime.versions())
        book = Checkpoint(checkpoint, _question(request, where) if checkpoint else "")
        turns = run.resume(book.read())
        before = clock()
        while not run.enough(turns):
            for count in run.counts:
                progress(run.words)
                started = clock()
                part = run.start(count)
                if not part.failure:  # a failed one is tried again after a restart
                    book.add({**asdict(part), "seconds": clock() - started})
            turns.append(clock() - before)
            before = clock()
    return RawTimings(
        names=tuple(run.candidates),
        baseline=request.baseline,
        settings=tuple(setting.name for setting in run.settings),
        all_threads=run.all_threads,
        launched=tuple(run.launched),
        seconds=round(sum(turns), 3),
        environment=where,
    )


def _check(request: TimingRequest) -> None:
    if request.baseline not in request.files:
        raise UserError(f"the baseline {request.baseline!r} is not among the files to time")
    if request.effort.processes < 2 or not request.settings:
        raise UserError("timing needs at least two processes and one setting")
    counts = {len(array) for array in request.samples}
    if len(counts) != 1 or 0 in counts:
        raise UserError("timing needs samples, and the same number for every input")
    for name in request.files:
        if name not in request.expected or len(request.expected[name]) not in counts:
            raise UserError(f"timing needs the verified logits of {name!r} for every sample")


def _question(request: TimingRequest, where: Mapping[str, Any]) -> str:
    """Return a hash of everything that the seconds depend on."""
    other = {
        "effort": asdict(request.effort),
        "seed": request.seed,
        "of": request.runtime,
        "baseline": request.baseline,
        "where": where,
        "settings": list(request.settings),
    }
    return question(request.files, [*request.samples, *request.expected.values()], other)


class _Run:
    """The state of one collection: what is timed, and the results so far."""

    def __init__(self, folder: Path, request: TimingRequest, launch: Launch) -> None:
        self.folder, self.effort, self.seed = folder, request.effort, request.seed
        self.baseline, self.launch = request.baseline, launch
        self.settings = [parse_setting(name) for name in request.settings]
        self.runtime = runtime_named(request.runtime)
        self.all_threads = request.threads or cpu_threads()
        paths = {name: str(Path(path).resolve()) for name, path in request.files.items()}
        self.files = list(paths)
        self.candidates = {name: (path, "default") for name, path in paths.items()}
        self.candidates[CONTROL] = (paths[self.baseline], "default")
        self.candidates |= {
            name: (paths[self.baseline], level)
            for name, level in LEVELS.items()
            if level in self.runtime.levels
        }
        self.counts = list(dict.fromkeys(setting.threads for setting in self.settings))
        """The thread counts; a turn is one process of each."""
        self.dropped: dict[int, set[str]] = {count: set() for count in self.counts}
        """Thread count -> optimization levels that are too slow to be timed any further."""
        self.deaths: Counter[str] = Counter()
        """How many processes died while they opened a file or ran it for the first time."""
        self.launched: list[Launched] = []
        self.job: dict[str, Any] = {
            "paths": list(paths.values()),
            "runtime": request.runtime,
            "min_rounds": self.effort.min_rounds,
            "block_seconds": self.effort.block_seconds,
            "seconds": self.effort.seconds / (PLANNED * len(self.settings)),
            "samples": str(folder / "samples.npz"),
            "expected": str(folder / "expected.npz"),
        }
        np.savez(self.job["samples"], *request.samples)
        np.savez(self.job["expected"], *(request.expected[name] for name in paths))

    @property
    def words(self) -> str:
        """Which process comes next. (The display adds how long the timing has taken so far.)"""
        number, least = len(self.launched) + 1, len(self.counts) * self.effort.processes
        of = f" of at least {least}" if number <= least else ""
        # The least number comes first, so more seconds than these may pass.
        return f"process {number}{of}, budget {decimal(self.effort.seconds)} s"

    def enough(self, turns: Sequence[float]) -> bool:
        """Whether to stop, after turns of so many seconds."""
        lived = [part.threads for part in self.launched if not part.failure]
        least = self.effort.processes
        if min(map(lived.count, self.counts)) < least and len(turns) < 2 * least:
            return False
        return sum(turns) + max(turns) > self.effort.seconds or self.narrow()

    def resume(self, results: Sequence[Mapping[str, Any]]) -> list[float]:
        """Take the results of earlier processes, whole turns of them; return the turns' seconds."""
        lines = [[line for line in results if line["threads"] == count] for count in self.counts]
        turns = []
        for turn in zip(*lines, strict=False):
            for line in turn:
                self._take(Launched(line["threads"], line["settings"], line["failure"]))
            turns.append(sum(line["seconds"] for line in turn))
        return turns

    def start(self, threads: int) -> Launched:
        """Run one process with a thread count, take its result, and return that."""
        number = len(self.launched)
        deadly = {name for name, deaths in self.deaths.items() if deaths >= DEADLY}
        left_out = self.dropped[threads] | (deadly - {self.baseline, CONTROL})
        job = {
            **self.job,
            "candidates": {k: v for k, v in self.candidates.items() if k not in left_out},
            "threads": threads or self.all_threads,
            "batches": [s.batch for s in self.settings if s.threads == threads],
            "seed": self.seed * 1000 + number,
        }
        job_path, result_path = self.folder / f"job-{number}.json", self.folder / f"{number}.json"
        job_path.write_text(json.dumps(job))
        failure, settings = "", {}
        try:
            self.launch(job_path, result_path, 600 + 20 * self.effort.seconds)
            settings = json.loads(result_path.read_text())["settings"]
        except WorkerFailed as error:
            failure = f"process {number + 1}: {error}"
            for word in (LOADING, RUNNING):
                if error.last_line.startswith(word):
                    self.deaths[error.last_line.removeprefix(word)] += 1
        except (OSError, ValueError, KeyError) as error:
            failure = f"process {number + 1} left no readable result: {error}"
        part = Launched(threads, settings, failure)
        self._take(part)
        return part

    def _take(self, part: Launched) -> None:
        self.launched.append(part)
        if not part.failure:
            dropped = self.dropped[part.threads]
            levels = [name for name in LEVELS if name in self.candidates and name not in dropped]
            dropped |= {name for name in levels if self._slow(part.threads, name)}

    def _slow(self, threads: int, level: str) -> bool:
        """Whether a level is slow at every batch size, so that it need not be timed again."""
        for setting in (setting for setting in self.settings if setting.threads == threads):
            baseline = self._series(setting, self.baseline)
            ratios = process_ratios(baseline, self._series(setting, level))
            if ratios and not _is_slow(np.log(ratios)):
                return False
        return True

    def narrow(self) -> bool:
        """Whether every file's speed-up is known to the requested precision."""
        return all(
            self._narrow(setting, name)
            for setting in self.settings
            for name in (*self.files, CONTROL)
            if name != self.baseline
        )

    def _narrow(self, setting: Setting, name: str) -> bool:
        timed = pairs(self._series(setting, self.baseline), self._series(setting, name))
        if not timed:
            return True  # it has no speed-up, and more processes would give it none
        baseline, candidate = zip(*timed, strict=True)
        _, error, count = log_ratio(baseline, candidate, resamples=QUICK)
        return rough_half(error, count) <= self.effort.precision

    def _series(self, setting: Setting, name: str) -> list[Measured]:
        return series_of(self.launched, setting, name)


def _is_slow(logs: np.ndarray) -> bool:
    """Whether a level is too slow, by the logarithms of its speed-ups, one for each process."""
    count = len(logs)
    if count <= len(SLOW_LEVELS):
        return bool(np.exp(logs.mean()) < SLOW_LEVELS[count - 1])
    if count > len(SLOW_LEVELS) + 1:
        return bool(np.median(logs) < np.log1p(FLOOR))
    half = rough_half(float(logs.std(ddof=1) / np.sqrt(count)), count)
    return bool(logs.mean() + half < np.log1p(FLOOR))
