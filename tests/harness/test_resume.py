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
    chains = [suite["chains"][number] for number in (0, 2, 4)]
    (folder / "small.toml").write_text(
        "\n".join(
            f"{key} = {json.dumps(value)}" for key, value in {**suite, "chains": chains}.items()
        )
    )
    assert compress.bench(folder / "small.toml", out=folder / "out", progress=False).ok
    return folder


def test_kills_at_three_moments_and_a_fresh_start(common, undisturbed: Path, tmp_path: Path):
    words = common.command("bench", str(undisturbed / "small.toml"), "--out", str(tmp_path))
    for seconds in (4.5, 6.0, 7.5):
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert common.rows(tmp_path) == common.rows(undisturbed / "out")
    begun = [
        line.split()[2]
        for log in (tmp_path / "logs").glob("*.log")
        for line in log.read_text().splitlines()
        if " kept " in line
    ]
    assert len(begun) == len(set(begun)) == 10, "nothing that was kept was computed again"
    before = {path: path.stat().st_ctime_ns for path in (tmp_path / ".steps").iterdir()}
    again = subprocess.run([*words, "--fresh"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert common.rows(tmp_path) == common.rows(undisturbed / "out")
    after = {path: path.stat().st_ctime_ns for path in (tmp_path / ".steps").iterdir()}
    entries = {path for path in before if len(path.name) == 64}
    assert len(entries) == 11, "and what the teacher said"
    assert entries <= after.keys()
    assert not any(before[path] == after[path] for path in entries), "all computed anew"
