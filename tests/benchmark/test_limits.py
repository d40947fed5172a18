"""What a process and its children take, and what is free."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from compress.benchmark.execute import job, run_spec
from compress.benchmark.execute.executor import ChainJob
from compress.benchmark.execute.run_spec import Limits, Stores
from compress.benchmark.plan.plan import make_plan
from compress.benchmark.plan.suite import Suite
from compress.benchmark.store.store import Store
from compress.errors import UserError
from compress.system import memory
from compress.system.memory import family, free_memory, resident

EATER = (
    "import time; kept = bytearray(b'x') * 100_000_000; print('ready', flush=True); time.sleep(60)"
)


def test_the_memory_of_a_process_counts_its_descendants() -> None:
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {EATER!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(family(process.pid)) == 2
        assert 100e6 < resident(process.pid) < 300e6
        os.killpg(process.pid, 9)
    time.sleep(0.05)
    assert resident(process.pid) == 0


def test_psutil_serves_where_the_kernel_lists_no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", EATER], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        listed, held = family(os.getpid()), resident(process.pid)
        monkeypatch.setattr(memory, "PROC", Path("/nowhere"))
        assert sorted(family(os.getpid())) == sorted(listed)
        assert process.pid in listed
        # Files that are mapped count, too: psutil does not tell them apart.
        assert held < resident(process.pid) < held + 50e6
        process.kill()
    assert family(process.pid) == [process.pid]
    assert resident(process.pid) == 0


def group(folder: Path, limit: str, used: int, stat: dict[str, int] | None = None) -> None:
    """Write a control group, of version 2 or, where the folder says so, 1."""
    old = "memory" in folder.parts
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(f"{limit}\n")
    (folder / ("memory.usage_in_bytes" if old else "memory.current")).write_text(f"{used}\n")
    if stat is not None:
        lines = [f"{name} {value}" for name, value in {"anon": 7, **stat}.items()]
        (folder / "memory.stat").write_text("\n".join(lines))


@pytest.fixture
def free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Return what is free to a process in some groups, on a machine where 800 kB are."""
    machine = SimpleNamespace(available=800 * 1024)
    monkeypatch.setattr("compress.system.memory.psutil.virtual_memory", lambda: machine)

    def found(groups: str) -> int:
        (tmp_path / "own").write_text(groups)
        return free_memory(tmp_path / "own", tmp_path / "sys")

    return found


def test_free_memory_is_the_least_of_machine_and_container(
    tmp_path: Path, free: Callable[[str], int]
) -> None:
    assert free("0::/\n") == 800 * 1024
    group(tmp_path / "sys", "500000", 100_000)
    assert free("0::/\n") == 400_000
    group(tmp_path / "sys", "max", 100_000)
    assert free("0::/\n") == 800 * 1024
    (tmp_path / "own").unlink()
    assert free_memory(tmp_path / "own", tmp_path / "sys") == 800 * 1024


def test_what_a_process_may_still_have_is_no_more_than_its_own_limit() -> None:
    """A step that is limited must not read half of the machine's memory full of images."""
    code = (
        "import resource, psutil\n"
        "from compress.system.memory import free_memory\n"
        "data = psutil.Process().memory_info().data\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (data + 10**8, data + 10**8))\n"
        "left = free_memory()\n"
        "kept = bytearray(4 * 10**7)\n"
        "print(left, free_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 9.5e7 < before <= 1.01e8
    assert 3.9e7 < before - after < 4.5e7


def test_what_files_fill_is_free(tmp_path: Path, free: Callable[[str], int]) -> None:
    """Else a container whose cache is warm would have nothing left, and every step would fail."""
    warm = {"inactive_file": 200_000, "active_file": 150_000, "slab_reclaimable": 40_000}
    warm |= {"file": 350_000, "active_anon": 90_000, "slab_unreclaimable": 10_000}
    group(tmp_path / "sys", "500000", 499_000, warm)
    assert free("0::/\n") == 1000 + 200_000 + 150_000 + 40_000
    group(tmp_path / "sys", "500000", 600_000, {"inactive_file": 0})
    assert free("0::/\n") == 0, "over its limit, as a group may be for a moment"


def test_the_limits_of_the_groups_above_hold_too(
    tmp_path: Path, free: Callable[[str], int]
) -> None:
    group(tmp_path / "sys", "max", 900_000)
    group(tmp_path / "sys" / "user.slice", "700000", 400_000, {"inactive_file": 100_000})
    group(tmp_path / "sys" / "user.slice" / "job", "600000", 50_000)
    assert free("0::/user.slice/job/deeper\n") == 400_000
    assert free("0::/user.slice/other\n") == 400_000
    assert free("0::/elsewhere\n") == 800 * 1024
    assert free("0::/../beside\n") == 800 * 1024, "a group outside of what the container sees"


def test_version_1_has_other_names(tmp_path: Path, free: Callable[[str], int]) -> None:
    """Its statistics of the group alone have the names that those of version 2 have."""
    stat = {"inactive_file": 1, "total_inactive_file": 30_000, "total_active_file": 5_000}
    group(tmp_path / "sys" / "memory" / "docker", "500000", 100_000, stat)
    own = "9:name=systemd:/docker\n4:cpuset,memory:/docker/inner\n0::/\n"
    assert free(own) == 435_000
    group(tmp_path / "sys" / "memory" / "docker" / "inner", str(2**63 - 4096), 100_000, stat)
    assert free(own) == 435_000


def test_the_limit_is_what_is_given_or_most_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Limits(memory=10**9).bytes() == 10**9
    free = free_memory()
    assert 0.8 * free < Limits().bytes() < free
    monkeypatch.setattr(run_spec, "free_memory", lambda: 10**10)
    assert Limits().bytes() == 9 * 10**9
    for little in (run_spec.TORCH, run_spec.LEAST):
        monkeypatch.setattr(run_spec, "free_memory", lambda little=little: little)
        assert Limits().bytes() == run_spec.LEAST, "enough to start in any case"
    monkeypatch.setattr(run_spec, "free_memory", lambda: run_spec.TORCH - 1)
    with pytest.raises(UserError, match=r"only 268 MB of memory is free.* raise the container"):
        Limits().bytes()
    assert Limits(memory=10**9).bytes() == 10**9


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_that_is_freed_is_used_again() -> None:
    """Else the kernel would have to clear the pages of large tensors in every step."""
    code = (
        "import resource, sys, torch\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from compress.system.memory import reuse_freed_memory\n"
        "def steps():\n"
        "    for _ in range(6):\n"
        "        torch.ones(10**7).mul(2).add(1)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "with ThreadPoolExecutor(1) as pool:\n"
        "    start = pool.submit(steps).result()\n"
        "    plain = pool.submit(steps).result() - start\n"
        "with ThreadPoolExecutor(1) as pool:\n"
        "    assert reuse_freed_memory()\n"
        "    start = pool.submit(steps).result()\n"
        "    print(plain, pool.submit(steps).result() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 10 * max(after, 1)


def test_a_lack_of_memory_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def advance(work: object, key: object, until: int) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 77070336 bytes")

    plan = make_plan(Suite("s", "digits", "cnn-small", ("train(epochs=1)",)))
    monkeypatch.setattr(job._Work, "advance", advance)
    stores = Stores(Store(tmp_path), Store(tmp_path / "private"))
    outcome = job.perform(ChainJob("baseline", 0, 0), plan, stores)
    assert outcome.error.endswith(job.MEMORY)


def test_a_step_can_start_whatever_its_limit(tmp_path: Path) -> None:
    """A limit below what is mapped already would let no thread start: the step would wait."""
    code = (
        "import os, sys, threading\n"
        "from pathlib import Path\n"
        "from compress.benchmark.execute.fork_server import fork, run_in_child\n"
        "kept = bytearray(300_000_000)\n"
        "out = Path(sys.argv[1])\n"
        "def work(message):\n"
        "    (out / 'small').write_bytes(bytes(50_000_000))\n"
        "    (out / 'large').write_bytes(bytes(400_000_000))\n"
        "parent, pid = os.getpid(), fork()\n"
        "if pid == 0:\n"
        "    message = {'log': str(out / 'log'), 'scratch': str(out), 'memory': 2**28}\n"
        "    run_in_child(work, message, parent)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60)
    log = (tmp_path / "log").read_text()
    assert (tmp_path / "small").exists(), log
    assert not (tmp_path / "large").exists(), "what is far beyond the limit fails all the same"
    assert done.returncode == 1
    assert "MemoryError" in log
