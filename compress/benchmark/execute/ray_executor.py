"""A run's jobs on a Ray cluster that is already there: `--executor ray` or `ray:ADDRESS`.

Steps that train run side by side, as many as the cluster has CPUs and GPUs for. Timing asks for
all CPUs and GPUs of one node, since Ray's resources are logical, so that nothing runs beside it.
Results go through the run's store, which all nodes must reach. On a node each job runs in a
process of its own, as it does without a cluster.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from compress.benchmark.execute.executor import (
    ChainJob,
    ExecutorFactory,
    GpuJob,
    Outcome,
    job_from_json,
)
from compress.benchmark.execute.local_executor import LocalExecutor, local_executor
from compress.benchmark.execute.run_spec import RunSpec
from compress.benchmark.plan.plan import Plan
from compress.errors import UserError, unknown
from compress.system.files import digest
from compress.system.progress import Event, hand_on, listening, stage
from compress.timing.collect import TimingRequest, collect
from compress.timing.launch import WorkerFailed
from compress.timing.raw_timings import RawTimings

RETRIES = 3
"""How often a job is given to another worker after one was lost."""
MANY = 10_000
LOOK, PATIENCE = 1.0, 10.0
"""Seconds between two looks at what the workers say, and for which an answer is waited."""
LOG = 1 << 16
"""Bytes of a job's log that come back from another machine."""


def executor_named(name: str) -> ExecutorFactory:
    """Return what makes the executor of a name: `local`, `ray` or `ray:ADDRESS`."""
    kind, _, address = name.partition(":")
    if kind == "local" and not address:
        return local_executor
    if kind != "ray":
        raise unknown("executor", name, ["local", "ray", "ray:ADDRESS"])
    _ray()
    return functools.partial(RayExecutor, address=address or "auto")


def _ray() -> Any:
    # Ray reports on its use over the network unless told not to.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError:
        raise UserError(
            "executor ray needs Ray, which is not installed: pip install 'compress-models[cluster]'"
        ) from None
    return ray


class RayExecutor:
    """An executor whose chain jobs are tasks on a Ray cluster."""

    workers = MANY

    def __init__(
        self, plan: Plan, spec: RunSpec, logs: Path, scratch: Path, address: str = "auto"
    ) -> None:
        if plan.given:
            raise UserError(
                "data, a module or a metric was given as an object, which other machines do not "
                "have: name them (arrays:PATH, FILE.py:FACTORY), or use the local executor"
            )
        self.spec, self.logs, self.ray = spec, logs, _ray()
        self.here = functools.partial(local_executor, plan, spec, logs, scratch)
        self.ours = not self.ray.is_initialized()
        if self.ours:
            try:
                self.ray.init(address=address, log_to_driver=False, logging_level="warning")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UserError(
                    f"there is no Ray cluster at {address!r}: {error}. Start one with "
                    f"`ray start --head`"
                ) from error
        self.pending: dict[Any, tuple[ChainJob, str]] = {}
        self._check_size()
        # Where nobody looks, workers say nothing.
        self.board = self.ray.remote(_Board).options(num_cpus=0).remote() if spec.progress else None
        self.about = (
            f"steps ran on a Ray cluster of {len(self._nodes())} nodes, each in a process of its "
            f"own; all files were timed together on one node, with nothing beside them, and "
            f"those on a GPU on the machine that started the run"
        )

    def _check_size(self) -> None:
        """Refuse what no node can ever run: Ray would wait for such a node for ever."""
        gpu = 1 if self.spec.device == "cuda" else 0
        found = [node["Resources"] for node in self._nodes()]
        most = max((resources["CPU"] for resources in found), default=0)
        if not any(
            resources["CPU"] >= self.spec.step_threads and resources.get("GPU", 0) >= gpu
            for resources in found
        ):
            self.close()
            raise UserError(
                f"no node of the Ray cluster has {self.spec.step_threads} CPUs"
                f"{' and a GPU' if gpu else ''} for a step; the largest has {most:.0f} CPUs: "
                f"say --step-threads {max(1, int(most))} or less"
                f"{', or --device cpu' if gpu else ''}"
            )

    def submit(self, job: ChainJob, name: str, alone: bool = False) -> None:
        """Give a job to the cluster; `alone` asks for a whole node."""
        asked: dict[str, Any] = {"max_retries": RETRIES}
        if alone:
            asked |= self._whole_node()
        else:
            gpu = 1 if self.spec.device == "cuda" else 0
            asked |= {"num_cpus": self.spec.step_threads, "num_gpus": gpu}
        task = self.ray.remote(_do).options(**asked)
        given = (self.spec.to_json(), asdict(job), self.board, name)
        reference = task.remote(*given)
        self.pending[reference] = (job, name)

    def wait(self) -> list[tuple[ChainJob, Outcome]]:
        """Wait for at least one job; what could not be done on any node is an outcome too."""
        ready: list[Any] = []
        while not ready:
            look = None if self.board is None else LOOK
            ready, _ = self.ray.wait(list(self.pending), num_returns=1, timeout=look)
            self._hear()
        found = []
        for reference in ready:
            job, name = self.pending.pop(reference)
            hand_on(["gone"], name)
            try:
                answer = self.ray.get(reference)
            except self.ray.exceptions.RayTaskError as error:  # our own code raised on the node
                outcome = Outcome(f"{type(error.cause).__name__}: {error.cause}")
            except self.ray.exceptions.RayError as error:
                first = str(error).strip().partition("\n")[0]
                outcome = Outcome(f"{type(error).__name__}: {first} (after {RETRIES} retries)")
            else:
                outcome = Outcome.from_json(answer["outcome"])
                if answer["log"]:
                    self.logs.mkdir(parents=True, exist_ok=True)
                    with open(self.logs / f"{name}.log", "a") as log:
                        log.write(answer["log"])
            found.append((job, outcome))
        return found

    def _hear(self) -> None:
        """Hand on what the workers have said since the last time."""
        if self.board is None:
            return
        try:
            told = self.ray.get(self.board.read.remote(), timeout=PATIENCE)
        except self.ray.exceptions.RayError:  # its node is lost, or slow: only words are
            return
        running = {name for _, name in self.pending.values()}
        for name, event in told:
            if name in running:
                hand_on(event, name)

    def collect_timings(
        self, request: TimingRequest, *, progress: Callable[[str], None], checkpoint: Path
    ) -> RawTimings:
        """Time files as `compress.timing.collect` does, on a node where nothing else runs.

        Nothing here shows the progress, and that machine has no place for a checkpoint.
        """
        if self.spec.suite.threads is None:  # not those of this machine: all that the node has
            request = replace(request, threads=None)
        contents = {name: Path(path).read_bytes() for name, path in request.files.items()}
        last: Exception | None = None
        for _ in range(RETRIES):
            task = self.ray.remote(_time).options(max_retries=0, **self._whole_node())
            try:
                answer = self.ray.get(task.remote(contents, replace(request, files={})))
                return RawTimings.from_json(answer)
            except self.ray.exceptions.RayError as error:  # the node is gone: take another
                last = error
        raise WorkerFailed(f"no node of the cluster lived through the timing: {last}")

    def run_gpu_stage(self, job: GpuJob) -> Outcome:
        with contextlib.closing(self.here()) as executor:
            return executor.run_gpu_stage(job)

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"] and "CPU" in node["Resources"]]

    def _whole_node(self) -> dict[str, Any]:
        """Return what asks for all of the best node: with a GPU if the run uses one."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        wanted = self.spec.device == "cuda"
        nodes = sorted(
            self._nodes(),
            key=lambda node: (
                wanted and node["Resources"].get("GPU", 0) > 0,
                node["Resources"]["CPU"],
                node["NodeID"],
            ),
        )
        if not nodes:
            raise WorkerFailed("the Ray cluster has no node left")
        resources, name = nodes[-1]["Resources"], nodes[-1]["NodeID"]
        return {
            "num_cpus": resources["CPU"],
            "num_gpus": resources.get("GPU", 0),
            "scheduling_strategy": NodeAffinitySchedulingStrategy(name, soft=False),
        }

    def close(self) -> None:
        """Cancel what runs; leave the cluster if this run has joined it."""
        for reference in self.pending:
            self.ray.cancel(reference, force=True)
        self.pending.clear()
        if self.ours:
            self.ray.shutdown()


# --- on the nodes -------------------------------------------------------------------------

_executors: dict[str, LocalExecutor] = {}
"""By spec: the next job of a run that comes to this worker finds the data loaded."""


@atexit.register
def _leave() -> None:
    """End this worker's processes, and remove what they have left on its disk."""
    for old in _executors.values():
        old.close()
        shutil.rmtree(old.scratch, ignore_errors=True)
    _executors.clear()


class _Board:
    """Where workers write what they are doing, for the run to read."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def write(self, name: str, event: Any) -> None:
        self.told.append((name, event))

    def read(self) -> list[tuple[str, Any]]:
        told, self.told = self.told, []
        return told


class _Writer:
    """A listener that writes to the board, under the name of a job."""

    def __init__(self, board: Any, name: str) -> None:
        self.board, self.name = board, name
        self.take(["gone"])  # another worker may have had this job before, and be lost

    def take(self, event: Event, source: str = "") -> None:
        if event != ["gone"] or not source:  # the process of a step, not this worker
            self.board.write.remote(self.name, list(event))


def _do(
    spec: dict[str, Any], job: dict[str, Any], board: Any = None, name: str = ""
) -> dict[str, Any]:
    """Do a job on this node (JSON in, JSON out), and say on the board what is being done."""
    if board is None:
        return _done(spec, job)
    with listening(_Writer(board, name)), stage(f"on {_node()}", heading=True):
        return _done(spec, job)


def _node() -> str:
    return str(_ray().util.get_node_ip_address())


def _done(spec: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    key = digest(spec)
    if key not in _executors:
        _leave()
        place = Path(tempfile.mkdtemp(prefix="compress-job-"))
        _executors[key] = LocalExecutor(RunSpec.from_json(spec), place / "logs", place)
    executor = _executors[key]
    outcome = executor.run(job_from_json(job), "job")
    log = executor.logs / "job.log"
    text = log.read_bytes()[-LOG:].decode(errors="replace") if log.exists() else ""
    log.unlink(missing_ok=True)
    return {"outcome": asdict(outcome), "log": text}


def _time(contents: dict[str, bytes], request: TimingRequest) -> dict[str, Any]:
    """Time files of these contents on this node (JSON out)."""
    with tempfile.TemporaryDirectory(prefix="compress-timing-") as folder:
        files = {}
        for number, (name, content) in enumerate(contents.items()):
            files[name] = Path(folder) / f"{number}.onnx"
            files[name].write_bytes(content)
        return collect(replace(request, files=files)).to_json()
