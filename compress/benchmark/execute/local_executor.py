"""Jobs in processes of their own, one at a time, within limits; or in this one, where they must be.

The processes are forked by a server that was spawned afresh and has torch and the data loaded. It
is not a fork of this process, whose threads (OpenMP's, autograd's, CUDA's) would not be alive in
it. Objects that a Python user passed go to it pickled, through a connection that only the two have.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import shutil
import signal
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import psutil
import torch

from compress.benchmark.execute.executor import (
    OVER_BUDGET,
    ChainJob,
    Executor,
    GpuJob,
    Job,
    Outcome,
)
from compress.benchmark.execute.fork_client import ForkServer, ServerFailed
from compress.benchmark.execute.fork_server import end_group
from compress.benchmark.execute.job import perform, read_outcome
from compress.benchmark.execute.run_spec import RunSpec, given_objects
from compress.benchmark.plan.plan import Plan
from compress.system.amounts import duration, size
from compress.system.memory import resident
from compress.system.progress import STAGES, Follower, stage
from compress.timing.collect import TimingRequest, collect
from compress.timing.raw_timings import RawTimings

LOOK = 0.05
"""Seconds between two looks at what a job takes."""
LAST_WORDS = 3.0
"""Seconds that an overrunning process has to write where it hangs."""
TAIL = 4000
"""Characters of its log that stand in the row of a job that left no result."""
EVENT = re.compile(r"\d{4}-\d\d-\d\dT\S+ (begin|kept) ")
"""Lines of a log that jobs write themselves (`print_event`)."""

NO_OBJECTS = pickle.dumps({})


class SequentialExecutor(ABC):
    """An executor that does one job after another, on this machine.

    Two beside each other, on as many cores as they have threads, took no less time together.
    """

    workers = side_by_side = 1

    def __init__(self, spec: RunSpec, about: str) -> None:
        self.spec, self.about = spec, about
        self.queue: list[tuple[ChainJob, str]] = []

    @abstractmethod
    def run(self, job: Job, name: str) -> Outcome:
        """Do a job at once."""

    def submit(self, job: ChainJob, name: str) -> None:
        """Put a job in the queue."""
        self.queue.append((job, name))

    def wait(self) -> list[tuple[ChainJob, Outcome]]:
        """Do the next job."""
        job, name = self.queue.pop(0)
        return [(job, self.run(job, name))]

    def run_gpu_stage(self, job: GpuJob) -> Outcome:
        """Run the GPU stage at once."""
        return self.run(job, "gpu")

    def collect_timings(
        self, request: TimingRequest, *, progress: Callable[[str], None], checkpoint: Path
    ) -> RawTimings:
        """Time files in turns."""
        return collect(request, progress=progress, checkpoint=checkpoint)

    def close(self) -> None:
        """Forget what is in the queue."""
        self.queue.clear()


class InProcessExecutor(SequentialExecutor):
    """An executor without isolation: jobs run in this process."""

    def __init__(self, plan: Plan, spec: RunSpec, reason: str) -> None:
        super().__init__(spec, f"steps ran in the caller's process: {reason}")
        self.plan = plan

    def run(self, job: Job, name: str) -> Outcome:
        before = torch.get_num_threads()
        torch.set_num_threads(self.plan.step_threads)
        try:
            return perform(job, self.plan, self.spec.stores, self.spec.progress)
        finally:
            torch.set_num_threads(before)


class LocalExecutor(SequentialExecutor):
    """An executor that runs every job in a process of its own."""

    def __init__(
        self, spec: RunSpec, logs: Path, scratch: Path, objects: bytes = NO_OBJECTS
    ) -> None:
        self.logs, self.scratch, self.objects = logs, scratch, objects
        self.seconds, self.memory = spec.limits.seconds, spec.limits.bytes()
        super().__init__(
            spec,
            f"every step ran in a process of its own; limits: {duration(self.seconds)} and "
            f"{size(self.memory)} of memory",
        )
        self.server: ForkServer | None = None

    def run(self, job: Job, name: str) -> Outcome:
        """Do a job in a fresh process, watch over its limits, and report how it ended."""
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{name}.log"
        start = log.stat().st_size if log.exists() else 0
        scratch = Path(tempfile.mkdtemp(dir=self.scratch, prefix="job-"))
        try:
            status, overrun = self._watch(job, log, scratch)
            outcome = read_outcome(scratch)
        except ServerFailed as error:
            return Outcome(f"ServerFailed: {error}")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if outcome is not None and not overrun:
            return outcome
        tail = _tail(log, start)
        reason = overrun or f"the process was ended: {_describe(status)}{_last_words(tail)}"
        step_log = ({"kind": "log", "text": tail[-TAIL:]},) if tail else ()
        return Outcome(f"StepEnded: {reason}", step_log)

    def _watch(self, job: Job, log: Path, scratch: Path) -> tuple[int, str]:
        """Return the exit status of a job's process, and which limit it exceeded; '' if none.

        Raises ServerFailed if the server died; then the job's process is gone too.
        """
        pid, overrun = 0, ""
        follower = Follower(scratch / STAGES, "job")
        try:
            server = self.server = self.server or self._start_server()
            started = time.monotonic()
            # What uses CUDA maps far more than it takes: no limit on its allocations suits it.
            cuda = job.uses_cuda or self.spec.device == "cuda"
            server.send(
                {
                    "job": job,
                    "log": log.resolve(),
                    "scratch": scratch.resolve(),
                    "memory": None if cuda else self.memory,
                    "ranks": self.spec.ranks if job.shared else 1,
                }
            )
            while (message := server.receive(LOOK)) is None or "status" not in message:
                follower.look()
                pid = pid if message is None else message["pid"]
                if pid and not overrun and (overrun := self._overrun(job, pid, started)):
                    _end(pid)
            return message["status"], overrun
        except BaseException:  # Ctrl-C too
            if pid:
                end_group(pid)  # a server that died has left it
            self.close()
            raise
        finally:
            follower.close()

    def _start_server(self) -> ForkServer:
        # It must find plug-ins and the classes of objects where this process finds them.
        paths = [path for path in sys.path if path]
        with stage("starting the process that runs the steps"):
            return ForkServer((self.spec, paths), self.objects)

    def _overrun(self, job: Job, pid: int, started: float) -> str:
        taken, left = time.monotonic() - started, job.seconds
        if left is not None and left < self.seconds and taken > left:
            return f"{OVER_BUDGET}: it was ended after {duration(left)}"
        if taken > self.seconds:
            return (
                f"it took more than {duration(self.seconds)} and was ended: "
                f"raise the limit with --step-timeout"
            )
        if (held := resident(pid, shared_once=self.spec.ranks > 1)) > self.memory:
            return (
                f"it held {size(held)} of memory, more than the {size(self.memory)} that it may, "
                f"and was ended: raise the limit with --step-memory"
            )
        return ""

    def close(self) -> None:
        """End what runs, and the server; also when the run is stopped."""
        super().close()
        if self.server is not None:
            self.server.close()
        self.server = None


def _end(pid: int) -> None:
    """End a process group; its main process first writes its stack to its log."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        process.send_signal(signal.SIGABRT)  # faulthandler answers
        process.wait(LAST_WORDS)
    end_group(pid)


def _describe(status: int) -> str:
    """Describe the exit status of a process, or minus the signal that ended it."""
    if status >= 0:
        return f"exit status {status} and left no result"
    name = {number.value: number.name for number in signal.Signals}.get(-status, "unknown")
    why = ", which is how the kernel ends a process when memory runs out"
    return f"killed by signal {-status} ({name}{why if name == 'SIGKILL' else ''})"


def _last_words(tail: str) -> str:
    lines = [line.strip() for line in tail.splitlines() if line.strip() and not EVENT.match(line)]
    crash = next((line for line in lines if line.startswith("Fatal Python error")), "")
    line = crash or (lines[-1] if lines else "")
    return f"; its log says: {line[:300]}" if line else ""


def _tail(log: Path, start: int) -> str:
    """Return the end of what a job has written to its log."""
    try:
        with open(log, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - 16 * TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    # faulthandler ends with the names of hundreds of modules, on one line.
    lines = [line for line in text.splitlines() if not line.startswith("Extension modules:")]
    return "\n".join(lines)


def handed_over(plan: Plan) -> tuple[bytes, str]:
    """Return a plan's objects for other processes, and why none can have them, '' if they can."""
    if not hasattr(os, "fork"):
        return NO_OBJECTS, "this system cannot fork"
    if not plan.given:
        return NO_OBJECTS, ""
    try:
        return cloudpickle.dumps(given_objects(plan)), ""
    except Exception as error:  # a foreign object: anything may be raised
        cause = f"{type(error).__name__}: {error}".partition("\n")[0]
        why = f"an object that was passed cannot be handed to another process ({cause})"
        return NO_OBJECTS, why


def local_executor(plan: Plan, spec: RunSpec, logs: Path, scratch: Path) -> Executor:
    """Return the executor for this machine; one without isolation says why."""
    objects, why_not = handed_over(plan)
    if why_not:
        return InProcessExecutor(plan, spec, why_not)
    return LocalExecutor(spec, logs, scratch, objects)
