"""What does a run's jobs: here, each in a process of its own, in this process, or on a cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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
    """Run the GPU stage on the records in a folder, and leave there what it found."""

    folder: str


Job = ChainJob | GpuJob


def job_from_json(values: Mapping[str, Any]) -> Job:
    """Return the job that `dataclasses.asdict` gave."""
    return GpuJob(**values) if "folder" in values else ChainJob(**values)


@dataclass(frozen=True)
class Outcome:
    """How a job ended: well, or with an error that a row can show."""

    error: str = ""
    step_log: tuple[Mapping[str, Any], ...] = ()
    unsaved: str = ""
    """Why what a step made could not be saved; then the job went on to the end of its chain."""

    @property
    def ok(self) -> bool:
        return not self.error

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Outcome:
        return Outcome(values["error"], tuple(values["step_log"]), values["unsaved"])


class Executor(Protocol):
    """Does the work of a run's stages."""

    workers: int
    """How many chain jobs it takes at once."""
    about: str
    """How steps were isolated, in words."""

    def submit(self, job: ChainJob, name: str, alone: bool = False) -> None:
        """Start a job; `name` names its log; `alone`: nothing may run beside it."""

    def wait(self) -> list[tuple[ChainJob, Outcome]]:
        """Wait until at least one job has ended."""

    def collect_timings(
        self, request: TimingRequest, *, progress: Callable[[str], None], checkpoint: Path
    ) -> RawTimings:
        """Time files in turns, as `compress.timing.collect` does, with nothing beside it."""

    def run_gpu_stage(self, job: GpuJob) -> Outcome:
        """Run the GPU stage on the machine of the caller, and wait for it."""

    def close(self) -> None:
        """End whatever runs."""


ExecutorFactory = Callable[[Plan, RunSpec, Path, Path], Executor]
"""Makes a run's executor from its plan, its spec, its folder of logs and its scratch folder."""


class SequentialExecutor(ABC):
    """An executor of this machine that does one job at a time.

    Two beside each other, on as many cores as they have threads, took no less time together.
    """

    workers = 1
    collect_timings = staticmethod(collect)

    def __init__(self, about: str) -> None:
        self.about = about
        self._submitted: list[tuple[ChainJob, str]] = []

    def submit(self, job: ChainJob, name: str, alone: bool = False) -> None:
        self._submitted.append((job, name))

    def wait(self) -> list[tuple[ChainJob, Outcome]]:
        job, name = self._submitted.pop(0)
        return [(job, self.run(job, name))]

    def run_gpu_stage(self, job: GpuJob) -> Outcome:
        return self.run(job, "gpu")

    @abstractmethod
    def run(self, job: Job, name: str) -> Outcome:
        """Do a job; `name` names its log."""

    def close(self) -> None:  # noqa: B027 - nothing runs between two jobs
        """End whatever runs."""
