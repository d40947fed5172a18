"""What carries out a run's jobs: processes of this machine, this process itself, or a cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from compress.benchmark.execute.run_spec import RunSpec
from compress.benchmark.plan.plan import Plan
from compress.results.record import Key
from compress.timing.collect import TimingRequest
from compress.timing.raw_timings import RawTimings

OVER_BUDGET = "nothing was left of the budget"
"""In the reason of what a budget has ended."""


class Work(Protocol):
    """What jobs ask of the process that does them (`compress.benchmark.execute.job`)."""

    def advance(self, key: Key, until: int) -> None:
        """Bring a chain run as far as a node; to its end if that node cannot be stored."""

    def run_gpu_stage(self, folder: Path) -> None:
        """Run the GPU stage on the records in a folder, and leave the result there."""


@dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """What a process of its own does for a run. It is sent there, so it is plain data."""

    uses_cuda: ClassVar[bool] = False
    """Whether it uses CUDA even where the steps' device is the CPU."""
    shared: ClassVar[bool] = True
    """Whether all processes that share a step take part in it."""
    seconds: float | None = None
    """What is left of a budget: the job ends after so long, where its limit is longer."""

    @property
    def chains(self) -> tuple[str, ...]:
        """The rows that the plan must have for it."""
        return ()

    @abstractmethod
    def do(self, work: Work) -> None:
        """Have its part of the work done."""


@dataclass(frozen=True)
class ChainJob(Job):
    """Bring the chain run of a row (its text) and seed as far as a node (its number)."""

    chain: str
    seed: int
    until: int

    @property
    def key(self) -> Key:
        return self.chain, self.seed

    @property
    def chains(self) -> tuple[str, ...]:
        return (self.chain,)

    def do(self, work: Work) -> None:
        work.advance(self.key, self.until)


@dataclass(frozen=True)
class GpuJob(Job):
    """Run the GPU stage on the records in a folder, and leave the result there."""

    uses_cuda = True
    shared = False
    folder: str

    def do(self, work: Work) -> None:
        work.run_gpu_stage(Path(self.folder))


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


class Executor(Protocol):
    """Does the work of a run's stages; local processes and a Ray cluster both do."""

    workers: int
    """How many chain jobs it takes at once."""
    about: str
    """How steps are isolated, in words for the report."""

    @property
    def side_by_side(self) -> int:
        """How many of these are done at once, as far as is known; a cluster lets others wait."""

    def submit(self, job: ChainJob, name: str) -> None:
        """Start a job; `name` names its log."""

    def wait(self) -> list[tuple[ChainJob, Outcome]]:
        """Wait until at least one job has ended."""

    def run_gpu_stage(self, job: GpuJob) -> Outcome:
        """Run the GPU stage on the caller's machine, and wait for it."""

    def collect_timings(
        self, request: TimingRequest, *, progress: Callable[[str], None], checkpoint: Path
    ) -> RawTimings:
        """Time files in turns, as `compress.timing.collect` does, with nothing beside it."""

    def close(self) -> None:
        """End whatever runs."""


ExecutorFactory = Callable[[Plan, RunSpec, Path, Path], Executor]
"""Makes a run's executor from its plan, its spec, its folder of logs and its scratch folder."""
