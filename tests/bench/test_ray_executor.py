"""Runs on a Ray cluster: two nodes on this machine, one of which is lost."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import compress
from compress.bench import run as bench
from compress.bench.execute import ray_executor
from compress.bench.execute.limits import Limits
from compress.bench.execute.local_executor import Site
from compress.system.environment import cpu_threads
from compress.timing.collect import Effort
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
    (tmp_path / "small.toml").write_text(common.SUITE)
    given = {"progress": False, "step_threads": 1}
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
    monkeypatch.setattr(bench, "time_records", lambda *_: ([], {}))
    from bench_fixtures import small_digits

    with pytest.raises(compress.UserError, match="other machines do not have"):
        compress.run(data=small_digits(), chain="train()", out=tmp_path, executor="ray")


class Node:
    """A Ray of one node that remembers what it was asked to do; its timings are empty."""

    exceptions = SimpleNamespace(RayError=RuntimeError)

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "NodeID": "one", "Resources": {"CPU": 64.0}}]

    def remote(self, function: Any) -> Any:
        assert function is ray_executor._time
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._start))

    def _start(self, *arguments: Any) -> None:
        self.asked.append(arguments)

    def get(self, _: None) -> dict[str, Any]:
        return RawTimings((), "", (), 1, (), 0.0, {}).to_json()


@pytest.mark.parametrize("named", [None, 1, cpu_threads()])
def test_the_node_times_with_the_threads_that_were_named_or_with_all_of_its_own(
    named: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node()
    monkeypatch.setattr(ray_executor, "_ray", lambda: node)
    monkeypatch.setattr(ray_executor.Cluster, "_whole_node", lambda _: {})
    recipe = {"suite": {"threads": named}, "device": "cpu", "step_threads": 1}
    executor = ray_executor.Cluster(Site(recipe, tmp_path, tmp_path), Limits())
    # As `time_records` calls it: the plan has a number of threads in any case.
    options = {"baseline": "b", "threads": named or cpu_threads(), "settings": ("cpu",)}
    executor.collect({}, [np.zeros(1)], {}, effort=Effort(), kept=None, progress=False, **options)
    [(_, _, _, asked)] = node.asked
    assert asked.get("threads") == named
