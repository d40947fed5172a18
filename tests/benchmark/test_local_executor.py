"""Steps in processes of their own: whatever one does is one row, and all others are fine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_fixtures import small_digits
from torch import nn

import compress
from compress import techniques
from compress.benchmark import run as bench
from compress.benchmark.execute.executor import OVER_BUDGET, ChainJob, GpuJob, Job
from compress.benchmark.execute.local_executor import LocalExecutor, local_executor
from compress.benchmark.execute.run_spec import Limits, spec_of
from compress.benchmark.plan.graph import make_graph
from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.suite import Suite
from compress.errors import UserError
from compress.results.log import Stage

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "robustness"


@pytest.fixture(autouse=True)
def only_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what is measured in further processes, which has tests of its own."""
    monkeypatch.setattr(bench, "memory_records", lambda *_: [])
    monkeypatch.setattr(bench, "time_records", lambda *_: [(Stage(reason="left out"), [])])


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    """Have the misbehaving techniques installed, here and in the processes of steps."""
    monkeypatch.syspath_prepend(str(FOLDER))
    from common import plug_in

    monkeypatch.syspath_prepend(str(plug_in(tmp_path_factory.mktemp("site"))))
    techniques.techniques.cache_clear()
    yield
    techniques.techniques.cache_clear()
    for name in ("hostile", "common", "trials", "installed"):
        sys.modules.pop(name, None)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.usefixtures("hostile")
def test_whatever_a_technique_does_is_one_row(tmp_path: Path) -> None:
    marks = {name: str(tmp_path / name) for name in ("hang", "bomb", "escape")}
    expected = {
        "raise_error()": "ZeroDivisionError: the plug-in divided by zero",
        "leave_by_exit()": "exit status 7 and left no result",
        "ask_to_exit()": "exit status 1 and left no result",
        "segfault()": "signal 11 (SIGSEGV); its log says: Fatal Python error: Segmentation",
        "kill_itself()": "killed by signal 9 (SIGKILL, which is how the kernel ends a process",
        "kill_server()": "ServerFailed: the process that starts the steps has died",
        f"hang(mark={marks['hang']!r})": "it took more than 6 s and was ended",
        "eat_memory_plainly()": "allocate memory",
        # Behind the back of the limit on its own allocations.
        "eat_memory()": "more than the 2 GB that it may",
        "return_nan()": "not finite",
        "other_shape()": "changed the shape of the outputs from (2, 10) to (2, 20)",
        "return_nothing()": "return_nothing() returned NoneType and not a Model",
        "chatter()": "ValueError: <img src=x",
    }
    started = time.monotonic()
    results = compress.run(
        data=small_digits(),
        model="mlp(width=8)",
        chain=[
            "train(epochs=1)",
            *expected,
            "change_input()",
            f"fork_bomb(mark={marks['bomb']!r})",
            f"escape(mark={marks['escape']!r})",
            "prune_weights(sparsity=0.5)",
        ],
        out=tmp_path / "out",
        progress=False,
        step_timeout=6,
        step_memory=2,
    )
    assert time.monotonic() - started < 120
    rows = {row["chain"]: row for row in results.rows}
    for chain, words in expected.items():
        assert rows[chain]["status"] == "failed", chain
        assert words in rows[chain]["error"], chain
    fine = ["baseline", f"fork_bomb(mark={marks['bomb']!r})", "prune_weights(sparsity=0.5)"]
    assert [rows[chain]["status"] for chain in fine] == ["ok"] * 3
    # What one step does to the teacher in its own process is nobody else's.
    assert rows["change_input()"]["nonzero_params"] == 0
    assert rows["prune_weights(sparsity=0.5)"]["nonzero_params"] > 100
    left = [int(pid) for mark in marks.values() for pid in Path(mark).read_text().split()]
    assert len(left) == 7
    assert not any(map(alive, left))
    assert not list((tmp_path / "out").glob(".scratch-*"))
    assert "about to read address 1" in step_log(tmp_path / "out", "segfault()")
    assert "in compress" in step_log(tmp_path / "out", f"hang(mark={marks['hang']!r})"), (
        "the log says where it hung"
    )
    table = (tmp_path / "out" / "table.md").read_text()
    assert "<script>" not in table
    assert "<img" not in table


def step_log(out: Path, chain: str) -> str:
    lines = map(json.loads, (out / "results.jsonl").read_text().splitlines())
    [row, *_] = [line for line in lines if line["kind"] == "row" and line["chain"] == chain]
    return str(next(r["text"] for r in row["log"] if r["kind"] == "log"))


def test_a_module_that_was_trained_in_this_process_is_trained_on_in_forks(tmp_path: Path) -> None:
    """OpenMP's threads do not survive a fork: without care the child waits for them for ever."""
    data = small_digits()
    module = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
    for _ in range(3):
        module(torch.randn(64, 1, 8, 8)).sum().backward()
    results = compress.run(
        data=data,
        model=module,
        chain=[
            "finetune(epochs=1)",
            "prune_channels(macs=0.5) -> finetune(epochs=1) -> quantize()",
        ],
        out=tmp_path,
        progress=False,
        step_timeout=60,
    )
    assert results.ok, str(results)
    assert results.frame["params"].iloc[2] < results.frame["params"].iloc[0]
    assert not (tmp_path / ".steps").exists() or not list((tmp_path / ".steps").glob("?" * 64))
    assert not list(tmp_path.glob(".scratch-*"))


CALL = """
import signal, sys
from compress.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored
sys.argv = ["compress-models", "run", "--data", "digits", "--model", "mlp(width=8)",
            "--chain", "train(epochs=4000)", "--out", sys.argv[1]]
main()
"""


def family(pid: int) -> set[int]:
    from compress.system.memory import family as found

    return set(found(pid))


@pytest.mark.parametrize("how", ["kill -9", "SIGTERM", "SIGINT"])
def test_nothing_lives_on_when_a_run_is_ended(tmp_path: Path, how: str) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", CALL, str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with run:
        started: set[int] = set()
        until = time.monotonic() + 60
        while len(started) < 3 and time.monotonic() < until:
            time.sleep(0.1)
            started |= family(run.pid)
        time.sleep(1.0)
        started |= family(run.pid)
        assert len(started) >= 3, "the run, its server, a step"
        number = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
        os.kill(run.pid, number[how])
        assert run.stderr is not None
        said = run.stderr.read()
    assert run.returncode == {"kill -9": -9, "SIGTERM": 143, "SIGINT": 130}[how], said
    until = time.monotonic() + 10
    while any(map(alive, started)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, started))


EARLY = """
from compress.benchmark.execute import fork_client as started
started.start_base()
print(started._base[0][1].pid, flush=True)
input()
"""


def test_what_is_still_importing_ends_with_its_run(tmp_path: Path) -> None:
    # A module that a server imports first takes long: the kill comes before the socket is read.
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(60)\n")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-c", EARLY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    ) as run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        time.sleep(1.0)
        assert alive(pid), "it imports"
        run.kill()
    until = time.monotonic() + 5
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert not alive(pid)


def test_a_store_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(compress.UserError, match="cannot write to the store"):
        compress.run(chain="train()", out=tmp_path / "out", store=tmp_path / "file")


def test_wrong_limits_are_refused_before_any_work(tmp_path: Path) -> None:
    for options, words in (
        ({"step_timeout": 0}, "step_timeout must be positive"),
        ({"step_memory": 0.01}, "give at least that"),
        ({"pixel_cache": -1}, "pixel_cache is a finite number of gigabytes, 0 or more, not -1"),
        ({"step_threads": 0}, "step_threads must be at least 1"),
        ({"executor": "slurm"}, "unknown executor 'slurm'"),
        ({"executor": "locale"}, "Did you mean 'local'"),
    ):
        with pytest.raises(compress.UserError, match=words):
            compress.run(chain="train()", out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("job", "device", "limited"),
    [
        (ChainJob("baseline", 0, 0), "cpu", True),
        (ChainJob("baseline", 0, 0), "cuda", False),
        (GpuJob("folder"), "cpu", False),
        (GpuJob("folder"), "cuda", False),
    ],
)
def test_what_uses_cuda_has_no_limit_on_its_addresses(
    job: Job, device: str, limited: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU stage runs on CUDA also where the steps were told to compute on the CPU."""
    sent: list[dict[str, object]] = []

    class Server:
        def send(self, message: dict[str, object]) -> None:
            sent.append(message)

        def receive(self, timeout: float) -> dict[str, object]:
            return {"status": 1}

        def close(self) -> None:
            pass

    monkeypatch.setattr(LocalExecutor, "_start_server", lambda self: Server())
    suite = Suite("test", "digits", "mlp(width=8)", ("train()",), controls=False)
    plan = make_plan(suite, data=small_digits())
    spec = spec_of(plan, "", tmp_path, tmp_path, limits=Limits(memory=10**9))
    executor = LocalExecutor(replace(spec, device=device), tmp_path, tmp_path)
    executor.run(job, "job")
    assert sent[0]["memory"] == (10**9 if limited else None)
    assert executor.memory == 10**9, "it is watched from outside in any case"


def test_a_job_ends_when_nothing_is_left_of_a_budget(tmp_path: Path) -> None:
    suite = Suite("test", "digits", "cnn-small", ("train(epochs=500)",), controls=False)
    plan = make_plan(suite, step_threads=1)
    graph = make_graph(plan)
    spec = spec_of(
        plan, graph.setting, tmp_path / "steps", tmp_path / "private", limits=Limits(seconds=600)
    )
    executor = local_executor(plan, spec, tmp_path / "logs", tmp_path)
    try:
        job = ChainJob("baseline", 0, 0, seconds=0.5)
        outcome = executor.run(job, "job")  # type: ignore[attr-defined]
    finally:
        executor.close()
    assert outcome.error.startswith(f"StepEnded: {OVER_BUDGET}: it was ended after 0.5 s")


def test_what_the_process_that_forks_refuses_is_said_as_the_run_would(tmp_path: Path) -> None:
    plan = make_plan(Suite("test", "digits", "mlp", ("train()",), controls=False), step_threads=1)
    spec = spec_of(plan, make_graph(plan).setting, tmp_path, tmp_path, limits=Limits())
    executor = LocalExecutor(replace(spec, fingerprint="of other data"), tmp_path, tmp_path)
    with pytest.raises(UserError, match=r"^the data is not that of the run: it has changed, or"):
        executor.run(ChainJob("baseline", 0, 0), "job")
