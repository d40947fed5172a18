"""What carries out a run's jobs: processes of this machine, this process itself, or a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.benchmark.execute.run_spec import RunSpec
from compress.benchmark.plan.plan import Plan
from compress.results.record import Key
from compress.timing.collect import TimingRequest, collect
from compress.timing.raw_timings import RawTimings


@dataclass(frozen=True)
class ChainJob:
    """Bring the chain run of a row (its text) and seed as far as a node (its number)."""

    chain: str
    seed: int
    until: int

    @property
    def key(self) -> Key:
        return self.chain, self.seed


@dataclass(frozen=True)
class GpuJob:
    """Run the GPU stage on the records in a folder, and leave the result there."""

    folder: str


Job = ChainJob | GpuJob


@dataclass(frozen=True)
class Outcome:
    """How a job ended: well, or with an error that a row can show."""

    error: str = ""
    step_log: tuple[Mapping[str, Any], ...] = ()
    unsaved: str = ""
    """Why a step's result could not be saved; the job then went on to the end of its chain."""

    @property
    def ok(self) -> bool:
        return not self.error


class Executor:
    """Does the work of a run's stages: this one does one job after another, on this machine.

    Two beside each other, on as many cores as they have threads, took no less time together.
    """

    workers = 1
    """How many chain jobs it takes at once."""

    def __init__(self, spec: RunSpec, about: str) -> None:
        """`about` describes how steps are isolated."""
        self.spec, self.about = spec, about
        self.queue: list[tuple[ChainJob, str]] = []

    def submit(self, job: ChainJob, name: str) -> None:
        """Start a job; `name` names its log."""
        self.queue.append((job, name))

    def wait(self) -> list[tuple[ChainJob, Outcome]]:
        """Wait until at least one job has ended."""
        job, name = self.queue.pop(0)
        return [(job, self.run(job, name))]

    def run(self, job: Job, name: str) -> Outcome:
        """Do a job at once."""
        raise NotImplementedError

    def run_gpu_stage(self, job: GpuJob) -> Outcome:
        """Run the GPU stage on the caller's machine, and wait for it."""
        return self.run(job, "gpu")

    def collect_timings(
        self, request: TimingRequest, *, progress: Callable[[str], None], checkpoint: Path
    ) -> RawTimings:
        """Time files in turns, as `compress.timing.collect` does, with nothing beside it."""
        return collect(request, progress=progress, checkpoint=checkpoint)

    def close(self) -> None:
        """End whatever runs."""


ExecutorFactory = Callable[[Plan, RunSpec, Path, Path], Executor]
"""Makes a run's executor from its plan, its spec, its folder of logs and its scratch folder."""
