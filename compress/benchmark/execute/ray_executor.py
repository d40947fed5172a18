"""A run's jobs on a Ray cluster that is already there: `--executor ray` or `ray:ADDRESS`.

Steps that train run side by side, as many as the cluster has CPUs and GPUs for. Timing requests
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
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.benchmark.execute.executor import ChainJob, ExecutorFactory, GpuJob, Outcome
from compress.benchmark.execute.local_executor import LocalExecutor, local_executor
from compress.benchmark.execute.run_spec import RunSpec
from compress.benchmark.plan.plan import Plan
from compress.errors import UserError, clause, unknown
from compress.system.progress import Event, hand_on, listening, stage
from compress.timing.collect import TimingRequest, collect
from compress.timing.launch import WorkerFailed
from compress.timing.raw_timings import RawTimings

RETRIES = 3
"""How often a job is given to another worker after one was lost."""
MANY = 10_000
LOOK, PATIENCE = 1.0, 10.0
"""Seconds between two looks at the workers' progress, and to wait for an answer."""
LOG = 1 << 16
"""Bytes of a job's log that come back from another machine."""


def executor_named(name: str) -> ExecutorFactory:
    """Return the factory of the executor of a name: `local`, `ray` or `ray:ADDRESS`."""
    kind, _, address = name.partition(":")
    if kind == "local" and not address:
        return local_executor
    if kind != "ray":
        raise unknown("executor", name, ["local", "ray", "ray:ADDRESS"])
    _ray()
    return functools.partial(RayExecutor, address=address or "auto")


def _ray() -> Any:
    # Ray reports on its use over the network unless this is set.
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
        self.local = functools.partial(local_executor, plan, spec, logs, scratch)
        self.joined = not self.ray.is_initialized()
        if self.joined:
            try:
                self.ray.init(address=address, log_to_driver=False, logging_level="warning")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UserError(
                    f"there is no Ray cluster at {address!r}: {clause(error)}. Start one "
                    f"with `ray start --head`"
                ) from error
        self.pending: dict[Any, tuple[ChainJob, str]] = {}
        self.step_resources = {
            "num_cpus": spec.step_threads,
            "num_gpus": 1 if spec.device == "cuda" else 0,
        }
        self._check_size()
        # Where nothing is shown, workers report nothing.
        self.board = self.ray.remote(_Board).options(num_cpus=0).remote() if spec.progress else None
        self.about = (
            f"steps ran on a Ray cluster of {len(self._nodes())} nodes, each in a process of its "
            f"own; all files were timed together on one node, with nothing beside them, and "
            f"those on a GPU on the machine that started the run"
        )

    def _check_size(self) -> None:
        """Refuse what no node can ever run: Ray would wait for such a node for ever."""
        cpus, gpus = self.step_resources.values()
        nodes = self._nodes()
        if not any(node["CPU"] >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            self.close()
            most = max((node["CPU"] for node in nodes), default=0)
            raise UserError(
                f"no node of the Ray cluster has {cpus} CPUs"
                f"{' and a GPU' if gpus else ''} for a step; the largest has {most:.0f} CPUs: "
                f"use --step-threads {max(1, int(most))} or less"
                f"{', or --device cpu' if gpus else ''}"
            )

    @property
    def side_by_side(self) -> int:
        """How many steps the nodes that are there have room for; at least one, which would wait."""
        asked = {"CPU": self.step_resources["num_cpus"], "GPU": self.step_resources["num_gpus"]}
        rooms = [
            min(int(node.get(name, 0) // each) for name, each in asked.items() if each)
            for node in self._nodes()
        ]
        return max(1, sum(rooms))

    def submit(self, job: ChainJob, name: str) -> None:
        """Give a job to the cluster."""
        task = self.ray.remote(_do).options(max_retries=RETRIES, **self.step_resources)
        self.pending[task.remote(self.spec, job, self.board, name)] = (job, name)

    def wait(self) -> list[tuple[ChainJob, Outcome]]:
        """Wait for at least one job; what could not be done on any node is an outcome too."""
        ready: list[Any] = []
        while not ready:
            timeout = None if self.board is None else LOOK
            ready, _ = self.ray.wait(list(self.pending), num_returns=1, timeout=timeout)
            self._show_progress()
        return [self._finish(reference) for reference in ready]

    def _finish(self, reference: Any) -> tuple[ChainJob, Outcome]:
        job, name = self.pending.pop(reference)
        hand_on(["gone"], name)
        try:
            outcome, text = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:  # our own code raised on the node
            return job, Outcome(f"{type(error.cause).__name__}: {error.cause}")
        except self.ray.exceptions.RayError as error:
            first = str(error).strip().partition("\n")[0]
            return job, Outcome(f"{type(error).__name__}: {first} (after {RETRIES} retries)")
        if text:
            self.logs.mkdir(parents=True, exist_ok=True)
            with open(self.logs / f"{name}.log", "a") as log:
                log.write(text)
        return job, outcome

    def _show_progress(self) -> None:
        """Hand on what the workers have reported since the last time."""
        if self.board is None:
            return
        try:
            reports = self.ray.get(self.board.read.remote(), timeout=PATIENCE)
        except self.ray.exceptions.RayError:  # its node is lost, or slow: it is progress alone
            return
        running = {name for _, name in self.pending.values()}
        for name, event in reports:
            if name in running:
                hand_on(event, name)

    def collect_timings(
        self, request: TimingRequest, *, progress: Callable[[str], None], checkpoint: Path
    ) -> RawTimings:
        """Time files as `compress.timing.collect` does, on a node where nothing else runs.

        No progress is shown here, and that machine has no place for a checkpoint.
        """
        if self.spec.suite.threads is None:  # not those of this machine: all that the node has
            request = replace(request, threads=None)
        contents = {name: Path(path).read_bytes() for name, path in request.files.items()}
        last: Exception | None = None
        for _ in range(RETRIES):
            task = self.ray.remote(_time).options(max_retries=0, **self._whole_node())
            reference = task.remote(contents, replace(request, files={}))
            try:
                timings: RawTimings = self.ray.get(reference)
                return timings
            except self.ray.exceptions.RayError as error:  # the node is gone: take another
                last = error
        raise WorkerFailed(f"no node of the cluster lived through the timing: {last}")

    def run_gpu_stage(self, job: GpuJob) -> Outcome:
        with contextlib.closing(self.local()) as executor:
            return executor.run_gpu_stage(job)

    def _nodes(self) -> list[dict[str, Any]]:
        """Return the resources of every living node, and its `NodeID`."""
        nodes = [node for node in self.ray.nodes() if node["Alive"] and "CPU" in node["Resources"]]
        return [{**node["Resources"], "NodeID": node.get("NodeID")} for node in nodes]

    def _whole_node(self) -> dict[str, Any]:
        """Return the options that request all of the best node: with a GPU if the run uses one."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        cuda = self.spec.device == "cuda"
        best = max(
            self._nodes(),
            key=lambda node: (cuda and node.get("GPU", 0) > 0, node["CPU"], node["NodeID"]),
            default=None,
        )
        if best is None:
            raise WorkerFailed("the Ray cluster has no node left")
        return {
            "num_cpus": best["CPU"],
            "num_gpus": best.get("GPU", 0),
            "scheduling_strategy": NodeAffinitySchedulingStrategy(best["NodeID"], soft=False),
        }

    def close(self) -> None:
        """Cancel what runs; leave the cluster if this run has joined it."""
        for reference in self.pending:
            self.ray.cancel(reference, force=True)
        self.pending.clear()
        if self.joined:
            self.ray.shutdown()


# --- on the nodes -------------------------------------------------------------------------

_executors: list[LocalExecutor] = []
"""At most one, of the run that this worker served last: its next job finds the data loaded."""


@atexit.register
def _leave() -> None:
    """End this worker's processes, and remove what they have left on its disk."""
    while _executors:
        executor = _executors.pop()
        executor.close()
        shutil.rmtree(executor.scratch, ignore_errors=True)


class _Board:
    """Where workers write their progress, for the run to read."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, Any]] = []

    def write(self, name: str, event: Any) -> None:
        self.reports.append((name, event))

    def read(self) -> list[tuple[str, Any]]:
        reports, self.reports = self.reports, []
        return reports


class _Writer:
    """A listener that writes to the board, under the name of a job."""

    def __init__(self, board: Any, name: str) -> None:
        self.board, self.name = board, name
        self.take(["gone"])  # another worker may have had this job before, and be lost

    def take(self, event: Event, source: str = "") -> None:
        if event != ["gone"] or not source:  # the process of a step, not this worker
            self.board.write.remote(self.name, list(event))


def _do(spec: RunSpec, job: ChainJob, board: Any, name: str) -> tuple[Outcome, str]:
    """Do a job on this node, with its progress on the board; return its outcome and log."""
    if board is None:
        return _run(spec, job)
    with listening(_Writer(board, name)), stage(f"on {_node()}", heading=True):
        return _run(spec, job)


def _node() -> str:
    return str(_ray().util.get_node_ip_address())


def _run(spec: RunSpec, job: ChainJob) -> tuple[Outcome, str]:
    if not _executors or _executors[0].spec != spec:
        _leave()
        folder = Path(tempfile.mkdtemp(prefix="compress-job-"))
        _executors.append(LocalExecutor(spec, folder / "logs", folder))
    [executor] = _executors
    outcome = executor.run(job, "job")
    log = executor.logs / "job.log"
    text = log.read_bytes()[-LOG:].decode(errors="replace") if log.exists() else ""
    log.unlink(missing_ok=True)
    return outcome, text


def _time(contents: Mapping[str, bytes], request: TimingRequest) -> RawTimings:
    """Time files of these contents on this node."""
    with tempfile.TemporaryDirectory(prefix="compress-timing-") as folder:
        files = {}
        for number, (name, content) in enumerate(contents.items()):
            files[name] = Path(folder) / f"{number}.onnx"
            files[name].write_bytes(content)
        return collect(replace(request, files=files))
