"""Jobs in processes of their own, one at a time, within limits: what a run's executor is here.

The processes are forked by a server that was spawned afresh and has torch and the data loaded. It
is not a fork of this process, whose threads (OpenMP's, autograd's, CUDA's) would not be alive in
it. Objects that a Python user gave go to it pickled, through a socket that only the two have.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cloudpickle
import torch

from compress.amounts import duration, size
from compress.bench.execute.fork_client import Server, ServerFailed, how, take
from compress.bench.execute.fork_server import end_group
from compress.bench.execute.job import Job, Outcome, Stores, perform, read_outcome, stores_of
from compress.bench.execute.limits import Limits, resident
from compress.bench.plan.keys import versions
from compress.bench.plan.plan import Plan
from compress.errors import UserError
from compress.system.environment import cpu_info

LOOK = 0.05
"""Seconds between two looks at what a job takes."""
LAST_WORDS = 3.0
"""Seconds that an overrunning process has to write where it hangs."""
TAIL = 4000
"""Characters of its log that stand in the row of a job that left no result."""
STARTING = 600.0
OURS = re.compile(r"\d{4}-\d\d-\d\dT\S+ (begin|kept) ")
"""Lines of a log that jobs write themselves."""


@dataclass(frozen=True)
class Site:
    """Where a run's jobs find and leave things.

    `recipe` (JSON) is what another process makes the plan from, and where both stores are; `plan`
    is there in the process that has made it.
    """

    recipe: dict[str, Any]
    logs: Path
    scratch: Path
    plan: Plan | None = None
    objects: bytes = b""
    """What the plan refers to by no name (data, modules, a metric), for our own child alone."""

    @property
    def given(self) -> bool:
        """Whether the plan refers to objects that only this process has."""
        return self.plan is not None and self.plan.given

    @property
    def device(self) -> str:
        return str(self.recipe["device"])

    @property
    def step_threads(self) -> int:
        return int(self.recipe["step_threads"])

    @property
    def progress(self) -> bool:
        return bool(self.recipe["progress"])

    @property
    def stores(self) -> Stores:
        return stores_of(self.recipe)


def recipe_of(
    plan: Plan,
    setting: str,
    shared: str | Path,
    private: Path,
    progress: bool,
    data_root: Path | None,
    since: float = 0.0,
) -> dict[str, Any]:
    """Return what another process makes the same plan from: names, no objects.

    `setting` is that of the plan's graph.
    """
    return {
        # The precision as it was chosen here: to ask a GPU would start CUDA in the server.
        "suite": {**asdict(plan.suite), "precision": plan.precision},
        # Workers on other machines have another current folder.
        "data_root": None if data_root is None else str(data_root.expanduser().resolve()),
        "tune": plan.tune,
        "device": plan.device.type,
        "allow_code": [str(path.expanduser().resolve()) for path in plan.allow_code],
        "step_threads": plan.step_threads,
        "threads": plan.threads,
        "cpu": cpu_info(),
        "setting": setting,
        "versions": versions(),
        "fingerprint": plan.data.fingerprint,
        "transfers": {name: found.fingerprint for name, found in plan.transfers.items()},
        "shared": str(shared),
        "private": str(private),
        "since": since,
        "progress": progress,
    }


class Inside:
    """An executor without isolation: jobs run in this process."""

    workers = 1

    def __init__(self, site: Site, reason: str) -> None:
        self.site, self.about = site, f"steps ran in the caller's process: {reason}"
        self._done: list[tuple[Job, Outcome]] = []

    def submit(self, job: Job, name: str, alone: bool = False) -> None:
        plan, site = self.site.plan, self.site
        assert plan is not None, "without a process of its own a job needs the plan of this one"
        before = torch.get_num_threads()
        torch.set_num_threads(plan.step_threads)
        try:
            self._done.append((job, perform(job, plan, site.stores, site.progress)))
        finally:
            torch.set_num_threads(before)

    def wait(self) -> list[tuple[Job, Outcome]]:
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        pass


class Isolated:
    """An executor that runs every job in a process of its own, one at a time.

    Two beside each other, on as many cores as they have threads, took no less time together.
    """

    workers = 1

    def __init__(self, site: Site, limits: Limits) -> None:
        self.site, self.limits = site, limits
        self.memory = limits.bytes()
        self.about = (
            f"every step ran in a process of its own; limits: {duration(limits.seconds)} and "
            f"{size(self.memory)} of memory"
        )
        self.server: Server | None = None
        self.running: dict[int, _Running] = {}
        self.number = 0

    def submit(self, job: Job, name: str, alone: bool = False) -> None:
        """Start a job. `name` names its log."""
        self.number += 1
        self.site.logs.mkdir(parents=True, exist_ok=True)
        log = self.site.logs / f"{name}.log"
        scratch = Path(tempfile.mkdtemp(dir=self.site.scratch, prefix=f"job{self.number}-"))
        asked = {
            "job": self.number,
            "what": job.to_json(),
            "log": str(log.resolve()),
            "scratch": str(scratch.resolve()),
            "memory": None if uses_cuda(job, self.site.device) else self.memory,
        }
        began = log.stat().st_size if log.exists() else 0
        self.running[self.number] = _Running(job, log, began, scratch, time.monotonic())
        try:
            if self.server is None:
                self.server = _served(self.site)
                self.running[self.number].started = time.monotonic()
            self.server.send(asked)
        except ServerFailed as error:
            self.running[self.number].lost = str(error)

    def wait(self) -> list[tuple[Job, Outcome]]:
        """Wait for a job, watch over the limits of all, and return how those that ended did."""
        assert self.running, "nothing was submitted"
        ended: list[tuple[Job, Outcome]] = []
        while not ended:
            for number, running in list(self.running.items()):
                if running.lost:
                    ended.append((running.job, Outcome(f"ServerFailed: {running.lost}")))
                    self._forget(number)
            if ended:
                self._restart()  # with the server all its children are gone
                break
            ended += self._heard()
            for running in self.running.values():
                if running.pid and not running.overrun:
                    running.overrun = self._overrun(running)
                    if running.overrun:
                        _end(running.pid)
        return ended

    def _heard(self) -> list[tuple[Job, Outcome]]:
        """Listen to the server for a moment; return the jobs that it says have ended."""
        assert self.server is not None, "what was submitted has a server"
        try:
            message = self.server.receive(LOOK)
        except ServerFailed as error:
            for running in self.running.values():
                running.lost = str(error)
            return []
        if message is None or message["job"] not in self.running:
            return []
        running = self.running[message["job"]]
        running.pid = message.get("pid", running.pid)
        if "status" not in message:
            return []
        outcome = self._outcome(running, message["status"])
        running.pid = 0  # the server has ended what was left of its group
        self._forget(message["job"])
        return [(running.job, outcome)]

    def _forget(self, number: int) -> None:
        running = self.running.pop(number)
        if running.pid:
            end_group(running.pid)
        shutil.rmtree(running.scratch, ignore_errors=True)

    def _overrun(self, running: _Running) -> str:
        """Return what a job has too much of, in words; '' if nothing."""
        seconds = time.monotonic() - running.started
        if seconds > self.limits.seconds:
            return (
                f"it took more than {duration(self.limits.seconds)} and was ended; "
                f"a longer time is had with --step-timeout"
            )
        if (held := resident(running.pid)) > self.memory:
            return (
                f"it held {size(held)} of memory, more than the {size(self.memory)} that it may, "
                f"and was ended; --step-memory sets the limit"
            )
        return ""

    def _outcome(self, running: _Running, status: int) -> Outcome:
        overrun = running.overrun
        said = read_outcome(running.scratch)
        if said is not None and not overrun:
            return said
        tail = _tail(running.log, running.began)
        step_log = ({"kind": "log", "text": tail[-TAIL:]},) if tail else ()
        if overrun:
            return Outcome(f"StepEnded: {overrun}", step_log)
        lost = "" if os.WIFSIGNALED(status) else " and left no result"
        ended = f"the process was ended: {how(status)}{lost}{_last_words(tail)}"
        return Outcome(f"StepEnded: {ended}", step_log)

    def _restart(self) -> None:
        if self.server is not None:
            self.server.close()
        self.server = None

    def close(self) -> None:
        """End what runs, and the server; also when the run is stopped."""
        for number in list(self.running):
            self._forget(number)
        self._restart()


def uses_cuda(job: Job, device: str) -> bool:
    """Whether a job uses CUDA, which maps far more memory than it takes: no rlimit suits it.

    The GPU stage does, whatever device the steps compute on. What such a job holds is still
    watched from outside.
    """
    return job.kind == "gpu" or device == "cuda"


@dataclass
class _Running:
    job: Job
    log: Path
    began: int
    """Where in the log this job's part begins."""
    scratch: Path
    started: float
    pid: int = 0
    overrun: str = ""
    lost: str = ""
    """How the server died that this job was given to."""


def _served(site: Site) -> Server:
    """Take a server that was started afresh, and have it make the same plan."""
    server = take()
    objects = site.objects
    # Where this process finds plug-ins and the classes of objects, that one must find them too.
    paths = [path for path in sys.path if path]
    server.send({**site.recipe, "objects": bool(objects), "paths": paths}, objects)
    answer = server.receive(STARTING)
    if answer is None or "ready" not in answer:
        server.close()
        said = "it did not answer" if answer is None else answer["failed"]
        raise UserError(f"the process that starts the steps could not make the plan: {said}")
    return server


def _end(pid: int) -> None:
    """End a process group; its main process first writes its stack to its log."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGABRT)  # faulthandler answers
    until = time.monotonic() + LAST_WORDS
    while time.monotonic() < until and os.path.exists(f"/proc/{pid}/exe"):
        time.sleep(LOOK)
    end_group(pid)


def _last_words(tail: str) -> str:
    lines = [line.strip() for line in tail.splitlines() if line.strip() and not OURS.match(line)]
    told = next((line for line in lines if line.startswith("Fatal Python error")), "")
    said = told or (lines[-1] if lines else "")
    return f"; its log says: {said[:300]}" if said else ""


def _tail(log: Path, began: int) -> str:
    """Return the end of what a job has written to its log."""
    try:
        with open(log, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(began, end - 16 * TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    # faulthandler ends with the names of hundreds of modules, on one line.
    kept = [line for line in text.splitlines() if not line.startswith("Extension modules:")]
    return "\n".join(kept)


def executor_for(site: Site, limits: Limits) -> Isolated | Inside:
    """Return the executor for this machine; one without isolation says why."""
    if not hasattr(os, "fork"):
        return Inside(site, "this system cannot fork")
    if site.plan is None or not site.plan.given:
        return Isolated(site, limits)
    plan = site.plan
    given = {
        "data": plan.data,
        "model": plan.instance,
        "teachers": plan.own_teachers,
        # One of a file is found again by its name.
        "metric": plan.metric.function if plan.metric and plan.metric.file is None else None,
    }
    try:
        objects = cloudpickle.dumps(given)
    except Exception as error:  # somebody's object: anything may be raised
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        return Inside(site, f"what was given cannot be handed to another process ({reason})")
    return Isolated(replace(site, objects=objects), limits)
