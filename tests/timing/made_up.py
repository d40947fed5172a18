"""A timing process that makes up its seconds: what is true is known, and no clock is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compress.timing.collect import Effort, TimingRequest, collect
from compress.timing.raw_timings import RawTimings
from compress.timing.summary import Timings, summarise

SAMPLES = [np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)]
SECONDS = {"base": 0.004, "same": 0.004, "fast": 0.001}


@dataclass
class Machine:
    """`seconds` per item and candidate, times noise: of the moment, of the round, of the process.

    `levels` are the speed-ups of the baseline at onnxruntime's other optimization levels.
    """

    seconds: Mapping[str, float]
    noise: float = 0.02
    between: float = 0.003
    errors: Mapping[str, str] = field(default_factory=dict)
    levels: Mapping[str, float] = field(
        default_factory=lambda: {"disabled": 0.5, "basic": 0.97, "extended": 0.99}
    )
    rounds: int = 30
    jobs: list[dict[str, Any]] = field(default_factory=list)
    now: float = 0.0

    def clock(self) -> float:
        return self.now

    def launch(self, job_path: Path, result_path: Path, timeout: float) -> None:
        job = json.loads(job_path.read_text())
        self.jobs.append({**job, "timeout": timeout})
        self.now += 0.3 + job["seconds"] * len(job["batches"])
        generator = np.random.default_rng([job["seed"], job["threads"]])
        settings = {}
        for batch in job["batches"]:
            shared = np.exp(generator.normal(0, 0.5, self.rounds))
            settings[str(batch)] = {
                name: self._series(name, place, batch * shared, generator)
                for name, place in job["candidates"].items()
            }
        result_path.write_text(json.dumps({"settings": settings}))

    def _series(
        self, name: str, place: list[str], shared: np.ndarray, generator: np.random.Generator
    ) -> dict[str, Any]:
        path, level = place
        file = Path(path).name
        own = generator.normal(generator.normal(0, self.between), self.noise, self.rounds)
        medians = (self.seconds[file] / self.levels.get(level, 1) * shared * np.exp(own)).tolist()
        calls = [[value, value] for value in medians]
        return {"error": self.errors.get(name, ""), "medians": medians, "calls": calls}


def raw_timings(
    machine: Machine,
    launch: Callable[..., None] | None = None,
    progress: Callable[[str], None] = lambda words: None,
    **options: Any,
) -> RawTimings:
    names = list(machine.seconds)
    values: dict[str, Any] = {
        "effort": Effort(seconds=20),
        "threads": 2,
        "settings": ("cpu", "cpu1"),
        **options,
    }
    request = TimingRequest(
        {name: Path(name) for name in names},
        SAMPLES,
        dict.fromkeys(names, SAMPLES[0]),
        baseline="base",
        **values,
    )
    launch = launch or machine.launch
    return collect(request, progress=progress, launch=launch, clock=machine.clock)


def timed(machine: Machine, **options: Any) -> Timings:
    return summarise(raw_timings(machine, **options))
