"""Gathering raw seconds: fresh processes one after another, until it is known well enough.

numpy and onnxruntime are all it needs, so that it runs where models are deployed.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import UserError
from compress.timing.bootstrap import T_975, log_ratio
from compress.timing.environment import cpu_threads, environment
from compress.timing.launch import Launch, WorkerFailed, launch
from compress.timing.setting import Setting, parse_setting

CONTROL = "(control)"
"""A second copy of the baseline. No chain's text begins with a parenthesis."""
LEVELS = {f"(level {name})": name for name in ("disabled", "basic", "extended")}
"""The baseline at onnxruntime's other optimization levels."""
SLOW_LEVEL = 0.9
"""A level that is slower than this in the first process is not the fastest: it is left out."""
QUICK = 100
"""Resamples that tell when to stop."""
PLANNED = 8
"""Processes for every number of threads that share the budget; starting them costs some of it."""


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
    block_seconds: float = 0.001
    timeout: float | None = None
    """Seconds for one process."""


@dataclass(frozen=True)
class Launched:
    """What one process found: batch (as text) -> candidate -> its series; or why nothing."""

    threads: int
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failure: str = ""


@dataclass(frozen=True)
class Gathered:
    """All raw seconds of one machine. `threads` 0 of a setting stand for `all_threads`."""

    names: tuple[str, ...]
    baseline: str
    settings: tuple[str, ...]
    all_threads: int
    launched: tuple[Launched, ...]
    seconds: float
    environment: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Gathered:
        """Read what `to_json` gave. Raises KeyError, TypeError or ValueError for other content."""
        return Gathered(
            names=tuple(map(str, values["names"])),
            baseline=str(values["baseline"]),
            settings=tuple(parse_setting(name).name for name in values["settings"]),
            all_threads=int(values["all_threads"]),
            launched=tuple(Launched(**part) for part in values["launched"]),
            seconds=float(values["seconds"]),
            environment=dict(values["environment"]),
        )

    def series(self, setting: str, name: str) -> list[Mapping[str, Any] | None]:
        """Return a candidate's series, one per process that timed the setting (None: not it)."""
        wanted = parse_setting(setting)
        return [
            part.settings[str(wanted.batch)].get(name)
            for part in self.launched
            if part.threads == wanted.threads and not part.failure
        ]

    def failures(self, setting: str) -> tuple[str, ...]:
        threads = parse_setting(setting).threads
        return tuple(p.failure for p in self.launched if p.threads == threads and p.failure)


def gather(
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
    launch: Launch = launch,
    clock: Callable[[], float] = time.perf_counter,
) -> Gathered:
    """Time files in turns in fresh processes; arguments as in `compress.timing.measure`.

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
        started = clock()
        longest = 0.0
        while True:
            before = clock()
            for count in dict.fromkeys(setting.threads for setting in wanted):
                if progress:
                    _say(run, clock() - started)
                run.start(count)
            longest = max(longest, clock() - before)
            spent = clock() - started
            enough = run.number >= effort.processes or run.attempts >= 2 * effort.processes
            if enough and (spent + longest > effort.seconds or run.narrow()):
                break
    return Gathered(
        names=tuple(run.candidates),
        baseline=baseline,
        settings=tuple(setting.name for setting in wanted),
        all_threads=all_threads,
        launched=tuple(run.launched),
        seconds=round(spent, 3),
        environment=environment(all_threads),
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
    def number(self) -> int:
        """How many processes of every thread count gave a result."""
        counts = {setting.threads for setting in self.settings}
        lived = [part.threads for part in self.launched if not part.failure]
        return min(lived.count(count) for count in counts)

    @property
    def attempts(self) -> int:
        """How many processes every thread count has had, those that died included."""
        return len(self.launched) // len({setting.threads for setting in self.settings})

    def save(self, samples: Sequence[np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
        self.job["samples"] = str(self.folder / "samples.npz")
        self.job["expected"] = str(self.folder / "expected.npz")
        inputs: dict[str, Any] = {f"input_{i}": array for i, array in enumerate(samples)}
        logits: dict[str, Any] = {
            str(i): expected[self.names_of[path]] for i, path in enumerate(self.paths)
        }
        np.savez(self.job["samples"], **inputs)
        np.savez(self.job["expected"], **logits)

    def start(self, threads: int) -> None:
        """Run one process with a thread count, and keep what it found."""
        number = len(self.launched)
        left_out = self.dropped.get(threads, set())
        job = {
            **self.job,
            "candidates": {k: v for k, v in self.candidates.items() if k not in left_out},
            "threads": threads or self.all_threads,
            "batches": [s.batch for s in self.settings if s.threads == threads],
            "seed": self.seed * 1000 + number,
        }
        part = replace(self._repeat(job, number), threads=threads)
        self.launched.append(part)
        if threads not in self.dropped and not part.failure:
            self.dropped[threads] = {name for name in LEVELS if self._slow(part, name)}

    def _repeat(self, job: dict[str, Any], number: int) -> Launched:
        job_path, result_path = self.folder / f"job-{number}.json", self.folder / f"{number}.json"
        job_path.write_text(json.dumps(job))
        effort = self.effort
        try:
            self.launch(job_path, result_path, effort.timeout or 600 + 20 * effort.seconds)
            return Launched(0, json.loads(result_path.read_text())["settings"])
        except WorkerFailed as error:
            return Launched(0, failure=f"process {number + 1}: {error}")
        except (OSError, ValueError, KeyError) as error:
            return Launched(0, failure=f"process {number + 1} left no readable result: {error}")

    def _slow(self, part: Launched, level: str) -> bool:
        """Whether a level is slow at every batch size, so that it need not be timed again."""
        return all(
            ratio is None or ratio < SLOW_LEVEL
            for ratio in (
                process_ratio(found.get(self.baseline), found.get(level))
                for found in part.settings.values()
            )
        )

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
            if not f[self.baseline]["error"] and not f[name]["error"]
        ]
        if not pairs:
            return True  # it has no speed-up, and more processes would give it none
        before, after = [b for b, _ in pairs], [c for _, c in pairs]
        _, error, count = log_ratio(before, after, resamples=QUICK)
        return T_975[min(count - 1, len(T_975)) - 1] * error <= self.effort.precision


def process_ratio(
    baseline: Mapping[str, Any] | None, candidate: Mapping[str, Any] | None
) -> float | None:
    """Return one process's speed-up, the median of ratios within rounds; None if either failed."""
    if baseline is None or candidate is None or baseline["error"] or candidate["error"]:
        return None
    return float(np.median(np.array(baseline["medians"]) / np.array(candidate["medians"])))
