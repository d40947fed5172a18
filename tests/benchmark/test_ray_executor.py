"""Runs on a Ray cluster: two nodes on this machine, one of which is lost."""

from __future__ import annotations

import io
import sys
import threading
import tomllib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bench_fixtures import small_digits

import compress
from compress.benchmark import run as bench
from compress.benchmark.execute import ray_executor
from compress.benchmark.execute.executor import ChainJob, Outcome
from compress.benchmark.execute.run_spec import Limits, spec_of
from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.suite import Suite
from compress.results.log import Stage
from compress.system.environment import cpu_threads
from compress.system.progress import Display, hand_on, listening
from compress.timing.collect import TimingRequest
from compress.timing.raw_timings import RawTimings

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "robustness"


def test_the_error_without_ray_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(compress.UserError, match=r"compress-models\[cluster\]"):
        compress.run(chain="train()", out=tmp_path, executor="ray")


@pytest.fixture
def nodes():
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'compress-models[cluster]'")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield made, second
    ray.shutdown()
    made.shutdown()


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_lost_node_changes_no_row(nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import common

    made, second = nodes
    chains = tomllib.loads(common.SUITE)["chains"]  # all: benchmarks/robustness/ray_nodes.py
    given: dict[str, object] = {"progress": False, "step_threads": 1}
    given["chains"] = tuple(chains[number] for number in (0, 4))
    (tmp_path / "small.toml").write_text(common.SUITE)
    assert compress.bench(tmp_path / "small.toml", out=tmp_path / "local", **given).ok
    lost = threading.Event()

    def lose(record: object) -> None:
        if not lost.is_set():
            lost.set()
            threading.Timer(0.5, made.remove_node, (second, False)).start()

    far = compress.bench(
        tmp_path / "small.toml",
        out=tmp_path / "far",
        store=tmp_path / "store",
        executor="ray",
        on_record=lose,
        **given,
    )
    assert far.ok, str(far)
    assert lost.is_set()
    assert common.rows(tmp_path / "far") == common.rows(tmp_path / "local")
    assert "Ray cluster" in far.about["isolation"]
    assert far.about["timed_on"]["threads"] >= 1
    for name in ("common", "trials", "installed"):
        sys.modules.pop(name, None)


def test_objects_cannot_go_to_other_machines(tmp_path: Path, monkeypatch) -> None:
    class Ray:
        def is_initialized(self) -> bool:
            return True

    monkeypatch.setattr(ray_executor, "_ray", Ray)
    monkeypatch.setattr(bench, "time_records", lambda *_: [(Stage(reason="left out"), [])])
    from bench_fixtures import small_digits

    with pytest.raises(compress.UserError, match="other machines do not have"):
        compress.run(data=small_digits(), chain="train()", out=tmp_path, executor="ray")


class Ray:
    """Runs a task in this process, when it is waited for the second time."""

    exceptions = SimpleNamespace(RayError=OSError, RayTaskError=KeyError)

    def __init__(self) -> None:
        self.looks = 0

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, object]]:
        return [{"Alive": True, "Resources": {"CPU": 8.0}}]

    def remote(self, made: Callable[..., object]) -> Remote:
        return Remote(made)

    def wait(self, tasks: list[Task], num_returns: int, timeout: float | None) -> object:
        self.looks += 1
        if timeout is not None and self.looks % 2:
            return [], tasks
        tasks[0].run()
        return tasks[:1], tasks[1:]

    def get(self, task: Task, timeout: float | None = None) -> object:
        task.run()
        if task.error is not None:
            raise task.error
        return task.answer


class Task:
    def __init__(self, work: Callable[[], object]) -> None:
        self.work, self.done = work, False
        self.answer: object = None
        self.error: OSError | None = None

    def run(self) -> None:
        if self.done:
            return
        self.done = True
        try:
            self.answer = self.work()
        except OSError as error:
            self.error = error


class Remote:
    """A function or a class, as Ray gives it."""

    def __init__(self, made: Callable[..., object]) -> None:
        self.made = made

    def options(self, **_: object) -> Remote:
        return self

    def remote(self, *given: object) -> object:
        if not isinstance(self.made, type):
            return Task(partial(self.made, *given))
        whole = self.made(*given)
        names = [name for name in dir(whole) if not name.startswith("_")]
        methods = {name: getattr(whole, name) for name in names if callable(getattr(whole, name))}
        return SimpleNamespace(**{name: Method(method) for name, method in methods.items()})


class Method:
    def __init__(self, method: Callable[..., object]) -> None:
        self.method = method

    def remote(self, *given: object) -> Task:
        task = Task(partial(self.method, *given))
        task.run()
        return task


def test_what_every_node_is_doing_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(spec: object, job: ChainJob) -> tuple[Outcome, str]:
        hand_on(["begin", f"step 1 of 1, of {job.chain}", None, "", 0, False, False], "7")
        if job.chain == "a()":
            raise OSError("the node is gone")  # and its step has not ended
        hand_on(["end"], "7")
        hand_on(["gone"], "7")
        return Outcome(), ""

    monkeypatch.setattr(ray_executor, "_ray", Ray)
    monkeypatch.setattr(ray_executor, "_run", run)
    monkeypatch.setattr(ray_executor, "_node", lambda: "10.0.0.3")
    suite = Suite("test", "digits", "mlp(width=8)", ("train()",), controls=False)
    plan = make_plan(suite, data=small_digits())
    spec = spec_of(plan, "", tmp_path, tmp_path, limits=Limits(), progress=True)
    named, stream = replace(plan, given=False), io.StringIO()
    display = Display(stream, lambda: 0.0)
    with listening(display):
        executor = ray_executor.RayExecutor(named, spec, tmp_path, tmp_path)
        for chain in ("a()", "b()"):
            executor.submit(ChainJob(chain, 0, 0), chain)
            [(_, outcome)] = executor.wait()
            assert outcome.ok == (chain == "b()")
            assert display.stages == {"": []}
    assert stream.getvalue().splitlines() == [
        "00:00  on 10.0.0.3: step 1 of 1, of a()",
        "00:00    step 1 of 1, of b()",
    ]
    quiet = replace(spec, progress=False)
    assert ray_executor.RayExecutor(named, quiet, tmp_path, tmp_path).board is None


@pytest.mark.parametrize(
    ("cpus", "device", "threads", "room"),
    [([8.0], "cpu", 1, 8), ([8.0, 3.0], "cpu", 2, 5), ([8.0, 3.0], "cuda", 2, 2)],
)
def test_a_cluster_has_room_for_so_many_steps(
    cpus: list[float],
    device: str,
    threads: int,
    room: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the CPUs and GPUs of each node, less what is left of it."""
    nodes = [{"Alive": True, "Resources": {"CPU": n, "GPU": 2.0 * (n > 4)}} for n in cpus]
    nodes.append({"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}})
    monkeypatch.setattr(Ray, "nodes", lambda _: nodes)
    monkeypatch.setattr(ray_executor, "_ray", Ray)
    suite = Suite("test", "digits", "mlp(width=8)", ("train()",), controls=False)
    plan = make_plan(suite, data=small_digits())
    spec = spec_of(plan, "", tmp_path, tmp_path, limits=Limits())
    spec = replace(spec, step_threads=threads, device=device)
    executor = ray_executor.RayExecutor(replace(plan, given=False), spec, tmp_path, tmp_path)
    assert executor.side_by_side == room
    nodes.clear()
    assert executor.side_by_side == 1


class Node(Ray):
    """A Ray of one node that remembers its requests; its timings are empty."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[tuple[Any, ...]] = []

    def remote(self, made: Callable[..., object]) -> Any:
        assert made is ray_executor._time
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._start))

    def _start(self, *arguments: Any) -> None:
        self.requests.append(arguments)

    def get(self, task: object, timeout: float | None = None) -> RawTimings:
        return RawTimings((), "", (), 1, (), 0.0, {})


@pytest.mark.parametrize("named", [None, 1, cpu_threads()])
def test_the_node_times_with_the_threads_that_were_named_or_with_all_of_its_own(
    named: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node()
    monkeypatch.setattr(ray_executor, "_ray", lambda: node)
    monkeypatch.setattr(ray_executor.RayExecutor, "_whole_node", lambda _: {})
    suite = Suite("test", "digits", "mlp(width=8)", ("train()",), controls=False, threads=named)
    plan = make_plan(suite, data=small_digits())
    spec = spec_of(plan, "", tmp_path, tmp_path, limits=Limits())
    executor = ray_executor.RayExecutor(replace(plan, given=False), spec, tmp_path, tmp_path)
    # The plan has a number of threads in any case.
    request = TimingRequest({}, [], {}, "b", threads=plan.threads)
    executor.collect_timings(request, progress=lambda words: None, checkpoint=tmp_path / "none")
    [(_, requested)] = node.requests
    assert requested.threads == named
