"""A run that is killed, and started again, gives the rows of one that was not (a sample).

`benchmarks/robustness/kills.py` does this by the dozen.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import compress

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "robustness"


@pytest.fixture(scope="module")
def common():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        import common

        yield common
    for name in ("common", "trials", "installed"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def undisturbed(common, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    suite = tomllib.loads(common.SUITE)
    chains = [suite["chains"][number] for number in (0, 4)]
    (folder / "small.toml").write_text(
        "\n".join(
            f"{key} = {json.dumps(value)}" for key, value in {**suite, "chains": chains}.items()
        )
    )
    assert compress.bench(folder / "small.toml", out=folder / "out", progress=False).ok
    return folder


def kept(out: Path) -> set[str]:
    """Return the keys of what a run's store holds."""
    store = out / ".steps"
    return (
        {path.name for path in store.iterdir() if len(path.name) == 64} if store.exists() else set()
    )


def test_kills_at_two_moments_and_a_fresh_start(common, undisturbed: Path, tmp_path: Path):
    suite = undisturbed / "small.toml"
    words = common.command("bench", str(suite), "--out", str(tmp_path))
    for results in (1, 5):
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while len(kept(tmp_path)) < results:
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert compress.bench(suite, out=tmp_path, progress=False).ok
    assert common.rows(tmp_path) == common.rows(undisturbed / "out")
    begun = [
        line.split()[2]
        for log in (tmp_path / "logs").glob("*.log")
        for line in log.read_text().splitlines()
        if " kept " in line
    ]
    assert len(begun) == len(set(begun)) == 7, "nothing that was kept was computed again"
    before = {key: (tmp_path / ".steps" / key).stat().st_ctime_ns for key in kept(tmp_path)}
    assert len(before) == 8, "and what the teacher said"
    assert compress.bench(suite, out=tmp_path, progress=False, fresh=True).ok
    assert common.rows(tmp_path) == common.rows(undisturbed / "out")
    after = {key: (tmp_path / ".steps" / key).stat().st_ctime_ns for key in kept(tmp_path)}
    assert before.keys() == after.keys()
    assert not any(before[key] == after[key] for key in before), "all computed anew"


def test_two_runs_on_one_store_compute_everything_once(
    common, undisturbed: Path, tmp_path: Path
) -> None:
    suite, store, outs = undisturbed / "small.toml", tmp_path / "store", ("one", "two")
    started = [
        subprocess.Popen(
            common.command(
                *("bench", str(suite), "--store", str(store), "--out", str(tmp_path / out))
            ),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        for out in outs
    ]
    assert [process.wait(timeout=240) for process in started] == [0, 0]
    for out in outs:
        assert common.rows(tmp_path / out) == common.rows(undisturbed / "out")
    begun = [
        line.split()[2]
        for out in outs
        for log in (tmp_path / out / "logs").glob("*.log")
        for line in log.read_text().splitlines()
        if " begin " in line
    ]
    assert len(begun) == len(set(begun)) == 7
