"""What a process and its children take, and what is free."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from compress.bench.execute.limits import Limits, family, free_memory, resident

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


def test_free_memory_is_the_least_of_machine_and_container(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable: 800 kB\n")
    group = tmp_path / "group"
    group.mkdir()
    assert free_memory(tmp_path / "meminfo", group) == 800 * 1024
    (group / "memory.max").write_text("500000\n")
    (group / "memory.current").write_text("100000\n")
    assert free_memory(tmp_path / "meminfo", group) == 400_000
    (group / "memory.max").write_text("max\n")
    assert free_memory(tmp_path / "meminfo", group) == 800 * 1024
    assert free_memory(tmp_path / "nothing", group) is None


def test_the_limit_is_what_is_given_or_most_of_what_is_free() -> None:
    assert Limits(memory=10**9).bytes() == 10**9
    free, limit = free_memory(), Limits().bytes()
    assert free is not None
    assert limit is not None
    assert 0.8 * free < limit < free
